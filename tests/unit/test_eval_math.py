"""The math grader against a corpus of tricky pairs and the solutions of GSM8K."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.evaluation.graders import Grader, GraderSpec, get_grader
from nemo_skills.evaluation.graders.mathematics.extraction import after_answer_is, last_boxed, last_number
from nemo_skills.evaluation.pool import GradingPool, Item, Limits
from nemo_skills.evaluation.verdicts import Verdict

REPO = Path(__file__).resolve().parents[2]
CORPUS = REPO / "tests" / "data" / "math_answers.jsonl"
AGREEMENT = 0.995

# Each pair is judged by people in the corpus; here the grader disagrees: too careful in both cases
CORPUS_DISAGREEMENTS = {("3:30", "3:30 PM"), ("1", "(-1)^{2^{100}}")}
# "… the answer is 15 gallons * 8 pints / gallon = 120 pints", then a wrong last line without "answer"
GSM8K_DISAGREEMENTS = {("train", 7157, "wrong")}

STYLES = (
    "So the answer is {a}.",
    "The final answer is $\\boxed{{{a}}}$.",
    "Therefore, the answer is **{a}** dollars.",
    "#### {a}",
    "Answer: ${a}",
    "The answer is: {a} apples, because that is what remains.",
    "Hence the total is {a}.",
)


def test_corpus_of_tricky_pairs() -> None:
    pairs = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    items = [Item(orjson.dumps({"generation": p["given"], "expected_answer": p["expected"]})) for p in pairs]
    # all that was written is the answer
    spec = GraderSpec(name="math", options={"extract_regex": "(?s)(.*)"})
    with GradingPool(spec, Limits(timeout_s=4.0, processes=2)) as pool:
        verdicts = [graded.grade for graded in pool.grade(items)]
    assert all(grade is not None and grade.verdict is not Verdict.grader_error for grade in verdicts)
    wrong = {
        (pair["expected"], pair["given"])
        for pair, grade in zip(pairs, verdicts, strict=True)
        if grade is not None and (grade.verdict is Verdict.correct) != pair["same"]
    }
    assert wrong == CORPUS_DISAGREEMENTS


def gsm8k() -> Iterator[tuple[str, int, str, str]]:
    """Yield split, position, and solution and answer as people have written them."""
    folder = Path(os.environ.get("NS_TEST_DATA") or REPO.parent / "shared" / "data")
    for split in ("test", "train"):
        path = folder / f"gsm8k_{split}.jsonl"
        if not path.is_file():
            pytest.skip(f"{path} is absent; NS_TEST_DATA names the folder that holds it")
        for position, line in enumerate(path.read_text().splitlines()):
            solution, _, answer = json.loads(line)["answer"].rpartition("####")
            yield split, position, solution, answer.strip()


def test_solutions_of_gsm8k() -> None:
    grader = get_grader("math")
    disagreements, total = set(), 0
    for number, (split, position, solution, answer) in enumerate(gsm8k()):
        plain = answer.replace(",", "")
        bare = re.sub(r"<<[^<>]*>>", "", solution)
        style, other = STYLES[number % len(STYLES)], STYLES[(number + 3) % len(STYLES)]
        for kind, text, right in (
            ("verbatim", f"{solution}#### {answer}", Verdict.correct),
            ("styled", bare + style.format(a=answer), Verdict.correct),
            ("without commas", bare + other.format(a=plain), Verdict.correct),
            ("wrong", bare + style.format(a=int(float(plain)) + 1), Verdict.incorrect),
        ):
            total += 1
            if grader.grade({"generation": text, "expected_answer": plain}).verdict is not right:
                disagreements.add((split, position, kind))
    assert disagreements == GSM8K_DISAGREEMENTS
    assert 1 - len(disagreements) / total >= AGREEMENT


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1}, no: \boxed{ 2 }", "2"),
        (r"\boxed 7", "7"),
        (r"\fbox{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{1} and then \boxed{2", None),
        ("no box", None),
    ],
)
def test_last_box(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 18.", "18"),
        ("**Answer:** 18", "18"),
        ("The final answer is: $x^2$.", "x^2"),
        ("The answer is 3.5 because 7/2 = 3.5. I checked it.", "3.5"),
        ("the answer to the question is 4, so we are done", "4"),
        ("The answer is\n\n18", "18"),
        (r"The answer is \(5\) apples. Good.", "5 apples"),
        ("The answer isn't 5", None),
        ("The answer is not 5", None),
    ],
)
def test_answer_sentence(text: str, answer: str | None) -> None:
    assert after_answer_is(text) == answer


def test_last_number() -> None:
    assert last_number("From 1,200 take 3.5: -2 of 1/2") == "1/2"
    assert last_number("It is 1,234,567.") == "1,234,567"
    assert last_number(r"It is $1{,}000$ or 12\,345") == "12,345"
    assert last_number(r"$1{,}000$ is it") == "1,000"
    assert last_number("v1.2.3 none") is None or last_number("none") is None


def verdict(grader: Grader, generation: str, expected: Any, **fields: Any) -> Verdict:
    return grader.grade({"generation": generation, "expected_answer": expected, **fields}).verdict


def test_no_answer() -> None:
    grader = get_grader("math")
    assert verdict(grader, "I cannot tell.", "5") is Verdict.no_answer
    assert verdict(grader, "", "5") is Verdict.no_answer
    assert verdict(grader, "It is 5", "5") is Verdict.correct
    # a number that happens to stand last is no answer where the text was cut, or where none is expected
    assert verdict(grader, "It is 5", "5", finish_reason="length") is Verdict.no_answer
    assert verdict(grader, "In 1990", r"\text{Monday}") is Verdict.no_answer
    # what was only thought is no answer
    assert verdict(grader, r"<think>\boxed{4}</think>The answer is 3.", "4") is Verdict.incorrect
    assert verdict(grader, r"<think>\boxed{4}", "4") is Verdict.no_answer
    assert verdict(grader, r"thinking</think>\boxed{4}", "4") is Verdict.correct
    # an unfinished box hides what stands before it
    assert verdict(grader, r"The answer is 5. \boxed{5", "5") is Verdict.no_answer


def test_settings() -> None:
    boxed = get_grader("math", {"extract": ["boxed"]})
    assert verdict(boxed, "The answer is 5.", "5") is Verdict.no_answer
    regex = get_grader("math", {"extract_regex": r"Result: *(\S+)"})
    assert verdict(regex, "Result: 4 or Result: 5", "5") is Verdict.correct
    assert verdict(regex, r"\boxed{5}", "5") is Verdict.no_answer
    assert verdict(boxed, r"\boxed{5}", ["4", "5"]) is Verdict.correct
    assert verdict(boxed, r"\boxed{5}", 5) is Verdict.correct
    for options, message in (
        ({"extrct": 1}, "grader math: .*extrct: unknown key.*extract"),
        ({"extract": ["boxd"]}, "grader math: .*extract"),
        ({"extract_regex": "("}, "grader math: .*extract_regex"),
    ):
        with pytest.raises(UserError, match=message):
            get_grader("math", options)
    with pytest.raises(UserError, match=r"mth.*Did you mean 'math'"):
        get_grader("mth")


def test_extraction_takes_linear_time() -> None:
    grader = get_grader("math", {"extract": ["boxed", "hashes", "sentence"]})
    evil = [
        "answer" + " " * 100_000,
        "answer is " * 20_000,
        r"\boxed{" * 20_000,
        "#### " * 20_000,
        "$" * 100_000,
    ]
    evil += ["{" * 100_000, "**" * 50_000, "the answer to " * 20_000, "answer is" + "\n" * 100_000]
    started = time.monotonic()
    for text in evil:
        grader.grade({"generation": text, "expected_answer": "5"})
    assert time.monotonic() - started < 20
