"""Main: a NeMo checkpoint, a folder or a `.nemo` file, becomes a Hugging Face folder.

`python -m nemo_skills.conversion.nemo_to_hf --help` lists the settings.
"""

import sys

if __name__ == "__main__" and not __package__:
    # started as a file: modules beside it would hide those of Python that have the same name
    del sys.path[0]

from functools import partial
from pathlib import Path

from nemo_skills.conversion.config import ConvertConfig
from nemo_skills.conversion.hf_plan import plan_hf
from nemo_skills.conversion.nemo_source import given_files, open_nemo
from nemo_skills.conversion.result import (
    Result,
    describe,
    is_done,
    number_of_processes,
    shard_size,
    write_result,
)
from nemo_skills.conversion.verify import verify_done, verify_hf
from nemo_skills.core.errors import require
from nemo_skills.core.hydra import main
from nemo_skills.core.log import get_logger

LOG = get_logger(__name__)


def convert(config: ConvertConfig) -> None:
    """Convert a NeMo checkpoint.

    Raises:
        UserError: the checkpoint cannot be converted, or the result not be written.
    """
    path, output, target = Path(config.input_model), Path(config.output_model), config.target_dtype
    is_file = output.suffix == ".nemo"
    require(not is_file, f"output_model={output}: a Hugging Face model is a folder, not a .nemo file")
    with open_nemo(path, config.model_type, config.hf_model_name, output.absolute().parent) as source:
        read = {piece.path for piece in source.files.slices.values()} if path.is_dir() else {path}
        # the result may lie in the checkpoint's folder
        results = (output, output.with_name(f"{output.name}.unfinished"))
        read = {file for file in read if not any(file.is_relative_to(result) for result in results)}
        settings = {"format": "hf", "dtype": target, "hf_model_name": config.hf_model_name}
        sources = describe(path, [*sorted(read), *given_files(config.hf_model_name)], settings)
        check = partial(verify_hf, source, target) if config.verify else None
        if is_done(output, sources):
            verify_done(output, check)
            return
        size = source.nbytes
        processes = number_of_processes(config.processes, size)
        LOG.info(
            "converting %s, a %s model of %.2f GB, to Hugging Face", path, source.family.name, size / 1e9
        )
        files = plan_hf(source, target, shard_size(config.shard_bytes, size, processes))
        write_result(Result(output=output, files=files, sources=sources, processes=processes, check=check))


@main(ConvertConfig)
def nemo_to_hf(config: ConvertConfig) -> None:
    """Convert a NeMo checkpoint to a Hugging Face folder."""
    convert(config)


if __name__ == "__main__":
    nemo_to_hf()
