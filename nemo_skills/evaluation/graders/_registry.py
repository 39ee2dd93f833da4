"""Finds graders by name and checks their settings."""

import importlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.core.hydra import compose, encode_override
from nemo_skills.evaluation.graders.base import Grader

_HERE = "nemo_skills.evaluation.graders"
GRADERS: Mapping[str, str] = {
    "math": f"{_HERE}.math:MathGrader",
    "multichoice": f"{_HERE}.multichoice:MultichoiceGrader",
    "ifeval": f"{_HERE}.ifeval:IfevalGrader",
    "code": f"{_HERE}.code:CodeGrader",
    "judge": f"{_HERE}.judge:JudgeGrader",
}
"""`eval_type` → module and class. `package.module:Class` names a class of the user's own."""


@dataclass(frozen=True, kw_only=True)
class GraderSpec:
    """A grader as it is passed to other processes."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings by name, those that differ from the defaults."""

    def make(self) -> Grader:
        """Make the grader.

        Raises:
            UserError: there is none of that name, or a setting is unknown or wrong.
        """
        return get_grader(self.name, self.options)

    @property
    def fingerprint(self) -> str:
        """Name, version and all settings in a few characters: equal ones give equal verdicts."""
        grader = grader_class(self.name)
        options = _checked(self.name, grader.Options, self.options)
        return f"{self.name}:{zlib.crc32(repr((grader.version, options)).encode()):08x}"


def grader_class(name: str) -> type[Grader]:
    """Return the class of a grader.

    Raises:
        UserError: there is none of that name.
    """
    target = name if ":" in name else GRADERS.get(name)
    if target is None:
        raise UserError(
            f"eval_type={name}: there is no such grader.{did_you_mean(name, GRADERS)}"
            f" There are {', '.join(sorted(GRADERS))}; your own is named package.module:Class."
        )
    module, _, attribute = target.partition(":")
    try:
        return cast(type[Grader], getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise UserError(f"eval_type={name}: cannot load {target}: {error}.") from error


def get_grader(name: str, options: Mapping[str, Any] | None = None) -> Grader:
    """Make a grader.

    Args:
        name: its name in `GRADERS`, or `package.module:Class`.
        options: settings; the others have their defaults.

    Raises:
        UserError: there is none of that name, or a setting is unknown or wrong.
    """
    grader = grader_class(name)
    return grader(_checked(name, grader.Options, options or {}))


def _checked(name: str, schema: type, options: Mapping[str, Any]) -> Any:
    try:
        return compose(schema, [encode_override(key, value) for key, value in options.items()])
    except UserError as error:
        lines = str(error).splitlines()
        raise UserError("\n".join(f"grader {name}: {line}" for line in lines)) from None
