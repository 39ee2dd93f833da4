"""`ns recipe`: what recipes there are, and what is in them."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import disk_errors, write_file
from nemo_skills.pipeline.main_args import normalise
from nemo_skills.pipeline.options import RecipeOptions
from nemo_skills.pipeline.train_recipe import RECIPES
from nemo_skills.pipeline.wrapper import Context, wrapper

_WIDEST = 44
"""A longer value pushes only the rest of its own line."""


@wrapper(overrides=True)
def recipe(ctx: Context, own: RecipeOptions) -> str:
    """List recipes; show one; or export one as a file or as arguments.

    A recipe is a complete configuration of a training. Arguments (++train.train_iters=100) and a file
    (--config-path and --config-name) change it. ns train --recipe=NAME starts it.
    """
    command = importlib.import_module(RECIPES)
    if own.action == "list":
        text = _columns(command.listing())
    elif own.name is None:
        raise UserError(f"ns recipe {own.action} needs the name of a recipe. See ns recipe list.")
    elif own.action == "export":
        text = command.exported(own.name, normalise(ctx.args), own.format)
    else:
        text = _columns(command.shown(own.name, normalise(ctx.args), origin=own.origin))
        if own.gpus:
            text += "\n" + "\n".join(command.memory_lines(own.name, normalise(ctx.args), own.gpus)) + "\n"
    if own.output:
        path = Path(own.output)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, text.encode())
    else:
        print(text, end="")
    return text


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Align all columns but the last."""
    widths = [min(_WIDEST, max(len(row[i]) for row in rows)) for i in range(len(rows[0]) - 1)]
    return "".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) + "\n"
        for row in rows
    )
