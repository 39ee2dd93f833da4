"""The files of an unfinished output that several processes write, and who may write them.

Beside the output lie `<output>-async`, empty, on which every process of one job holds a shared lock (the
generation main takes it for itself alone, so the two keep out of each other's way), and the folder
`<output>-ranks` with a journal per rank and `job.json`, which says whose they are.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import disk_errors, write_file
from nemo_skills.core.log import get_logger
from nemo_skills.inference.offline.ranks import Ranks
from nemo_skills.inference.outputs import OutputPaths

_LOCK_PATIENCE_S = 10.0
_LOCK_PAUSE_S = 0.05
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_START_OVER = "start over (++resume=false; ++skip_filled=false for ns generate)"
_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where everything is."""

    paths: OutputPaths

    @property
    def folder(self) -> Path:
        """What the ranks write."""
        return self.paths.output.with_name(f"{self.paths.output.name}-ranks")

    @property
    def job(self) -> Path:
        """Whose journals these are, and with which settings they were made."""
        return self.folder / "job.json"

    @property
    def merging(self) -> Path:
        """Locked by the process that puts the output together."""
        return self.folder / "merging"

    def journal(self, rank: int) -> Path:
        """The finished rows of one rank."""
        return self.folder / f"rank-{rank:05}.jsonl"

    def joined(self, rank: int) -> Path:
        """Says that a rank of the present job has begun."""
        return self.folder / f"rank-{rank:05}.begun"

    def finished(self, rank: int) -> Path:
        """Says that a rank of the present job has done its share."""
        return self.folder / f"rank-{rank:05}.finished"

    def has_rows(self) -> bool:
        """Whether there is anything that depends on settings."""
        return any(path.stat().st_size for path in self.journals())

    def journals(self) -> list[Path]:
        """All journals, those of earlier jobs included."""
        return sorted(self.folder.glob("rank-*.jsonl"))


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What tells jobs on one output apart."""

    ranks: Ranks
    settings: Mapping[str, Any]
    """All that the answers depend on."""
    source: Mapping[str, int]
    """How many rows the input has, and their checksum."""
    resume: bool
    """False: whatever an earlier job has left is thrown away."""

    @property
    def token(self) -> str:
        """The same for the processes of one job."""
        return f"{self.ranks.job}/{self.ranks.size}"


class Session:
    """This process's place in a job; use `Session.join`, the lock goes with `close`."""

    def __init__(self, files: Files, descriptor: int) -> None:
        self.files = files
        self._descriptor = descriptor

    @classmethod
    def join(cls, paths: OutputPaths, identity: Identity) -> Self | None:
        """Take part in the job on an output, as its first process or as one of several.

        Returns:
            None when the output is complete.

        Raises:
            UserError: another job works on this output, or an earlier one did with other settings.
        """
        files = Files(paths=paths)
        with disk_errors(paths.output):
            paths.output.parent.mkdir(parents=True, exist_ok=True)
            session = cls(files, _lock(files, identity))
        try:
            with disk_errors(paths.output):
                if identity.resume and paths.complete:
                    # what a killed process may have left behind after it finished
                    session.remove_all()
                    session.close()
                    return None
                files.joined(identity.ranks.rank).touch()
                files.finished(identity.ranks.rank).unlink(missing_ok=True)
        except BaseException:
            session.close()
            raise
        return session

    def finish(self, rank: int, size: int) -> "MergeLock | None":
        """Note that a rank has done its share; the last one gets the lock under which it merges."""
        self.files.finished(rank).touch()
        if not all(self.files.finished(other).exists() for other in range(size)):
            return None
        return MergeLock.acquire(self.files.merging)

    def remove_all(self) -> None:
        """Remove everything but the output and its marks."""
        shutil.rmtree(self.files.folder, ignore_errors=True)
        self.files.paths.journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # a job that failed before it did anything leaves nothing behind
        if error is not None and not self.files.has_rows() and _flock(self._descriptor, fcntl.LOCK_EX):
            with suppress(OSError):
                self.remove_all()
        self.close()


class MergeLock:
    """Held by the one process that merges; use it as a context manager."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, path: Path) -> Self | None:
        """Return the lock, or None when another process has it or has finished with it."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # the folder is gone: all is done
            return None
        if _flock(descriptor, fcntl.LOCK_EX) and path.exists():
            return cls(descriptor)
        os.close(descriptor)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def _lock(files: Files, identity: Identity) -> int:
    """Return the open, locked lock file of a job that this process belongs to."""
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    path = files.paths.journal
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _try_join(descriptor, files, identity):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise _busy(files)
        time.sleep(_LOCK_PAUSE_S)


def _try_join(descriptor: int, files: Files, identity: Identity) -> bool:
    """Return whether the lock is ours now; False asks for another try."""
    alone = _flock(descriptor, fcntl.LOCK_EX)
    if not _same_file(descriptor, files.paths.journal):
        return False
    if alone:
        if os.fstat(descriptor).st_size:
            raise UserError(
                f"{files.paths.journal} holds an unfinished run with a server. Finish it that way, or remove"
                " that file."
            )
        _begin(files, identity)
    # going over from the exclusive lock to a shared one may let another job in between: look again
    if not _flock(descriptor, fcntl.LOCK_SH):
        return False
    if identity.resume and files.paths.complete:
        _check_complete(files, identity)
        return True
    job = _read(files.job)
    if job.get("token") != identity.token:
        raise _busy(files)
    _check_settings(job, identity, files)
    return True


def _begin(files: Files, identity: Identity) -> None:
    """Prepare the folder, as the only process at work."""
    job = _read(files.job)
    if identity.resume and files.paths.complete:
        return
    late = job.get("token") == identity.token and not files.joined(identity.ranks.rank).exists()
    if late:
        return
    if identity.resume and files.has_rows():
        _check_settings(job, identity, files)
    if not identity.resume:
        shutil.rmtree(files.folder, ignore_errors=True)
        files.paths.done.unlink(missing_ok=True)
    files.folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("rank-*.begun", "rank-*.finished"):
        for mark in files.folder.glob(pattern):
            mark.unlink()
    write_file(files.job, orjson.dumps({"token": identity.token, "settings": identity.settings}) + b"\n")


def _check_complete(files: Files, identity: Identity) -> None:
    mark = _read(files.paths.done)
    _check_settings(mark, identity, files)
    if mark.get("input", identity.source) != identity.source:
        raise UserError(
            f"The input has changed since {files.paths.output} was made. Give another output, or"
            f" {_START_OVER}."
        )


def _check_settings(found: Mapping[str, Any], identity: Identity, files: Files) -> None:
    """Refuse to mix answers made with different settings."""
    if "settings" not in found:
        return
    wanted, before = identity.settings, found["settings"]
    changed = [
        f"{name} was {_shown(before[name])}, is {_shown(wanted[name])}"
        for name in wanted
        if name in before and before[name] != wanted[name]
    ]
    if changed:
        raise UserError(
            f"Rows of {files.paths.output} were made with other settings: {'; '.join(changed)}. Give the same"
            f" again, or another output, or {_START_OVER}."
        )


def _shown(value: object) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _busy(files: Files) -> UserError:
    return UserError(
        f"Another job is writing this output ({files.paths.journal} is locked). Wait for it, or stop it, then"
        " run again."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("This file system has no locks: take care to run one job at a time.")
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
