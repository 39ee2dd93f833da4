"""Waits until the servers of this job answer, then becomes a command that finds their address in a variable.

Needs nothing but the standard library of Python 3.8, and runs by file path in any container:

    python wait.py -- my_client --steps 5

The command gets `NS_SERVER_ADDRESS=http://host:port/v1`; several addresses are separated by commas. There is
no time limit of its own: a job ends with its server.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from pathlib import Path

VARIABLE = "NS_SERVER_ADDRESS"
_POLL_S = 0.2
_TIMEOUT_S = 5.0
_REPORT_EVERY_S = 30.0
_TAIL_BYTES = 64000
_TAIL_LINES = 15
# a proxy of the user's environment must not come between processes of one job
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def published(folder: Path) -> list[dict[str, object]]:
    """Return what the launchers of the job's servers have said so far."""
    entries = []
    for path in sorted(folder.glob("server-*.json")):
        try:
            entries.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return entries


def is_ready(entry: dict[str, object]) -> bool:
    """Tell whether a server answers."""
    if not entry.get("port"):
        return False
    url = "http://{host}:{port}{ready_path}".format(**entry)
    try:
        with _OPENER.open(url, timeout=_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def obituary(entry: dict[str, object]) -> str:
    """Return how a server ended, with the last lines of its log."""
    text = "wait: the {name} server ended with exit code {exit_code}".format(**entry)
    try:
        with Path(str(entry.get("log"))).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
    except OSError:
        return text
    return "\n".join([f"{text}; the end of its log {entry['log']}:", *(f"  | {line}" for line in lines)])


def wait(folder: Path) -> str:
    """Return the addresses of all servers once each of them answers."""
    started = reported = time.monotonic()
    while True:
        entries = published(folder)
        alive = [entry for entry in entries if entry.get("state") != "exited"]
        complete = entries and len(entries) >= max(int(str(e.get("count", 1))) for e in entries)
        if complete and not alive:
            sys.exit(obituary(entries[0]))
        if complete and all(map(is_ready, alive)):
            return ",".join("http://{host}:{port}/v1".format(**entry) for entry in alive)
        now = time.monotonic()
        if now - reported >= _REPORT_EVERY_S:
            reported = now
            print(f"wait: the server is not ready after {now - started:.0f} s", file=sys.stderr, flush=True)
        time.sleep(_POLL_S)


def main(words: list[str]) -> None:
    """Wait and become the command."""
    if words[:1] != ["--"] or not words[1:]:
        sys.exit("usage: wait.py -- COMMAND...")
    folder = os.environ.get("NS_RUN_DIR")
    if not folder:
        sys.exit("wait: NS_RUN_DIR is not set; this runs inside a job")
    os.environ[VARIABLE] = wait(Path(folder))
    try:
        os.execvp(words[1], words[1:])  # noqa: S606
    except OSError as error:
        print(f"wait: cannot run {words[1]}: {error.strerror}", file=sys.stderr)
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    main(sys.argv[1:])
