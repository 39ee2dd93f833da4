"""Plans the files of a NeMo checkpoint from a Hugging Face model."""

from collections import Counter
from collections.abc import Iterator

from nemo_skills.conversion.byte_ranges import FilePlan, copy_of
from nemo_skills.conversion.dtypes import torch_name
from nemo_skills.conversion.hf_source import CONFIG, HFSource, config_with_dtype, is_tokenizer_file
from nemo_skills.conversion.mapping import chunks
from nemo_skills.conversion.nemo_config import nemo_config
from nemo_skills.conversion.nemo_files import HF_FOLDER, MODEL_CONFIG
from nemo_skills.conversion.result import SOURCES_FILE
from nemo_skills.conversion.torch_dist_writer import ChunkData, plan_weights
from nemo_skills.core.errors import UserError

_PREFIX = "model."
_WEIGHTS = "model_weights"


def plan_nemo(source: HFSource, target: str | None, tokenizer: str | None, file_bytes: int) -> list[FilePlan]:
    """Return all files of the NeMo checkpoint of a model.

    Args:
        source: The model.
        target: The type to cast to, None to keep it.
        tokenizer: Where NeMo is to find the tokenizer; None for the model's folder.
        file_bytes: Size above which another weight file is begun.
    """
    weights = plan_weights(_chunks(source, target), source.config.shape.layers, _PREFIX, file_bytes)
    types = Counter(target or kind.dtype for kind in source.kinds.values())
    where = tokenizer or str(source.folder.absolute())
    text = nemo_config(source.config, source.family, types.most_common(1)[0][0], where)
    kept = {f"{HF_FOLDER}/{CONFIG}": config_with_dtype(source.config_text, target), MODEL_CONFIG: text}
    others = [path for path in source.weights.other_files if path.name not in (CONFIG, SOURCES_FILE)]
    return [
        *(FilePlan(name, (data,)) for name, data in kept.items()),
        *(copy_of(p.name if is_tokenizer_file(p.name) else f"{HF_FOLDER}/{p.name}", p) for p in others),
        *(FilePlan(f"{_WEIGHTS}/{plan.name}", plan.parts) for plan in weights),
    ]


def _chunks(source: HFSource, target: str | None) -> Iterator[ChunkData]:
    shape = source.config.shape
    rows = {rule.nemo: sum(t.shape(shape)[0] for t in rule.hf) for rule in source.family.rules}
    types: dict[str, str] = {}
    for chunk in chunks(source.family, shape):
        key = f"{_PREFIX}{'' if chunk.layer is None else 'decoder.layers.'}{chunk.rule.nemo}"
        stack, offset, one = ((), (), ()) if chunk.layer is None else ((shape.layers,), (chunk.layer,), (1,))
        data = source.data(chunk, target, key)
        if types.setdefault(key, data.target) != data.target:
            names = f"{torch_name(data.target)}, in other layers {torch_name(types[key])}"
            raise UserError(
                f"{source.folder}: tensor {chunk.spans[0].tensor} is {names}; give a type, as in ++dtype=bf16"
            )
        yield ChunkData(
            key=key,
            size=(*stack, rows[chunk.rule.nemo], *chunk.shape[1:]),
            offsets=(*offset, chunk.row, *(0 for _ in chunk.shape[1:])),
            sizes=(*one, *chunk.shape),
            data=data,
        )
