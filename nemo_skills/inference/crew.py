"""Tasks that do the same work side by side, more of them as the work allows."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

Job = Coroutine[Any, Any, None]


class Crew:
    """Workers that take from one supply until it is empty."""

    def __init__(self, work: Callable[[], Job], most: int) -> None:
        self._work = work
        self._most = most
        self._workers: set[asyncio.Task[None]] = set()
        self._helpers: list[asyncio.Task[None]] = []
        self._over: asyncio.Future[None] | None = None
        self._closing = False

    def __len__(self) -> int:
        return len(self._workers)

    def grow(self, count: int) -> None:
        """Have so many workers, if there are fewer; not while the work is running out."""
        if self._over is None or self._closing:
            return
        for _ in range(min(count, self._most) - len(self._workers)):
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._left)

    async def run(self, count: int, helpers: Sequence[Job]) -> None:
        """Start so many workers, and helpers beside them; return when the work is done.

        Raises:
            Exception: the first failure of a worker or helper; no task is left behind.
        """
        self._over = asyncio.get_running_loop().create_future()
        self._helpers = [asyncio.create_task(helper) for helper in helpers]
        for helper in self._helpers:
            helper.add_done_callback(self._failed)
        self.grow(count)
        try:
            await self._over
        finally:
            self._closing = True
            tasks = [*self._helpers, *self._workers]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _left(self, worker: asyncio.Task[None]) -> None:
        """A worker ends when nothing is left to take, so the others follow when they are done."""
        self._workers.discard(worker)
        self._failed(worker)
        if not worker.cancelled() and worker.exception() is None:
            self._closing = True
        if not self._workers and self._over is not None and not self._over.done():
            self._over.set_result(None)

    def _failed(self, task: asyncio.Task[None]) -> None:
        if self._over is None or self._over.done() or task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._over.set_exception(error)
