"""What all `prepare.py` share; a benchmark's own says only where its files are and what a row means."""

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import atomic_output, check_input, disk_errors, write_file
from nemo_skills.core.script import run_script
from nemo_skills.dataset.base import BenchmarkDefaults
from nemo_skills.dataset.download import download
from nemo_skills.dataset.formats import Layout, read_rows
from nemo_skills.dataset.lookup import default_data_dir
from nemo_skills.dataset.manifest import Manifest, manifest_path
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_WORK = ".preparing-"
_LEFT_S = 7 * 86_400.0
"""A folder to work in that has not changed for so long was left by a run that was killed."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where a split comes from, and what it looks like when it is complete and unchanged."""

    urls: tuple[str, ...]
    rows: int | None = None
    """How many rows it has, where that is known."""
    sha256: str | None = None
    """SHA-256 of the prepared file, where that is known; how the origin formats its files does not matter."""
    layout: Layout = field(default_factory=Layout)
    keep: Callable[[SourceRow], bool] = lambda _: True
    """Which rows of the files belong to it."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How one benchmark is prepared."""

    name: str
    defaults: BenchmarkDefaults
    splits: Mapping[str, Split]
    convert: Callable[[SourceRow], PreparedRow]
    """Makes a row of ours from one of the origin; without an `id` it gets its number."""
    combine: Callable[[Iterable[SourceRow]], Iterable[SourceRow]] = lambda rows: rows
    """Puts together what several files say about one row, where they do."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepare` has written."""

    path: Path
    manifest: Manifest

    @property
    def report(self) -> str:
        """One line for people."""
        line = f"{self.manifest.rows} rows in {self.path}"
        return line if self.manifest.checked else f"{line} (content not checked: no hash of it is known)"

    def warn(self) -> None:
        """Tell people if rows are missing, or too many."""
        made = self.manifest
        if made.known_rows not in {None, made.rows}:
            print(
                f"Warning: {self.path} has {made.rows} rows, but {made.benchmark} {made.split}"
                f" has {made.known_rows}",
                file=sys.stderr,
                flush=True,
            )


def prepare(
    preparation: Preparation, split_name: str, output_dir: Path, sources: Sequence[Path] = ()
) -> Prepared:
    """Write `<split>.jsonl` and its manifest.

    Args:
        preparation: the benchmark.
        split_name: one of its splits.
        output_dir: folder to write to; made where absent.
        sources: downloaded files of that split, or folders of them, where the origin cannot be reached.

    Raises:
        UserError: the origin cannot be reached, or its files are not as they should be.
    """
    split = preparation.splits[split_name]
    for source in sources:
        if not source.is_dir():
            check_input(source)
    output = output_dir / f"{split_name}.jsonl"
    with disk_errors(output), _own_folder(output_dir) as folder:
        files = sources or [download(url, folder / str(number)) for number, url in enumerate(split.urls)]
        new = folder / output.name
        rows, digest = _write(new, preparation, split_name, files)
        manifest = Manifest(
            benchmark=preparation.name,
            split=split_name,
            rows=rows,
            sha256=digest,
            checked=split.sha256 is not None,
            known_rows=split.rows,
            sources=tuple(map(str, sources)) or split.urls,
        )
        write_file(manifest_path(new), manifest.to_json())
        new.replace(output)
        manifest_path(new).replace(manifest_path(output))
    return Prepared(path=output, manifest=manifest)


@contextmanager
def _own_folder(output_dir: Path) -> Iterator[Path]:
    """Make a folder that no other process uses, even if it prepares the same; remove what was left there."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for left in output_dir.glob(f"{_WORK}*"):
        with suppress(OSError):  # another process may remove it too
            if time.time() - left.stat().st_mtime > _LEFT_S:
                shutil.rmtree(left)
    with TemporaryDirectory(prefix=_WORK, dir=output_dir, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _write(output: Path, preparation: Preparation, split_name: str, files: Sequence[Path]) -> tuple[int, str]:
    """Write the rows if they are the right ones; return their number and hash."""
    split, count, digest = preparation.splits[split_name], 0, hashlib.sha256()
    seen = Counter[str]()
    found = (row for path in files for row in read_rows(path, split.layout) if split.keep(row))
    with atomic_output(output) as file:
        for row in preparation.combine(found):
            count += 1
            prepared = {"id": f"{split_name}/{count}", **_convert(preparation, row)}
            seen[prepared["id"]] += 1
            if (again := seen[prepared["id"]]) > 1:
                prepared["id"] += f"#{again}"
            line = json.dumps(prepared, ensure_ascii=False).encode() + b"\n"
            digest.update(line)
            file.write(line)
        _check(preparation, split_name, count, digest.hexdigest(), ", ".join(map(str, files)))
    return count, digest.hexdigest()


def _convert(preparation: Preparation, row: SourceRow) -> PreparedRow:
    try:
        return preparation.convert(row)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise row.error(f"not as {preparation.defaults.title}'s authors publish it ({error!r})") from error


def _check(preparation: Preparation, split_name: str, rows: int, digest: str, where: str) -> None:
    split, title = preparation.splits[split_name], preparation.defaults.title
    if not rows:
        raise UserError(f"{where}: there are no rows of {title} {split_name}")
    if split.sha256 is None:
        return
    if rows != split.rows:
        others = [name for name, other in preparation.splits.items() if other.rows == rows]
        hint = f" This is the {others[0]} split: use --split {others[0]}." if others else ""
        raise UserError(f"{where}: {rows} rows, but {title} {split_name} has {split.rows}.{hint}")
    if digest != split.sha256:
        raise UserError(
            f"{where}: the number of rows is right, but their content differs from {title} {split_name}"
        )


def run(preparation: Preparation, args: Sequence[str] | None = None) -> None:
    """Run the command line of one benchmark."""

    def script() -> None:
        given = _parser(preparation).parse_args(args)
        prepared = prepare(preparation, given.split, given.output_dir, given.source)
        print(prepared.report)
        prepared.warn()

    run_script(script)


def _parser(preparation: Preparation) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"Prepares {preparation.defaults.title} from {preparation.defaults.origin}"
    )
    parser.add_argument("--split", choices=tuple(preparation.splits), default=preparation.defaults.eval_split)
    parser.add_argument(
        "--source",
        type=Path,
        nargs="+",
        default=(),
        help="files of the split, downloaded already, or a folder with them",
    )
    parser.add_argument("--output_dir", type=Path, default=default_data_dir() / preparation.name)
    return parser
