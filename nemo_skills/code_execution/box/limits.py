"""What a program may use, and what a box is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one box, for all its processes together unless said otherwise."""

    memory_mb: int = 1024
    processes: int = 64
    disk_mb: int = 128
    open_files: int = 256
    """Of each process."""


@dataclass(frozen=True)
class BoxOrder:
    """What the server asks of the zygote."""

    limits: Limits
    slot: int
    """Number of the box among those that live; as root each has user ids of its own."""
    isolated: bool
    visible: tuple[str, ...] = ()
    """Folders that programs may read, besides the interpreter's and the system's libraries."""
