"""Notices that the servers of this job have ended, so that the run stops instead of trying for ever."""

import asyncio
import os
from pathlib import Path

from nemo_skills.inference.retry import RunStoppedError
from nemo_skills.inference.server.published import read_published

_POLL_S = 1.0


def run_folder() -> Path | None:
    """Return the folder in which the components of this job find one another, if there is one."""
    folder = os.environ.get("NS_RUN_DIR")
    return Path(folder) if folder else None


async def stop_when_servers_end(folder: Path) -> None:
    """Raise once all servers of the job have ended; a replica that still lives takes over for the others."""
    while True:
        servers = read_published(folder)
        if servers and all(server.exited for server in servers):
            raise RunStoppedError("\n".join(f"Stopped: {server.obituary()}" for server in servers))
        await asyncio.sleep(_POLL_S)
