"""Grades how well instructions were followed, by the public IFEval format.

A row has `instruction_id_list` and, for each of these, an object of arguments in `kwargs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.core.hydra import opt
from nemo_skills.evaluation.graders.instructions import CHECKS, language
from nemo_skills.evaluation.verdicts import Grade, Verdict


@dataclass(frozen=True, kw_only=True)
class IfevalOptions:
    """Where the response is."""

    generation_key: str = opt("generation", "key of what the model wrote")


class IfevalGrader:
    """Checks each instruction strictly, and loosely: with some usual additions of models taken away."""

    Options: ClassVar[type] = IfevalOptions
    measure: ClassVar[str] = "prompt_strict"
    version: ClassVar[int] = 1
    timeout_s: ClassVar[float] = 10.0
    soft_timeout_s: ClassVar[float | None] = None

    def __init__(self, options: IfevalOptions) -> None:
        self._options = options

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that every row must have."""
        return (self._options.generation_key, "instruction_id_list", "kwargs")

    def warm_up(self) -> None:
        """Load the library that tells languages apart."""
        language.load()

    def grade(self, row: Mapping[str, Any]) -> Grade:
        """Check all instructions of a row."""
        names, arguments = row["instruction_id_list"], row["kwargs"]
        if not names or len(names) != len(arguments):
            raise UserError(
                "'kwargs' must have one entry for each of 'instruction_id_list', which is not empty"
            )
        response = str(row[self._options.generation_key])
        strict = [
            _follows(name, given or {}, [response]) for name, given in zip(names, arguments, strict=True)
        ]
        variants = loosened(response)
        loose = [
            followed or _follows(name, given or {}, variants)
            for followed, name, given in zip(strict, names, arguments, strict=True)
        ]
        details = {
            "followed": dict(enumerate_names(names, strict)),
            "scores": {
                "prompt_loose": float(all(loose)),
                "instruction_strict": [sum(strict), len(strict)],
                "instruction_loose": [sum(loose), len(loose)],
            },
        }
        if not response.strip():
            return Grade(verdict=Verdict.no_answer, details=details)
        return Grade(verdict=Verdict.correct if all(strict) else Verdict.incorrect, details=details)


def loosened(response: str) -> list[str]:
    """Return the response without its first line, its last line, both, and each also without asterisks."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(text.replace("*", "") for text in cut)]


def enumerate_names(names: list[str], followed: list[bool]) -> list[tuple[str, bool]]:
    """Pair instructions with whether they were followed; one that is there twice gets a number."""
    return [
        (name if names.count(name) == 1 else f"{name}#{index}", ok)
        for index, (name, ok) in enumerate(zip(names, followed, strict=True))
    ]


def _follows(name: str, arguments: Mapping[str, Any], responses: list[str]) -> bool:
    check = CHECKS.get(name)
    if check is None:
        raise UserError(f"unknown instruction '{name}'.{did_you_mean(name, CHECKS)}")
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        return any(text.strip() and check(text, **given) for text in responses)
    except TypeError as error:
        raise UserError(f"{name}: wrong arguments {given}: {error}") from None
