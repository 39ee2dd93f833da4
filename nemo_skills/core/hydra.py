"""Structured mains: a dataclass is the config, Hydra's override syntax fills it, `--help` lists it.

Declare a schema with `opt`, decorate the main with `@main(Schema)`. Importing this module is cheap: Hydra and
OmegaConf are imported when arguments are read. Unlike with `hydra.main`, nothing is written to disk, logging
is ours, and `++` cannot add a key that the schema does not have.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from nemo_skills.core import _compose
from nemo_skills.core._grammar import encode, encode_override, normalise
from nemo_skills.core._schema import MISSING, opt
from nemo_skills.core.errors import UserError

__all__ = ["MISSING", "compose", "encode", "encode_override", "main", "normalise", "opt"]

S = TypeVar("S")


def compose(schema: type[S], args: Sequence[str]) -> S:
    """Return an instance of `schema` filled from Hydra-style arguments.

    Args:
        schema: A dataclass declared with `opt`.
        args: `++k=v`, `+k=v`, `k=v`, `~k` (back to the default), and `--config-path`, `--config-name`,
            `--config-dir` for a YAML file that is merged over the defaults before the overrides.

    Raises:
        UserError: One line for each unknown key, wrong type, missing value or failed check.
    """
    return cast(S, _compose.compose(schema, args))


def main(schema: type[S]) -> Callable[[Callable[[S], None]], Callable[..., None]]:
    """Turn a function of one config into a program."""

    def decorate(function: Callable[[S], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def program(args: Sequence[str] | None = None) -> None:
            try:
                _run(function, schema, sys.argv[1:] if args is None else args)
            except UserError as error:
                print(f"Error: {error}", file=sys.stderr)
                sys.exit(error.exit_code)
            except KeyboardInterrupt:
                sys.exit(130)

        return program

    return decorate


def _run(function: Callable[[S], None], schema: type[S], args: Sequence[str]) -> None:
    from nemo_skills.core.log import setup_logging

    if any(arg in ("--help", "-h") for arg in args):
        from nemo_skills.core._help import listing

        print(listing(schema, program=_program(), about=function.__doc__ or schema.__doc__ or ""))
        return
    setup_logging()
    config = compose(schema, [arg for arg in args if arg != "--print_config"])
    if "--print_config" in args:
        from nemo_skills.core._help import as_yaml

        print(as_yaml(config), end="")
        return
    function(config)


def _program() -> str:
    """Return how this program was started."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else f"python {os.path.relpath(sys.argv[0])}"
