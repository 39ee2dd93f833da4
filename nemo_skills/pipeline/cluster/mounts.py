"""Mounts: which host folder is seen at which container path, and the way back."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from nemo_skills.core.errors import UserError

_MODES = {"ro": True, "rw": False}


def normalise_path(path: str, what: str = "path") -> str:
    """Return an absolute POSIX path without doubled slashes, `.` parts or a trailing slash.

    `..` is refused: resolving it by text alone is wrong as soon as a symbolic link is involved.
    """
    if not path.startswith("/"):
        hint = " '~' is not expanded here, write the full path." if path.startswith("~") else ""
        raise UserError(f"{what} {path!r} must be absolute.{hint}")
    if "\0" in path or "\n" in path:
        raise UserError(f"{what} {path!r} holds a line break or a zero byte.")
    # PurePosixPath keeps exactly two leading slashes, which POSIX leaves to the system; here they mean one
    pure = PurePosixPath("/" + path.lstrip("/"))
    if ".." in pure.parts:
        raise UserError(f"{what} {path!r} must not contain '..'; write the path it leads to.")
    return str(pure)


@dataclass(frozen=True)
class Mount:
    """One host folder or file (`source`) seen inside the container at `target`."""

    source: str
    target: str
    read_only: bool = False

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            value = normalise_path(getattr(self, name), f"mount {name}")
            if ":" in value:
                raise UserError(f"mount {name} {value!r} holds a ':', which no container engine can mount.")
            object.__setattr__(self, name, value)
        if self.target == "/":
            raise UserError(f"cannot mount {self.source!r} over the container's root folder '/'.")

    def __str__(self) -> str:
        return f"{self.source}:{self.target}" + (":ro" if self.read_only else "")


def parse_mount(text: str) -> Mount:
    """Parse `source:target`, `source:target:ro` or `source:target:rw`."""
    parts = text.strip().split(":")
    if len(parts) not in (2, 3) or not all(parts):
        example = (
            f" Did you mean '{text.strip()}:{text.strip()}'?" if len(parts) == 1 and text.strip() else ""
        )
        raise UserError(f"mount {text!r} is not of the form 'source:target' or 'source:target:ro'.{example}")
    if len(parts) == 3 and parts[2] not in _MODES:
        raise UserError(f"mount {text!r} has the unknown mode {parts[2]!r}; the modes are 'ro' and 'rw'.")
    try:
        return Mount(parts[0], parts[1], len(parts) == 3 and _MODES[parts[2]])
    except UserError as error:
        raise UserError(f"in mount {text!r}: {error}") from None


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """Parse a comma-separated list of mounts, as `--mount_paths` takes it; empty text is no mounts."""
    return tuple(parse_mount(part) for part in text.split(",") if part.strip())


@dataclass(frozen=True, init=False)
class MountTable:
    """All mounts of a job; translates paths by components, the longest match first."""

    mounts: tuple[Mount, ...] = ()

    def __init__(self, mounts: Iterable[Mount] = ()) -> None:
        by_target: dict[str, Mount] = {}
        for mount in mounts:
            seen = by_target.setdefault(mount.target, mount)
            if seen != mount:
                raise UserError(f"{mount.target!r} would be mounted twice: '{seen}' and '{mount}'.")
        object.__setattr__(self, "mounts", tuple(by_target.values()))

    def to_host(self, path: str) -> str:
        """Return the host path behind a container path; UserError when no mount covers it."""
        path = normalise_path(path)
        host = self._host(path)
        if host is None:
            raise UserError(f"{path!r} is not mounted in the container. {self._listing()}")
        return host

    def to_container(self, path: str) -> str:
        """Return a container path under which a host path is seen; UserError when there is none.

        A host path hidden by a deeper mount is not seen through the outer one.
        """
        path = normalise_path(path)
        for mount in self._by_source:
            if not PurePosixPath(path).is_relative_to(mount.source):
                continue
            inside = _move(path, mount.source, mount.target)
            if self._host(inside) == path:
                return inside
        raise UserError(f"the host path {path!r} is not visible in the container. {self._listing()}")

    def is_mounted(self, path: str) -> bool:
        """Whether a mount covers this container path."""
        return self._host(normalise_path(path)) is not None

    def unmounted(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Return those container paths that no mount covers: normalised, each once, in the order given."""
        return tuple(dict.fromkeys(p for p in map(normalise_path, paths) if self._host(p) is None))

    def with_extra(self, extra: Iterable[Mount]) -> "MountTable":
        """Return a table with more mounts; one target with two different sources or modes is an error."""
        return MountTable((*self.mounts, *extra))

    def _host(self, path: str) -> str | None:
        for mount in self._by_target:
            if PurePosixPath(path).is_relative_to(mount.target):
                return _move(path, mount.target, mount.source)
        return None

    @cached_property
    def _by_target(self) -> tuple[Mount, ...]:
        return tuple(sorted(self.mounts, key=lambda mount: -len(PurePosixPath(mount.target).parts)))

    @cached_property
    def _by_source(self) -> tuple[Mount, ...]:
        return tuple(sorted(self.mounts, key=lambda mount: -len(PurePosixPath(mount.source).parts)))

    def _listing(self) -> str:
        if not self.mounts:
            return "Nothing is mounted; add it to 'mounts' of the cluster config or pass --mount_paths."
        return f"Mounted: {', '.join(map(str, self.mounts))}; pass --mount_paths to add more."


def _move(path: str, old: str, new: str) -> str:
    return str(PurePosixPath(new, PurePosixPath(path).relative_to(old)))
