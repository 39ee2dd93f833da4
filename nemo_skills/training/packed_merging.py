"""Packed files into one, some rows at a time."""

import functools
import operator
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.training.packed_files import (
    PADDING,
    PackedReader,
    PackRows,
    PackShape,
    about_path,
    packed_prefix,
    write_packed,
)
from nemo_skills.training.packing_info import Counts, PackingInfo, fingerprint

_log = get_logger(__name__)
_BLOCK_BYTES = 16 << 20
_ALIKE = ("pack_size", "context_parallel_size", "vocabulary", "vocabulary_size")
"""What must be the same in all parts."""


def merge(inputs: Sequence[Path], output: Path) -> None:
    """Write the packs of all inputs, in their order; the result appears complete or not at all.

    Raises:
        UserError: an input is missing, broken, or of another kind than the first; or the disk is full.
    """
    prefixes, target = [packed_prefix(path) for path in inputs], packed_prefix(output)
    _check_names(prefixes, target)
    parts = [PackedReader(prefix) for prefix in prefixes]
    info = _merged_info([(part, part.info) for part in parts])
    width, sequences = (max(part.shape[axis] for part in parts) for axis in (1, 2))
    shape = PackShape(sum(map(len, parts)), width, sequences)
    step = max(1, _BLOCK_BYTES * shape.packs // max(shape.nbytes, 1))
    with write_packed(target, shape, info.to_json() if info else None) as writer:
        for part in parts:
            for number, rows in enumerate(part.blocks(step)):
                _check_tokens(part, rows, number * step, info.vocabulary_size if info else None)
                writer.append(rows)
    _log.info("%s: %d packs of %d files", target, shape.packs, len(parts))


def _check_names(prefixes: Sequence[Path], target: Path) -> None:
    resolved = [prefix.resolve() for prefix in prefixes]
    twice = [str(prefix) for prefix in prefixes if resolved.count(prefix.resolve()) > 1]
    if twice:
        raise UserError(f"--input_prefixes names {twice[0]} more than once.")
    if target.resolve() in resolved:
        raise UserError(f"--output_prefix {target} is one of the inputs.")


def _merged_info(parts: Sequence[tuple[PackedReader, PackingInfo | None]]) -> PackingInfo | None:
    """Check that parts are of the same kind, and return what is known of all together."""
    known = [info for _, info in parts if info is not None]
    if not known:
        _log.warning("No file says how the packs were made: whether they go together is not checked.")
        return None
    first = known[0]
    for part, info in parts:
        if info is None:
            raise UserError(
                f"{about_path(part.prefix)} is missing, which says how the packs were made; other parts have"
                " it. Pack this part again."
            )
        for name in _ALIKE:
            mine, theirs = getattr(info, name), getattr(first, name)
            if mine != theirs:
                raise UserError(
                    f"{part.prefix} does not go with {parts[0][0].prefix}: {name} is {mine}, not {theirs}."
                )
    return replace(
        first,
        packing_algorithm=", ".join(dict.fromkeys(info.packing_algorithm for info in known)),
        inputs=tuple(name for info in known for name in info.inputs),
        fingerprint=fingerprint([info.fingerprint for info in known]),
        counts=Counts.sum(info.counts for info in known),
        fill=functools.reduce(operator.add, (info.fill for info in known)),
    )


def _check_tokens(part: PackedReader, rows: PackRows, first: int, vocabulary: int | None) -> None:
    """A part that was damaged, or was made with another tokenizer, must not go on to training."""
    ids = rows.input_ids
    if vocabulary is not None and (ids.max() >= vocabulary or ids.min() < PADDING):
        bad = ((ids >= vocabulary) | (ids < PADDING)).any(axis=1)
        raise UserError(
            f"{part.prefix}.input_ids.npy: row {first + int(bad.argmax())} has tokens that are not of the"
            f" vocabulary of {vocabulary}."
        )
    if (rows.seq_start_id[:, 0] != 0).any():
        raise UserError(f"{part.prefix}.seq_start_id.npy: a row from {first} on does not begin with 0.")
