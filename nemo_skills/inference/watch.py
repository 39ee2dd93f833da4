"""Notices that a server of this job has ended, so that the run stops instead of trying for ever."""

import asyncio
import os
from pathlib import Path
from typing import Any

import orjson

from nemo_skills.inference.retry import RunStoppedError

_POLL_S = 1.0
_TAIL_BYTES = 4000
_TAIL_LINES = 20


def run_folder() -> Path | None:
    """Return the folder in which the components of this job find one another, if there is one."""
    folder = os.environ.get("NS_RUN_DIR")
    return Path(folder) if folder else None


async def stop_when_servers_end(folder: Path) -> None:
    """Raise once all servers of the job have ended; a replica that still lives takes over for the others."""
    while True:
        entries = _entries(folder)
        ended = [entry for entry in entries if entry.get("state") == "exited"]
        if entries and len(ended) == len(entries):
            raise RunStoppedError("\n".join(map(_obituary, ended)))
        await asyncio.sleep(_POLL_S)


def _entries(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("server-*.json")):
        try:
            entry = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


def _obituary(entry: dict[str, Any]) -> str:
    text = f"The {entry.get('name', 'model')} server has ended with exit code {entry.get('exit_code')}."
    log = entry.get("log")
    tail = _tail(Path(log)) if log else ""
    return f"{text} The end of {log}:\n{tail}" if tail else text


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in text.splitlines()[-_TAIL_LINES:])
