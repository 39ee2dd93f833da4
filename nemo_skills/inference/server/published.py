"""What the launchers of a job say about their servers in its run folder."""

import os
from dataclasses import dataclass
from pathlib import Path

import orjson

_TAIL_BYTES = 64_000
_TAIL_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Published:
    """One server of the job."""

    name: str
    index: int
    count: int
    """How many servers the job has in all."""
    state: str
    """`starting`, or `exited` once it is gone."""
    host: str
    port: int | None
    exit_code: int | None
    ready_path: str
    model: str | None
    log: str | None

    @property
    def exited(self) -> bool:
        """Whether the server is gone."""
        return self.state == "exited"

    @property
    def root(self) -> str:
        """The URL of the server, without a path."""
        return f"http://{self.host}:{self.port}"

    def obituary(self) -> str:
        """Return how the server ended, with the last lines of its log."""
        text = f"the {self.name} server ended with exit code {self.exit_code}"
        log = self.log or os.environ.get("NS_SERVER_LOG")
        tail = _tail(Path(log)) if log else ""
        return f"{text}; the end of its log {log}:\n{tail}" if tail else text


def read_published(folder: Path, kind: str = "server") -> list[Published]:
    """Return the servers of a kind published so far, by index; entries that cannot be read are left out."""
    found = []
    for path in folder.glob(f"{kind}-*.json"):
        try:
            entry = orjson.loads(path.read_bytes())
            found.append(
                Published(
                    name=str(entry.get("name", "model")),
                    index=int(entry.get("index", 0)),
                    count=int(entry.get("count", 1)),
                    state=str(entry["state"]),
                    host=str(entry.get("host", "127.0.0.1")),
                    port=entry.get("port"),
                    exit_code=entry.get("exit_code"),
                    ready_path=str(entry.get("ready_path", "/health")),
                    model=entry.get("model"),
                    log=entry.get("log"),
                )
            )
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            continue
    return sorted(found, key=lambda server: server.index)


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(f"  | {line}" for line in text.splitlines()[-_TAIL_LINES:])
