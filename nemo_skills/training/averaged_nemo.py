"""The mean of checkpoints as a NeMo checkpoint."""

import shutil
from pathlib import Path

import orjson

from nemo_skills.conversion import hf_to_nemo
from nemo_skills.conversion.config import ConvertConfig
from nemo_skills.core.jsonl import disk_errors, write_file
from nemo_skills.core.log import get_logger
from nemo_skills.training.averaging import SOURCES_FILE, is_mean_of

LOG = get_logger(__name__)


def write_nemo(mean: Path, output: Path) -> None:
    """Write a mean in Hugging Face format as a NeMo folder, which appears complete or not at all.

    One of the same checkpoints is left as it is; one of others is replaced.

    Raises:
        UserError: the model cannot be converted, the disk is too full, or the folder holds something else.
    """
    sources = (mean / SOURCES_FILE).read_bytes()
    if is_mean_of(output, orjson.loads(sources)):
        LOG.info("%s is the mean of these checkpoints already", output)
        return
    fresh = output.with_name(f"{output.name}.new")
    with disk_errors(output):
        if fresh.exists():
            shutil.rmtree(fresh)
        hf_to_nemo.convert(ConvertConfig(input_model=str(mean), output_model=str(fresh)))
        write_file(fresh / SOURCES_FILE, sources)
        if output.exists():
            shutil.rmtree(output)
        fresh.rename(output)
    LOG.info("wrote %s", output)
