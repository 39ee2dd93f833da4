"""What is known about a prepared file, kept beside it in `<split>.manifest.json`."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of such a file."""

    benchmark: str
    split: str
    rows: int
    sha256: str
    """Of the prepared file."""
    checked: bool
    """Whether that is what it is known to be; False where nothing was known to compare with."""
    known_rows: int | None
    """How many rows the complete split has, where that is known."""
    sources: tuple[str, ...]
    """Names or addresses of the files that it was made of."""

    @classmethod
    def read(cls, data_file: Path) -> Self | None:
        """Return the manifest of a prepared file; None where there is none that can be understood."""
        try:
            values = json.loads(manifest_path(data_file).read_bytes())
            return cls(**{**values, "sources": tuple(values["sources"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def to_json(self) -> bytes:
        """Return the text of the file."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False).encode() + b"\n"

    def describes(self, data_file: Path) -> bool:
        """Whether the prepared file is there and has not been changed since."""
        return data_file.is_file() and file_hash(data_file) == self.sha256


def manifest_path(data_file: Path) -> Path:
    """Return where the manifest of a prepared file lies."""
    return data_file.with_name(f"{data_file.stem}.manifest.json")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
