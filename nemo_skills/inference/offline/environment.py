"""What the mains need around them: an engine's container may lack our few dependencies."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import TypeVar

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import main
from nemo_skills.core.script import run_script

_NEEDED = {"hydra": "hydra-core", "omegaconf": "omegaconf", "orjson": "orjson", "yaml": "pyyaml"}
S = TypeVar("S")


def offline_main(schema: type[S], function: Callable[[S], None]) -> Callable[..., None]:
    """Turn a function of one config into a program, as `core.hydra.main` does."""
    program = main(schema)(function)

    def run(args: Sequence[str] | None = None) -> None:
        run_script(check_environment)
        register_arithmetic()
        program(args)

    return run


def check_environment() -> None:
    """Raise a `UserError` that names what is not installed."""
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"This Python lacks {', '.join(missing)}: pip install {' '.join(missing)}. Or run this with"
            " nemo-skills' own environment, naming the interpreter that has the engine: ++engine_python=PATH."
        )


def register_arithmetic() -> None:
    """Let config files compute lengths, as in `${int_div:${model.encoder_seq_length}, 2}`."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("int_div", lambda a, b: a // b, replace=True)
    OmegaConf.register_new_resolver("subtract", lambda a, b: a - b, replace=True)
    OmegaConf.register_new_resolver("add", lambda *numbers: sum(numbers), replace=True)
    OmegaConf.register_new_resolver("multiply", lambda a, b: a * b, replace=True)
