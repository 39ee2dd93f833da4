"""From a problem and its answer to a row of supervised fine-tuning, with the prompt code of inference."""

import functools
from dataclasses import dataclass

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import opt
from nemo_skills.prompt.utils import Message, Prompt, get_prompt
from nemo_skills.training.data_preparation_utils.base import Row, RowMap, key_text

KEPT = ("id", "problem", "expected_answer", "num_generated_tokens")


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How a problem is put to the model; the same keys as in generation."""

    prompt_config: str | None = opt(None, "name of a shipped prompt, or path of a .yaml file")
    prompt_template: str | None = opt(None, "name or path of a chat template: write text with its tags")
    tokenizer: str | None = opt(None, "name or path of a tokenizer: write text made by its chat template")
    system_message: str | None = opt(None, "system message instead of the prompt's own")
    examples_type: str | None = opt(None, "few-shot examples instead of the prompt's own")

    @functools.cached_property
    def prompt(self) -> Prompt:
        """The prompt."""
        if self.prompt_config is None:
            raise UserError("prompt_config is missing; give ++prompt_config=... (such as generic/math)")
        return get_prompt(
            self.prompt_config,
            prompt_template=self.prompt_template,
            tokenizer=self.tokenizer,
            examples_type=self.examples_type,
            system_message=self.system_message,
        )

    def asked(self, row: Row) -> list[Message] | str:
        """Return the request for a row; rows of the same problem mostly follow one another."""
        if self._keys is None:
            return self.prompt.fill(row)
        values = [row.get(key) for key in self._keys]
        if self._last.values != values:
            self._last.request = self.prompt.fill(row)
            self._last.values = values
        return self._last.request

    @functools.cached_property
    def _keys(self) -> tuple[str, ...] | None:
        return self.prompt.keys

    @functools.cached_property
    def _last(self) -> "_Request":
        return _Request()

    @functools.cached_property
    def answer_end(self) -> str:
        """What the model is to write behind an answer."""
        return self.prompt.renderer.assistant_end


class _Request:
    """The last request, and what it was made of."""

    def __init__(self) -> None:
        self.values: list[object] | None = None
        self.request: list[Message] | str = ""


@dataclass(frozen=True, kw_only=True)
class FormatSft(PromptOptions, RowMap):
    """Writes `input` and `output` as text, or chat `messages` where there is no template and no tokenizer."""

    generation_key: str = opt("generation", "the answer")
    keep: tuple[str, ...] = opt(KEPT, "keys of the row to keep beside")
    strip: bool = opt(True, "drop white space around the answer")

    def prepare(self) -> None:
        """Read the prompt."""
        _ = self.prompt, self.answer_end

    def change(self, row: Row) -> Row:
        """Return the training row."""
        answer = key_text(row, self.generation_key)
        answer = answer.strip() if self.strip else answer
        asked = self.asked(row)
        if isinstance(asked, str):
            made: Row = {"input": asked, "output": answer + self.answer_end}
        else:
            turns = [{**message, "train": False} for message in asked]
            made = {"messages": [*turns, {"role": "assistant", "content": answer, "train": True}]}
        for key in self.keep:
            if key in row:
                made[key] = row[key]
        return made
