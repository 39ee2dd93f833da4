"""Main: a NeMo checkpoint, a folder or a `.nemo` file, becomes a Hugging Face folder.

`python -m nemo_skills.conversion.nemo_to_hf --help` lists the settings.
"""

import sys

if __name__ == "__main__" and __spec__ is None:
    # started as a file: modules beside it would hide those of Python that have the same name
    del sys.path[0]

from pathlib import Path

from nemo_skills.conversion.byte_ranges import FilePlan
from nemo_skills.conversion.config import ConvertConfig
from nemo_skills.conversion.hf_source import CONFIG, config_with_dtype
from nemo_skills.conversion.mapping import hf_shapes, nemo_rows
from nemo_skills.conversion.nemo_source import NemoSource, open_nemo
from nemo_skills.conversion.result import Result, describe, is_done, number_of_processes, write_result
from nemo_skills.core.errors import require
from nemo_skills.core.hydra import main
from nemo_skills.core.log import get_logger
from nemo_skills.core.safetensors import INDEX_FILE, TensorKind, header, index, split

LOG = get_logger(__name__)


def convert(config: ConvertConfig) -> None:
    """Convert a NeMo checkpoint.

    Raises:
        UserError: the checkpoint cannot be converted, or the result not be written.
    """
    path, output = Path(config.input_model), Path(config.output_model)
    require(
        output.suffix != ".nemo", f"output_model={output}: a Hugging Face model is a folder, not a .nemo file"
    )
    scratch = output.absolute().parent
    with open_nemo(path, config.model_type, config.hf_model_name, scratch) as source:
        names = {piece.path for piece in source.files.slices.values()} if path.is_dir() else {path}
        settings = {"format": "hf", "dtype": config.target_dtype, "hf_model_name": config.hf_model_name}
        sources = describe(path, sorted(names), settings)
        if is_done(output, sources):
            return
        files = plan_hf(source, config)
        size = sum(plan.nbytes for plan in files)
        processes = number_of_processes(config.processes, size)
        LOG.info(
            "converting %s, a %s model of %.2f GB, to Hugging Face", path, source.family.name, size / 1e9
        )
        write_result(Result(output=output, files=files, sources=sources, processes=processes))


def plan_hf(source: NemoSource, config: ConvertConfig) -> list[FilePlan]:
    """Return all files of the Hugging Face folder of a checkpoint."""
    target = config.target_dtype
    shape = source.config.shape
    places = nemo_rows(source.family, shape)
    data = {name: source.data(name, places[name], target) for name in places}
    kinds = {
        name: TensorKind(data[name].target, sizes) for name, sizes in hf_shapes(source.family, shape).items()
    }
    weights = split(kinds, config.shard_bytes)
    plans = [FilePlan(CONFIG, (config_with_dtype(source.config_text, target),)), *source.others]
    for file, names in weights.items():
        of_file = {name: kinds[name] for name in names}
        plans.append(FilePlan(file, (header(of_file), *(data[name] for name in names))))
    if len(weights) > 1:
        plans.append(FilePlan(INDEX_FILE, (index(kinds, weights),)))
    return plans


@main(ConvertConfig)
def nemo_to_hf(config: ConvertConfig) -> None:
    """Convert a NeMo checkpoint to a Hugging Face folder."""
    convert(config)


if __name__ == "__main__":
    nemo_to_hf()
