"""The job of the main `generate_offline`: the same rows in and out as those of the generation main."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import InputFiles, Line, add_fields, parse_row
from nemo_skills.inference.offline.rows_config import OfflineConfig
from nemo_skills.inference.offline.spec import EngineSpec, Item, Result, sample_seed
from nemo_skills.inference.outputs import OutputPaths
from nemo_skills.inference.settings import answer_settings
from nemo_skills.prompt.utils import get_prompt


class RowsTask:
    """Adds the answer to each row."""

    passes = 1

    def __init__(self, config: OfflineConfig) -> None:
        self._config = config
        self._prompt = get_prompt(
            config.prompt_config,
            prompt_template=config.prompt_template,
            tokenizer=config.tokenizer,
            examples_type=config.examples_type,
            system_message=config.system_message,
            prompt_format=config.prompt_format,
        )
        own = (config.stop_phrase,) if config.stop_phrase else ()
        self.spec: EngineSpec = config.engine_spec(tuple(dict.fromkeys((*own, *self._prompt.stop_phrases))))
        self.paths = OutputPaths.of(config.output_file)
        self.source = InputFiles.find(config.input_file)
        self.settings = _settings(config)
        self.skips_bad_rows = config.on_bad_row == "skip"
        cuts_prompts = config.engine_spec(()).long_prompts not in ("skip", "shorten_response")
        if cuts_prompts and self._prompt.is_text:
            raise UserError(
                f"server.context_limit_retry_strategy={config.server.context_limit_retry_strategy} needs chat"
                " messages without a server; drop prompt_template and tokenizer, or use reduce_generation."
            )

    def select(self, count: int) -> int:
        """Take the first rows."""
        return min(count, self._config.row_limit or count)

    def allowed_failures(self, total: int) -> int:
        """Return what `max_failed_rows` allows."""
        return self._config.allowed_failures(total)

    def item(self, line: Line, position: int) -> Item:  # noqa: ARG002
        """Return a row's prompt; its seed depends on its place in the whole input."""
        row = parse_row(line.path, line)
        try:
            rendered = self._prompt.fill(row, assistant_prefix=self._prefix(row))
        except UserError as error:
            raise UserError(f"{line.place}: {error}") from None
        seeds = tuple(
            sample_seed(self._config.seed, line.position, n) for n in range(self._config.inference.n)
        )
        return Item(prompt=rendered, seeds=seeds)

    def row(self, line: Line, result: Result) -> bytes:
        """Return the row with its answer."""
        config, row = self._config, parse_row(line.path, line)
        prefix = self._prefix(row)
        texts = [prefix + answer.text for answer in result.answers]
        fields: dict[str, Any] = {config.generation_key: texts}
        if config.parse_reasoning:
            parts = [_split_reasoning(text, config.end_reasoning_string) for text in texts]
            fields = {
                "_finished_reasoning": [part.finished for part in parts],
                config.generation_key: [part.answer for part in parts],
                "_reasoning": [part.reasoning for part in parts],
            }
        if config.add_generation_stats:
            fields["finish_reason"] = [answer.finish for answer in result.answers]
        if config.inference.n == 1:
            fields = {key: values[0] for key, values in fields.items()}
        if config.add_generation_stats:
            fields["num_generated_tokens"] = sum(answer.tokens for answer in result.answers)
        if lost := _lost(result):
            fields["context_cut"] = {"strategy": config.server.context_limit_retry_strategy, **lost}
        return add_fields(line.raw, row, fields)

    def placed(self, row: bytes, position: int, count: int) -> bytes:  # noqa: ARG002
        """Leave the row as it is."""
        return row

    def _prefix(self, row: Mapping[str, Any]) -> str:
        config = self._config
        if not config.prefix_generation_to_response:
            return ""
        prefix = row.get(config.generation_key)
        if not isinstance(prefix, str):
            raise UserError(
                f"prefix_generation_to_response needs the first words in '{config.generation_key}';"
                f" keys of the row: {', '.join(row)}"
            )
        return prefix


def _settings(config: OfflineConfig) -> Mapping[str, Any]:
    """Return all that answers depend on; how they are spread and computed may change between jobs."""
    strategy = config.server.context_limit_retry_strategy
    return {
        **answer_settings(config),
        "context_limit_retry_strategy": strategy and strategy.value,
        "context_length": config.context_length,
        "dtype": config.dtype,
    }


class _Parts(NamedTuple):
    reasoning: str
    answer: str
    finished: bool


def _split_reasoning(text: str, end: str) -> _Parts:
    """Split reasoning from answer; without the end of the reasoning there is no answer."""
    reasoning, found, rest = text.rpartition(end)
    return _Parts(reasoning, rest.strip(), True) if found else _Parts(text, "", False)


def _lost(result: Result) -> dict[str, int]:
    """Return what had to be left out to fit the model's context."""
    if result.longest is not None:
        return {"tokens_to_generate": result.longest}
    return {"tokens_cut": result.cut} if result.cut else {}
