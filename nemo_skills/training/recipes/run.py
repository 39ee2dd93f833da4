"""Trains a recipe inside of a job.

One process: `python -m nemo_skills.training.recipes.run tiny data.train.file_path=rows.jsonl …`; several:
`torchrun --nproc-per-node N -m nemo_skills.training.recipes.run tiny …`. After the name come changes of the
recipe, Hydra-style or by `--config-path` and `--config-name`; `--print_config` shows the result instead.
"""

import sys
from collections.abc import Sequence
from urllib.parse import unquote

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import setup_logging
from nemo_skills.core.main_guard import refuse_reimport
from nemo_skills.core.script import run_script
from nemo_skills.training.recipes import ConfigContainer, get_recipe, names

ENCODED = "--encoded"
"""Says that the arguments are percent-encoded: what lies between launcher and job disagrees on quotes."""
_RUNNER = "nemo_run.core.runners.fdl_runner"


def train(config: ConfigContainer) -> None:
    """Train what a container describes, as `start_sft` and `start_dpo` do; a rerun goes on.

    Exits with code 3 when it stopped early, after saving.

    Raises:
        UserError: settings, data or model cannot be used.
    """
    refuse_reimport()
    if getattr(sys.modules["__main__"].__spec__, "name", "") == _RUNNER:
        # NeMo-Run's program for configurations, which would print a traceback
        setup_logging()
        run_script(lambda: _train(config))
    else:
        _train(config)


def recipe(args: Sequence[str]) -> ConfigContainer:
    """Return the recipe that a command line names, changed by the rest of it.

    Raises:
        UserError: there is no such recipe, or an argument fits none of its keys.
    """
    from nemo_skills.training.recipes.overrides import override

    if not args or args[0].startswith("-") or "=" in args[0]:
        raise UserError(f"Name a recipe first, one of {', '.join(names())}.")
    config = get_recipe(args[0])()
    override(config, decoded(args[1:]))
    return config


def decoded(args: Sequence[str]) -> list[str]:
    """Return arguments as they were given to the launcher."""
    return [unquote(arg) for arg in args if arg != ENCODED] if ENCODED in args else list(args)


def _train(config: ConfigContainer) -> None:
    settings = config.main_config()
    if config.algo == "dpo":
        from nemo_skills.training.start_dpo import start_dpo

        start_dpo(settings, config.logger.on_metrics)
    else:
        from nemo_skills.training.start_sft import start_sft

        start_sft(settings, config.logger.on_metrics)


def _main() -> None:
    args = sys.argv[1:]
    if not args or {"--help", "-h"} & {*args}:
        print(f"{__doc__}\nRecipes: {', '.join(names())}")
        return
    setup_logging()
    config = recipe([arg for arg in args if arg != "--print_config"])
    if "--print_config" in args:
        from nemo_skills.training.recipes.overrides import to_yaml

        print(to_yaml(config), end="")
        return
    train(config)


if __name__ == "__main__":
    run_script(_main)
