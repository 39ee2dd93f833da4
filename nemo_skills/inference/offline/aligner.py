"""The job of the main `run_generation`: rows for fine-tuning in, prompts and responses out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import InputFiles, Line, parse_row
from nemo_skills.inference.offline.aligner_config import RunGenerationConfig
from nemo_skills.inference.offline.sft_rows import sft_prompt
from nemo_skills.inference.offline.spec import Item, Result, sample_seed
from nemo_skills.inference.outputs import OutputPaths


class AlignerTask:
    """Writes `step`, `consumed_samples`, `prompt` and `responses`."""

    skips_bad_rows = False

    def __init__(self, config: RunGenerationConfig) -> None:
        self._config = config
        self.paths = OutputPaths.of(config.output)
        self.source = InputFiles.find(config.model.data.train_ds.file_path)
        self.passes = config.trainer.generation.max_epochs
        self.settings = _settings(config)

    def select(self, count: int) -> int:
        """Take all rows."""
        return count

    def allowed_failures(self, total: int) -> int:
        """Leave out prompts that are too long, however many there are."""
        return total

    def item(self, line: Line, position: int) -> Item:
        """Return a row's prompt; `position` counts on over the epochs, so each samples anew."""
        config = self._config
        row = parse_row(line.path, line)
        try:
            prompt = sft_prompt(row, chat=config.model.data.chat)
        except UserError as error:
            raise UserError(f"{line.place}: {error}") from None
        count = config.model.generation.num_responses_to_gen
        seeds = tuple(sample_seed(config.seed, position, response) for response in range(count))
        return Item(prompt=prompt, seeds=seeds, bos=config.model.generation.sampling_params.add_BOS)

    def row(self, line: Line, result: Result) -> bytes:  # noqa: ARG002
        """Return prompt and responses."""
        fields: dict[str, Any] = {
            "prompt": result.prompt,
            "responses": [answer.text for answer in result.answers],
        }
        if self._config.model.generation.sampling_params.compute_logprob:
            fields["logprobs"] = [answer.logprobs for answer in result.answers]
        return orjson.dumps(fields)

    def placed(self, row: bytes, position: int, count: int) -> bytes:
        """Add the number of the global batch in its epoch, and how many rows were consumed when it ended."""
        size = self._config.model.global_batch_size
        epoch, place = divmod(position, count)
        step = place // size
        consumed = epoch * count + min((step + 1) * size, count)
        return b'{"step":%d,"consumed_samples":%d,%b' % (step, consumed, row[1:])


def _settings(config: RunGenerationConfig) -> Mapping[str, Any]:
    """Return all that responses depend on; how they are spread and computed may change between jobs."""
    spec = dataclasses.asdict(config.engine_spec())
    kept = ("engine", "model", "dtype", "context", "max_tokens", "max_prompt", "long_prompts", "clean")
    return {
        **{name: spec[name] for name in kept},
        **spec["sampling"],
        "end_strings": list(config.model.generation.sampling_params.end_strings),
        "add_BOS": config.model.generation.sampling_params.add_BOS,
        "chat": config.model.data.chat,
        "num_responses_to_gen": config.model.generation.num_responses_to_gen,
        "seed": config.seed,
    }
