"""Rows to tokens: which of them are learned, for texts and for conversations."""

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.training.tokenise import Example, load_tokenizer, tokenise

pytestmark = pytest.mark.service("train")

words = st.text(string.ascii_lowercase + " \n.é漢", max_size=20)
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}]
TOOL_TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from nemo_skills.examples.tiny_model import build

    return load_tokenizer(str(build(tmp_path_factory.mktemp("tiny"))))


def variant(tokenizer: Any, **changes: Any) -> Any:
    """A copy of the tokenizer with other settings."""
    import copy

    other = copy.deepcopy(tokenizer)
    for key, value in changes.items():
        setattr(other, key, value)
    return other


def learned(example: Example, tokenizer: Any) -> list[str]:
    """The texts between tokens that are not learned."""
    assert len(example.input_ids) == len(example.loss_mask)
    runs: list[list[int]] = [[]]
    for token, mask in zip(example.input_ids, example.loss_mask, strict=True):
        if mask:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def chat(*turns: tuple[str, str, bool | None]) -> dict[str, Any]:
    messages = [
        {"role": role, "content": text} | ({} if train is None else {"train": train})
        for role, text, train in turns
    ]
    return {"messages": messages}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(prompt=words, response=words)
def test_texts_are_split_where_a_server_would_split_them(prompt: str, response: str, tokenizer: Any) -> None:
    example = tokenise({"input": prompt, "output": response}, tokenizer)
    end = tokenizer.eos_token_id
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert example.input_ids[: len(before)] == before
    assert example.loss_mask == [False] * len(before) + [True] * (len(example.input_ids) - len(before))
    assert example.input_ids[-1] == end and example.input_ids.count(end) == 1
    assert tokenizer.decode(example.input_ids[:-1]) == prompt + response


def test_an_end_that_is_written_out_is_not_doubled_and_a_start_token_is_added(tokenizer: Any) -> None:
    end = tokenizer.eos_token
    once, twice = (tokenise({"input": "a", "output": text}, tokenizer) for text in ("b", f"b{end}"))
    assert once == twice
    starting = variant(tokenizer)
    starting.add_special_tokens({"bos_token": "<|im_start|>"})
    from tokenizers.processors import TemplateProcessing

    start = starting.bos_token_id
    starting.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    for prompt in ("a", "<|im_start|>a"):
        example = tokenise({"input": prompt, "output": "b"}, starting)
        assert example.input_ids[0] == start and example.input_ids.count(start) == 1
        assert not example.loss_mask[0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
@given(turns=st.lists(st.tuples(words, words, st.booleans() | st.none()), min_size=1, max_size=4))
def test_only_chosen_turns_of_the_assistant_are_learned(
    turns: list[tuple[str, str, bool | None]], tokenizer: Any
) -> None:
    row = chat(
        *(t for ask, answer, train in turns for t in [("user", ask, None), ("assistant", answer, train)])
    )
    expected = [f"{answer}<|im_end|>" for _, answer, train in turns if train is not False]
    if not expected:
        with pytest.raises(UserError, match="no message of the assistant is to be trained"):
            tokenise(row, tokenizer)
        return
    example = tokenise(row, tokenizer)
    assert learned(example, tokenizer) == expected
    whole = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    # nothing behind the last learned token
    assert example.loss_mask[-1]
    assert whole.startswith(tokenizer.decode(example.input_ids))


def test_tools_reach_the_template_and_their_arguments_are_not_quoted_twice(tokenizer: Any) -> None:
    able = variant(tokenizer, chat_template=TOOL_TEMPLATE)
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "3"},
    ]
    example = tokenise({"messages": messages, "tools": TOOLS}, able)
    assert able.decode(example.input_ids).startswith("[add]")
    assert learned(example, able) == ['{"a": 1}<|im_end|>', "3<|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    shown = "{{ m.content if loop.last or m.role == 'user' else '' }}|"
    forgetful = variant(tokenizer, chat_template="{% for m in messages %}" + shown + "{% endfor %}")
    turns = [("user", "q", None), ("assistant", "a", None), ("user", "r", None), ("assistant", "b", None)]
    with pytest.raises(UserError, match=r"writes message 2 differently .* one row of each answer"):
        tokenise(chat(*turns), forgetful)
    only_last = tokenise(chat(*((r, t, False if t == "a" else None) for r, t, _ in turns)), forgetful)
    # this template has no tag behind an answer: the end token is what ends it
    assert learned(only_last, forgetful) == [f"b|{forgetful.eos_token}"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"inptu": "a", "output": "b"},
            "there is no 'input'. Did you mean 'input'[?] Keys of the row: inptu",
        ),
        ({"input": "a"}, "there is no 'output'"),
        ({"input": "a", "output": 3}, "'output' must be a text, not int"),
        ({"messages": []}, "'messages' must be a list of objects"),
        ({"messages": ["x"]}, "'messages' must be a list of objects"),
        ({"messages": [{"role": "user"}]}, "message 1 lacks 'role' or 'content'"),
        (chat(("user", "a", True)), "message 1: only what the assistant says can be trained, not 'user'"),
        ({"messages": [{"role": "assistant", "content": "a", "train": 1}]}, "'train' must be true or false"),
    ],
)
def test_bad_rows_say_what_is_wrong(row: dict[str, Any], message: str, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=message):
        tokenise(row, tokenizer)


def test_tokenizers_that_cannot_do_it_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    endless = variant(tokenizer, eos_token=None)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        tokenise({"input": "a", "output": "b"}, endless)
    endless.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="no chat template"):
        tokenise(chat(("user", "a", None), ("assistant", "b", None)), variant(tokenizer, chat_template=None))
