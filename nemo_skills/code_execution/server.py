"""Sandbox server: `python -m nemo_skills.code_execution.server --port N` runs Python programs in boxes.

Needs nothing but the standard library and Linux, and runs by file path in any container. HTTP on loopback:
`POST /execute` with the fields of `ExecutionRequest`, `POST /close` with a `session_id`, `GET /health`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if sys.version_info < (3, 11):  # noqa: UP036  # nothing was installed that would have checked it
    sys.exit(f"sandbox: Python 3.11 or later is needed, {sys.executable} is {sys.version.split()[0]}")
if __name__ == "__main__":  # run by its path: this package need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nemo_skills.code_execution.box.limits import Limits
from nemo_skills.code_execution.boxes import BoxFactory
from nemo_skills.code_execution.pool import Pool, PoolOptions, probe
from nemo_skills.code_execution.result import ExecutionRequest

_BODY_BYTES = 256 << 20
_HEADER_S = 30.0
_REFUSAL = """sandbox: programs cannot be isolated here: {why}
It takes Linux on x86_64 or aarch64 with either root's CAP_SYS_ADMIN or user namespaces that users may create
(user.max_user_namespaces above 0; kernel.apparmor_restrict_unprivileged_userns=0; in Docker --security-opt
seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined).
With --allow_unisolated programs run as this user, with all files and the network of this user; memory, time
and output are limited all the same. Do that only where the container around it is all that they may touch."""


class Server:
    """Answers requests."""

    def __init__(self, pool: Pool, *, isolated: bool) -> None:
        self._pool = pool
        self._isolated = isolated

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            try:
                while await self._exchange(reader, writer):
                    pass
            except TimeoutError:
                pass
            finally:
                writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; tell whether the connection stays open."""
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEADER_S)).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length") or 0)
        if size > _BODY_BYTES:
            await _answer(writer, 413, {"error": f"more than {_BODY_BYTES} bytes"})
            return False
        body = await reader.readexactly(size)
        await _answer(writer, *await self._dispatch(method, path, body))
        return headers.get("connection", "").lower() != "close"

    async def _dispatch(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if (method, path) == ("GET", "/health"):
            return 200, {"isolated": self._isolated, "sessions": self._pool.sessions}
        try:
            fields = json.loads(body or b"{}")
            if (method, path) == ("POST", "/execute"):
                results = await self._pool.execute(ExecutionRequest.from_json(fields))
                return 200, {"results": [result.to_json() for result in results]}
            if (method, path) == ("POST", "/close"):
                return 200, {"closed": await self._pool.close_session(str(fields["session_id"]))}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return 400, {"error": str(error)}
        return 404, {"error": f"no such place: {path}"}


async def _answer(writer: asyncio.StreamWriter, status: int, fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode()
    head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    limits, pool = Limits(), PoolOptions(workers=len(os.sched_getaffinity(0)))
    parser = argparse.ArgumentParser(
        prog="python -m nemo_skills.code_execution.server",
        description="Runs Python programs in boxes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; whoever reaches it can run programs")
    add("--port", type=int, default=0, help="port to listen on; 0 takes a free one and prints it")
    add("--workers", type=int, default=pool.workers, help="programs that run at the same time")
    add("--python", default=sys.executable, help="interpreter whose packages programs can use")
    add("--visible", action="append", default=[], help="a folder that programs may read; can be repeated")
    add("--memory_mb", type=int, default=limits.memory_mb, help="memory of a program, its files included")
    add("--processes", type=int, default=limits.processes, help="processes and threads of a program")
    add("--disk_mb", type=int, default=limits.disk_mb, help="what a program may write to files")
    add("--open_files", type=int, default=limits.open_files, help="open files of a process")
    add("--max_sessions", type=int, default=pool.max_sessions, help="sessions at the same time")
    add("--session_idle_s", type=float, default=pool.idle_s, help="an unused session ends after so long")
    add(
        "--max_timeout_s",
        type=float,
        default=pool.max_timeout_s,
        help="longest time that clients may ask for",
    )
    add("--allow_unisolated", action="store_true", help="run programs even where they cannot be isolated")
    return parser.parse_args(args)


async def serve(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    limits = Limits(options.memory_mb, options.processes, options.disk_mb, options.open_files)
    factory = BoxFactory(options.python, limits, tuple(options.visible))
    ended = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, ended.set)
    if why := await probe(factory):
        if not options.allow_unisolated:
            print(_REFUSAL.format(why=why), file=sys.stderr)
            await factory.close()
            return 1
        print(f"sandbox: NOT ISOLATED, programs can do what this user can: {why}", file=sys.stderr)
        factory.isolated = False
        if why := await probe(factory):
            print(f"sandbox: {why}", file=sys.stderr)
            await factory.close()
            return 1
    settings = PoolOptions(
        options.workers, options.max_sessions, options.session_idle_s, options.max_timeout_s
    )
    pool = Pool(factory, settings)
    server = Server(pool, isolated=factory.isolated)
    listening = await asyncio.start_server(server.handle, options.host, options.port, backlog=4096)
    host, port = listening.sockets[0].getsockname()[:2]
    print(f"sandbox listens on http://{host}:{port}", flush=True)
    sweeper = asyncio.ensure_future(pool.end_idle_sessions())
    await ended.wait()
    sweeper.cancel()
    listening.close()
    await pool.close()
    return 0


def main(args: Sequence[str] | None = None) -> int:
    """Run the server; return its exit code."""
    options = parse(args)
    try:
        return asyncio.run(serve(options))
    except OSError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
