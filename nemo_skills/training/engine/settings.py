"""What must stay the same while a run goes on: its data, batches and model. Imports no torch."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.training.config import DatasetConfig, TrainingConfig
from nemo_skills.training.row_files import find_rows, once, refuse_packed

Settings = Mapping[str, Any]
"""Values by the key that they have in the configuration."""
_ENDS = 1 << 20


def run_settings(config: TrainingConfig) -> Settings:
    """Return what decides which rows a step has, and of which model.

    Raises:
        UserError: a file is missing.
    """
    model, data = config.model, config.model.data.train_ds
    shared = model.tensor_model_parallel_size * model.context_parallel_size
    dp = max(1, int(os.environ.get("WORLD_SIZE", "1")) // shared)
    key = "model.data.train_ds"
    shape = asdict(model.architecture) if model.from_scratch and model.architecture else None
    return {
        f"{key}.{'file_path' if data.file_path else 'file_names'}": [_describe(p) for p in _paths(data, key)],
        f"{key}.packed_sequence": data.packed_sequence,
        f"{key}.global_batch_size": data.batch_size(dp),
        f"{key}.max_seq_length": data.max_seq_length,
        f"{key}.shuffle": data.shuffle,
        "model.restore_from_path": model.restore_from_path,
        "model.from_scratch": model.from_scratch,
        "model.architecture": shape,
        "model.seed": model.seed,
        "model.peft.peft_scheme": model.peft.peft_scheme,
    }


def check_settings(file: Path, now: Settings) -> None:
    """Compare settings with those that an earlier run has left in a file, if it has.

    Raises:
        UserError: names the first that differs.
    """
    try:
        before = orjson.loads(file.read_bytes())["settings"]
        differing = next((key for key in now if before.get(key, now[key]) != now[key]), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if differing:
        raise UserError(
            f"{file} is of a run with {differing}={_shown(before[differing])}, which is now "
            f"{_shown(now[differing])}. A run goes on as it began: take the same again, or another output "
            "folder, or remove this one to start over."
        )


def _paths(data: DatasetConfig, key: str) -> Sequence[Path]:
    if not data.packed_sequence:
        refuse_packed(data.files, key)
        return find_rows(data.files, warn=False).paths
    from nemo_skills.training.packed_files import packed_prefix, part_path

    prefixes = once(map(packed_prefix, data.files), warn=False)
    return [part_path(prefix, "input_ids") for prefix in prefixes]


def _describe(path: Path) -> str:
    """Tell a file by size and ends, so that it may be moved: to read a large one takes too long."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            ends = hashlib.sha256(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            ends.update(file.read())
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return f"{path.name} ({size} bytes, {ends.hexdigest()[:12]})"


def _shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
