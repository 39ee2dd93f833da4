"""The server's side of boxes: starts them through the zygote and talks to their keepers."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import os
import socket
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_skills.code_execution.box.limits import BoxOrder, Limits

_ZYGOTE = Path(__file__).parent / "box" / "zygote.py"
_LENGTH = struct.Struct(">I")
_START_S = 60.0
_END_S = 15.0
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class SandboxError(Exception):
    """The sandbox itself failed."""


class OverdueError(Exception):
    """A box does not answer in time."""


class Box:
    """One box that runs; close it after use."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, request: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
        """Send a request, if there is one, and return the answer.

        Raises:
            OverdueError: there is none within so many seconds.
            SandboxError: the box could not do it.
        """
        try:
            if request is not None:
                body = json.dumps(request).encode()
                self._writer.write(_LENGTH.pack(len(body)) + body)
            answer = await asyncio.wait_for(self._answer(), seconds)
        except TimeoutError:
            raise OverdueError from None
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise SandboxError(f"a box ended unexpectedly ({type(error).__name__})") from None
        if "failed" in answer:
            raise SandboxError(str(answer["failed"]))
        return answer

    async def _answer(self) -> dict[str, Any]:
        (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
        answer: dict[str, Any] = json.loads(await self._reader.readexactly(size))
        return answer

    async def close(self) -> None:
        """End all processes of the box; return when they are gone."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()  # what the watchdog looks for
        with contextlib.suppress(OSError, TimeoutError):
            while await asyncio.wait_for(self._reader.read(1 << 16), _END_S):
                pass
        self._writer.close()


class BoxFactory:
    """Starts boxes, all with the same limits."""

    def __init__(self, python: str, limits: Limits, visible: tuple[str, ...]) -> None:
        self.isolated = True
        self._python = python
        self._limits = limits
        self._visible = visible
        self._free: list[int] = []
        self._slots = 0
        self._ending: set[asyncio.Future[None]] = set()
        self._zygote: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None

    async def start(self) -> tuple[Box, int]:
        """Return a new box, and its slot, which `end` wants back.

        Raises:
            SandboxError: there is none to be had.
        """
        slot = self._take_slot()
        ours, its = socket.socketpair()
        try:
            order = BoxOrder(self._limits, slot, self.isolated, self._visible)
            self._send(order, its)
            reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        except OSError as error:
            ours.close()
            heapq.heappush(self._free, slot)
            raise SandboxError(f"cannot start a box: {error}") from None
        finally:
            its.close()
        box = Box(reader, writer)
        try:
            await box.ask(None, _START_S)
        except OverdueError:
            self.end(box, slot)
            raise SandboxError(f"a box did not start within {_START_S:g} s") from None
        except BaseException:
            self.end(box, slot)
            raise
        return box, slot

    def end(self, box: Box, slot: int) -> None:
        """End a box; nobody has to wait until the kernel has cleaned up behind it."""
        ending = asyncio.ensure_future(self._end(box, slot))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, box: Box, slot: int) -> None:
        try:
            await box.close()
        finally:
            heapq.heappush(self._free, slot)  # its user ids are another box's only now

    async def close(self) -> None:
        """Wait until boxes that were ended are gone, and end the zygote."""
        if self._ending:
            await asyncio.wait(self._ending)
        if self._orders is not None:
            self._orders.close()
        if self._zygote is not None:
            self._zygote.kill()
            self._zygote.wait()

    def _take_slot(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._slots += 1
        return self._slots

    def _send(self, order: BoxOrder, channel: socket.socket) -> None:
        message = json.dumps(asdict(order)).encode()
        if self._orders is None or self._zygote is None or self._zygote.poll() is not None:
            self._start_zygote()
        assert self._orders is not None
        socket.send_fds(self._orders, [message], [channel.fileno()])

    def _start_zygote(self) -> None:
        if self._orders is not None:
            self._orders.close()
        self._orders, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [self._python, "-I", "-B", str(_ZYGOTE), str(its.fileno())]
        try:
            self._zygote = subprocess.Popen(
                argv, pass_fds=[its.fileno()], env=_environment(self._python), cwd="/",
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        finally:
            its.close()


def _environment(python: str) -> dict[str, str]:
    """Return all that programs find in their environment: nothing of the server's own."""
    scratch = "/tmp"  # noqa: S108  # of the box
    names = {
        "PATH": f"{os.path.dirname(python)}:/usr/local/bin:/usr/bin:/bin",  # noqa: PTH120
        "HOME": scratch,
        "TMPDIR": scratch,
        "USER": "sandbox",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return names | dict.fromkeys(_THREADS, "1")
