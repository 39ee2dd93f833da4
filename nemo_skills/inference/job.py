"""The steps of a generation job: open, answer, finish."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from types import TracebackType
from typing import Self

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import Journal, disk_errors, iter_lines, parse_row
from nemo_skills.core.log import get_logger
from nemo_skills.inference.client import Client, ClientSettings
from nemo_skills.inference.config import GenerateConfig
from nemo_skills.inference.conversation import Conversation, Rendered
from nemo_skills.inference.endpoints import EndpointPool, Load
from nemo_skills.inference.outputs import DoneMark, FailedRows, OutputPaths
from nemo_skills.inference.progress import Counts
from nemo_skills.inference.request import RequestFormat
from nemo_skills.inference.retry import RetryPolicy
from nemo_skills.inference.runner import Run
from nemo_skills.inference.server.ready import ServerTarget, wait_until_ready
from nemo_skills.inference.settings import keep_settings, require_same_settings
from nemo_skills.inference.source import RowSource, check_rows, select_rows
from nemo_skills.inference.watch import run_folder
from nemo_skills.prompt.utils import get_prompt

_SHOWN_PROMPTS = 3
_SILENCE_S = 5.0
_log = get_logger(__name__)


def make_conversation(config: GenerateConfig) -> Conversation:
    """Read the prompt and settle the form of requests."""
    prompt = get_prompt(
        config.prompt_config,
        prompt_template=config.prompt_template,
        tokenizer=config.tokenizer,
        examples_type=config.examples_type,
        system_message=config.system_message,
        prompt_format=config.prompt_format,
    )
    return Conversation(config=config, prompt=prompt, requests=RequestFormat(config, prompt))


def show_prompts(config: GenerateConfig) -> None:
    """Print the first prompts; no request is sent and no file is written."""
    conversation = make_conversation(config)
    span = select_rows(config)
    for line in iter_lines(config.input_path, span.start, min(span.stop, span.start + _SHOWN_PROMPTS)):
        try:
            rendered = conversation.first_prompt(parse_row(config.input_path, line))
        except UserError as error:
            raise UserError(f"{config.input_path}:{line.number}: {error}") from None
        print(f"--- row {line.position + 1} ---\n{readable(rendered)}")


def readable(rendered: Rendered) -> str:
    """Return a prompt as people read it."""
    if isinstance(rendered, str):
        return rendered
    return "\n".join(f"[{message.get('role')}] {message.get('content')}" for message in rendered)


def already_complete(config: GenerateConfig, paths: OutputPaths) -> bool:
    """Say so if an earlier run has finished this output, or all chunks were merged."""
    for candidate in (paths, OutputPaths.of(config.output_file)):
        if candidate.complete:
            mark = DoneMark.read(candidate.done)
            failed = f", {mark.failed} more without an answer in {candidate.failed}" if mark.failed else ""
            _log.info(
                "Nothing to do: %s is complete (%d rows%s). ++skip_filled=false does it again.",
                *(candidate.output, mark.rows, failed),
            )
            return True
    return False


@dataclass(kw_only=True)
class Generation:
    """A job whose output is locked; use it as a context manager, which releases the lock."""

    config: GenerateConfig
    paths: OutputPaths
    source: RowSource
    journal: Journal
    counts: Counts
    reasons: Counter[str] = field(default_factory=Counter)
    """How many rows got no answer, by reason."""
    complete: bool = False
    """Whether another process finished the output before this one could lock it."""

    @classmethod
    def open(cls, config: GenerateConfig, paths: OutputPaths) -> Self:
        """Check the input, lock the output and see what is there already.

        Raises:
            UserError: bad input, an output that cannot be written, or one that another process writes.
        """
        _refuse_same_file(config, paths)
        conversation = make_conversation(config)
        span = select_rows(config)
        journal = Journal.open(paths.journal)
        source = RowSource(config=config, conversation=conversation, journal=journal, span=span)
        counts = Counts(total=span.size)
        job = cls(config=config, paths=paths, source=source, journal=journal, counts=counts)
        try:
            job._start_or_resume()
        except BaseException:
            job._release()
            raise
        return job

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()
        if error is not None and self.counts.finished:
            _log.info("Rows that were answered in this run are kept in %s.", self.paths.journal)

    def _release(self) -> None:
        try:
            if self.journal.empty:
                self.journal.remove()
                self.paths.settings.unlink(missing_ok=True)
        finally:
            self.journal.close()

    def _start_or_resume(self) -> None:
        journal, config = self.journal, self.config
        if config.skip_filled and self.paths.complete:
            self.complete = True
            journal.remove()
            return
        with disk_errors(self.paths.done):
            self.paths.done.unlink(missing_ok=True)
        if not config.skip_filled:
            journal.clear()
            # a whole that was merged from earlier chunks says nothing about those that now start over
            OutputPaths.of(config.output_file).done.unlink(missing_ok=True)
        elif self.paths.output.exists() and journal.empty:
            _log.warning(
                "%s is there, but no mark that it is complete: it will be replaced.", self.paths.output
            )
        if journal.empty:
            keep_settings(self.paths.settings, config)
            if config.on_bad_row == "error":
                check_rows(config.input_path, self.source.span)
            return
        require_same_settings(self.paths.settings, config)
        _log.info("Going on from %d rows in %s.", journal.repair.records, self.paths.journal)
        if journal.repair.damaged_lines:
            shown = ", ".join(map(str, journal.repair.damaged_lines[:10]))
            _log.warning("%s: damaged lines (%s); their rows are done again.", self.paths.journal, shown)

    async def answer_rows(self) -> None:
        """Get the missing answers.

        Raises:
            UserError: the run had to stop; what is finished is in the journal.
        """
        rows = iter(self.source)
        first = next(rows, None)
        failed = None
        if first is not None:
            _log.info("The first prompt:\n%s", readable(self.source.conversation.first_prompt(first.row)))
            async with await self._connect() as client:
                failed = FailedRows(self.paths.failed)
                run = Run(
                    config=self.config, paths=self.paths, journal=self.journal, failed=failed,
                    conversation=self.source.conversation, counts=self.counts, reasons=self.reasons,
                )  # fmt: skip
                try:
                    await run.execute(client, chain([first], rows))
                finally:
                    failed.close()
        else:
            FailedRows(self.paths.failed)

    async def _connect(self) -> Client:
        """Wait for the servers."""
        server = self.config.server
        key = server.api_key()
        target = ServerTarget(
            server_type=server.server_type,
            model=server.model,
            addresses=server.addresses,
            ready_timeout_s=server.ready_timeout_s,
            connect_timeout_s=server.connect_timeout_s,
            api_key=key,
        )
        endpoints = await wait_until_ready(target, run_dir=run_folder())
        settings = ClientSettings(
            request_timeout_s=server.request_timeout_s,
            retry=RetryPolicy(budget_s=server.retry_budget_s, max_wait_s=server.retry_max_wait_s),
            api_key=key,
        )
        load = Load(
            most_in_flight=self.config.max_concurrent_requests,
            adaptive=self.config.adaptive_concurrency,
            requests_per_minute=server.requests_per_minute,
            tokens_per_minute=server.tokens_per_minute,
            longest_answer=self.config.inference.tokens_to_generate,
            outage_s=max(_SILENCE_S, min(server.outage_timeout_s, server.retry_budget_s)),
        )
        return Client(EndpointPool(endpoints, load), self.source.conversation.requests, settings)

    def finish(self) -> None:
        """Write the output, once the rows are there.

        Raises:
            UserError: too many rows got no answer, or the disk is full.
        """
        failed, allowed = self.counts.failed, self.config.allowed_failures(self.counts.total)
        if self.source.skipped:
            _log.warning("%d bad rows were left out.", self.source.skipped)
        if failed:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
            text = f"{failed} of {self.counts.total} rows got no answer ({reasons}), see {self.paths.failed}."
            if failed > allowed:
                raise UserError(
                    f"{text} The others are kept. Run the same command again to retry, or accept them with"
                    f" ++max_failed_rows={failed}.",
                    exit_code=1,
                )
            _log.warning(text)
        span, skipped = self.source.span, self.source.skipped
        rows = span.size - skipped - failed
        if not rows and skipped:
            raise UserError(
                f"all {skipped} rows of {self.config.input_file} are bad: is the prompt right for it?"
            )
        self.journal.finalise(self.paths.output, rows)
        mark = DoneMark(
            rows=rows, failed=failed, skipped=skipped, start=span.start, stop=span.stop, total=span.total
        )
        mark.write(self.paths.done)
        self.journal.remove()
        self.paths.settings.unlink(missing_ok=True)
        self.paths.progress.unlink(missing_ok=True)
        _log.info("%d rows are in %s.", rows, self.paths.output)


def _refuse_same_file(config: GenerateConfig, paths: OutputPaths) -> None:
    source = config.input_path.absolute().resolve()
    if source in {path.resolve() for path in (paths.output, paths.journal, paths.failed, paths.done)}:
        raise UserError(f"input_file and output_file must differ: {source} would be overwritten.")
