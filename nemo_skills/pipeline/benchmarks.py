"""Which benchmarks `--benchmarks` names, and how many samples of each."""

import importlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, cast

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.options import DataOptions, EvalOptions

if TYPE_CHECKING:
    from nemo_skills.dataset.lookup import Benchmark


@dataclass(frozen=True, kw_only=True)
class Target:
    """A benchmark to evaluate."""

    benchmark: "Benchmark"
    samples: int
    """Answers to each of its rows, each with a seed of its own; 0 is one greedy answer."""
    input_file: str
    """Its prepared rows."""

    @property
    def name(self) -> str:
        """Name of the benchmark, and of the folder of its results."""
        return self.benchmark.name

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """Seeds of the runs; None is the greedy one."""
        return tuple(range(self.samples)) or (None,)


def find_targets(own: EvalOptions, cluster: ClusterConfig) -> tuple[Target, ...]:
    """Find what `--benchmarks` names; a group stands for its members.

    Raises:
        UserError: one line for each benchmark that is unknown or asked for with different numbers of samples.
    """
    lookup = importlib.import_module("nemo_skills.dataset.lookup")
    data_dir = data_folder(own, cluster, str(lookup.default_data_dir()))
    found: dict[str, Target] = {}
    problems = []
    for word in own.benchmarks:
        try:
            name, samples = _split(word)
            benchmarks = cast("list[Benchmark]", lookup.get_benchmarks([name], own.extra_datasets))
        except UserError as error:
            problems.append(str(error))
            continue
        for benchmark in benchmarks:
            path = str(benchmark.data_path(data_dir, own.split))
            target = Target(benchmark=benchmark, samples=samples, input_file=path)
            if found.setdefault(target.name, target).samples != samples:
                problems.append(f"--benchmarks names {target.name} twice, with different numbers of samples")
    if not own.benchmarks:
        problems.append("--benchmarks is empty")
    if problems:
        raise UserError("\n".join(problems))
    return tuple(found.values())


def _split(word: str) -> tuple[str, int]:
    name, colon, number = word.partition(":")
    if colon and not number.isdigit():
        raise UserError(f"--benchmarks: {word}: behind the colon stands a number of samples, as in {name}:4")
    return name, int(number or 0)


def data_folder(data: DataOptions, cluster: ClusterConfig, default: str) -> str:
    """Return the folder of prepared data, as jobs see it.

    Raises:
        UserError: jobs would not know where it is.
    """
    folder = data.data_dir or default
    if cluster.executor != "none" and not PurePosixPath(folder).is_absolute():
        raise UserError(
            f"the folder of the benchmarks' data, '{folder}', must be an absolute path on cluster"
            f" '{cluster.name}': give --data_dir, or set NEMO_SKILLS_DATA_DIR"
        )
    return folder
