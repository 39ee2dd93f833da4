"""One or several input files, read as if they were one."""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl._reader import Block, check_input, iter_blocks

_COMPRESSION = 5


class FileStamp(NamedTuple):
    """What tells cheaply that a file has probably not been changed."""

    size: int
    modified_ns: int


@dataclass(frozen=True)
class InputFiles:
    """Files whose rows are numbered through, in this order."""

    paths: tuple[Path, ...]

    @classmethod
    def find(cls, text: str) -> "InputFiles":
        """Find the files meant by a path, a glob pattern, or several of these separated by commas.

        The files of a pattern are sorted by name; a file that is named twice counts once.

        Raises:
            UserError: a file does not exist or cannot be read, or no file has such a name.
        """
        whole = Path(text).expanduser()
        # a name may have commas and brackets of its own
        found = (
            [whole] if whole.exists() else [path for part in text.split(",") for path in _find(part.strip())]
        )
        if not found:
            raise UserError("No input file is given.")
        for path in found:
            check_input(path)
        return cls(tuple({path.resolve(): path for path in found}.values()))

    def __str__(self) -> str:
        if len(self.paths) == 1:
            return str(self.paths[0])
        return f"{len(self.paths)} files, {self.paths[0]} to {self.paths[-1]}"

    def stamps(self) -> tuple[FileStamp, ...]:
        """Return size and time of every file."""
        found = [path.stat() for path in self.paths]
        return tuple(FileStamp(stat.st_size, stat.st_mtime_ns) for stat in found)

    def text_size(self) -> int:
        """Return how many bytes of text there are; of compressed files it is a guess."""
        sizes = [(path.suffix, path.stat().st_size) for path in self.paths]
        return sum(size * (_COMPRESSION if suffix in (".gz", ".zst") else 1) for suffix, size in sizes)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Yield the rows with positions from `start` up to, not including, `stop`."""
        position = 0
        for path in self.paths:
            for block in iter_blocks(path, position):
                position = block.position + len(block.rows)
                if start < position and block.rows:
                    yield block.part(start, position if stop is None else min(position, stop))
                if stop is not None and position >= stop:
                    return


def _find(part: str) -> list[Path]:
    if not part:
        return []
    path = Path(part).expanduser()
    if path.exists() or not glob.has_magic(part):
        return [path]
    names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (Path.glob wants a folder apart)
    found = [match for match in map(Path, names) if match.is_file()]
    if not found:
        raise UserError(f"No file matches {part}.")
    return found
