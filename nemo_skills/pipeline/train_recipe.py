"""`ns train --recipe`: a recipe, changed by arguments, becomes the first arguments of the main."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.answering import refuse_owned
from nemo_skills.pipeline.options import NodeOptions, TrainOptions

RECIPES = "nemo_skills.training.recipes.command"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What a call with `--recipe` amounts to."""

    own: TrainOptions
    nodes: NodeOptions
    recipe: tuple[str, ...] = ()
    """Arguments of the main that come first."""
    args: tuple[str, ...] = ()
    """Arguments of the main that come last."""


def resolve_recipe(own: TrainOptions, nodes: NodeOptions, args: Sequence[str]) -> Resolved:
    """Return options and arguments of a call; without a recipe they stay as they are.

    With one the arguments, and the file that --config_path and --config_name name, have its keys.

    Raises:
        UserError: there is no such recipe, or an argument does not fit it.
    """
    if own.recipe is None:
        return Resolved(own=own, nodes=nodes, args=tuple(args))
    if own.config_path and not own.config_name:
        raise UserError("--config_path needs --config_name")
    _refuse_owned(own, nodes, args)
    flags = {"config-path": own.config_path, "config-name": own.config_name}
    file = [f"--{flag}={text}" for flag, text in flags.items() if text]
    chosen = importlib.import_module(RECIPES).choose(own.recipe, [*file, *args])
    if own.training_algo not in ("sft", chosen.algo):
        raise UserError(
            f"--training_algo={own.training_algo} does not go with --recipe={own.recipe}, which is for"
            f" {chosen.algo}: the recipe decides"
        )
    if not nodes.num_gpus:
        # the default of --num_nodes cannot be told from a 1 that was typed
        count = nodes.num_nodes if nodes.num_nodes > 1 else chosen.nodes or 1
        nodes = NodeOptions(num_gpus=chosen.devices or 0, num_nodes=count)
    own = replace(own, training_algo=chosen.algo, config_path=None, config_name=None)
    return Resolved(own=own, nodes=nodes, recipe=chosen.arguments)


@contextmanager
def names_of_recipe(own: TrainOptions) -> Iterator[None]:
    """Let errors that the main's checks raise name keys as the recipe does, if there is one."""
    try:
        yield
    except UserError as error:
        if own.recipe is None:
            raise
        text = importlib.import_module(RECIPES).in_names_of_recipes(str(error), own.training_algo)
        raise UserError(text) from None


def _refuse_owned(own: TrainOptions, nodes: NodeOptions, args: Sequence[str]) -> None:
    owned = {"logger.log_dir": "--output_dir"}
    if own.hf_model or own.nemo_model:
        owned["model.restore_from_path"] = "--hf_model or --nemo_model"
    if nodes.num_gpus:
        owned |= {"dist.devices": "--num_gpus"}
    if nodes.num_gpus or nodes.num_nodes > 1:
        owned |= {"dist.num_nodes": "--num_nodes"}
    for group, option in (("train", "training_data"), ("validation", "validation_data")):
        if getattr(own, option):
            owned |= {f"data.{group}.{name}": f"--{option}" for name in ("file_path", "file_names")}
    refuse_owned(args, owned)
