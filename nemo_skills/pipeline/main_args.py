"""Arguments of a job's main, as wrappers see them: read, made ready for transport, checked beforehand."""

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path

from nemo_skills.core import _grammar
from nemo_skills.core._grammar import CommandLine, encode_override
from nemo_skills.core.errors import UserError

__all__ = ["MainArgs", "encode_override", "normalise", "parse_main_args", "validate"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MainArgs:
    """Arguments that are known to be overrides or Hydra's flags; one token per argument."""

    args: tuple[str, ...] = ()


def parse_main_args(tokens: Sequence[str]) -> MainArgs:
    """Read what stands behind a wrapper's own options.

    Raises:
        UserError: One line for each token that is neither an override nor one of Hydra's config flags.
    """
    return MainArgs(args=_grammar.split(tokens).tokens())


def normalise(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return the arguments as a main gets them: `--flag=value`, and values rewritten into Hydra's grammar."""
    args = parse_main_args(tokens).args
    return tuple(arg if arg.startswith("--") else _grammar.normalise(arg) for arg in args)


def validate(schema: str, args: Sequence[str], *, local_files: bool = True) -> None:
    """Check arguments against the config class of a main.

    Args:
        schema: The config class as `module:Class`; its module is imported here and nowhere else.
        args: Overrides and Hydra's flags.
        local_files: Whether the job sees this machine's files, so that a config folder which is not here is
            an error. Otherwise it is taken to lie where the job runs, and its file to hold what is missing.

    Raises:
        UserError: One line for each unknown key, wrong type and missing value.
    """
    from nemo_skills.core._compose import check
    from nemo_skills.core._config_file import find_file

    module, _, name = schema.partition(":")
    config_class: type = getattr(importlib.import_module(module), name)
    checked = check(config_class, _grammar.split(args), find=find_file if local_files else _local_file)
    if checked.problems:
        raise UserError("\n".join(checked.problems))


def _local_file(line: CommandLine) -> Path | None:
    """Return the config file, or None when its folder is on another machine."""
    from nemo_skills.core._config_file import config_folders, find_file

    remote = line.config_name and not all(folder.is_dir() for folder in config_folders(line))
    return None if remote else find_file(line)
