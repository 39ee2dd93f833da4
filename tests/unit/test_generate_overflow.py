"""Prompts that do not fit the context: reading what servers say, and cutting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.inference.overflow import Overflow, cut, text_length

MESSAGES = [
    # as worded by vLLM (three versions), OpenAI, SGLang (two), TensorRT-LLM
    (
        "HTTP 400: This model's maximum context length is 1024 tokens."
        " However, you requested 900 output tokens and"
        " your prompt contains at least 200 input tokens, for a total of at least 1100 tokens.",
        Overflow(1024, 200, exact=False),
    ),
    (
        "This model's maximum context length is 1024 tokens. However, your"
        " prompt contains 1500 input tokens, which"
        " exceeds this limit even without any output tokens.",
        Overflow(1024, 1500),
    ),
    (
        "'max_tokens' is too large: 5000. This model's maximum context length"
        " is 1024 tokens and your request has 20"
        " input tokens (5000 > 1024 - 20).",
        Overflow(1024, 20),
    ),
    (
        "This model's maximum context length is 1024 tokens. However, your"
        " prompt contains 99999 characters (more"
        " than 8192 characters, which is the upper bound for 1024 input tokens).",
        Overflow(1024, None),
    ),
    (
        "The decoder prompt (length 2000) is longer than the maximum model length of 1024.",
        Overflow(1024, 2000),
    ),
    (
        "This model's maximum context length is 4097 tokens. However, you requested 5000 tokens (1000 in the"
        " messages, 4000 in the completion). context_length_exceeded",
        Overflow(4097, 1000),
    ),
    (
        "Requested token count exceeds the model's maximum context length of"
        " 4096 tokens. You requested a total of"
        " 5000 tokens: 1000 tokens from the input messages and 4000 tokens for the completion.",
        Overflow(4096, 1000),
    ),
    ("The input (5000 tokens) is longer than the model's context length"
     " (4096 tokens).", Overflow(4096, 5000)),
    ("max_tokens=5000 cannot be greater than max_model_len=1024.", Overflow(1024, None)),
    ("prompt is too long", Overflow(None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("message", "expected"), MESSAGES)
def test_what_servers_say(message: str, expected: Overflow) -> None:
    assert Overflow.read(message) == expected


def test_how_much_shorter() -> None:
    assert Overflow(1024, 200).shorter_answer(2048) == 824
    assert Overflow(1024, 2000).shorter_answer(2048) < 1
    assert Overflow(None, None).shorter_answer(2048) == 1024
    assert Overflow(1024, None).shorter_answer(5000) == 1023
    assert Overflow(1024, 2000).keep_share(8000, 24) == pytest.approx(0.5, abs=0.02)
    assert Overflow(1024, 2000).keep_share(8000, 1024) == 0
    # the count is a lower bound, so the length decides
    assert Overflow(1024, 1025, exact=False).keep_share(60_000, 24) == pytest.approx(0.05)
    assert Overflow(1024, 1025, exact=False).keep_share(3_000, 24) == 0.85
    assert Overflow(None, None).keep_share(100, 24) == 0.85


CHAT = [
    {"role": "system", "content": "rules"},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "reply"},
    {"role": "user", "content": "last question"},
]


def test_cutting_from_both_ends() -> None:
    assert [m["content"] for m in cut(CHAT, 7, from_start=True)] == ["rules", "ply", "last question"]
    assert [m["content"] for m in cut(CHAT, 7, from_start=False)] == ["rules", "first", "reply", "last q"]
    assert [m["content"] for m in cut(CHAT, 15, from_start=False)] == ["rules", "first", "rep", ""]
    parts = [{"role": "user", "content": [{"type": "text", "text": "cannot be cut"}]}]
    assert cut(parts, 5, from_start=True) == parts
    assert text_length(parts) == 0


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.integers(0, 200), st.booleans())
def test_exactly_so_much_is_cut(texts: list[str], characters: int, from_start: bool) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    before = "".join(texts)
    left = cut(messages, characters, from_start=from_start)
    joined = "".join(message["content"] for message in left)
    kept = max(0, len(before) - characters)
    assert joined == (before[len(before) - kept :] if from_start else before[:kept])
    assert left
    assert [message["content"] for message in messages] == texts
