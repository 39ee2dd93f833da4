"""Main: a Hugging Face folder becomes a NeMo checkpoint, in a folder or a `.nemo` file.

`python -m nemo_skills.conversion.hf_to_nemo --help` lists the settings.
"""

import sys

if __name__ == "__main__" and __spec__ is None:
    # started as a file: modules beside it would hide those of Python that have the same name
    del sys.path[0]

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from nemo_skills.conversion.byte_ranges import FilePlan, copy_of
from nemo_skills.conversion.config import ConvertConfig
from nemo_skills.conversion.dtypes import torch_name
from nemo_skills.conversion.hf_source import (
    CONFIG,
    HFSource,
    config_with_dtype,
    is_tokenizer_file,
    open_hf,
)
from nemo_skills.conversion.mapping import chunks
from nemo_skills.conversion.nemo_config import nemo_config
from nemo_skills.conversion.nemo_files import HF_FOLDER, MODEL_CONFIG
from nemo_skills.conversion.result import (
    SOURCES_FILE,
    Result,
    describe,
    is_done,
    number_of_processes,
    write_result,
)
from nemo_skills.conversion.torch_dist_writer import ChunkData, plan_weights
from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import main
from nemo_skills.core.log import get_logger

LOG = get_logger(__name__)

_PREFIX = "model."
_WEIGHTS = "model_weights"


def convert(config: ConvertConfig) -> None:
    """Convert a Hugging Face folder.

    Raises:
        UserError: the model cannot be converted, or the result not be written.
    """
    source = open_hf(Path(config.input_model), config.model_type)
    output = Path(config.output_model)
    settings = {"format": "nemo", "dtype": config.target_dtype, "hf_model_name": config.hf_model_name}
    sources = describe(source.folder, [*source.weights.weight_files, source.folder / CONFIG], settings)
    if is_done(output, sources):
        return
    size = sum(kind.nbytes for kind in source.kinds.values())
    processes = number_of_processes(config.processes, size)
    LOG.info("converting %s, a %s model of %.2f GB, to NeMo", source.folder, source.family.name, size / 1e9)
    # a file for each process, with some room for what surrounds the numbers
    file_bytes = config.shard_bytes if processes == 1 else min(config.shard_bytes, size // processes + 2**20)
    files = plan_nemo(source, config, file_bytes)
    result = Result(output=output, files=files, sources=sources, processes=processes)
    write_result(result)


def plan_nemo(source: HFSource, config: ConvertConfig, file_bytes: int) -> list[FilePlan]:
    """Return all files of the NeMo checkpoint of a model."""
    target = config.target_dtype
    weights = plan_weights(_chunks(source, target), source.config.shape.layers, _PREFIX, file_bytes)
    types = Counter(target or kind.dtype for kind in source.kinds.values())
    tokenizer = config.hf_model_name or str(source.folder.absolute())
    text = nemo_config(source.config, source.family, types.most_common(1)[0][0], tokenizer)
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


@main(ConvertConfig)
def hf_to_nemo(config: ConvertConfig) -> None:
    """Convert a Hugging Face folder to a NeMo checkpoint."""
    convert(config)


if __name__ == "__main__":
    hf_to_nemo()
