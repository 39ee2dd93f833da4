"""How many rows a step takes, and whether processes can share them. Imports nothing heavy."""

from nemo_skills.core.errors import UserError

KEY = "model.data.train_ds.global_batch_size"
_USUAL = 32
"""Rows of a step where nothing else is said."""


def fitting_batch(micro: int, dp: int) -> int:
    """Return the smallest global batch size from the usual one on that so many processes can share."""
    unit = micro * dp
    return -(-_USUAL // unit) * unit


def check_batch(size: int, micro: int, dp: int) -> None:
    """Check that each process gets the same number of whole micro-batches.

    Raises:
        UserError: with the nearest values that fit.
    """
    unit = micro * dp
    if size % unit:
        below, above = size // unit * unit, -(-size // unit) * unit
        nearest = f"{below} or {above}" if below else str(above)
        raise UserError(
            f"{KEY}={size} is not a multiple of micro_batch_size={micro} "
            f"x {dp} data-parallel processes; the nearest values that are: {nearest}."
        )
