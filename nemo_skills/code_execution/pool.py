"""Runs what clients send: so many programs at a time, and sessions that last from one request to the next."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

from nemo_skills.code_execution.boxes import Box, BoxFactory, OverdueError, SandboxError
from nemo_skills.code_execution.result import ExecutionRequest, ExecutionResult

_GRACE_S = 15.0
"""How much later than the keeper we lose patience."""
_OVERDUE = "a box did not answer in time, though it ends programs whose time is up: the machine is overloaded"
_SWEEP_S = 5.0


@dataclass(frozen=True)
class PoolOptions:
    """How many programs, and how long."""

    workers: int
    """Programs that run at the same time; others wait for their turn."""
    max_sessions: int = 1024
    idle_s: float = 600.0
    """A session that is not used for so long ends."""
    max_timeout_s: float = 600.0


@dataclass
class Session:
    """A session; its cells run one after the other."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    box: tuple[Box, int] | None = None
    used: float = field(default_factory=time.monotonic)
    users: int = 0


class Pool:
    """Boxes in use."""

    def __init__(self, factory: BoxFactory, options: PoolOptions) -> None:
        self._factory = factory
        self._options = options
        self._turns = asyncio.Semaphore(options.workers)
        self._sessions: dict[str, Session] = {}

    @property
    def sessions(self) -> int:
        """How many sessions there are."""
        return len(self._sessions)

    async def execute(self, request: ExecutionRequest) -> list[ExecutionResult]:
        """Run a request; a failure of the sandbox is a result too."""
        if request.timeout_s > self._options.max_timeout_s:
            raise ValueError(f"'timeout_s' may be at most {self._options.max_timeout_s:g}")
        try:
            if request.session_id is not None:
                return await self._in_session(request, request.session_id)
            return await self._alone(request)
        except SandboxError as error:
            return [ExecutionResult.failure(str(error))]

    async def _alone(self, request: ExecutionRequest) -> list[ExecutionResult]:
        async with self._turns:
            box, slot = await self._factory.start()
            try:
                seconds = request.timeout_s * len(request.stdins) + _GRACE_S
                question = {
                    **_question("run", request),
                    "stdins": request.stdins,
                    "stop_at_failure": request.stop_at_failure,
                }
                return _results(await box.ask(question, seconds))
            except OverdueError:
                return [ExecutionResult.failure(_OVERDUE)]
            finally:
                self._factory.end(box, slot)

    async def _in_session(self, request: ExecutionRequest, name: str) -> list[ExecutionResult]:
        session = self._sessions.get(name)
        if session is None:
            if len(self._sessions) >= self._options.max_sessions:
                raise SandboxError(
                    f"there are {self._options.max_sessions} sessions already (--max_sessions)"
                )
            session = self._sessions[name] = Session()
        session.users += 1
        try:
            async with session.lock, self._turns:
                return await self._cell(request, session)
        finally:
            session.users -= 1
            session.used = time.monotonic()
            if session.box is None and not session.users:
                self._sessions.pop(name, None)

    async def _cell(self, request: ExecutionRequest, session: Session) -> list[ExecutionResult]:
        new = session.box is None
        session.box = session.box or await self._factory.start()
        alive = False
        try:
            answer = await session.box[0].ask(_question("cell", request), request.timeout_s + _GRACE_S)
            alive = answer["alive"]
            return _results(answer, new_session=new)
        except OverdueError:
            return [ExecutionResult.failure(_OVERDUE)]
        finally:
            if not alive:
                self._end(session)

    def _end(self, session: Session) -> None:
        box, session.box = session.box, None
        if box is not None:
            self._factory.end(*box)

    async def close_session(self, name: str) -> bool:
        """End a session, if there is one of that name."""
        session = self._sessions.get(name)
        if session is None:
            return False
        async with session.lock:
            self._end(session)
        if not session.users:
            self._sessions.pop(name, None)
        return True

    async def end_idle_sessions(self) -> None:
        """End sessions that nobody uses any more; for ever."""
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._options.idle_s))
            long_ago = time.monotonic() - self._options.idle_s
            for name, session in list(self._sessions.items()):
                if session.used < long_ago and not session.users:
                    with contextlib.suppress(OSError):
                        await self.close_session(name)

    async def close(self) -> None:
        """End all sessions."""
        for session in self._sessions.values():
            self._end(session)
        self._sessions.clear()
        await self._factory.close()


def _question(op: str, request: ExecutionRequest) -> dict[str, Any]:
    return {
        "op": op,
        "code": request.code,
        "timeout_s": request.timeout_s,
        "keep_bytes": request.max_output_bytes,
    }


def _results(answer: dict[str, Any], *, new_session: bool = False) -> list[ExecutionResult]:
    return [ExecutionResult.from_json({**entry, "new_session": new_session}) for entry in answer["results"]]


async def probe(factory: BoxFactory) -> str:
    """Return why boxes do not work; an empty text if they do."""
    try:
        box, slot = await factory.start()
    except SandboxError as error:
        return str(error)
    try:
        request = ExecutionRequest("print(6 * 7)", timeout_s=30.0)
        question = {**_question("run", request), "stdins": ("",), "stop_at_failure": True}
        result = _results(await box.ask(question, 45.0))[0]
        return "" if result.stdout == "42\n" else f"a test program ended with {result}"
    except (SandboxError, OverdueError) as error:
        return f"a test program did not run: {error}"
    finally:
        factory.end(box, slot)
