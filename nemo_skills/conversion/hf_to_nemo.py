"""Main: a Hugging Face folder becomes a NeMo checkpoint, in a folder or a `.nemo` file.

`python -m nemo_skills.conversion.hf_to_nemo --help` lists the settings.
"""

import sys

if __name__ == "__main__" and not __package__:
    # started as a file: modules beside it would hide those of Python that have the same name
    del sys.path[0]

from functools import partial
from pathlib import Path

from nemo_skills.conversion.config import ConvertConfig
from nemo_skills.conversion.hf_source import CONFIG, open_hf
from nemo_skills.conversion.nemo_plan import plan_nemo
from nemo_skills.conversion.result import (
    SOURCES_FILE,
    Result,
    describe,
    is_done,
    number_of_processes,
    shard_size,
    write_result,
)
from nemo_skills.conversion.verify import verify_done, verify_nemo
from nemo_skills.core.hydra import main
from nemo_skills.core.log import get_logger

LOG = get_logger(__name__)


def convert(config: ConvertConfig) -> None:
    """Convert a Hugging Face folder.

    Raises:
        UserError: the model cannot be converted, or the result not be written.
    """
    source = open_hf(Path(config.input_model), config.model_type)
    output, target = Path(config.output_model), config.target_dtype
    settings = {"format": "nemo", "dtype": target, "hf_model_name": config.hf_model_name}
    others = [path for path in source.weights.other_files if path.name not in (CONFIG, SOURCES_FILE)]
    files = [*source.weights.weight_files, source.folder / CONFIG, *others]
    sources = describe(source.folder, files, settings)
    check = partial(verify_nemo, source, target) if config.verify else None
    if is_done(output, sources):
        verify_done(output, check)
        return
    size = sum(kind.nbytes for kind in source.kinds.values())
    processes = number_of_processes(config.processes, size)
    LOG.info("converting %s, a %s model of %.2f GB, to NeMo", source.folder, source.family.name, size / 1e9)
    plans = plan_nemo(source, target, config.hf_model_name, shard_size(config.shard_bytes, size, processes))
    write_result(Result(output=output, files=plans, sources=sources, processes=processes, check=check))


@main(ConvertConfig)
def hf_to_nemo(config: ConvertConfig) -> None:
    """Convert a Hugging Face folder to a NeMo checkpoint."""
    convert(config)


if __name__ == "__main__":
    hf_to_nemo()
