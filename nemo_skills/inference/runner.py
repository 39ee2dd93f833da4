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
from nemo_skills.inference.crew import Crew
from nemo_skills.inference.outputs import FailedRows, OutputPaths
from nemo_skills.inference.progress import Counts, keep_showing, make_display
from nemo_skills.inference.queues import watch_queues
from nemo_skills.inference.report import Report
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
    paths: OutputPaths
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
        pool = client.pool
        crew = Crew(
            lambda: self._work(client, rows), min(self.config.max_concurrent_requests, self.counts.total)
        )
        # rows that wait for another attempt hold a worker, but no place in flight
        pool.on_room = lambda: crew.grow(pool.limit + client.resting)
        display = make_display()
        report = Report(self.paths.progress, self.paths.output)
        helpers = [
            self._keep_journal(), pool.keep(), watch_queues(pool),
            keep_showing([display, report], lambda: self._current(client)),
        ]  # fmt: skip
        folder = run_folder()
        if not self.config.server.addresses and folder is not None:
            helpers.append(stop_when_servers_end(folder))
        try:
            await crew.run(pool.limit, helpers)
        except asyncio.CancelledError:
            report.stop(self._current(client), "stopped by a signal")
            raise
        except BaseException as error:
            report.stop(self._current(client), str(error) or type(error).__name__)
            raise
        finally:
            display.show(self._current(client))
            display.close()
        failed = self.counts.failed
        report.stop(self._current(client), f"{failed} rows got no answer" if failed else "")

    async def _work(self, client: Client, rows: Iterator[Work]) -> None:
        for work in rows:
            try:
                solved = await self.conversation.solve(client, work.row, work.prompt, work.line.position)
            except RowFailedError as error:
                self._fail(work, error)
                continue
            line = work.line
            self.journal.append(line.position, line.raw, add_fields(line.raw, work.row, solved.fields))
            self.counts.finished += 1
            self.counts.tokens += solved.num_tokens

    def _current(self, client: Client) -> Counts:
        counts, pool = self.counts, client.pool
        counts.resumed = self.journal.done - counts.finished
        counts.retries, counts.last_error = client.retries, client.last_error
        counts.prompt_tokens = client.prompt_tokens
        counts.in_flight, counts.limit, counts.resting = pool.in_flight, pool.limit, client.resting
        counts.servers = [state.status() for state in pool.states]
        return counts

    def _fail(self, work: Work, error: RowFailedError) -> None:
        why = {"_reason": error.kind.value, "_error": str(error), "_attempts": error.attempts}
        self.failed.add(work.line, work.row, why)
        self.counts.failed += 1
        self.reasons[error.kind.value] += 1
        if self.counts.failed == 1:
            _log.warning("No answer for %s: %s", work.line.place, error)
        refused = sum(count for reason, count in self.reasons.items() if reason not in RETRIED)
        given = self.config.max_failed_rows is not None
        allowed = self.config.allowed_failures(self.counts.total) if given else 0
        if refused >= max(_REFUSED_ROWS, allowed + 1) and self.journal.empty:
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
