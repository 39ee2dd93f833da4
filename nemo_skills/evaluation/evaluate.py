"""Grading main: adds `predicted_answer` and `verdict` to the rows of files, in place.

`python -m nemo_skills.evaluation.evaluate --help` lists the settings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import MISSING, main, opt

__all__ = ["EvaluateConfig", "evaluate", "run"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Grades the answers in JSONL files. Rows that were graded with the same settings keep their grades."""

    input_files: list[str] | str = opt(
        MISSING, "JSONL files to grade in place: a list, or paths or patterns with commas"
    )
    eval_type: str = opt("math", "the grader: math, multichoice, ifeval, code, …, or package.module:Class")
    grader: dict[str, Any] = opt(dict, "settings of the grader, such as ++grader.extract_regex=…")
    processes: int = opt(0, "answers graded side by side; 0 is as many as there are processors")
    timeout_s: float | None = opt(None, "longest time for one answer; null is the grader's own")
    memory_mb: int = opt(2048, "memory of a grading process; 0 is no limit")
    regrade: bool = opt(False, "grade all rows again")
    done_mark: str | None = opt(None, "an empty file to make once every row of all files has a verdict")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = opt("INFO", "how much to log")

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise UserError("timeout_s must be positive.")
        if self.processes < 0 or self.memory_mb < 0:
            raise UserError("processes and memory_mb must be 0 or more.")

    def files(self, problems: list[str]) -> Iterator[Path]:
        """Yield the files; what is not there, or cannot be read, goes to `problems`."""
        from nemo_skills.core.jsonl import InputFiles

        given = [self.input_files] if isinstance(self.input_files, str) else self.input_files
        for text in given:
            try:
                yield from InputFiles.find(text).paths
            except UserError as error:
                problems.append(str(error))


def evaluate(config: EvaluateConfig) -> None:
    """Grade the answers in JSONL files, in place; whatever happens, a rerun goes on from the graded ones."""
    # a launcher imports this module for the schema alone
    from nemo_skills.core.jsonl import disk_errors
    from nemo_skills.core.log import get_logger, setup_logging
    from nemo_skills.evaluation.graders import GraderSpec, grader_class
    from nemo_skills.evaluation.grading import FileGrading
    from nemo_skills.evaluation.pool import GradingPool, Limits
    from nemo_skills.evaluation.verdicts import Verdict

    setup_logging(config.log_level)
    spec = GraderSpec(name=config.eval_type, options=config.grader)
    grader = grader_class(config.eval_type)
    limits = Limits(
        timeout_s=config.timeout_s or grader.timeout_s,
        soft_timeout_s=grader.soft_timeout_s,
        processes=config.processes,
        memory_mb=config.memory_mb,
    )
    broken = 0
    problems: list[str] = []  # of one file, which must not keep the others from being graded
    with GradingPool(spec, limits) as pool:
        grading = FileGrading(spec=spec, pool=pool, regrade=config.regrade)
        for path in list(dict.fromkeys(config.files(problems))):
            try:
                summary = grading.run(path)
                broken += summary.verdicts[Verdict.grader_error]
                get_logger(__name__).info("%s: %s.", path, summary)
            except UserError as error:
                problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    if config.done_mark and not broken:
        with disk_errors(Path(config.done_mark)):
            Path(config.done_mark).expanduser().touch()


run = main(EvaluateConfig)(evaluate)

if __name__ == "__main__":
    run()
