"""The code a job runs: the user's git repository plus `nemo_skills`, as one content-addressed archive."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nemo_skills
from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.tunnel import assignments
from nemo_skills.pipeline.launch.archive import Entry, read_entry, shown, write_archive
from nemo_skills.pipeline.launch.repository import Repository, read_repository, uncommitted_diff

ALLOW_UNCOMMITTED_VARIABLE = "NEMO_SKILLS_DISABLE_UNCOMMITTED_CHANGES_CHECK"
RECORD_NAME = "_ns_package.json"
SIZE_LIMIT = 50_000_000
_PACKAGE = "nemo_skills"
_LISTED = 20
_LARGEST = 5
log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class CodePackage:
    """A `.tar.gz` whose content is the folder that jobs run in."""

    path: Path
    """The archive, named after its content."""
    digest: str
    """SHA-256 of the sorted list of paths, modes and contents."""
    files: int
    """Number of files and symbolic links."""
    size: int
    """Bytes of all files before compression."""
    commit: str | None
    """Commit of the user's repository; None outside of one."""
    dirty: bool
    """Whether the archive holds changes that no commit has."""


def build_package(
    cwd: Path, out_dir: Path, *, allow_uncommitted: bool = False, size_limit: int = SIZE_LIMIT
) -> CodePackage:
    """Package the repository of `cwd` and `nemo_skills`; an archive that is there already is kept.

    Args:
        cwd: folder the user works in; outside of a git repository only `nemo_skills` is packaged.
        out_dir: where archives are kept.
        allow_uncommitted: take the working tree as it is, with changed and untracked (not ignored) files.
        size_limit: bytes above which the largest files are pointed out.

    Raises:
        UserError: there are uncommitted changes (all are listed), or a file cannot be read.
    """
    allow_uncommitted |= os.environ.get(ALLOW_UNCOMMITTED_VARIABLE, "").lower() in ("1", "true", "yes")
    repository = read_repository(cwd, every_untracked=allow_uncommitted)
    entries: dict[str, Entry] = {}
    record: dict[str, object] = {"nemo_skills": nemo_skills.__version__, "commit": None, "dirty": False}
    if repository:
        names = list(repository.tracked)
        if allow_uncommitted:
            names += repository.untracked
            record |= _changes(repository)
        else:
            _refuse_changes(repository)
        entries, left_out = _collect(repository.root, names, out_dir)
        record |= {"commit": repository.commit, "submodules": repository.submodules, "left_out": left_out}
        _warn_left_out(repository, left_out, allow_uncommitted=allow_uncommitted)
    entries |= _own_package(repository, entries)
    content = json.dumps(record, indent=1, sort_keys=True).encode()
    entries[RECORD_NAME] = Entry(RECORD_NAME, content, 0o644, len(content))
    size = sum(entry.size for entry in entries.values())
    if size > size_limit:
        _warn_size(entries.values(), size, size_limit)
    digest, path = write_archive(entries.values(), out_dir)
    return CodePackage(
        path=path,
        digest=digest,
        files=len(entries),
        size=size,
        commit=repository.commit if repository else None,
        dirty=bool(record["dirty"]),
    )


def extract_script(archive: str, target: str) -> str:
    """Return bash that unpacks an archive as the folder `target`, at once or not at all, once only."""
    return assignments(archive=archive, target=target, record=RECORD_NAME) + _EXTRACT


# Whoever loses a race finds the winner's folder, which is the same
_EXTRACT = """\
(
set -eu
if test -e "$target/$record"; then exit 0; fi
mkdir -p -- "$(dirname -- "$target")"
part=$(mktemp -d -- "$target.XXXXXXXX")
trap 'rm -rf -- "$part"' EXIT
tar -xzf "$archive" --no-same-owner -C "$part"
chmod 755 -- "$part"
mv -T -- "$part" "$target" 2>/dev/null || test -e "$target/$record" || {
    echo "$target exists and holds something else" >&2
    exit 1
}
)
"""


def _refuse_changes(repository: Repository) -> None:
    if not repository.changed:
        return
    listed = "".join(f"\n  {shown(name)}" for name in repository.changed[:_LISTED])
    more = len(repository.changed) - _LISTED
    raise UserError(
        f"{repository.root} has uncommitted changes, which would not reach the job:{listed}"
        + (f"\n  … and {more} more" if more > 0 else "")
        + "\nCommit them, or take the working tree as it is with --allow_uncommitted"
        f" (or {ALLOW_UNCOMMITTED_VARIABLE}=1)."
    )


def _changes(repository: Repository) -> Mapping[str, object]:
    if not (repository.changed or repository.untracked):
        return {}
    return {
        "dirty": True,
        "changed": repository.changed,
        "untracked": repository.untracked,
        "diff": uncommitted_diff(repository) if repository.changed else "",
    }


def _collect(root: Path, names: Iterable[str], out_dir: Path) -> tuple[dict[str, Entry], list[str]]:
    """Return the entries below `root` that exist, and the names that must not travel."""
    entries: dict[str, Entry] = {}
    left_out: list[str] = []
    inside: dict[Path, bool] = {}
    archives = out_dir.resolve()
    for name in names:
        path = root / name
        parent = path.parent
        if parent not in inside:
            # A folder swapped for a symbolic link could lead out of the tree
            real = Path(os.path.realpath(parent))
            inside[parent] = real.is_relative_to(root) and not real.is_relative_to(archives)
        entry = read_entry(root, name) if inside[parent] and not name.endswith("/") else None
        if entry:
            entries[name] = entry
        elif os.path.lexists(path) and not Path(os.path.realpath(path)).is_relative_to(archives):
            left_out.append(name)
    return entries, left_out


def _own_package(repository: Repository | None, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return what `import nemo_skills` needs in the unpacked folder; nothing when it is there already."""
    folder = Path(nemo_skills.__file__).resolve().parent
    inside = ""
    if repository and folder.is_relative_to(repository.root):
        inside = folder.relative_to(repository.root).as_posix()
    if f"{_PACKAGE}/__init__.py" in entries:
        if inside != _PACKAGE:
            log.warning(
                "jobs will run the nemo_skills of this repository, not the one installed in %s", folder
            )
        return {}
    if any(name == _PACKAGE or name.startswith(f"{_PACKAGE}/") for name in entries):
        raise UserError(f"'{_PACKAGE}' of this repository hides the Python package of that name; rename it.")
    if f"{inside}/__init__.py" in entries:
        return {_PACKAGE: Entry(_PACKAGE, folder, 0o777, link=inside)}
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if f != "__pycache__")
        relative = Path(parent).relative_to(folder)
        links = [f for f in folders if Path(parent, f).is_symlink()]
        names += [(relative / f).as_posix() for f in (*files, *links) if not f.endswith((".pyc", ".pyo"))]
    found = [
        replace(entry, name=f"{_PACKAGE}/{entry.name}")
        for name in names
        if (entry := read_entry(folder, name))
    ]
    return {entry.name: entry for entry in found}


def _warn_left_out(repository: Repository, left_out: list[str], *, allow_uncommitted: bool) -> None:
    notes = {
        "files git does not track": () if allow_uncommitted else repository.untracked,
        "submodules": repository.submodules,
        "links out of the repository, repositories inside it and special files": left_out,
    }
    for what, names in notes.items():
        if names:
            more = f" and {len(names) - _LARGEST} more" if len(names) > _LARGEST else ""
            log.warning("not packaged, %s: %s%s", what, ", ".join(map(shown, names[:_LARGEST])), more)


def _warn_size(members: Iterable[Entry], size: int, limit: int) -> None:
    largest = sorted(members, key=lambda entry: -entry.size)[:_LARGEST]
    listed = "".join(f"\n  {entry.size / 1e6:.1f} MB  {shown(entry.name)}" for entry in largest)
    log.warning(
        "the code package has %.1f MB (more than %.1f MB) before compression; the largest files:%s",
        size / 1e6,
        limit / 1e6,
        listed,
    )
