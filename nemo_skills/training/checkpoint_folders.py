"""The checkpoints that a training run has left, as folders of Hugging Face models."""

import re
from dataclasses import dataclass
from pathlib import Path

import orjson

from nemo_skills.conversion.hf_copy import SUFFIX
from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger

LOG = get_logger(__name__)

COMPLETE_FILE = "complete.json"
"""Written last into a checkpoint of our own training."""
MODEL_FOLDER = "hf"
"""Where such a checkpoint has the model, beside the state that training goes on from."""
_STEP = re.compile(r"(?:step|checkpoint|global_step|iter)[=_-]?0*(\d+)")
_NEMO_STEP = re.compile(r".*\bstep=0*(\d+)(?:-.*)?")
_NEMO_WEIGHTS = ("model_weights/.metadata", "weights/.metadata", ".metadata")


@dataclass(frozen=True)
class Checkpoint:
    """One saved model of a run."""

    step: int
    model: Path
    """Folder of the model."""


def find_checkpoints(folder: Path, steps: list[int] | None = None) -> list[Checkpoint]:
    """Return the complete checkpoints of a folder by step, or those of the given steps.

    Known names are `step=100`, as our training writes, `checkpoint-100`, and NeMo's with `step=100` in them.

    Raises:
        UserError: there are none, or one of `steps` is missing or half-written.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    named = {step: p for p in sorted(folder.iterdir()) if (step := _step(p)) is not None}
    found = {step: model for step, path in named.items() if (model := _model_folder(path))}
    half = sorted(named.keys() - found.keys())
    have = ", ".join(map(str, sorted(found))) or "none"
    if steps is None:
        for step in half:
            LOG.warning("%s is half-written or damaged and is left out", named[step])
        if not found:
            raise UserError(f"{folder} holds no complete checkpoint, as step=100 or checkpoint-100")
        return [Checkpoint(step, found[step]) for step in sorted(found)]
    problems = [
        f"the checkpoint of step {step} is {'half-written or damaged' if step in half else 'not there'}"
        for step in steps
        if step not in found
    ]
    if problems:
        raise UserError(f"{folder}: {'; '.join(problems)}. Complete steps: {have}")
    return [Checkpoint(step, found[step]) for step in sorted(set(steps))]


def _step(path: Path) -> int | None:
    """Return the step that a folder's name tells, unless it holds copies of a checkpoint."""
    match = _STEP.fullmatch(path.name) or _NEMO_STEP.fullmatch(path.name)
    return int(match[1]) if match and path.is_dir() and not path.name.endswith(SUFFIX) else None


def _model_folder(path: Path) -> Path | None:
    """Return the folder of a checkpoint's model; None when it is not as it was written."""
    if (path / COMPLETE_FILE).is_file():
        if not _has_its_files(path):
            return None
        return path / MODEL_FOLDER if (path / MODEL_FOLDER).is_dir() else path
    # other trainers put the model there itself, and say nowhere that it is complete
    return path if any(path.glob("*.safetensors")) or is_nemo_folder(path) else None


def is_nemo_folder(path: Path) -> bool:
    """Whether a folder is a NeMo checkpoint; what is written last is there."""
    return any((path / name).is_file() for name in _NEMO_WEIGHTS)


def _has_its_files(path: Path) -> bool:
    """Whether the model's files are as long as they were when the checkpoint was completed."""
    try:
        files = orjson.loads((path / COMPLETE_FILE).read_bytes()).get("files", {})
        # the state that training goes on from is removed after a while
        mine = {name: size for name, size in files.items() if name.startswith(f"{MODEL_FOLDER}/")}
        return all((path / name).stat().st_size == size for name, size in mine.items())
    except (OSError, ValueError, AttributeError):
        return False
