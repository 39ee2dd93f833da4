"""Where an inference engine runs when a program of ours has to run with it."""

from pathlib import Path
from typing import NamedTuple

from nemo_skills.pipeline.cluster.config import ClusterConfig

MAINS_ROLE = "nemo-skills"


class Place(NamedTuple):
    """Where that is."""

    role: str
    """Of our program."""
    engine_python: str | None = None
    """The interpreter that has the engine, where that is another one than our program's."""


def engine_place(engine: str, cluster: ClusterConfig, *, role: str = MAINS_ROLE) -> Place:
    """Return where programs with an engine run, `role` being that of those that need no engine.

    An image holds engine and main together; a virtual environment of the engine needs only the engine.
    """
    if engine == "hf":
        return Place(role)
    container = cluster.container(engine)
    if container.kind == "venv":
        folder = Path(container.ref)
        folder = folder.expanduser().absolute() if cluster.executor == "none" else folder
        return Place(role, str(folder / "bin" / "python"))
    return Place(role if container.kind == "python" else engine)
