"""Settings of the packing mains."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemo_skills.core.errors import require
from nemo_skills.core.hydra import MISSING, opt

_CONTEXT_PARALLEL_UNIT = 16


@dataclass(frozen=True, kw_only=True)
class PackedRowsConfig:
    """Rows to pack."""

    file_names: list[str] = opt(
        MISSING, "JSONL files (.gz, .zst too), paths or patterns, as in [a.jsonl,b.jsonl]"
    )
    max_seq_length: int = opt(MISSING, "most tokens of a sequence; `long_sequences` says what else happens")
    global_batch_size: int | None = opt(
        None, "rows of one step without packing; to name the packs that equal it"
    )
    hf_dataset: bool = opt(False, "accepted and ignored: rows are streamed and tokenised in parallel anyway")

    def __post_init__(self) -> None:
        """Check sizes."""
        require(bool(self.file_names), "model.data.train_ds.file_names is empty")
        require(self.max_seq_length > 1, "model.data.train_ds.max_seq_length must be at least 2")
        require(
            self.global_batch_size is None or self.global_batch_size > 0,
            "model.data.train_ds.global_batch_size must be positive",
        )


@dataclass(frozen=True, kw_only=True)
class PackedDataConfig:
    """Data to pack."""

    train_ds: PackedRowsConfig = opt(MISSING, "rows to pack")


@dataclass(frozen=True, kw_only=True)
class PackedModelConfig:
    """What training will be like."""

    data: PackedDataConfig = opt(MISSING, "data to pack")
    context_parallel_size: int = opt(1, "processes that will share every sequence: each is padded to divide")

    def __post_init__(self) -> None:
        """Check the size."""
        require(self.context_parallel_size > 0, "model.context_parallel_size must be positive")


@dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """Tokenises training data and puts several rows into each training sequence."""

    model: PackedModelConfig = opt(MISSING, "what to pack, for what training")
    tokenizer_path: str = opt(MISSING, "Hugging Face folder (or name) of the tokenizer")
    output_dir: Path = opt(
        MISSING, "folder of packed_<size>_seed<seed>.{input_ids,loss_mask,seq_start_id}.npy"
    )
    pack_sizes: list[int] = opt(
        MISSING, "tokens of a pack; several make several packed files, as in [4096,8192]"
    )
    seed: int = opt(0, "for everything that is drawn by lot, and part of the files' names")
    packing_algorithm: Literal[
        "fewest_packs", "best_fit_decreasing", "first_fit_decreasing", "first_fit_shuffle"
    ] = opt("fewest_packs", "which sequences share a pack; the first is never worse than the next two")
    long_sequences: Literal["truncate", "drop", "error"] = opt(
        "truncate", "a row with more than max_seq_length tokens: cut its end, leave it out, or stop"
    )
    on_bad_row: Literal["error", "skip"] = opt("error", "a line that is not JSON, or no row to train on")
    processes: int | None = opt(None, "how many processes tokenise; null: one for each processor")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = opt("INFO", "how much to log")

    def __post_init__(self) -> None:
        """Check that every sequence will fit."""
        rows = self.model.data.train_ds
        require(bool(self.pack_sizes), "pack_sizes is empty")
        require(self.seed >= 0, "seed must be 0 or more")
        require(self.processes is None or self.processes > 0, "processes must be positive")
        for size in self.pack_sizes:
            require(
                size >= rows.max_seq_length,
                f"pack_sizes={size} is smaller than model.data.train_ds.max_seq_length={rows.max_seq_length}:"
                " a sequence would not fit; lower max_seq_length",
            )
            require(
                size % self.multiple == 0,
                f"pack_sizes={size} is not a multiple of {self.multiple}, to which sequences are padded for"
                f" model.context_parallel_size={self.model.context_parallel_size}",
            )

    @property
    def multiple(self) -> int:
        """What the number of a sequence's inputs must be a multiple of."""
        size = self.model.context_parallel_size
        return 1 if size == 1 else math.lcm(_CONTEXT_PARALLEL_UNIT, 2 * size)

    def prefix(self, size: int) -> Path:
        """Return what the names of the files with packs of a size begin with."""
        return self.output_dir.expanduser() / f"packed_{size}_seed{self.seed}"
