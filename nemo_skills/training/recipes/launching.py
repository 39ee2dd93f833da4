"""Launching recipes with NeMo-Run, as scripts with arguments or as configurations."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import nemo_run as run

from nemo_skills.core.errors import JobFailedError
from nemo_skills.core.main_guard import refuse_reimport, watch_reimport
from nemo_skills.training.recipes.registry import get_recipe
from nemo_skills.training.recipes.run import ENCODED

MODULE = "nemo_skills.training.recipes.run"
_PLAIN = "@+=:,./-_"
"""Characters besides letters and digits that no shell touches."""

watch_reimport()


def recipe_script(
    name: str, overrides: Sequence[str] = (), *, env: Mapping[str, str] | None = None
) -> run.Script:
    """Return what trains a recipe, for `run.run` and any executor whose environment has this package.

    Args:
        name: of the recipe.
        overrides: changes, such as `train.train_iters=20`; any characters are allowed.
        env: variables of the environment.

    Raises:
        UserError: there is no such recipe.
    """
    get_recipe(name)
    args = [name, *shell_safe(overrides)]
    return run.Script(path=MODULE, m=True, entrypoint="python", args=args, env=dict(env or {}))


def shell_safe(args: Sequence[str]) -> list[str]:
    """Return arguments that mean the same to the job but have no character that a shell would change.

    NeMo-Run quotes arguments for a shell on the way to some executors, once where others need it twice, and
    also where there is no shell.
    """
    if all(re.fullmatch(rf"[\w{re.escape(_PLAIN)}]+", arg, re.ASCII) for arg in args):
        return list(args)
    return [ENCODED, *(quote(arg, safe=_PLAIN).replace("~", "%7E") for arg in args)]


def launch(
    task: run.Script | run.Partial[Any],
    executor: run.Executor,
    *,
    plugins: Sequence[run.Plugin] = (),
    name: str = "recipe",
    detach: bool = False,
) -> None:
    """Run a task as `run.run` does, and fail when it fails.

    Args:
        task: of `recipe_script` or `as_partial`, or any other of NeMo-Run.
        executor: where to run it.
        plugins: of `nemo_skills.training.recipes.plugins`, or others.
        name: of the experiment.
        detach: do not wait for the end, where the executor can.

    Raises:
        JobFailedError: the job failed.
    """
    refuse_reimport()
    with run.Experiment(name, executor=executor) as experiment:
        experiment.add(task, name=name, plugins=list(plugins), tail_logs=not detach)
        experiment.run(detach=detach)
    failed = [job for job in experiment.jobs if not detach and job.state.name != "SUCCEEDED"]
    if failed:
        job = failed[0]
        raise JobFailedError(f"{job.id}: {job.state.name}, see {job.executor.job_dir}", exit_code=1)
