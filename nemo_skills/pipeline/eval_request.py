"""What `ns eval` is asked to do, and the arguments that its jobs give to the mains."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_skills.pipeline import main_args
from nemo_skills.pipeline.answering import argument_key, encoded, seed_values
from nemo_skills.pipeline.benchmarks import Target
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.options import EvalOptions, JobOptions, ServerOptions
from nemo_skills.pipeline.servers.component import client_values

EVALUATE = "nemo_skills.evaluation.evaluate"
SCORE = "nemo_skills.evaluation.score"
JUDGE_PROMPT = "judge/math"
UNJUDGED = "unjudged"
"""Folder of answers that the judge goes on from, in that of a benchmark's results; known to `SCORE`, too."""
GRADED = ".graded-"
"""Begin of the name of a mark, which ends in a checksum of the arguments of grading and scoring."""
_JUDGED = ("math", "judge")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The model that grades."""

    server: ServerOptions
    args: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of the wrapper, with its cluster config and benchmarks found, and valid arguments."""

    cluster: ClusterConfig
    log_dir: str
    job: JobOptions
    server: ServerOptions
    own: EvalOptions
    targets: tuple[Target, ...]
    args: tuple[str, ...]
    grader_args: tuple[str, ...] = ()
    score_args: tuple[str, ...] = ()
    judge: Judge | None = None

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.job.expname or "eval"

    @property
    def results_dir(self) -> str:
        """Folder with a folder for each benchmark."""
        return f"{self.own.output_dir.rstrip('/')}/eval-results"

    def metrics_file(self, target: Target) -> str:
        """Return where the scores of a benchmark go."""
        return f"{self.results_dir}/{target.name}/metrics.json"

    def graded_mark(self, target: Target) -> str:
        """Return a file that is there once the answers to a benchmark are graded as is asked for now."""
        asked = (*grading_args(self, target, (), judged=self.judges(target)), *self.score_args)
        return f"{self.results_dir}/{target.name}/{GRADED}{zlib.crc32(repr(asked).encode()):08x}"

    def judges(self, target: Target) -> bool:
        """Tell whether the judge grades a benchmark."""
        return self.judge is not None and target.benchmark.defaults.grader in _JUDGED

    def parts(self) -> list["Part"]:
        """Return everything that is to be answered."""
        return [self._part(target, seed) for target in self.targets for seed in target.seeds]

    def _part(self, target: Target, seed: int | None) -> "Part":
        name = "output.jsonl" if seed is None else f"output-rs{seed}.jsonl"
        path = f"{self.results_dir}/{target.name}/{name}"
        before = f"{self.results_dir}/{target.name}/{UNJUDGED}/{name}"
        return Part(target=target, seed=seed, path=path, answers=before if self.judges(target) else path)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One run of a benchmark."""

    target: Target
    seed: int | None
    path: str
    """The result file."""
    answers: str
    """What the model's answers are written to: the same, or a file that the judge goes on from."""

    @property
    def judged(self) -> bool:
        """Whether a judge makes the result file of the answers."""
        return self.path != self.answers


def answering_args(request: Request, part: Part) -> tuple[str, ...]:
    """Return the arguments of the generation main; the user's come last and win."""
    defaults = part.target.benchmark.defaults
    values: dict[str, object] = {"input_file": part.target.input_file, "output_file": part.answers}
    values |= {**client_values(request.server, request.cluster), **seed_values(part.seed)}
    if not any(argument_key(arg) in ("prompt_format", "prompt_config") for arg in request.args):
        values["prompt_config"] = defaults.prompt_config
    return (*encoded(values), *main_args.normalise(defaults.generation_args), *request.args)


def judging_args(request: Request, part: Part) -> tuple[str, ...]:
    """Return the arguments with which the generation main asks the judge."""
    assert request.judge is not None
    values: dict[str, object] = {"input_file": part.answers, "output_file": part.path}
    values |= client_values(request.judge.server, request.cluster)
    # the statistics of the row are those of its answer
    values |= {"prompt_config": JUDGE_PROMPT, "generation_key": "judgement", "add_generation_stats": False}
    return (*encoded(values), *request.judge.args)


def grading_args(
    request: Request, target: Target, files: Sequence[str], *, judged: bool = False
) -> tuple[str, ...]:
    """Return the arguments of the main that grades files of one benchmark."""
    defaults = target.benchmark.defaults
    if judged:
        return tuple(encoded({"input_files": list(files), "eval_type": "judge"}))
    # before it is judged, an answer has to be found
    grader = "math" if defaults.grader == "judge" else defaults.grader
    values = {"input_files": list(files), "eval_type": grader}
    options = main_args.normalise(defaults.grader_options)
    return (*encoded(values), *options, *request.grader_args)


def scoring_args(request: Request) -> tuple[str, ...]:
    """Return the arguments of the main that scores."""
    runs = {target.name: len(target.seeds) for target in request.targets}
    # others may be in the folder whose answers are not complete
    values: dict[str, object] = {
        "results_dir": request.results_dir,
        "benchmarks": [target.name for target in request.targets],
        "runs": runs,
    }
    values["require_graded"] = True  # scores that are there mean that nothing is left to do
    if request.own.extra_datasets:
        values["extra_datasets"] = request.own.extra_datasets
    return (*encoded(values), *request.score_args)
