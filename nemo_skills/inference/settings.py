"""What the answers of an unfinished run were made with, so that no output mixes answers of two kinds."""

import dataclasses
from pathlib import Path
from typing import Any

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import disk_errors, write_file
from nemo_skills.inference.config import GenerateConfig

# Everything else (addresses, patience, concurrency, how many rows) changes no answer
_KEYS = (
    "prompt_config",
    "prompt_template",
    "tokenizer",
    "prompt_format",
    "examples_type",
    "system_message",
    "stop_phrase",
    "num_chunks",
    "generation_key",
    "add_generation_stats",
    "multi_turn_key",
    "prefix_generation_to_response",
    "parse_reasoning",
    "end_reasoning_string",
)
_SHOWN = 5


def answer_settings(config: GenerateConfig) -> dict[str, Any]:
    """Return the settings that decide what an answer looks like, flat and as JSON values."""
    settings = {key: getattr(config, key) for key in _KEYS}
    settings |= {f"inference.{key}": value for key, value in dataclasses.asdict(config.inference).items()}
    settings |= {"server.server_type": config.server.server_type, "server.model": config.server.model}
    plain: dict[str, Any] = orjson.loads(orjson.dumps(settings))
    return plain


def keep_settings(path: Path, config: GenerateConfig) -> None:
    """Write down the settings of a run that starts."""
    with disk_errors(path):
        write_file(path, orjson.dumps(answer_settings(config), option=orjson.OPT_INDENT_2) + b"\n")


def require_same_settings(path: Path, config: GenerateConfig) -> None:
    """Check that a run that goes on asks for the same answers.

    Raises:
        UserError: names what has changed.
    """
    try:
        before = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return  # killed before it could be written, or removed by hand
    now = answer_settings(config)
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        shown = ", ".join(f"{key}: {before.get(key)!r} → {now[key]!r}" for key in changed[:_SHOWN])
        raise UserError(
            f"the unfinished run beside {path} was made with other settings ({shown}). Finish it with"
            " the same settings, choose another output, or start over with ++skip_filled=false."
        )
