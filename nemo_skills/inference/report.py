"""`<output>.progress.json`: how far a run is, for programs such as `ns status`.

One JSON object, replaced about every second while the run lasts; docs/generation.md lists its keys. When the
output is complete the file goes: `<output>.done` then says all. After a run that stopped early it stays, with
the reason; a file that says `running` a minute after its last change is of a run that was killed.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any

import orjson

from nemo_skills.core.log import get_logger
from nemo_skills.inference.progress import Counts, Rates

_log = get_logger(__name__)


class Report:
    """Writes the progress file; trouble with it never disturbs the run."""

    interval = 1.0

    def __init__(self, path: Path, output: Path) -> None:
        self._path = path
        self._fixed = {"output": str(output), "host": socket.gethostname(), "pid": os.getpid()}
        self._started = time.time()
        self._rates = Rates()
        self._failed = False

    def show(self, counts: Counts) -> None:
        """Write the counts as they are now."""
        self._write("running", None, counts)

    def close(self) -> None:
        """Nothing to clean up."""

    def stop(self, counts: Counts, reason: str) -> None:
        """Write the last state."""
        self._write("stopped", reason or None, counts)

    def _write(self, state: str, reason: str | None, counts: Counts) -> None:
        text = orjson.dumps({"state": state, "reason": reason, **self._fixed, **self._numbers(counts)})
        temporary = self._path.with_name(f"{self._path.name}-tmp")
        try:
            # no fsync: after a power failure an old state is as good as the last one
            temporary.write_bytes(text + b"\n")
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if not self._failed:
                _log.warning("Cannot write %s: %s.", self._path, error.strerror)
            self._failed = True

    def _numbers(self, counts: Counts) -> dict[str, Any]:
        rates = self._rates.update(counts)
        queues = [server.queued for server in counts.servers if server.queued is not None]
        return {
            "started_at": round(self._started, 3),
            "updated_at": round(time.time(), 3),
            "total": counts.total,
            "done": counts.resumed + counts.finished,
            "resumed": counts.resumed,
            "failed": counts.failed,
            "in_flight": counts.in_flight,
            "waiting_to_retry": counts.resting,
            "concurrency": counts.limit,
            "rows_per_s": round(rates.rows, 2),
            "generated_tokens_per_s": round(rates.tokens, 1),
            "prompt_tokens_per_s": round(rates.prompt_tokens, 1),
            "generated_tokens": counts.tokens,
            "prompt_tokens": counts.prompt_tokens,
            "eta_s": None if rates.left_s is None else round(rates.left_s, 1),
            "retries": counts.retries,
            "last_error": counts.last_error or None,
            "server_queue": sum(queues) if queues else None,
            "servers": [
                {
                    "address": server.address,
                    "in_flight": server.in_flight,
                    "concurrency": server.limit,
                    "queue": server.queued,
                    "down": server.down,
                }
                for server in counts.servers
            ],
        }
