"""The loop that keeps the servers busy and the journal up to date."""

import asyncio
import signal
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import Journal, add_fields
from nemo_skills.core.log import get_logger
from nemo_skills.inference.client import Client
from nemo_skills.inference.config import GenerateConfig
from nemo_skills.inference.conversation import Conversation
from nemo_skills.inference.outputs import FailedRows
from nemo_skills.inference.progress import Counts, keep_showing, make_display
from nemo_skills.inference.retry import RETRIED, RowFailedError, RunStoppedError
from nemo_skills.inference.source import Work
from nemo_skills.inference.watch import run_folder, stop_when_servers_end

_FLUSH_S = 0.1
_FLUSHES_PER_SYNC = 100
_REFUSED_ROWS = 50
_log = get_logger(__name__)


@dataclass(kw_only=True)
class Run:
    """Puts rows to the servers, as many at a time as the settings allow."""

    config: GenerateConfig
    conversation: Conversation
    journal: Journal
    failed: FailedRows
    counts: Counts
    reasons: Counter[str]

    async def execute(self, client: Client, rows: Iterator[Work]) -> None:
        """Do all rows.

        Raises:
            UserError: the run stopped before its end; what is finished is in the journal.
        """
        workers = min(self.config.max_concurrent_requests, self.counts.total)
        display = make_display()
        background = [self._keep_journal(), keep_showing(display, lambda: self._current(client))]
        folder = run_folder()
        if not self.config.server.addresses and folder is not None:
            background.append(stop_when_servers_end(folder))
        try:
            await _until_done([self._work(client, rows) for _ in range(workers)], background)
        finally:
            display.show(self._current(client))
            display.close()

    async def _work(self, client: Client, rows: Iterator[Work]) -> None:
        for work in rows:
            try:
                solved = await self.conversation.solve(client, work.row, work.prompt, work.line.position)
            except RowFailedError as error:
                self._fail(work, error)
                continue
            self.journal.append(work.line.position, add_fields(work.line.raw, work.row, solved.fields))
            self.counts.finished += 1
            self.counts.tokens += solved.num_tokens

    def _current(self, client: Client) -> Counts:
        self.counts.resumed = self.journal.done - self.counts.finished
        self.counts.retries, self.counts.last_error = client.retries, client.last_error
        return self.counts

    def _fail(self, work: Work, error: RowFailedError) -> None:
        why = {"_reason": error.kind.value, "_error": str(error), "_attempts": error.attempts}
        self.failed.add(work.line, work.row, why)
        self.counts.failed += 1
        self.reasons[error.kind.value] += 1
        if self.counts.failed == 1:
            _log.warning("No answer for line %d: %s", work.line.number, error)
        refused = sum(count for reason, count in self.reasons.items() if reason not in RETRIED)
        if refused >= max(_REFUSED_ROWS, self.config.max_failed_rows + 1) and self.journal.empty:
            raise RunStoppedError(
                f"The server refused all of the first {refused} rows. The last reason: {error}."
                " If the other rows are fine, accept failed ones with ++max_failed_rows."
            )

    async def _keep_journal(self) -> None:
        """Bound the loss: a tenth of a second of answers when killed, ten seconds after a power failure."""
        while True:
            for _ in range(_FLUSHES_PER_SYNC):
                await asyncio.sleep(_FLUSH_S)
                self.journal.flush()
            await asyncio.to_thread(self.journal.sync)


async def _until_done(
    work: list[Coroutine[Any, Any, None]], background: list[Coroutine[Any, Any, None]]
) -> None:
    """Run until all `work` is done or anything fails; raise the first failure, leave no task behind."""
    helpers = [asyncio.create_task(coroutine) for coroutine in background]
    workers = [asyncio.create_task(coroutine) for coroutine in work]
    left: set[asyncio.Task[None]] = set(workers)
    try:
        while left:
            finished, _ = await asyncio.wait([*left, *helpers], return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                task.result()
            left -= finished
    finally:
        for task in [*helpers, *workers]:
            task.cancel()
        await asyncio.gather(*helpers, *workers, return_exceptions=True)


class Stopped(UserError):
    """Somebody asked the run to end."""

    def __init__(self, signum: int) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"Stopped by {name}. Run the same command again to go on.", exit_code=128 + signum)


def run_until_signal(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine; SIGINT and SIGTERM cancel it, so that it can put its files in order."""

    async def supervised() -> None:
        task = asyncio.ensure_future(main)
        received: list[int] = []

        def stop(signum: int) -> None:
            received.append(signum)
            task.cancel()

        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError, RuntimeError):  # not in the main thread: the caller handles signals
                loop.add_signal_handler(signum, stop, signum)
        try:
            await task
        except asyncio.CancelledError:
            if received:
                raise Stopped(received[0]) from None
            raise

    asyncio.run(supervised())
