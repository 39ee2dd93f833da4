"""The job of the main `prepare_packed_ft_dataset`."""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import InputFiles
from nemo_skills.core.log import get_logger
from nemo_skills.training.data_preparation_utils.pool import available_cpus
from nemo_skills.training.packed_files import PackedReader, about_path, part_path, write_packed
from nemo_skills.training.packing import Plan, plan_packs
from nemo_skills.training.packing_config import PackingConfig
from nemo_skills.training.packing_info import (
    Counts,
    Fill,
    PackingInfo,
    fingerprint,
    vocabulary_of,
)
from nemo_skills.training.packing_rows import RowFiller
from nemo_skills.training.packing_tokens import (
    Tokeniser,
    TokenStore,
    lengths_line,
    open_store,
    tokenise_files,
)
from nemo_skills.training.row_files import find_rows
from nemo_skills.training.tokenise import load_tokenizer, starts_with_bos

_log = get_logger(__name__)
_USUAL_BATCHES = (32, 128, 512)


def pack_dataset(config: PackingConfig) -> None:
    """Tokenise the rows once, then plan and write packs of each size that is not there yet.

    Raises:
        UserError: the data or the tokenizer is no good, nothing is left to pack, or the disk is full.
    """
    rows = config.model.data.train_ds
    inputs = find_rows(rows.file_names)
    tokenizer = load_tokenizer(config.tokenizer_path)
    text_rules = (tokenizer.chat_template, starts_with_bos(tokenizer))
    job = _Job(config, inputs, *vocabulary_of(tokenizer), text_rules)
    sizes = [size for size in dict.fromkeys(config.pack_sizes) if not job.is_done(size)]
    if not sizes:
        return
    tokeniser = Tokeniser(tokenizer, rows.max_seq_length, config.long_sequences, config.on_bad_row == "skip")
    with open_store(config.output_dir.expanduser()) as store:
        counts = tokenise_files(inputs, tokeniser, config.processes or available_cpus(), store)
        _report(counts, store, inputs)
        for size in sizes:
            job.pack(size, store, counts, tokenizer.eos_token_id)


@dataclasses.dataclass(frozen=True)
class _Job:
    config: PackingConfig
    inputs: InputFiles
    vocabulary: str
    vocabulary_size: int
    text_rules: tuple[object, ...]
    """What else of a tokenizer decides which tokens rows have."""

    @property
    def fingerprint(self) -> str:
        """Everything that decides what is in the files."""
        config = self.config
        return fingerprint(
            [
                [[str(path.resolve()) for path in self.inputs.paths], self.inputs.stamps()],
                [config.model.data.train_ds.max_seq_length, config.multiple, config.seed],
                [config.packing_algorithm, config.long_sequences, config.on_bad_row, self.vocabulary],
                self.text_rules,
            ]
        )

    def is_done(self, size: int) -> bool:
        """Whether an earlier run has made the same files."""
        prefix = self.config.prefix(size)
        if not (about_path(prefix).exists() and part_path(prefix, "input_ids").exists()):
            return False
        try:
            about = PackedReader(prefix).about or {}
        except UserError:
            return False
        if about.get("fingerprint") != self.fingerprint:
            return False
        _log.info("%s.*.npy are there already, made of the same data with the same settings", prefix)
        return True

    def pack(self, size: int, store: TokenStore, counts: Counts, filler: int) -> None:
        """Plan and write packs of one size."""
        config, multiple = self.config, self.config.multiple
        inputs = -(-(store.lengths.astype(np.int64) - 1) // multiple) * multiple
        _log.info("Packing %d sequences to length %d (%s)", len(inputs), size, config.packing_algorithm)
        plan = plan_packs(inputs, size, config.packing_algorithm, config.seed)
        fill = _fill(plan, inputs, counts)
        filling = RowFiller(plan, store, inputs + 1, filler)
        prefix = config.prefix(size)
        with write_packed(prefix, filling.shape, self._info(size, counts, fill).to_json()) as writer:
            for rows in filling.rows():
                writer.append(rows)
        _announce(prefix, size, fill, config.model.data.train_ds.global_batch_size)

    def _info(self, size: int, counts: Counts, fill: Fill) -> PackingInfo:
        return PackingInfo(
            pack_size=size,
            context_parallel_size=self.config.model.context_parallel_size,
            seed=self.config.seed,
            packing_algorithm=self.config.packing_algorithm,
            tokenizer=self.config.tokenizer_path,
            vocabulary=self.vocabulary,
            vocabulary_size=self.vocabulary_size,
            inputs=tuple(map(str, self.inputs.paths)),
            fingerprint=self.fingerprint,
            counts=counts,
            fill=fill,
        )


def _report(counts: Counts, store: TokenStore, inputs: InputFiles) -> None:
    if not counts.rows:
        raise UserError(f"{inputs}: there are no rows.")
    if not counts.sequences:
        raise UserError(f"{inputs}: none of {counts.rows} rows is left to pack: {counts.left_out}.")
    _log.info("%d rows, %d sequences: %s", counts.rows, counts.sequences, counts.left_out)
    _log.info("Sequences have %s", lengths_line(store.lengths))


def _fill(plan: Plan, inputs: npt.NDArray[np.int64], counts: Counts) -> Fill:
    sums = np.add.reduceat(inputs[plan.order], plan.bounds[:-1])
    pairs, own = (int((sizes * (sizes - 1) // 2).sum()) for sizes in (sums, inputs))
    return Fill(
        packs=len(plan),
        sequences=len(inputs),
        inputs=plan.tokens,
        padding=plan.tokens - counts.tokens,
        pairs=pairs,
        cross_document_pairs=pairs - own,
    )


def _announce(prefix: Path, size: int, fill: Fill, batch: int | None) -> None:
    n = fill.sequences_per_pack
    _log.info("%s: %d packs, %.2f%% filled", prefix, fill.packs, 100 * fill.efficiency(size))
    _log.info(">>>>> Pack size %d: the average number of sequences per pack is n = %.3f <<<<<", size, n)
    batches = (batch,) if batch else _USUAL_BATCHES
    equal = ", ".join(f"{max(1, round(b / n))} instead of {b}" for b in batches)
    _log.info(
        "Train with ++model.data.train_ds.global_batch_size n times smaller (%s),"
        " rounded to a multiple of the data-parallel size, and micro_batch_size=1",
        equal,
    )
