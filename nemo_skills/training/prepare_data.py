"""Data preparation main: turns graded generations into data for fine-tuning or DPO.

`python -m nemo_skills.training.prepare_data --help` lists the settings; `--config-name` picks one of the
shipped lists of steps (math_sft, code_sft, general_sft, dpo) or, with `--config-path`, one of your own.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_skills.core.hydra import main
from nemo_skills.training.data_preparation_utils.settings import PrepareDataConfig

__all__ = ["PrepareDataConfig", "prepare_data", "run"]

CONFIGS = Path(__file__).resolve().parent / "data_preparation_utils" / "config"
_DEFAULT = "math_sft"
_NAME_FLAGS = ("--config-name", "-cn")
_FOLDER_FLAGS = ("--config-path", "--config-dir", "-cp", "-cd")


@main(PrepareDataConfig)
def _program(config: PrepareDataConfig) -> None:
    """Turns graded generations into training data; --config-name=math_sft | code_sft | general_sft | dpo."""
    prepare_data(config)


def prepare_data(config: PrepareDataConfig) -> None:
    """Write training data; nothing appears at `output_path` before all of it is there."""
    # a launcher imports this module for the schema alone
    from nemo_skills.core.log import setup_logging
    from nemo_skills.training.data_preparation_utils.job import prepare

    setup_logging(config.log_level)
    prepare(config)


def run(args: Sequence[str] | None = None) -> None:
    """Run as a program; without `--config-path` the shipped configs are meant."""
    given = list(_with_report(sys.argv[1:] if args is None else args))
    flags = {arg.partition("=")[0] for arg in given}
    if flags.isdisjoint(_FOLDER_FLAGS):
        given.append(f"--config-path={CONFIGS}")
        if flags.isdisjoint(_NAME_FLAGS):
            given.append(f"--config-name={_DEFAULT}")
    _program(given)


def _with_report(args: Sequence[str]) -> Sequence[str]:
    """Take `--report page.html` for `++report=page.html`."""
    taken: list[str] = []
    for arg in args:
        if taken and taken[-1] == "--report":
            taken[-1] = f"++report={arg}"
        else:
            taken.append(f"++report={arg.removeprefix('--report=')}" if arg.startswith("--report=") else arg)
    return taken


if __name__ == "__main__":
    run()
