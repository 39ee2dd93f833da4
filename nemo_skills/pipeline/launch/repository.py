"""What git knows about the user's working tree, in three git calls however large it is."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError

_SUBMODULE = "160000"
_LONGEST_DIFF = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A git working tree; all paths are relative to `root`, with `/`."""

    root: Path
    """Top folder, symbolic links resolved."""
    commit: str | None
    """Commit checked out; None before the first one."""
    tracked: tuple[str, ...]
    """Files in the index, sorted; some may be absent from disk."""
    changed: tuple[str, ...]
    """Tracked files that differ from the commit: edited, staged, deleted or in conflict."""
    untracked: tuple[str, ...]
    """Files git neither tracks nor ignores; a folder that is a repository of its own ends in `/`."""
    submodules: tuple[str, ...]
    """Folders of submodules."""


def read_repository(cwd: Path, *, every_untracked: bool) -> Repository | None:
    """Return the repository `cwd` lies in, or None outside of one.

    Args:
        cwd: any folder of the working tree.
        every_untracked: list untracked files one by one; otherwise a folder of nothing else
            appears as itself.
    """
    try:
        top = _git(cwd, "rev-parse", "--show-toplevel", check=False)
    except FileNotFoundError:
        if not any((folder / ".git").exists() for folder in (cwd.resolve(), *cwd.resolve().parents)):
            return None
        raise UserError("git is not installed, but is needed to package this repository") from None
    if top.returncode != 0:
        said = os.fsdecode(top.stderr).strip()
        if "not a git repository" in said or "must be run in a work tree" in said:
            return None
        raise UserError(f"git cannot read the repository of {cwd}: {said}")
    root = Path(os.fsdecode(top.stdout.removesuffix(b"\n"))).resolve()
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD", check=False)
    tracked, submodules = _index(root)
    mode = "all" if every_untracked else "normal"
    status = _names(
        _git(root, "status", "--porcelain=v1", "-z", "--no-renames", "--ignore-submodules=all", f"-u{mode}")
    )
    return Repository(
        root=root,
        commit=commit.stdout.decode().strip() or None,
        tracked=tuple(sorted(tracked)),
        changed=tuple(sorted(line[3:] for line in status if not line.startswith("??"))),
        untracked=tuple(sorted(line[3:] for line in status if line.startswith("??"))),
        submodules=tuple(sorted(submodules)),
    )


def uncommitted_diff(repository: Repository) -> str:
    """Return `git diff` of tracked files against the commit; cut off after a megabyte."""
    against = ["HEAD"] if repository.commit else ["--cached"]
    options = ["--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--ignore-submodules=all"]
    diff = _git(repository.root, "diff", *options, *against).stdout
    text = diff[:_LONGEST_DIFF].decode(errors="replace")
    return text if len(diff) <= _LONGEST_DIFF else f"{text}\n[cut off: {len(diff)} bytes in all]\n"


def _index(root: Path) -> tuple[set[str], set[str]]:
    tracked: set[str] = set()
    submodules: set[str] = set()
    # `mode object stage<TAB>path`; a file in conflict has several lines
    for line in _names(_git(root, "ls-files", "-z", "--stage")):
        info, _, path = line.partition("\t")
        (submodules if info.startswith(_SUBMODULE) else tracked).add(path)
    return tracked, submodules


def _names(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def _git(folder: Path, *args: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    # No optional locks: packaging must not get in the way of the user's own git
    env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, env=env, check=False)
    if check and done.returncode != 0:
        raise UserError(f"'git {args[0]}' failed in {folder}: {os.fsdecode(done.stderr).strip()}")
    return done
