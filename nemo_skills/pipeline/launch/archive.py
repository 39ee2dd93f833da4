"""Archives named after their content: the same files give the same name and the same bytes."""

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from nemo_skills.core.errors import UserError


@dataclass(frozen=True)
class Entry:
    """One member of the archive: a file on disk, generated content, or a symbolic link."""

    name: str
    source: Path | bytes
    mode: int
    size: int = 0
    link: str | None = None

    def content_hash(self) -> str:
        """Return the SHA-256 of the content, or of a link's target."""
        if self.link is not None:
            return hashlib.sha256(os.fsencode(self.link)).hexdigest()
        with _open(self) as stream:
            return hashlib.file_digest(cast(io.BytesIO, stream), "sha256").hexdigest()


def read_entry(root: Path, name: str) -> Entry | None:
    """Describe one file; None when it is absent, special, or a symbolic link out of the tree."""
    path = root / name
    try:
        info = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(info.st_mode):
        target = os.readlink(path)  # noqa: PTH115 (Path would change the text)
        # By its text, as the job will see it, and by what the links on its way make of it here
        lexical = os.path.normpath(Path(name).parent / target)
        escapes = target.startswith("/") or lexical.split("/", 1)[0] == ".."
        if escapes or not Path(os.path.realpath(path)).is_relative_to(root):
            return None
        return Entry(name, path, 0o777, link=target)
    if not stat.S_ISREG(info.st_mode):
        return None
    return Entry(name, path, 0o755 if info.st_mode & stat.S_IXUSR else 0o644, info.st_size)


def write_archive(entries: Iterable[Entry], out_dir: Path) -> tuple[str, Path]:
    """Write the archive unless it exists; the same content gives the same bytes, in any order."""
    members = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    try:
        hashes = [entry.content_hash() for entry in members]
        manifest = "".join(
            json.dumps([entry.name, entry.mode, entry.link is not None, digest]) + "\n"
            for entry, digest in zip(members, hashes, strict=True)
        )
        digest = hashlib.sha256(manifest.encode()).hexdigest()
        path = out_dir / f"code-{digest[:16]}.tar.gz"
        if path.exists():
            return digest, path
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out_dir, prefix=".code-") as folder:
            part = Path(folder, path.name)
            with (
                part.open("wb") as raw,
                gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed,
                tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                for entry, content in zip(members, hashes, strict=True):
                    _add(tar, entry, content)
            part.replace(path)
    except OSError as error:
        name = f" {error.filename}" if error.filename else ""
        raise UserError(f"cannot package the code:{name} {error.strerror or error}") from error
    return digest, path


def _add(tar: tarfile.TarFile, entry: Entry, content: str) -> None:
    info = tarfile.TarInfo(entry.name)
    info.mode = entry.mode
    # Python trusts a cached .pyc when time and size of the source agree: another content needs another time
    info.mtime = 1_000_000_000 + int(content[:7], 16)
    if entry.link is not None:
        info.type, info.linkname = tarfile.SYMTYPE, entry.link
        tar.addfile(info)
        return
    info.size = entry.size
    with _open(entry) as stream:
        reader = _HashingReader(stream)
        tar.addfile(info, cast(IO[bytes], reader))
    if reader.hash.hexdigest() != content:
        raise UserError(f"{shown(entry.name)} changed while it was packaged; run the command again.")


class _HashingReader:
    """Passes a stream on and hashes what passes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.hash.update(data)
        return data


def _open(entry: Entry) -> IO[bytes]:
    return io.BytesIO(entry.source) if isinstance(entry.source, bytes) else entry.source.open("rb")


def shown(name: str) -> str:
    """Return a file name as a message may show it: on one line, whatever it holds."""
    return name if name.isprintable() else repr(name)
