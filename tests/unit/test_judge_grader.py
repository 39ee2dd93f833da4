"""What the judge's words mean."""

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.evaluation.graders import get_grader
from nemo_skills.evaluation.verdicts import Verdict


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("They are equal.\nJudgement: Yes", Verdict.correct),
        ("**Judgement:** **No**.", Verdict.incorrect),
        ("judgment : yes", Verdict.correct),
        ("Judgement: Yes?\nOn second thought.\nJudgement: No", Verdict.incorrect),
        ("Judgement: Not sure", Verdict.grader_error),
        ("Yes", Verdict.grader_error),
        ("", Verdict.grader_error),
    ],
)
def test_the_last_word_counts(said: str, verdict: Verdict) -> None:
    grade = get_grader("judge").grade({"predicted_answer": "4", "judgement": said})
    assert (grade.verdict, grade.predicted_answer) == (verdict, "4")


def test_no_answer_needs_no_judge() -> None:
    grade = get_grader("judge").grade({"predicted_answer": None, "judgement": "Judgement: Yes"})
    assert grade.verdict is Verdict.no_answer


@pytest.mark.parametrize("earlier", [Verdict.timed_out, Verdict.grader_error])
def test_what_broke_before_the_judge_is_no_wrong_answer(earlier: Verdict) -> None:
    row = {"predicted_answer": None, "verdict": earlier.value, "judgement": "Judgement: No"}
    assert get_grader("judge").grade(row).verdict is earlier


def test_own_words() -> None:
    grader = get_grader("judge", {"pattern": r"verdict=(\w+)", "judgement_key": "said", "answer_key": "id"})
    assert grader.grade({"id": 1, "said": "verdict=TRUE"}).verdict is Verdict.correct
    with pytest.raises(UserError, match="no group"):
        get_grader("judge", {"pattern": "yes"})
