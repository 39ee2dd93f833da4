"""Finds and reads the scores of benchmarks, here or on a cluster."""

import base64
import fnmatch
import importlib
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.tunnel import LocalTunnel, ShellTunnel

if TYPE_CHECKING:
    from nemo_skills.evaluation.metrics.report import BenchmarkReport

LOG = get_logger(__name__)

# File names and contents are packed as they may hold anything
_LOOK = r"""
pack() { base64 | tr -d '\n'; }
look() {
  local dir file found
  if [[ -e $1 ]]; then found=("$1"); else mapfile -t found < <(compgen -G "$1"); fi
  for dir in "${found[@]}"; do
    dir=$(cd -- "$dir" && pwd) || continue
    while IFS= read -r -d '' file; do
      printf 'metrics|%s|%s|' "$2" "$(printf %s "$file" | pack)"
      pack < "$file"
      echo
    done < <(find -L "$dir" -mindepth 1 -maxdepth 6 -path '*/eval-results/*/metrics.json' -print0 2>/dev/null)
  done
}
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of one benchmark in one folder."""

    folder: str
    """The folder that holds `eval-results`."""
    report: "BenchmarkReport"


def read_results(folders: Iterable[str | Path], tunnel: ShellTunnel | None = None) -> list[Result]:
    """Return all scores below some folders, in the order of these, then by name.

    Args:
        folders: Folders, or patterns of them; each is searched several levels deep.
        tunnel: The way to where they are; this machine if not given.

    Raises:
        UserError: a file with scores cannot be read.
    """
    calls = (f"look {shlex.quote(str(folder))} {index}\n" for index, folder in enumerate(folders))
    answer = (tunnel or LocalTunnel()).run(f"{_LOOK}{''.join(calls)}true\n").stdout
    lines = [line.split("|") for line in answer.splitlines() if line.startswith("metrics|")]
    found: dict[str, tuple[int, str]] = {}
    for _, index, path, text in lines:
        if PurePosixPath(_unpack(path)).parts[-3] != "eval-results":
            continue
        found.setdefault(_unpack(path), (int(index), _unpack(text)))
    ordered = sorted(found, key=lambda path: (found[path][0], path))
    return [_read(PurePosixPath(path), found[path][1]) for path in ordered]


def _unpack(text: str) -> str:
    return base64.b64decode(text).decode(errors="surrogateescape")


def _read(path: PurePosixPath, text: str) -> Result:
    reports = importlib.import_module("nemo_skills.evaluation.metrics.report")
    try:
        report = cast("BenchmarkReport", reports.BenchmarkReport.from_json(json.loads(text)))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: {error}") from None
    return Result(folder=str(path.parents[2]), report=report)


def choose(results: Iterable[Result], benchmarks: Sequence[str], only: Sequence[str] = ()) -> list[Result]:
    """Return the results whose benchmark and folder fit one of the patterns, where there are any."""
    return [
        one
        for one in results
        if _fits([one.report.benchmark], benchmarks)
        and _fits([one.folder, PurePosixPath(one.folder).name], only)
    ]


def _fits(names: Iterable[str], patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def short_names(folders: Sequence[str]) -> dict[str, str]:
    """Return what to call each of some different folders: the last parts of its path, so many as it takes."""
    names = dict.fromkeys(folders, "")
    for length in range(1, 1 + max((len(PurePosixPath(f).parts) for f in folders), default=0)):
        names = {folder: "/".join(PurePosixPath(folder).parts[-length:]) for folder in names}
        if len(set(names.values())) == len(names):
            break
    return names


def folders_of(results: Iterable[Result]) -> Iterator[str]:
    """Yield the folders of some results, each once, in order."""
    yield from dict.fromkeys(one.folder for one in results)
