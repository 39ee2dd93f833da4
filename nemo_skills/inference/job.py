"""The steps of a generation job: open, answer, finish."""

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from types import TracebackType
from typing import Self

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import InputFiles, Journal, disk_errors, parse_row
from nemo_skills.core.log import get_logger
from nemo_skills.inference.client import Client, ClientSettings
from nemo_skills.inference.code_tools import CodeTools, find_code_tags, with_code_tags
from nemo_skills.inference.config import GenerateConfig
from nemo_skills.inference.conversation import Conversation, Rendered
from nemo_skills.inference.done import DoneMark, OutputStamp, pieces, write_key
from nemo_skills.inference.endpoints import EndpointPool, Load
from nemo_skills.inference.opening import Opening
from nemo_skills.inference.outputs import FailedRows, OutputPaths
from nemo_skills.inference.progress import Counts
from nemo_skills.inference.request import RequestFormat
from nemo_skills.inference.retry import RetryPolicy
from nemo_skills.inference.runner import Run
from nemo_skills.inference.server.ready import ServerTarget, wait_until_ready
from nemo_skills.inference.settings import answer_settings
from nemo_skills.inference.source import RowSource
from nemo_skills.inference.survey import InputState, Span, find_bounds
from nemo_skills.inference.watch import run_folder
from nemo_skills.prompt.utils import get_prompt

_SHOWN_PROMPTS = 3
_LOGGED_CHARACTERS = 4000
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
    if not config.code_execution:
        return Conversation(config=config, prompt=prompt, requests=RequestFormat(config, prompt))
    requests = RequestFormat(*with_code_tags(config, prompt))
    tools = CodeTools(config=config, tags=find_code_tags(config.code_tags))
    return Conversation(config=config, prompt=prompt, requests=requests, tools=tools)


def show_prompts(config: GenerateConfig) -> None:
    """Print the first prompts; no request is sent and no file is written."""
    conversation = make_conversation(config)
    inputs = InputFiles.find(config.input_file)
    start, stop, _ = find_bounds(config, inputs)
    last = start + _SHOWN_PROMPTS
    blocks = inputs.blocks(start, last if stop is None else min(stop, last))
    for line in (block.line(index) for block in blocks for index in range(len(block.rows))):
        try:
            rendered = conversation.first_prompt(parse_row(line.path, line))
        except UserError as error:
            raise UserError(f"{line.place}: {error}") from None
        print(f"--- row {line.position + 1} ---\n{readable(rendered)}")


def readable(rendered: Rendered) -> str:
    """Return a prompt as people read it."""
    if isinstance(rendered, str):
        return rendered
    return "\n".join(f"[{message.get('role')}] {message.get('content')}" for message in rendered)


@dataclass(kw_only=True)
class Generation:
    """A job whose output is locked; use it as a context manager, which releases the lock."""

    config: GenerateConfig
    paths: OutputPaths
    source: RowSource
    journal: Journal
    counts: Counts
    opened: InputState | None
    """What the input is; None where another process finished the output before this one could lock it."""
    reasons: Counter[str] = field(default_factory=Counter)
    """How many rows got no answer, by reason."""

    @property
    def complete(self) -> bool:
        """Whether there is nothing to do."""
        return self.opened is None

    @classmethod
    def open(cls, config: GenerateConfig, paths: OutputPaths) -> Self:
        """Check the input, lock the output and see what is there already.

        Raises:
            UserError: bad input, an output that cannot be written, or one that another process writes.
        """
        inputs = InputFiles.find(config.input_file)
        _refuse_same_file(inputs, config)
        conversation = make_conversation(config)
        journal = Journal.open(paths.journal)
        try:
            opened = Opening(config=config, paths=paths, inputs=inputs, journal=journal).run()
        except BaseException:
            _release(journal)
            raise
        state, changed = opened if opened is not None else (None, False)
        span = state.span if state is not None else Span(0, 0)
        source = RowSource(
            config=config, conversation=conversation, inputs=inputs,
            journal=journal, span=span, changed=changed,
        )  # fmt: skip
        counts = Counts(total=span.size)
        return cls(config=config, paths=paths, source=source, journal=journal, counts=counts, opened=state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _release(self.journal)
        if error is not None and self.counts.finished:
            _log.info("Rows that were answered in this run are kept in %s.", self.paths.journal)

    async def answer_rows(self) -> None:
        """Get the missing answers.

        Raises:
            UserError: the run had to stop; what is finished is in the journal.
        """
        rows = iter(self.source)
        first = next(rows, None)
        failed = None
        if first is not None:
            prompt = readable(self.source.conversation.first_prompt(first.row))
            more = f" … ({len(prompt)} characters)" if len(prompt) > _LOGGED_CHARACTERS else ""
            _log.info("The first prompt:\n%s%s", prompt[:_LOGGED_CHARACTERS], more)
            async with await self._connect() as client:
                failed = FailedRows(self.paths.failed, name_files=len(self.source.inputs.paths) > 1)
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
        """Wait for the servers, and for the sandbox if there is one."""
        if (tools := self.source.conversation.tools) is not None:
            await tools.open()
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
            longest_pause_s=max(_SILENCE_S, server.retry_budget_s),
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
        if self.source.edited:
            _log.info("%d rows were new or had changed.", self.source.edited)
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
        rows = self.source.span.size - self.source.skipped - failed
        if not rows and self.source.skipped:
            raise UserError(
                f"All {self.source.skipped} rows are bad: is the prompt right for {self.source.inputs}?"
            )
        self._write_output(rows)
        self.paths.progress.unlink(missing_ok=True)
        _log.info("%d rows are in %s.", rows, self.paths.output)

    def _write_output(self, rows: int) -> None:
        """Write the output and the mark that it is complete; the journal has done its service then."""
        paths = self.paths
        with disk_errors(paths.done), tempfile.TemporaryFile(dir=paths.done.parent) as keys:
            written = self.journal.finalise(paths.output, rows, lambda key: write_key(keys, key))
            keys.seek(0)
            mark = DoneMark(
                rows=rows,
                failed=self.counts.failed,
                skipped=self.source.skipped,
                source=self.opened,
                output=OutputStamp.of(paths.output, written),
                settings=answer_settings(self.config),
            )
            mark.write(paths.done, pieces(keys))
        self.journal.remove()


def _release(journal: Journal) -> None:
    try:
        if journal.empty:
            journal.remove()
    finally:
        journal.close()


def _refuse_same_file(inputs: InputFiles, config: GenerateConfig) -> None:
    outputs = OutputPaths.of(config.output_file)
    for path in inputs.paths:
        if outputs.include(path):
            raise UserError(f"input_file and output_file must differ: {path} would be overwritten.")
