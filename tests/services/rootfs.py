"""A small Debian root folder with Python: the base image for Docker and the root for the container plugin.

It is made by debootstrap once and kept in `tests/services/.cache` (or `NS_TEST_CACHE`), which git ignores.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services.process import missing_programs, program, run

PROGRAMS = ("debootstrap", "tar")
SUITE = "bookworm"
# python3-minimal lacks http.server; procps for `ps`.
PACKAGES = ("python3", "ca-certificates", "procps")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What an image's ENV lines are to Docker, /etc/environment is to the container plugin.
ENVIRONMENT = {"PATH": PATH, "LANG": "C.UTF-8", "NS_TEST_IMAGE": "base"}


def cache_dir() -> Path:
    """Where things live that are too slow to build for every run."""
    return Path(os.environ.get("NS_TEST_CACHE") or Path(__file__).with_name(".cache"))


def unavailable() -> str | None:
    """Why the root folder can be neither found nor built here, if so."""
    if rootfs_dir().is_dir():
        return None
    missing = missing_programs(PROGRAMS)
    if missing:
        return f"{', '.join(missing)} not installed (run tests/services/install.sh)"
    return None if os.geteuid() == 0 else "debootstrap needs root"


def rootfs_dir() -> Path:
    """The finished root folder; its name changes with what goes into it."""
    return cache_dir() / f"rootfs-{SUITE}-{'-'.join(PACKAGES)}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build_rootfs() -> Path:
    """Return the root folder, building it when it is not there yet. Treat it as read-only."""
    target = rootfs_dir()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / "rootfs.lock"):
        if not target.is_dir():
            draft = target.with_name("rootfs-draft")
            shutil.rmtree(draft, ignore_errors=True)
            include = f"--include={','.join(PACKAGES)}"
            run([program("debootstrap"), "--variant=minbase", include, SUITE, str(draft)])
            (draft / "usr/local/bin/python").symlink_to("/usr/bin/python3")
            lines = [f"{name}={value}\n" for name, value in ENVIRONMENT.items()]
            (draft / "etc/environment").write_text("".join(lines))
            for leftover in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
                shutil.rmtree(draft / leftover)
                (draft / leftover).mkdir()
            draft.rename(target)
    return target


if __name__ == "__main__":
    print(build_rootfs())
