"""What the server and its clients say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

DEFAULT_TIMEOUT_S = 10.0
DEFAULT_OUTPUT_BYTES = 100_000


class Status(StrEnum):
    """How an execution ended."""

    completed = "completed"
    error = "error"
    """The program failed: an exception, or an exit code other than 0."""
    timed_out = "timed_out"
    memory = "memory"
    """It wanted more memory than it may have."""
    processes = "processes"
    """It started processes without end."""
    output_limit = "output_limit"
    """It printed without end."""
    infrastructure = "infrastructure"
    """Not the program's doing: the sandbox could not run it, or its answer was lost."""


@dataclass(frozen=True)
class ExecutionRequest:
    """Code to run: once for every `stdins`, or as the next cell of a session."""

    code: str
    session_id: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    """For each run."""
    stdins: tuple[str, ...] = ("",)
    stop_at_failure: bool = True
    """Leave out the runs after the first that fails."""
    max_output_bytes: int = DEFAULT_OUTPUT_BYTES
    """How much of standard output, and as much of standard error, comes back."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ExecutionRequest:
        """Read the fields.

        Raises:
            ValueError: they are no request.
        """
        unknown = fields.keys() - cls.__dataclass_fields__.keys()
        if unknown or not isinstance(fields.get("code"), str):
            raise ValueError(f"unknown fields: {sorted(unknown)}" if unknown else "'code' must be a text")
        request = cls(**{**fields, "stdins": tuple(fields.get("stdins", ("",)))})
        if not all(isinstance(text, str) for text in request.stdins):
            raise ValueError("'stdins' must be a list of texts")
        if request.timeout_s <= 0 or request.max_output_bytes < 0:
            raise ValueError("'timeout_s' must be above 0, 'max_output_bytes' 0 or more")
        if request.session_id is not None and request.stdins != ("",):
            raise ValueError("cells of a session have no standard input")
        return request


@dataclass(frozen=True)
class ExecutionResult:
    """What came of one execution."""

    status: Status
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    """Negative: the signal that ended it. None: it was ended by the sandbox, or never ran."""
    duration_s: float = 0.0
    new_session: bool = False
    """The session began with this execution; earlier variables, if any, are lost."""

    @property
    def ok(self) -> bool:
        """Whether the program did what it wanted."""
        return self.status is Status.completed

    @classmethod
    def failure(cls, message: str) -> ExecutionResult:
        """Return the result of an execution that was none."""
        return cls(Status.infrastructure, stderr=message)

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return {**asdict(self), "status": self.status.value}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ExecutionResult:
        """Read the fields."""
        return cls(**{**fields, "status": Status(fields["status"])})
