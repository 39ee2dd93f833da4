"""Graders of multiple choice and of instructions."""

from typing import Any

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.evaluation.graders import get_grader
from nemo_skills.evaluation.graders.ifeval import loosened
from nemo_skills.evaluation.graders.instructions import CHECKS
from nemo_skills.evaluation.graders.instructions.length import count_sentences
from nemo_skills.evaluation.verdicts import Verdict

OPTIONS = ["Paris", "a big city", "Berlin", "Rome"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{B) a big city}", "B"),
        (r"\boxed{a big city}", "B"),
        (r"\boxed{Berlin}", "C"),
        (r"first \boxed{A}, but \textbf{no}: \boxed{\textbf{D}}", "D"),
        ("The answer is (C).", "C"),
        ("The correct answer is **C**", "C"),
        ("Answer: C", "C"),
        ("The answer is option C, because of the wall.", "C"),
        ("The answer is Rome.", "D"),
        ("B", "B"),
        ("B. a big city", "B"),
        ("Let me think.\n\n(D)", "D"),
        ("The answer is a matter of taste.", None),
        ("I think so.", None),
        ("A. dog is wrong.\nB. cat is right, so B", None),
        ("A. dog is wrong.\nB. cat is right.\n\nB", "B"),
        ("The answer is B is right", "B"),
        ("The answer is definitely B", "B"),
        ("The answer is probably (C)", "C"),
        (r"<think>It may be \boxed{A}</think>The answer is D.", "D"),
        (r"<think>It may be \boxed{A}", None),
        (r"The answer is A. \boxed{B", None),
        ("", None),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    grade = get_grader("multichoice").grade({"generation": text, "expected_answer": "B", "options": OPTIONS})
    assert grade.predicted_answer == letter
    right = {None: Verdict.no_answer, "B": Verdict.correct}.get(letter, Verdict.incorrect)
    assert grade.verdict is right


def test_what_stands_last_in_a_cut_answer_means_nothing() -> None:
    row = {"generation": "So it is\nB", "expected_answer": "B", "finish_reason": "length"}
    assert get_grader("multichoice").grade(row).verdict is Verdict.no_answer
    assert get_grader("multichoice", {"extract_regex": r"is\s(\w)"}).grade(row).verdict is Verdict.correct


LONG = "This is an ordinary English sentence about the weather in spring."
# name, arguments, a response that follows the instruction, one that does not
INSTRUCTIONS: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["Cat", "dog"]}, "A dog and a cat.", "A dog."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"}, "Go, go!", "Go!"),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "less than"}, "Go!", "Go, go!"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A category.", "A cat."),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": "at least"},
        "Eleven", "One",
    ),
    ("language:response_language", {"language": "de"}, "Das ist ein Satz über das Wetter.", LONG),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "A b. C!", "A."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", "One\n\nTwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "two", "now three words"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        "One.\n\n\"Weekend!\" she said.", "Weekend.\n\nTwo.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\n\nP.S. More", "Bye, perhaps."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S. More", "P.S. More"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* **a**: x\n- b", "* a\n**b**\n---"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", "*a* ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb", "SECTION A",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<poem>>\n...", "<< >>\n..."),
    ("combination:two_responses", {}, "One\n******\nTwo", "Same\n******\nSame"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. Yes.", "Yes. Say it."),
    ("startend:end_checker", {"end_phrase": "Is that all?"}, 'Well. "Is that all?"', "Is that all? Yes."),
    ("startend:quotation", {}, '"Quoted."', '"Quoted.'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "VERY GOOD", "Very GOOD",
    ),
    ("change_case:english_capital", {}, LONG.upper(), LONG),
    ("change_case:english_lowercase", {}, LONG.lower(), LONG),
    ("punctuation:no_comma", {}, "One and two.", "One, two."),
]  # fmt: skip


def test_all_instructions_are_here() -> None:
    assert {name for name, *_ in INSTRUCTIONS} == set(CHECKS)
    assert len(CHECKS) == 25


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), INSTRUCTIONS)
def test_instructions(name: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    for text, followed in ((good, True), (bad, False), ("  ", False)):
        # copies of the data set fill arguments that an instruction does not take with nulls
        row = {"generation": text, "instruction_id_list": [name], "kwargs": [{**arguments, "other": None}]}
        grade = get_grader("ifeval").grade(row)
        assert (grade.verdict is Verdict.correct) is followed, (name, text)
        assert grade.details["followed"] == {name: followed}


def test_scores_of_several_instructions() -> None:
    row = {
        "generation": "Sure! Here it is:\n*one two*",
        "instruction_id_list": [
            "startend:end_checker",
            "length_constraints:number_words",
            "punctuation:no_comma",
        ],
        "kwargs": [{"end_phrase": "two"}, {"num_words": 3, "relation": "less than"}, {}],
    }
    grade = get_grader("ifeval").grade(row)
    assert grade.verdict is Verdict.incorrect
    assert grade.details["scores"] == {
        "prompt_loose": 1.0,
        "instruction_strict": [1, 3],
        "instruction_loose": [3, 3],
    }
    assert "one two" in loosened(row["generation"])


def test_bad_instructions_are_errors_not_failures() -> None:
    grader = get_grader("ifeval")
    for names, arguments, message in (
        (["punctuation:no_coma"], [{}], "Did you mean 'punctuation:no_comma'"),
        (["startend:end_checker"], [{}], "startend:end_checker: wrong arguments"),
        (["keywords:frequency"], [{"keyword": "a", "frequency": 1, "relation": "about"}], "relation 'about'"),
        ([], [], "one entry"),
    ):
        with pytest.raises(UserError, match=message):
            grader.grade({"generation": "text", "instruction_id_list": names, "kwargs": arguments})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Dr. Smith met Mr. J. R. Jones at 5 p.m. yesterday. They talked.", 2),
        ("It costs 3.50 dollars! Really?! Yes...", 3),
        ("1. First point.\n2. Second point.", 2),
        ('"Go." He went.', 2),
        ("no end", 1),
        ("", 0),
    ],
)
def test_sentences(text: str, number: int) -> None:
    assert count_sentences(text) == number
