"""The processors of the data preparation, one by one."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.prompt.utils import get_prompt
from nemo_skills.training.data_preparation_utils.arithmetic import wrong_equations
from nemo_skills.training.data_preparation_utils.base import DropRow
from nemo_skills.training.data_preparation_utils.checks import CodeBlocks
from nemo_skills.training.data_preparation_utils.conversations import FormatMessages
from nemo_skills.training.data_preparation_utils.decontamination import Decontaminate, words_of
from nemo_skills.training.data_preparation_utils.filters import Length, NotTruncated, Regex, Repetition, Where
from nemo_skills.training.data_preparation_utils.formatting import FormatSft
from nemo_skills.training.data_preparation_utils.inputs import find_inputs
from nemo_skills.training.data_preparation_utils.minhash import SimilarTexts
from nemo_skills.training.data_preparation_utils.pairs import FormatPairs, MakePairs
from nemo_skills.training.data_preparation_utils.reading import ReadGenerations
from nemo_skills.training.data_preparation_utils.sampling import Deduplicate, MajorityAgreement, PassRate
from nemo_skills.training.data_preparation_utils.shingles import shingles
from tests.conftest import REPO

Row = dict[str, Any]
WORDS = [
    *(
        "red",
        "blue",
        "green",
        "old",
        "new",
        "train",
        "boat",
        "apple",
        "pear",
        "seven",
        "nine",
        "more",
        "than",
    ),
    *("half", "of", "all", "days", "hours", "goes", "buys"),
]


def gsm8k(split: str) -> list[str]:
    folder = Path(os.environ.get("NS_TEST_DATA") or REPO.parent / "shared" / "data")
    path = folder / f"gsm8k_{split}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is absent; NS_TEST_DATA names the folder that holds it")
    return [json.loads(line)["question"] for line in path.read_text().splitlines()]


# ---- inputs


def test_files_are_given_by_patterns_with_blanks_or_commas(
    weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weird_tmp_path)
    for name in ("a1.jsonl", "a2.jsonl", "a2.failed.jsonl", "b.jsonl", "c d.jsonl", "e.jsonl.gz"):
        Path(name).touch()

    def names(text: str) -> list[str]:
        return [path.name for path in find_inputs(text).paths]

    assert names("a*.jsonl b.jsonl,c d.jsonl") == ["a1.jsonl", "a2.jsonl", "b.jsonl", "c d.jsonl"]
    assert names("c d.jsonl") == ["c d.jsonl"]
    assert names(str(weird_tmp_path / "c d.jsonl")) == ["c d.jsonl"]
    assert names("a1.jsonl  e.jsonl.gz  a*.jsonl") == ["a1.jsonl", "e.jsonl.gz", "a2.jsonl"]
    assert names("a2.failed.jsonl") == ["a2.failed.jsonl"]
    with pytest.raises(UserError, match="only files of rows without an answer"):
        names("*.failed.jsonl")
    with pytest.raises(UserError, match=r"b\.jsonx does not exist\. Did you mean"):
        names("a1.jsonl b.jsonx")


def test_several_answers_in_a_row_become_several_rows() -> None:
    row = {"q": "p", "answers": ["x", "y"], "finish_reason": ["stop", "length"], "num_generated_tokens": 9}
    read = ReadGenerations(generation_key="answers", rename={"q": "problem"})
    assert read.change(row) == [
        {"problem": "p", "generation": "x", "finish_reason": "stop"},
        {"problem": "p", "generation": "y", "finish_reason": "length"},
    ]
    with pytest.raises(DropRow):
        read.change({"q": "p", "answers": None})
    assert ReadGenerations().change({"problem": "p", "generation": "x"}) is None


# ---- filters


@pytest.mark.parametrize(
    ("expression", "row", "kept"),
    [
        ("len(generation) < 5 and re.search('a', generation)", {"generation": "cab"}, True),
        ("row.get('x') is None", {}, True),
        ("sum(n for n in numbers) == 3", {"numbers": [1, 1]}, False),
        ("any(w in generation for w in words)", {"generation": "ab", "words": ["b"]}, True),
    ],
)
def test_where(expression: str, row: Row, kept: bool) -> None:
    assert (Where(expression=expression).reject(row) is None) is kept


def test_mistakes_in_an_expression_are_explained() -> None:
    with pytest.raises(UserError, match="invalid syntax: a b"):
        Where(expression="a b")
    with pytest.raises(UserError, match=r"no 'generatio' in the row\. Did you mean 'generation'"):
        Where(expression="generatio == 1").reject({"generation": 1})
    with pytest.raises(UserError, match="ZeroDivisionError"):
        Where(expression="1 / n").reject({"n": 0})
    with pytest.raises(UserError, match="not a regular expression"):
        Regex(pattern="(")


def test_simple_filters() -> None:
    assert Regex(pattern="as an ai", ignore_case=True).reject({"generation": "As an AI"}) == "pattern found"
    assert Regex(pattern="x", drop_if="not_found").reject({"generation": "y"}) == "pattern not found"
    assert Length(unit="words", at_least=2, at_most=3).reject({"generation": "a b c d"}) == "too long"
    assert Length(unit="words", at_least=2).reject({"generation": "a"}) == "too short"
    assert NotTruncated().reject({"finish_reason": "length"}) == "truncated"
    assert NotTruncated().reject({}) is None
    assert Repetition().reject({"generation": "so we go on and on like this " * 20}) == "repeats itself"
    assert Repetition().reject({"generation": " ".join(map(str, range(200)))}) is None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("so 12 + 30 = 43.", True),
        ("12+30=42, then 42*2 = 85", True),
        ("3 × 4 = 12 = 6 + 6 = 11 + 1", False),
        ("1,200 * 2 = $2,400", False),
        ("1,200 * 2 = $2,500", True),
        ("100 / 3 = 33.33, or 33.3; 2/3 = 0.66", False),
        ("7/2 = 5", True),
        ("2(3+4) = 14, (2+3)^2 = 25, 2**3 = 8, -3 + 5 = 2, 10 – 4 = 6", False),
        ("2**3 = 9", True),
        ("0.1 + 0.2 = 0.3", False),
        # not between plain numbers
        ("5 apples + 3 = 8, x2 + 3 = 7, 2x = 10, 3x - 5 = 16, half of 10 + 2 = 7", False),
        ("10 - 2 = 8%, 3! = 6, 2 + 3 = 5y, at 6:00+48 = 6, 1 + 1 = 3 = x", True),
        ("10 - 2 = 9%, 3! = 7, 2 + 3 = 6y, at 6:00+48 = 6", False),
        ("1/0 = 5, 9^999 = 1, ((((1 = 2, 1 = 2", False),
    ],
)
def test_arithmetic(text: str, wrong: bool) -> None:
    assert bool(list(wrong_equations(text))) is wrong


@given(a=st.integers(0, 10**6), b=st.integers(1, 10**6), sign=st.sampled_from("+-*"), off=st.integers(1, 99))
def test_right_sums_pass_and_wrong_ones_do_not(a: int, b: int, sign: str, off: int) -> None:
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    assert not list(wrong_equations(f"We get {a:,} {sign} {b} = {result:,} in all."))
    assert list(wrong_equations(f"We get {a}{sign}{b}={result + off} in all."))


@pytest.mark.parametrize("piece", ["1", " ", "1.", "(", "1 + ", "= ", "1=", "x", "-"])
@pytest.mark.timeout(20)
def test_arithmetic_takes_no_longer_than_the_text(piece: str) -> None:
    list(wrong_equations(piece * 300_000))


def test_arithmetic_agrees_with_worked_solutions(tmp_path: Path) -> None:
    gsm8k("test")
    folder = Path(os.environ.get("NS_TEST_DATA") or REPO.parent / "shared" / "data")
    answers = [json.loads(line)["answer"] for line in (folder / "gsm8k_test.jsonl").read_text().splitlines()]
    marked = sum("<<" in answer for answer in answers)
    # the set is known to have a few wrong or sloppy equations
    assert marked > 1000 and sum(bool(list(wrong_equations(answer))) for answer in answers) < 0.005 * len(
        answers
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("```python\nprint(1)\n```", None),
        ("no code", "no code block"),
        ("```python\nprint(1)\n", "unclosed code block"),
        ("```python\nprint(1\n```", "code does not compile"),
        ("````python\ns = '''\n```\n'''\n````", None),
        ("```\nnot python at all\n```\n~~~py\nx = 1\n~~~", None),
    ],
)
def test_code_blocks(text: str, reason: str | None) -> None:
    assert CodeBlocks(required=True).reject({"generation": text}) == reason


def test_duplicates_agree_in_every_field() -> None:
    rows = [{"a": "X y ", "b": "1"}, {"a": "x  y", "b": " 1"}, {"a": "x", "b": "y 1"}, {"a": "x y", "b": "2"}]
    assert Deduplicate(fields=("a", "b")).reject(rows) == [None, "duplicate", None, None]
    assert Deduplicate(fields=("a", "b"), normalise=False).reject(rows) == [None] * 4
    assert Deduplicate(fields=()).reject(rows) == [None, *["duplicate"] * 3]


def test_majority_and_pass_rate() -> None:
    def answers(*found: str | None) -> list[Row]:
        return [{"predicted_answer": answer} for answer in found]

    agree = MajorityAgreement()
    assert agree.reject(answers("1", "1", "2")) == [None, None, "differs from the majority"]
    assert agree.reject(answers("1", "2")) == ["no majority"] * 2
    assert agree.reject(answers("1", "1", "2", None, None)) == ["no majority"] * 5
    assert agree.reject(answers("1")) == ["too few samples to agree"]
    assert agree.reject(answers(None, None)) == ["no answer"] * 2
    rows = [{"verdict": verdict} for verdict in ("correct", "correct", "incorrect", "no_answer")]
    assert PassRate(at_least=0.5, at_most=0.9).reject(rows) == [None] * 4
    assert PassRate(at_most=0.4).reject(rows) == ["solved too often"] * 4


# ---- decontamination


def questions(tmp_path: Path, *texts: str, key: str = "question") -> str:
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))
    return str(path)


def replaced(text: str, share: float, dice: random.Random) -> str:
    """Put other words in the place of some, evenly spread."""
    words = text.split()
    step = max(1, round(1 / share))
    return " ".join(dice.choice(WORDS) if i % step == step // 2 else word for i, word in enumerate(words))


def test_planted_copies_are_found_in_real_data_and_nothing_else_is(tmp_path: Path) -> None:
    test, train = gsm8k("test"), gsm8k("train")
    step = Decontaminate(against=questions(tmp_path, *test))

    def reason(text: str) -> str | None:
        (found,) = step.reject([{"problem": text}])
        return found

    assert [text for text in train if reason(text)] == []
    dice = random.Random(0)
    planted = dice.sample(test, 200)
    assert {reason(text.upper().replace(",", " ,") + " !") for text in planted} == {
        "is a benchmark's question"
    }
    inside = {reason(f"Here is a puzzle for you. {text} Explain how you got there.") for text in planted}
    assert inside <= {"shares passages with a benchmark", "is similar to a benchmark's question"}
    # one word in twenty is another one: nine in ten of all word pairs, most of the passages are the same
    assert all(reason(replaced(text, 1 / 20, dice)) for text in planted)


@given(st.lists(st.sampled_from(WORDS), min_size=12, max_size=40), st.integers(0, 10**6), st.integers(2, 20))
def test_similarity_decides_as_the_exact_index_does(words: list[str], seed: int, every: int) -> None:
    dice = random.Random(seed)
    others = [" ".join(dice.choices(WORDS, k=25)) for _ in range(5)]
    one = shingles(words, 2)
    other = shingles(replaced(" ".join(words), 1 / every, dice).split(), 2)
    sets = [shingles(text.split(), 2) for text in others] + [other]
    number, similarity = SimilarTexts(sets).most_similar(one)
    exact = [len(one & s) / len(one | s) for s in sets]
    if max(exact) >= 0.65:
        assert similarity == max(exact) == exact[number]
    assert similarity <= max(exact)


def test_questions_are_looked_up_by_name_of_a_prepared_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    questions(tmp_path / "tiny", "What is the colour of a red apple?", key="problem")
    (tmp_path / "tiny" / "train.jsonl").write_text('{"problem": "of the training split"}\n')
    monkeypatch.setenv("NEMO_SKILLS_DATA_DIR", str(tmp_path))
    step = Decontaminate(against="tiny")
    step.prepare()
    rows = [{"problem": "what is  the colour of a RED apple"}] * 2
    assert step.reject(rows) == ["is a benchmark's question"] * 2
    assert step.reject([{"problem": "of the training split"}]) == [None]
    with pytest.raises(UserError, match=r"no prepared benchmark .*Did you mean 'tiny'"):
        Decontaminate(against="tinny").prepare()
    with pytest.raises(UserError, match=r"bench\.jsonl:1: has none of the keys"):
        Decontaminate(against=questions(tmp_path, "x", key="text")).prepare()
    assert words_of("It's  50%, isn’t it?") == ("it", "s", "50", "isn", "t", "it")


def test_questions_are_found_in_conversations(tmp_path: Path) -> None:
    question = "What is the colour of a red apple?"
    step = Decontaminate(against=questions(tmp_path, question))
    system = {"role": "system", "content": "You are a patient tutor who explains every step in full."}
    opening = [
        {"role": "user", "content": "Tell me a long story about two trains that pass each other at night."},
        {"role": "assistant", "content": "Once there were two trains. " * 20},
    ]

    def reason(value: Any) -> str | None:
        (found,) = step.reject([{"problem": value}])
        return found

    asked = {"role": "user", "content": question}
    in_parts = {"role": "user", "content": [{"type": "text", "text": question}, {"type": "image"}]}
    answer = {"role": "assistant", "content": "It is red, as the question says; what else could it be? " * 9}
    for conversation in ([asked], [system, asked, answer], [system, *opening, in_parts, answer]):
        assert reason(conversation) == "is a benchmark's question"
    assert reason([opening[0]["content"], question]) == "is a benchmark's question"
    assert reason([{"turn": opening[0]["content"]}, {"turn": question}]) == "is a benchmark's question"
    told = {"role": "assistant", "content": f"Here is a puzzle. {question} Explain how you got there."}
    assert reason([*opening[:1], told]) == "shares passages with a benchmark"
    assert reason([system, *opening, {"role": "assistant", "content": None}]) is None


# ---- formatting


@pytest.mark.parametrize("template", ["llama3-instruct", "qwen-instruct"])
def test_input_is_what_inference_sends(template: str) -> None:
    row = {"problem": "1 + {1}?", "generation": " It is 2.\n", "id": 7, "other": 0}
    made = FormatSft(prompt_config="generic/math", prompt_template=template).change(row)
    prompt = get_prompt("generic/math", prompt_template=template)
    assert made["input"] == prompt.fill(row)
    assert made["output"].startswith("It is 2.") and made["output"][len("It is 2.") :] in prompt.stop_phrases
    assert set(made) == {"input", "output", "id", "problem"}


def test_without_a_template_there_are_messages() -> None:
    row = {"problem": "p", "generation": "g"}
    made = FormatSft(prompt_config="generic/default", system_message="Be kind.").change(
        {**row, "question": "p"}
    )
    assert [(m["role"], m["train"]) for m in made["messages"]] == [
        ("system", False), ("user", False), ("assistant", True),
    ]  # fmt: skip
    with pytest.raises(UserError, match="prompt_config is missing"):
        FormatSft().prepare()


def test_turns_say_whether_they_are_trained() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "system", "content": "s", "train": True},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
        {"role": "assistant", "content": "bad", "train": False},
        {"role": "user", "content": "again"},
    ]
    row = {"messages": messages, "generation": "good", "tools": [{"type": "function"}], "extra": 1}
    made = FormatMessages().change(row)
    assert [m["train"] for m in made["messages"]] == [False, False, True, False, False, False, True]
    assert made["messages"][2]["tool_calls"] == [call] and made["messages"][-1]["content"] == "good"
    assert set(made) == {"messages", "tools"}
    last = FormatMessages(train_on="last").change(row)
    assert [m["train"] for m in last["messages"]] == [False] * 6 + [True]
    with pytest.raises(DropRow, match="no turn to train"):
        FormatMessages().change({"messages": [{"role": "assistant", "content": "x", "train": False}]})
    with pytest.raises(DropRow, match="no answer at the end"):
        FormatMessages().change({"messages": messages})
    with pytest.raises(UserError, match=r"message 1: unknown role 'asistant'\. Did you mean 'assistant'"):
        FormatMessages().change({"messages": [{"role": "asistant", "content": "x"}]})
    with pytest.raises(UserError, match=r"message 1 .user. has neither content"):
        FormatMessages().change({"messages": [{"role": "user"}]})


def test_turns_and_their_answers_become_a_conversation() -> None:
    step = FormatMessages(turns_key="turns", prompt_config="generic/default", system_message="s")
    made = step.change({"turns": ["one?", {"question": "two?"}], "generation": ["1", "2"]})
    assert [(m["role"], m["content"]) for m in made["messages"][:3:2]] == [
        ("system", "s"),
        ("assistant", "1"),
    ]
    assert "two?" in made["messages"][3]["content"] and made["messages"][-1]["content"] == "2"
    assert len(made["messages"]) == 5
    with pytest.raises(DropRow, match="a turn has no answer"):
        step.change({"turns": ["one?", "two?"], "generation": ["1"]})


def test_best_and_worst_answers_become_pairs() -> None:
    rows = [{"problem": "p", "generation": str(n), "reward": n} for n in (3, 1, 2, 5, 4)]
    made, fates = MakePairs(strategy="best_worst", max_pairs=9, min_gap=1).combine(rows)
    assert [(row["chosen"], row["rejected"]) for row in made] == [("5", "1"), ("4", "2")]
    assert [row["chosen_reward"] - row["rejected_reward"] for row in made] == [4, 2]
    assert fates == ["no partner", None, None, None, None]
    same = [{**row, "generation": "same"} for row in rows]
    assert MakePairs(strategy="best_worst").combine(same).rows == []
    with pytest.raises(UserError, match="must be a number, not None"):
        MakePairs(strategy="best_worst").combine([{"problem": "p", "generation": "x"}] * 2)
    pair = FormatPairs(prompt_config="generic/math", prompt_template="qwen-instruct", names="aligner").change(
        made[0]
    )
    assert pair["chosen_response"] == "5<|im_end|>" and pair["rejected_response"] == "1<|im_end|>"
    assert pair["prompt"].endswith("<|im_start|>assistant\n") and pair["chosen_reward"] == 5
    chat = FormatPairs(prompt_config="generic/math").change(made[0])
    assert chat["messages"][-1]["role"] == "user" and (chat["chosen"], chat["rejected"]) == ("5", "1")
