"""Metrics against closed forms and brute force."""

import itertools
import json
import math
import random
from collections import Counter
from statistics import NormalDist, fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_skills.evaluation.metrics.compare import compare
from nemo_skills.evaluation.metrics.estimates import (
    Ratio,
    clustered_std_error,
    majority,
    mean_ratio,
    pass_at_k,
    sign_test,
    student_quantile,
    wilson,
)
from nemo_skills.evaluation.metrics.modes import all_modes
from nemo_skills.evaluation.metrics.report import BenchmarkReport, Counts, Group
from nemo_skills.evaluation.metrics.samples import Problem, Sample, count, scores_of

CORRECT = "correct"
outcomes = st.lists(st.booleans(), min_size=1, max_size=7)
votes = st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=7)


@given(outcomes, st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_correct_one(samples: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(samples)))
    draws = list(itertools.combinations(samples, k))
    expected = sum(map(any, draws)) / len(draws)
    assert pass_at_k(len(samples), sum(samples), k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_samples() -> None:
    assert pass_at_k(10_000, 1, 10_000) == 1.0
    assert pass_at_k(1_000, 10, 1) == pytest.approx(0.01)
    for arguments in ((3, 4, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(*arguments)


@given(votes, st.sampled_from(["1", "2", "3"]))
def test_majority_is_what_drawing_among_the_winners_gives_on_average(
    answers: list[str | None], right: str
) -> None:
    given_answers = Counter(answer for answer in answers if answer is not None)
    winners = [a for a, n in given_answers.items() if n == max(given_answers.values())]
    expected = fmean(float(winner == right) for winner in winners) if winners else 0.0
    assert majority([(a, float(a == right)) for a in answers]) == pytest.approx(expected)


def test_a_majority_of_nobody_is_wrong() -> None:
    assert majority([]) == majority([(None, 0.0)]) == 0.0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_clustered_error_of_plain_means(means: list[float]) -> None:
    ratios = [Ratio(mean) for mean in means]
    assert mean_ratio(ratios) == pytest.approx(fmean(means))
    assert clustered_std_error(ratios) == pytest.approx(stdev(means) / math.sqrt(len(means)), abs=1e-12)


def test_clustered_error_of_a_ratio_against_the_bootstrap() -> None:
    dice = random.Random(1)
    of = [dice.randint(1, 3) for _ in range(300)]
    problems = [Ratio(sum(dice.random() < 0.3 + 0.15 * n for _ in range(n)), n) for n in of]
    drawn = [mean_ratio(dice.choices(problems, k=len(problems))) for _ in range(2000)]
    assert clustered_std_error(problems) == pytest.approx(stdev(drawn), rel=0.1)


@given(st.integers(1, 2000), st.data())
def test_wilson_interval_solves_its_equation(samples: int, data: st.DataObject) -> None:
    share = data.draw(st.integers(0, samples)) / samples
    low, high = wilson(share, None, samples)
    assert 0.0 <= low <= share <= high <= 1.0
    z = NormalDist().inv_cdf(0.975)
    for end in (low, high):
        if 0.0 < end < 1.0:
            distance = z * math.sqrt(end * (1 - end) / samples)
            assert abs(end - share) == pytest.approx(distance, rel=1e-6, abs=1e-9)


def test_samples_of_one_problem_are_not_independent() -> None:
    # 50 problems, always or never solved: 400 samples are worth 50
    all_or_nothing = [Ratio(float(i % 2)) for i in range(50)]
    low, high = wilson(0.5, clustered_std_error(all_or_nothing), 400)
    assert high - low == pytest.approx(wilson(0.5, None, 49).high - wilson(0.5, None, 49).low, rel=1e-6)
    # each solved half of the time: no more than the samples there are
    assert wilson(0.5, 0.0, 400) == wilson(0.5, None, 400)


def test_interval_covers_the_truth() -> None:
    dice = random.Random(2)
    hits = 0
    for _ in range(1000):
        rates = [dice.betavariate(0.5, 0.7) for _ in range(60)]
        means = [Ratio(fmean(dice.random() < rate for _ in range(4))) for rate in rates]
        low, high = wilson(mean_ratio(means), clustered_std_error(means), 240)
        hits += low <= 0.5 / 1.2 <= high
    assert 0.93 <= hits / 1000 <= 0.975


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (29, 2.0452), (100, 1.9840)],
)
def test_student_quantiles(degrees: int, quantile: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile, rel=0.003)


@given(st.integers(0, 12), st.integers(0, 12))
def test_sign_test_counts_all_ways(better: int, worse: int) -> None:
    n = better + worse
    as_extreme = (
        sum(
            min(sum(flips), n - sum(flips)) <= min(better, worse)
            for flips in itertools.product((0, 1), repeat=n)
        )
        if n <= 10
        else None
    )
    if as_extreme is not None:
        assert sign_test(better, worse) == pytest.approx(min(1.0, as_extreme / 2**n))
    assert sign_test(better, worse) == sign_test(worse, better)


def problem(*runs: str | None, right: str = "1") -> Problem:
    """A problem with an answer in each run; `lost` for a sample that infrastructure spoiled."""
    made = Problem("p")
    for run, answer in enumerate(runs):
        if answer == "lost":
            continue
        scores = {CORRECT: Ratio(float(answer == right)), "no_answer": Ratio(float(answer is None))}
        made.samples.append(Sample(run, answer, scores))
    return made


@settings(max_examples=60)
@given(
    st.integers(2, 4).flatmap(
        lambda runs: st.lists(
            st.lists(st.sampled_from(["1", "2", None, "lost"]), min_size=runs, max_size=runs),
            min_size=1,
            max_size=8,
        )
    )
)
def test_all_modes_against_plain_definitions(table: list[list[str | None]]) -> None:
    runs = len(table[0])
    modes = all_modes([problem(*row) for row in table], CORRECT, runs)
    usable = [[answer for answer in row if answer != "lost"] for row in table]
    some = [row for row in usable if row]
    if not some:
        assert not modes
        return
    average = modes[f"pass@1[avg-of-{runs}]"]
    assert average[CORRECT].value == pytest.approx(100 * fmean(fmean(a == "1" for a in row) for row in some))
    assert average["no_answer"].value == pytest.approx(
        100 * fmean(fmean(a is None for a in row) for row in some)
    )
    assert average[CORRECT].problems == len(some)
    full = [row for row in usable if len(row) == runs]
    assert (f"pass@{runs}" in modes) == bool(full)
    if full:
        assert modes[f"pass@{runs}"][CORRECT].value == pytest.approx(100 * fmean("1" in row for row in full))
    for scores in modes.values():
        for score in scores.values():
            assert score.low is not None
            assert score.high is not None
            assert 0 <= score.low <= score.value + 1e-9 <= score.high + 2e-9 <= 100 + 3e-9


@given(st.lists(st.lists(st.sampled_from(["1", "2"]), min_size=3, max_size=3), min_size=2, max_size=8))
def test_losing_a_sample_never_counts_as_wrong(table: list[list[str]]) -> None:
    whole = all_modes([problem(*row) for row in table], CORRECT, 3)["pass@1[avg-of-3]"][CORRECT].value
    # of a problem that is always solved, or never, any sample may be lost
    lossy = [[*row[:2], "lost"] if len(set(row)) == 1 else row for row in table]
    lost = all_modes([problem(*row) for row in lossy], CORRECT, 3)["pass@1[avg-of-3]"][CORRECT].value
    assert lost == pytest.approx(whole)


def test_spread_across_runs() -> None:
    table = [["1", "2", "1"], ["1", "1", "2"], ["2", "2", "2"], ["1", "2", "2"]]
    score = all_modes([problem(*row) for row in table], CORRECT, 3)["pass@1[avg-of-3]"][CORRECT]
    by_run = [75.0, 25.0, 25.0]
    assert score.runs_std_dev == pytest.approx(stdev(by_run))
    assert score.runs_std_error == pytest.approx(stdev(by_run) / math.sqrt(3))
    single = all_modes([problem("1"), problem("2")], CORRECT, 1)
    assert list(single) == ["pass@1"]
    assert single["pass@1"][CORRECT].runs_std_dev is None


def test_powers_of_two() -> None:
    modes = all_modes([problem(*"121212")], CORRECT, 6)
    assert list(modes) == ["pass@1[avg-of-6]", "majority@6", "pass@2", "pass@4", "pass@6"]


def test_scores_of_verdicts() -> None:
    def scores(verdict: str, **details: object) -> dict[str, Ratio] | None:
        return scores_of({"verdict": verdict, "grade_details": details or None}, CORRECT)

    assert scores("correct") == {CORRECT: Ratio(1.0), "no_answer": Ratio(0.0)}
    assert scores("timed_out") == scores("incorrect") == {CORRECT: Ratio(0.0), "no_answer": Ratio(0.0)}
    assert scores("no_answer") == {CORRECT: Ratio(0.0), "no_answer": Ratio(1.0)}
    assert scores("grader_error") is None
    extra = scores("incorrect", scores={"part": [2, 3], "loose": 1.0})
    assert extra is not None
    assert (extra["part"], extra["loose"]) == (Ratio(2.0, 3.0), Ratio(1.0))


def test_counts_miss_nothing() -> None:
    complete, partial = Problem("a"), Problem("b")
    complete.tally.update({"correct": 2, "grader_error": 1, "truncated": 1})
    partial.tally.update({"incorrect": 1, "failed": 1})  # and one run has nothing about it at all
    assert count([complete, partial], 3) == Counts(
        total=6, correct=2, incorrect=1, grader_error=1, failed=2, truncated=1
    )
    assert count([complete, partial], 3).infrastructure == 3


binary = st.dictionaries(st.sampled_from("abcdefghij"), st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1)


@given(binary, binary)
def test_comparison_is_paired_and_symmetric(first: dict[str, float], second: dict[str, float]) -> None:
    common = sorted(first.keys() & second.keys())
    if not common:
        with pytest.raises(ValueError, match="in common"):
            compare(first, second)
        return
    one, other = compare(first, second), compare(second, first)
    differences = [second[p] - first[p] for p in common]
    assert one.difference == pytest.approx(100 * fmean(differences)) == pytest.approx(-other.difference)
    assert one.difference == pytest.approx(one.second - one.first)
    assert (one.problems, one.only_first, one.only_second) == (
        len(common), len(first) - len(common), len(second) - len(common)
    )  # fmt: skip
    assert {c.problem for c in one.changes} == {p for p in common if first[p] != second[p]}
    assert {c.problem for c in one.flipped} == {p for p in common if (first[p] >= 0.5) != (second[p] >= 0.5)}
    assert one.p_value == other.p_value
    if len(common) > 1:
        assert one.low is not None
        assert other.high is not None
        assert one.low == pytest.approx(-other.high)
        assert one.std_error == pytest.approx(100 * stdev(differences) / math.sqrt(len(common)), abs=1e-12)
    else:
        assert one.low is None


def test_report_survives_json() -> None:
    problems = [problem("1", "2"), problem("1", "1")]
    modes = all_modes(problems, CORRECT, 2)
    report = BenchmarkReport(
        benchmark="demo",
        eval_type="math",
        measure=CORRECT,
        rows=2,
        samples=2,
        valid=False,
        why_invalid="because",
        counts=Counts(total=4, correct=3, incorrect=1),
        metrics=modes,
        avg_tokens=12.5,
        groups=(Group(field="level", value="1", rows=2, counts=Counts(total=4), metrics=modes),),
        files=("output-rs0.jsonl", "output-rs1.jsonl"),
    )
    again = BenchmarkReport.from_json(json.loads(json.dumps(report.to_json())))
    assert again == report
    assert again.score == modes["pass@1[avg-of-2]"][CORRECT]
    with pytest.raises(ValueError, match="format"):
        BenchmarkReport.from_json({**report.to_json(), "format": 99})
    with pytest.raises(ValueError, match="not the metrics"):
        BenchmarkReport.from_json({"format": 1})
