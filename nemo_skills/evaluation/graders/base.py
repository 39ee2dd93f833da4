"""What a grader is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from nemo_skills.evaluation.verdicts import Grade


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """For graders without settings."""


class Grader(Protocol):
    """Grades one answer at a time; a class that is made with an instance of its `Options`.

    `grade` runs in a process of its own, which is killed when an answer takes longer than allowed: it needs
    no time limit. What it raises becomes a `grader_error`. Modules of graders import heavy libraries lazily.
    """

    Options: ClassVar[type]
    """Dataclass of settings, declared with `opt`."""
    measure: ClassVar[str]
    """Name under which the share of correct answers is reported."""
    version: ClassVar[int]
    """Counts changes that alter verdicts: rows graded by an older version are graded again."""
    timeout_s: ClassVar[float]
    """Default limit for one answer."""
    soft_timeout_s: ClassVar[float | None]
    """Answers that need more processor time than this wait until all others are done; None for graders that
    wait for something else rather than compute."""

    def __init__(self, options: Any) -> None: ...

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that every row must have."""
        ...

    def warm_up(self) -> None:
        """Import what is needed; called once, before the processes fork.

        Raises:
            UserError: a library is missing; the message names the command that installs it.
        """
        ...

    def grade(self, row: Mapping[str, Any]) -> Grade:
        """Grade the answer in a row."""
        ...
