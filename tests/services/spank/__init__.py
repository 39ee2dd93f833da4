"""Build the container plugin: a stand-in for Pyxis, in C, loaded by srun and slurmstepd."""

from __future__ import annotations

from pathlib import Path

from tests.services.process import program, run

SOURCE = Path(__file__).with_name("container.c")


def build(folder: Path) -> Path:
    """Compile the plugin into `folder`; return the shared object."""
    target = folder / "container.so"
    run(
        [
            program("gcc"),
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O1",
            "-shared",
            "-fPIC",
            "-o",
            str(target),
            str(SOURCE),
        ]
    )
    return target
