"""What there is already of the files that a plan is to make."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job in a queue that writes a file, or will."""

    id: str
    state: str
    """Slurm's word, such as `PENDING`."""
    job: str
    """Its name in its plan."""
    expname: str


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is there, by paths as jobs see them."""

    exists: frozenset[str] = frozenset()
    """Files that exist where jobs run."""
    queued: Mapping[str, Queued] = field(default_factory=dict)
    """Files that a job in the queue writes."""
    answer: str | None = None
    """What the cluster said, for the submission that follows."""
