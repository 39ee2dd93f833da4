"""Prepares benchmarks, one after the other: `python -m nemo_skills.dataset.prepare gsm8k math-500`."""

import argparse
import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import count_rows, write_file
from nemo_skills.core.script import run_script
from nemo_skills.dataset.lookup import Benchmark, benchmarks_to_prepare, default_data_dir
from nemo_skills.dataset.manifest import Manifest, file_hash, manifest_path
from nemo_skills.dataset.preparing import Preparation, Prepared, prepare

_SCRIPT = "prepare.py"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for."""

    data_dir: Path
    split: str | None
    source: tuple[Path, ...]
    overwrite: bool


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m nemo_skills.dataset.prepare", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a benchmark, or a group of them")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir(), help="default: %(default)s")
    parser.add_argument("--extra_datasets", type=Path, help="folder of benchmarks of your own")
    parser.add_argument("--split", help="default: the one that scores are reported on")
    parser.add_argument("--source", type=Path, nargs="+", default=(), help="files downloaded already")
    parser.add_argument("--overwrite", action="store_true", help="prepare also what is there already")
    given = parser.parse_args()
    benchmarks = benchmarks_to_prepare(given.names, given.extra_datasets, given.source)
    options = Options(
        data_dir=given.data_dir, split=given.split, source=tuple(given.source), overwrite=given.overwrite
    )
    prepare_all(benchmarks, options)


def prepare_all(benchmarks: list[Benchmark], options: Options) -> None:
    """Prepare benchmarks; a failure does not keep the others from being prepared.

    Raises:
        UserError: the summary, if some failed.
    """
    failed: dict[str, UserError] = {}
    ready = 0
    for benchmark in benchmarks:
        try:
            found = None if options.overwrite else intact(benchmark, options)
            ready += found is not None
            done = found or prepare_one(benchmark, options)
            line = f"{done.manifest.rows} rows in {done.path} (ready already, not prepared again)"
            print(f"{benchmark.name}: {line if found else done.report}", flush=True)
            done.warn()
        except UserError as error:
            if len(benchmarks) == 1:
                raise
            failed[benchmark.name] = error
            print(f"{benchmark.name}: {error}", file=sys.stderr, flush=True)
    if len(benchmarks) > 1:
        new = len(benchmarks) - ready - len(failed)
        print(f"{new} prepared, {ready} ready already, {len(failed)} failed", flush=True)
    if failed:
        raise UserError(
            f"not prepared: {', '.join(failed)}", exit_code=max(error.exit_code for error in failed.values())
        )


def intact(benchmark: Benchmark, options: Options) -> Prepared | None:
    """Return what an earlier call has prepared, if it is complete and nobody has changed it since."""
    split = options.split or benchmark.defaults.eval_split
    path = benchmark.data_path(options.data_dir, split)
    if path.parent == benchmark.folder:
        # the user's own rows need no preparation
        return _own_rows(benchmark, split, path)
    manifest = Manifest.read(path)
    known = manifest is not None and (manifest.benchmark, manifest.split) == (benchmark.name, split)
    return Prepared(path=path, manifest=manifest) if manifest and known and manifest.describes(path) else None


def prepare_one(benchmark: Benchmark, options: Options) -> Prepared:
    """Prepare one benchmark."""
    split = options.split or benchmark.defaults.eval_split
    folder = options.data_dir / benchmark.name
    if benchmark.is_own:
        return _run_own(benchmark, split, folder, options)
    module = importlib.import_module(f"nemo_skills.dataset.{benchmark.folder.name}.prepare")
    preparation: Preparation = module.PREPARATION
    if split not in preparation.splits:
        raise UserError(f"there is no split '{split}'; there are {', '.join(preparation.splits)}")
    return prepare(preparation, split, folder, options.source)


def _run_own(benchmark: Benchmark, split: str, folder: Path, options: Options) -> Prepared:
    """Run a user's `prepare.py`, which has to write `<split>.jsonl` into `--output_dir`."""
    script, path = benchmark.folder / _SCRIPT, folder / f"{split}.jsonl"
    if not script.is_file():
        raise UserError(f"{benchmark.folder} has neither {split}.jsonl nor {_SCRIPT}")
    command = [sys.executable, str(script), "--output_dir", str(folder)]
    command += ["--split", options.split] if options.split else []
    command += ["--source", *map(str, options.source)] if options.source else []
    folder.mkdir(parents=True, exist_ok=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        raise UserError(f"{script} failed with exit code {code}", exit_code=1)
    if not path.is_file():
        raise UserError(f"{script} has not written {path}")
    prepared = _own_rows(benchmark, split, path)
    write_file(manifest_path(path), prepared.manifest.to_json())
    return prepared


def _own_rows(benchmark: Benchmark, split: str, path: Path) -> Prepared:
    manifest = Manifest(
        benchmark=benchmark.name,
        split=split,
        rows=count_rows(path),
        sha256=file_hash(path),
        checked=False,
        known_rows=benchmark.defaults.rows if split == benchmark.defaults.eval_split else None,
        sources=(str(benchmark.folder),),
    )
    return Prepared(path=path, manifest=manifest)


if __name__ == "__main__":
    run_script(main)
