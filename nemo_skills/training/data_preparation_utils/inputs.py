"""Which files are meant by `input_files`."""

import glob
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import InputFiles
from nemo_skills.core.log import get_logger

_log = get_logger(__name__)
_FAILED = (".failed.jsonl", ".failed.jsonl.gz", ".failed.jsonl.zst")


def find_inputs(text: str) -> InputFiles:
    """Find files given by paths and patterns with spaces or commas between.

    Rows that got no answer lie beside the others in `*.failed.jsonl`: a pattern does not mean them.

    Raises:
        UserError: a file does not exist, or a pattern matches nothing.
    """
    found = InputFiles.find(text if _exists(text) else ",".join(_parts(text)))
    named = {Path(part).expanduser() for part in (text, *_parts(text))}
    failed = [path for path in found.paths if path.name.endswith(_FAILED) and path not in named]
    if failed:
        _log.info(
            "Left out, as they hold rows without an answer: %s", ", ".join(path.name for path in failed)
        )
    paths = tuple(path for path in found.paths if path not in failed)
    if not paths:
        raise UserError(f"{text}: matches only files of rows without an answer ({failed[0]}).")
    return InputFiles(paths)


def _parts(text: str) -> list[str]:
    parts: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        # a name may have blanks of its own
        parts += [part] if _exists(part) else part.split()
    return parts


def _exists(part: str) -> bool:
    path = str(Path(part).expanduser())
    return Path(path).exists() or (glob.has_magic(path) and bool(glob.glob(path, recursive=True)))  # noqa: PTH207
