"""Scoring main: writes `metrics.json` beside the graded files of each benchmark.

`python -m nemo_skills.evaluation.score --help` lists the settings.
"""

from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import MISSING, main, opt

__all__ = ["ScoreConfig", "run", "score"]


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Scores graded files."""

    results_dir: str = opt(MISSING, "folder with a folder for each benchmark (eval-results), or one of those")
    benchmarks: list[str] = opt([], "only these; empty is all")
    runs: dict[str, int] = opt(dict, "how many runs benchmarks have; with fewer a score is invalid")
    require_graded: bool = opt(False, "write no scores of a benchmark while rows of it are not graded")
    group_by: list[str] | None = opt(None, "row fields to break scores down by; null is the benchmark's own")
    extra_datasets: str | None = opt(None, "folder of your own benchmarks, which may say what to group by")
    max_failed_share: float = opt(0.01, "more answers without any verdict make a score invalid")
    max_truncated_share: float = opt(0.1, "more answers cut off at the token limit make a score invalid")
    max_timed_out_share: float = opt(0.05, "more answers that took too long to grade make a score invalid")

    def __post_init__(self) -> None:
        """Check the shares."""
        for name in ("max_failed_share", "max_truncated_share", "max_timed_out_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be between 0 and 1.")


def score(config: ScoreConfig) -> None:
    """Score the graded files of all benchmarks in a folder."""
    # a launcher imports this module for the schema alone
    from nemo_skills.core.log import get_logger
    from nemo_skills.evaluation.finding import benchmark_folders, group_fields
    from nemo_skills.evaluation.scoring import Thresholds, score_benchmark, write_report

    thresholds = Thresholds(
        infrastructure=config.max_failed_share,
        truncated=config.max_truncated_share,
        timed_out=config.max_timed_out_share,
    )
    log = get_logger(__name__)
    problems: list[str] = []  # of one benchmark, which must not keep the others from being scored
    for folder in benchmark_folders(Path(config.results_dir).expanduser(), config.benchmarks, problems):
        fields = (
            group_fields(folder.name, config.extra_datasets) if config.group_by is None else config.group_by
        )
        try:
            report = score_benchmark(folder, thresholds, fields, runs=config.runs.get(folder.name, 0))
        except UserError as error:
            problems.append(str(error))
            continue
        if config.require_graded and report.counts.ungraded:
            problems.append(f"{folder}: {report.counts.ungraded} rows are not graded.")
            continue
        path = write_report(folder, report)
        shown = "no score" if report.score is None else f"{report.measure} {report.score.value:.2f} %"
        log.info("%s: %s, in %s.", report.benchmark, shown, path)
        if not report.valid:
            log.warning("%s: the score is INVALID: %s.", report.benchmark, report.why_invalid)
    if problems:
        raise UserError("\n".join(problems))


run = main(ScoreConfig)(score)

if __name__ == "__main__":
    run()
