"""What answers were made with, so that no output mixes answers of two kinds."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.inference.config import GenerateConfig

# Everything else (addresses, patience, concurrency, which rows) changes no answer
_KEYS = (
    "prompt_config",
    "prompt_template",
    "tokenizer",
    "prompt_format",
    "examples_type",
    "system_message",
    "stop_phrase",
    "generation_key",
    "add_generation_stats",
    "multi_turn_key",
    "prefix_generation_to_response",
    "parse_reasoning",
    "end_reasoning_string",
    "code_execution",
    "code_tags",
    "max_code_executions",
    "code_execution_timeout_s",
    "max_code_output_characters",
)
_SHOWN = 5


def answer_settings(config: GenerateConfig) -> dict[str, Any]:
    """Return the settings that decide what an answer looks like, flat and as JSON values."""
    settings = {key: getattr(config, key) for key in _KEYS}
    settings |= {f"inference.{key}": value for key, value in dataclasses.asdict(config.inference).items()}
    settings |= {"server.server_type": config.server.server_type, "server.model": config.server.model}
    plain: dict[str, Any] = orjson.loads(orjson.dumps(settings))
    return plain


def require_same_settings(before: Mapping[str, Any], config: GenerateConfig, what: Path) -> None:
    """Check that answers which are kept are those that are asked for now.

    Raises:
        UserError: names what has changed.
    """
    now = answer_settings(config)
    changed = [key for key in now if key in before and before[key] != now[key]]
    if changed:
        shown = ", ".join(f"{key}: {before.get(key)!r} → {now[key]!r}" for key in changed[:_SHOWN])
        raise UserError(
            f"The answers in {what} were made with other settings ({shown}). Finish it with the same"
            " settings, choose another output, or start over with ++skip_filled=false."
        )
