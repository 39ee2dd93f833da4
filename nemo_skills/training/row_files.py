"""Which files are meant by a list of names: the same for packing and for training."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import InputFiles
from nemo_skills.core.log import get_logger

_log = get_logger(__name__)


def find_rows(names: Iterable[str], *, warn: bool = True) -> InputFiles:
    """Find files of rows by paths or patterns.

    Raises:
        UserError: a file does not exist, or a pattern matches nothing.
    """
    return InputFiles(once((path for name in names for path in InputFiles.find(name).paths), warn=warn))


def once(paths: Iterable[Path], *, warn: bool = True) -> tuple[Path, ...]:
    """Return the paths, each file once; say so where one was given again."""
    found: dict[Path, Path] = {}
    for path in paths:
        if found.setdefault(path.resolve(), path) is not path and warn:
            _log.warning("%s is listed more than once: its rows count once", path)
    return tuple(found.values())


def refuse_packed(names: Sequence[str], key: str) -> None:
    """Say how packed files are trained on, if there are some among files of rows.

    Raises:
        UserError: there are.
    """
    for name in names:
        if name.endswith(".npy"):
            raise UserError(f"{name} is a packed file: set ++{key}.packed_sequence=True.")
