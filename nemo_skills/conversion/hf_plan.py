"""Plans the files of a Hugging Face folder from a NeMo checkpoint."""

from nemo_skills.conversion.byte_ranges import FilePlan
from nemo_skills.conversion.hf_source import CONFIG, config_with_dtype
from nemo_skills.conversion.mapping import hf_shapes, nemo_rows
from nemo_skills.conversion.nemo_source import NemoSource
from nemo_skills.core.safetensors import INDEX_FILE, TensorKind, header, index, split


def plan_hf(source: NemoSource, target: str | None, shard_bytes: int) -> list[FilePlan]:
    """Return all files of the Hugging Face folder of a checkpoint.

    Args:
        source: The checkpoint.
        target: The type to cast to, None to keep it.
        shard_bytes: Size above which another weight file is begun.
    """
    shape = source.config.shape
    places = nemo_rows(source.family, shape)
    data = {name: source.data(name, places[name], target) for name in places}
    kinds = {
        name: TensorKind(data[name].target, sizes) for name, sizes in hf_shapes(source.family, shape).items()
    }
    weights = split(kinds, shard_bytes)
    plans = [FilePlan(CONFIG, (config_with_dtype(source.config_text, target),)), *source.others]
    for file, names in weights.items():
        of_file = {name: kinds[name] for name in names}
        plans.append(FilePlan(file, (header(of_file), *(data[name] for name in names))))
    if len(weights) > 1:
        plans.append(FilePlan(INDEX_FILE, (index(kinds, weights),)))
    return plans
