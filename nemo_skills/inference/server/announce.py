"""What launchers write into the job's run folder. Standard library only."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple


def run_folder() -> Path | None:
    """Return the folder in which the components of this job find one another, if there is one."""
    folder = os.environ.get("NS_RUN_DIR")
    return Path(folder) if folder else None


def write_json(path: Path, entry: Mapping[str, object]) -> None:
    """Replace a file atomically: readers see the old or the new one, never half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(entry, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Publication:
    """The server's entry in the run folder; without a run folder, nothing.

    Of the processes of a server that spans nodes only the first, which answers requests, has one.
    """

    def __init__(self, options: argparse.Namespace, host: str, *, rank: int = 0) -> None:
        folder = run_folder() if rank == 0 else None
        self._path = folder / f"{options.kind}-{options.index}.json" if folder else None
        self._entry: dict[str, object] = {
            "name": options.name,
            "index": options.index,
            "count": options.count,
            "model": options.model,
            "ready_path": options.ready_path,
            "host": host,
            "port": None,
            "log": os.environ.get("NS_SERVER_LOG"),
        }

    def write(self, **state: object) -> None:
        """Update the entry."""
        self._entry.update(state)
        if self._path is not None:
            write_json(self._path, self._entry)


class Meeting(NamedTuple):
    """Where the processes of a server that spans nodes meet: the first one's node, and a free port there."""

    host: str
    port: int

    def announce(self, index: int) -> None:
        """Tell the other processes of server `index`."""
        if (folder := run_folder()) is not None:
            write_json(_meeting_file(folder, index), self._asdict())

    @classmethod
    def await_announced(cls, index: int, pause: Callable[[], bool]) -> Meeting | None:
        """Return what the first process announces; None when `pause` says that it is no use to wait.

        There is no deadline: containers may take long to start, and a job in which one process is missing
        ends by the missing one's failure.
        """
        folder = run_folder()
        while folder is not None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                found = json.loads(_meeting_file(folder, index).read_text(encoding="utf-8"))
                return cls(found["host"], found["port"])
            if not pause():
                break
        return None


def _meeting_file(folder: Path, index: int) -> Path:
    return folder / f"head-{index}.json"
