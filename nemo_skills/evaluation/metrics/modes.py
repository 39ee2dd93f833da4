"""The modes of scoring: pass@1 averaged over runs, pass@k, majority@k."""

from collections.abc import Sequence

from nemo_skills.evaluation.metrics.estimates import (
    Ratio,
    clustered_std_error,
    majority,
    mean_ratio,
    pass_at_k,
    runs_std_dev,
    wilson,
)
from nemo_skills.evaluation.metrics.report import Score, Scores
from nemo_skills.evaluation.metrics.samples import Problem, is_binary, measures_of

NO_ANSWER = "no_answer"


def all_modes(problems: Sequence[Problem], measure: str, runs: int) -> Scores:
    """Return every score of these problems.

    Args:
        problems: with their usable samples.
        measure: the one that verdicts decide.
        runs: number of samples of each problem, had all of them been usable.
    """
    measures = measures_of(problems)
    if not measures:
        return {}
    if runs == 1:
        return {"pass@1": {name: _average(problems, name, runs) for name in measures}}
    modes = {f"pass@1[avg-of-{runs}]": {name: _average(problems, name, runs) for name in measures}}
    votes = {name: _majority(problems, name, runs) for name in (measure, NO_ANSWER)}
    modes[f"majority@{runs}"] = {name: score for name, score in votes.items() if score is not None}
    binary = [name for name in measures if name != NO_ANSWER and is_binary(problems, name)]
    for k in _powers_of_two(runs):
        scores = {name: _pass(problems, name, k) for name in binary}
        modes[f"pass@{k}"] = {name: score for name, score in scores.items() if score is not None}
    return {mode: scores for mode, scores in modes.items() if scores}


def _average(problems: Sequence[Problem], measure: str, runs: int) -> Score:
    means = [mean for p in problems if (mean := p.mean(measure)) is not None]
    by_run = [
        mean_ratio(found)
        for run in range(runs)
        if (found := [mean for p in problems if (mean := p.mean(measure, run)) is not None])
    ]
    return _score(means, sum(len(p.samples) for p in problems), by_run)


def _majority(problems: Sequence[Problem], measure: str, runs: int) -> Score | None:
    complete = [p for p in problems if len(p.samples) == runs]
    # some graders look at the whole of what the model wrote: nothing to vote with
    if not any(s.answer is not None for p in complete for s in p.samples):
        return None
    if measure == NO_ANSWER:
        return _score([Ratio(float(all(p.hits(NO_ANSWER)))) for p in complete], len(complete))
    return _score(
        [Ratio(majority([(s.answer, s.scores[measure].hits) for s in p.samples])) for p in complete],
        len(complete),
    )


def _pass(problems: Sequence[Problem], measure: str, k: int) -> Score | None:
    hits = [found for p in problems if len(found := p.hits(measure)) >= k]
    if not hits:
        return None
    return _score([Ratio(pass_at_k(len(h), round(sum(h)), k)) for h in hits], len(hits))


def _score(problems: Sequence[Ratio], samples: int, by_run: Sequence[float] = ()) -> Score:
    value, error = mean_ratio(problems), clustered_std_error(problems)
    interval = wilson(value, error, samples)
    spread = runs_std_dev(by_run)
    return Score(
        value=100 * value,
        problems=len(problems),
        std_error=None if error is None else 100 * error,
        low=100 * interval.low,
        high=100 * interval.high,
        runs_std_dev=None if spread is None else 100 * spread,
        runs_std_error=None if spread is None else 100 * spread / len(by_run) ** 0.5,
    )


def _powers_of_two(most: int) -> list[int]:
    found = [2**i for i in range(1, most.bit_length()) if 2**i < most]
    return [*found, most]
