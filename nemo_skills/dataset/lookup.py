"""Finds benchmarks: those of this package, groups of them, and users' own in folders of theirs."""

import importlib
import importlib.util
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.dataset.base import BenchmarkDefaults

GROUPS = {
    "math-all": (
        "gsm8k", "math", "math-500", "aime24", "aime25", "amc23", "svamp", "asdiv", "mawps", "minerva-math",
        "olympiadbench",
    ),
    "math-competition": ("aime24", "aime25", "amc23", "olympiadbench"),
    "math-word-problems": ("gsm8k", "svamp", "asdiv", "mawps"),
    "aime": ("aime24", "aime25"),
    "arc": ("arc-challenge", "arc-easy"),
    "multichoice-all": ("mmlu", "mmlu-pro", "gpqa", "arc-challenge", "arc-easy", "hellaswag"),
    "code-all": ("human-eval", "mbpp", "livecodebench"),
}  # fmt: skip
"""Names that stand for several benchmarks."""

_FOLDER = Path(__file__).resolve().parent
_PACKAGE = "nemo_skills.dataset"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark that was found."""

    name: str
    """Its name in commands and results. Users' own are called as their folder; ours have dashes in names."""

    folder: Path

    defaults: BenchmarkDefaults

    is_own: bool = False
    """Whether it is one of the user's, from a folder of `--extra_datasets`."""

    def data_path(self, data_dir: str | Path, split: str | None = None) -> Path:
        """Return the file of prepared rows: beside a user's own benchmark, or else in `data_dir`.

        Args:
            data_dir: folder of prepared data, as `default_data_dir()`.
            split: the split; by default the one that scores are reported on.
        """
        file = f"{split or self.defaults.eval_split}.jsonl"
        beside = self.folder / file
        return beside if self.is_own and beside.is_file() else Path(data_dir) / self.name / file


def default_data_dir() -> Path:
    """Return the folder of prepared data: `$NEMO_SKILLS_DATA_DIR`, or `data` where the program runs."""
    return Path(os.environ.get("NEMO_SKILLS_DATA_DIR") or "data")


def get_benchmark(name: str, extra_datasets: str | Path | None = None) -> Benchmark:
    """Find one benchmark.

    Args:
        name: its name; dashes and underscores are the same.
        extra_datasets: folder of users' own benchmarks, each a folder with an `__init__.py`.

    Raises:
        UserError: there is none of that name, or its folder is not as it should be.
    """
    folders = _folders(extra_datasets)
    key = _key(name)
    if key in folders:
        return _load(key, folders[key])
    hint = did_you_mean(name, [*list_benchmarks(extra_datasets), *GROUPS])
    if any(_key(group) == key for group in GROUPS):
        hint = " It is a group of benchmarks; name one of them."
    where = (
        f"\nin {extra_datasets}: {', '.join(_own_names(extra_datasets)) or 'none'}" if extra_datasets else ""
    )
    ours = f"Benchmarks: {', '.join(_names())}"
    raise UserError(f"unknown benchmark '{name}'.{hint}\n{ours}{where}")


def get_benchmarks(names: Iterable[str], extra_datasets: str | Path | None = None) -> list[Benchmark]:
    """Find several benchmarks; names of groups stand for their members, and what is named twice counts once.

    Raises:
        UserError: one line for each name that is unknown.
    """
    groups = {_key(group): members for group, members in GROUPS.items()}
    wanted = [member for name in names for member in groups.get(_key(name), (name,))]
    found: dict[str, Benchmark] = {}
    for name in wanted:
        benchmark = get_benchmark(name, extra_datasets)
        found[benchmark.name] = benchmark
    return list(found.values())


def benchmarks_to_prepare(
    names: Iterable[str], extra_datasets: str | Path | None, sources: Sequence[str | Path]
) -> list[Benchmark]:
    """Find benchmarks whose files are to be taken from `sources`, if there are any.

    Raises:
        UserError: a name is unknown, or there are files but several benchmarks.
    """
    found = get_benchmarks(names, extra_datasets)
    if sources and len(found) > 1:
        raise UserError("--source has the files of one benchmark; prepare the others in calls of their own")
    return found


def list_benchmarks(extra_datasets: str | Path | None = None) -> tuple[str, ...]:
    """Return the names of all benchmarks: ours, then the user's own."""
    return (*_names(), *_own_names(extra_datasets))


def _key(name: str) -> str:
    return name.lower().replace("-", "_")


def _names() -> tuple[str, ...]:
    found = [path.parent.name for path in _FOLDER.glob("*/__init__.py")]
    return tuple(sorted(name.replace("_", "-") for name in found if not name.startswith("_")))


def _own_names(extra_datasets: str | Path | None) -> tuple[str, ...]:
    return tuple(sorted(folder.name for folder in _own_folders(extra_datasets)))


def _own_folders(extra_datasets: str | Path | None) -> list[Path]:
    if extra_datasets is None:
        return []
    folder = Path(extra_datasets).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"--extra_datasets: {folder} is no folder")
    if (folder / "__init__.py").is_file():
        raise UserError(f"--extra_datasets: {folder} is one benchmark; give the folder that it lies in")
    return [path.parent for path in folder.glob("*/__init__.py")]


def _folders(extra_datasets: str | Path | None) -> dict[str, Path]:
    folders = {_key(name): _FOLDER / _key(name) for name in _names()}
    for folder in _own_folders(extra_datasets):
        key = _key(folder.name)
        if key in folders or any(key == _key(group) for group in GROUPS):
            raise UserError(f"--extra_datasets: {folder} has a name that is taken already; rename the folder")
        folders[key] = folder
    return folders


def _load(key: str, folder: Path) -> Benchmark:
    is_own = folder.parent != _FOLDER
    module = _own_module(key, folder) if is_own else importlib.import_module(f"{_PACKAGE}.{key}")
    defaults = getattr(module, "DEFAULTS", None)
    if not isinstance(defaults, BenchmarkDefaults):
        raise UserError(
            f"{folder / '__init__.py'} must say DEFAULTS = BenchmarkDefaults(...),"
            " with BenchmarkDefaults from nemo_skills.dataset.base"
        )
    name = folder.name if is_own else key.replace("_", "-")
    return Benchmark(name=name, folder=folder, defaults=defaults, is_own=is_own)


def _own_module(key: str, folder: Path) -> ModuleType:
    """Run a user's `__init__.py`, without entering it among the modules that others import."""
    path = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(f"own_benchmark_{key}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module
