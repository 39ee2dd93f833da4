"""Code that the model writes is run in a sandbox, and the model goes on with what came out."""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nemo_skills.core.errors import UserError
from nemo_skills.inference.config import GenerateConfig
from nemo_skills.inference.request import CONTINUES_CHAT, Answer, Reply
from nemo_skills.inference.retry import Kind, RowFailedError
from nemo_skills.prompt.lookup import CODE_TAGS
from nemo_skills.prompt.spec import CodeTagsConfig, read_code_tags
from nemo_skills.prompt.utils import Prompt

if TYPE_CHECKING:
    from nemo_skills.code_execution import ExecutionResult, Sandbox

Ask = Callable[[str, int], Awaitable[Reply]]
"""Asks the model to go on with a text of its own, in so many tokens at most."""
_SHOWS_SPECIAL_TOKENS = frozenset({"vllm", "sglang", "trtllm", "stub"})
_CODE_KEYS = ("code", "python", "python_code", "script", "input")
_NO_MORE = "No more code can be run for this answer; finish it without."
_NOTES = {
    "timed_out": "The code took longer than {seconds:g} seconds and was stopped.",
    "memory": "The code needed too much memory and was stopped.",
    "processes": "The code started too many processes and was stopped.",
    "output_limit": "The code printed too much and was stopped.",
}


@dataclass(kw_only=True)
class CodeCounts:
    """What was run for one answer."""

    executions: int = 0
    errors: int = 0
    timeouts: int = 0

    @staticmethod
    def total(counts: "Iterable[CodeCounts]") -> dict[str, int]:
        """Return what a row with so many answers gets: nothing if there are none."""
        every = list(counts)
        if not every:
            return {}
        return {
            "num_code_executions": sum(one.executions for one in every),
            "num_code_errors": sum(one.errors for one in every),
            "num_code_timeouts": sum(one.timeouts for one in every),
        }


def with_code_tags(config: GenerateConfig, prompt: Prompt) -> tuple[GenerateConfig, Prompt]:
    """Return both as requests need them for answers to stop where code ends.

    Raises:
        UserError: the server cannot do it, or there are no such tags.
    """
    tags, server = find_code_tags(config.code_tags), config.server.server_type
    if not prompt.is_text and server not in CONTINUES_CHAT:
        raise UserError(
            f"code_execution: a {server} server cannot continue a chat message; use prompt_template or"
            " tokenizer, so that text is sent."
        )
    if tags.special_tokens:
        if server not in _SHOWS_SPECIAL_TOKENS:
            raise UserError(f"code_tags={config.code_tags}: a {server} server does not show special tokens.")
        body = {"skip_special_tokens": False, **config.inference.extra_body}
        config = replace(config, inference=replace(config.inference, extra_body=body))
    return config, replace(prompt, own_stop_phrases=(*prompt.own_stop_phrases, tags.code_end))


def find_code_tags(name: str) -> CodeTagsConfig:
    """Return shipped tags, or those of a file."""
    return read_code_tags(CODE_TAGS.find(name))


@dataclass(kw_only=True)
class CodeTools:
    """Runs code of answers."""

    config: GenerateConfig
    tags: CodeTagsConfig
    sandbox: "Sandbox | None" = field(default=None)

    async def open(self) -> None:
        """Find the sandbox.

        Raises:
            UserError: there is none.
        """
        from nemo_skills.code_execution.finding import find_sandbox

        self.sandbox = await asyncio.to_thread(find_sandbox, self.config.sandbox_address)

    async def complete(self, first: Reply, ask: Ask) -> tuple[Reply, CodeCounts]:
        """Return the whole answer, given its beginning.

        Raises:
            RowFailedError: the server or the sandbox failed.
        """
        session = uuid.uuid4().hex
        work = _Answering(tools=self, session=session, reply=first)
        try:
            return await work.run(ask), work.counts
        finally:
            if work.counts.executions and self.sandbox is not None:
                await self.sandbox.close_session_async(session)

    def code_in(self, text: str) -> str | None:
        """Return the code at the end of a text that stopped where code ends; None: there is none."""
        _, found, code = text.rpartition(self.tags.code_begin)
        if not found or self.tags.code_end in code:
            return None
        return code.removesuffix(self.tags.code_end.rstrip())

    def closed(self, text: str) -> str:
        """Return the text with the end of its code; a model may have left out the last line break only."""
        end = self.tags.code_end
        return text + (end[len(end.rstrip()) :] if text.endswith(end.rstrip()) else end)


@dataclass(kw_only=True)
class _Answering:
    """One answer in the making."""

    tools: CodeTools
    session: str
    reply: Reply
    counts: CodeCounts = field(default_factory=CodeCounts)
    text: str = ""
    told: bool = False
    """Whether the model knows that it can run no more code."""

    async def run(self, ask: Ask) -> Reply:
        tokens, prompt_tokens = 0, 0
        limit = self.tools.config.inference.tokens_to_generate
        while True:
            reply, answer = self.reply, self.reply.answers[0]
            self.text += answer.text
            tokens, prompt_tokens = tokens + (reply.num_tokens or 0), prompt_tokens + reply.prompt_tokens
            more = answer.finish_reason == "stop" and await self._go_on(answer)
            left = limit - tokens
            reason = answer.finish_reason if not more or left > 0 else "length"
            if more and left > 0:
                try:
                    self.reply = await ask(self.text, left)
                    continue
                except RowFailedError as error:
                    if error.kind is not Kind.context_length:
                        raise
                    reason = "length"  # of what the model can see at once
            counted = None if reply.num_tokens is None else tokens
            return Reply((Answer(self.text, reason, answer.reasoning),), prompt_tokens, counted)

    async def _go_on(self, answer: Answer) -> bool:
        """Add what comes after the model's words; false if it is the model that ended the answer."""
        tags, code = self.tools.tags, self.tools.code_in(self.text)
        if code is None:
            # the end of code is also the end of other things, in Markdown
            self.text += tags.code_end if (other := answer.stopped_at == tags.code_end) else ""
            return other
        if self.told:
            return False
        if self.counts.executions >= self.tools.config.max_code_executions:
            self.told, output = True, _NO_MORE
        else:
            output = await self._run(code)
        text = self.tools.closed(self.text)
        self.text = f"{text}{tags.output_begin}{output.rstrip()}\n{tags.output_end}"
        return True

    async def _run(self, code: str) -> str:
        config, sandbox = self.tools.config, self.tools.sandbox
        assert sandbox is not None
        self.counts.executions += 1
        if self.tools.tags.code_format == "json":
            program = code_of_call(code)
            if program is None:
                self.counts.errors += 1
                return "Error: the call is not valid JSON with the code as its argument."
            code = program
        result = await sandbox.execute_async(
            code, self.session, timeout_s=config.code_execution_timeout_s,
            max_output_bytes=4 * config.max_code_output_characters,
        )  # fmt: skip
        if result.status == "infrastructure":
            raise RowFailedError(Kind.sandbox, f"code could not be run: {result.stderr}", 1)
        self.counts.errors += not result.ok
        self.counts.timeouts += result.status == "timed_out"
        return shown_output(result, config, first=self.counts.executions == 1)


def code_of_call(text: str) -> str | None:
    """Return the code in a tool call; None: it holds none."""
    try:
        call: Any = json.loads(text)
        arguments = call["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        texts = {key: value for key, value in arguments.items() if isinstance(value, str)}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    named = next((texts[key] for key in _CODE_KEYS if key in texts), None)
    return named if named is not None else next(iter(texts.values()), None)


def shown_output(result: "ExecutionResult", config: GenerateConfig, *, first: bool) -> str:
    """Return what the model sees of a run."""
    note = _NOTES.get(result.status, "").format(seconds=config.code_execution_timeout_s)
    errors = "" if result.ok or note else result.stderr
    lost = "" if first or not result.new_session else "Earlier variables are lost: Python was started anew.\n"
    parts = [lost, _cut(result.stdout, config.max_code_output_characters), _tail(errors, config), note]
    return "\n".join(part.rstrip("\n") for part in parts if part)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}\n[output cut]"


def _tail(text: str, config: GenerateConfig) -> str:
    """Return the end of an error message, which says most."""
    most = config.max_code_output_characters
    return text if len(text) <= most else f"[cut]\n{text[-most:]}"
