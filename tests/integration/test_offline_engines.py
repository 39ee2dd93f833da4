"""The engines of offline generation against transformers' own generation, and against each other."""

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.inference.offline.engine import RemoteEngine, open_engine
from nemo_skills.inference.offline.spec import EngineSpec, Item, Result, Sampling, sample_seed
from nemo_skills.inference.offline.text import TextEngine
from tests.conftest import vllm_python

QUESTIONS = [f"Question {i}:{' why' * (5 * i % 7)} not {i * i}?" for i in range(7)]
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is 2+2?"}]
GREEDY = Sampling(greedy=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from nemo_skills.examples.tiny_model import build

    return str(build(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def spec(model: str) -> EngineSpec:
    return EngineSpec(engine="hf", model=model, sampling=Sampling(), max_tokens=20, context=512, batch=4)


@pytest.fixture(scope="module")
def native(model: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model)


@pytest.fixture(scope="module")
def tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def items(count: int = 1, prompts: list[str] = QUESTIONS) -> list[Item]:
    seeds = [tuple(sample_seed(0, i, n) for n in range(count)) for i in range(len(prompts))]
    return [Item(prompt=p, seeds=s, bos=False) for p, s in zip(prompts, seeds, strict=True)]


def answer(spec: EngineSpec, asked: list[Item], **sampling: Any) -> list[Result]:
    return TextEngine(replace(spec, sampling=replace(spec.sampling, **sampling))).answer(asked)


def texts(results: list[Result]) -> list[list[str]]:
    return [[answer.text for answer in result.answers] for result in results]


def flat(results: list[Result]) -> list[str]:
    return [text for row in texts(results) for text in row]


def native_texts(native: Any, tokenizer: Any, **settings: Any) -> list[list[str]]:
    """One prompt at a time, without padding."""
    import torch

    found = []
    for question in QUESTIONS:
        ids = torch.tensor([tokenizer(question)["input_ids"]])
        made = native.generate(ids, do_sample=False, max_new_tokens=20, pad_token_id=0, **settings)
        found.append([tokenizer.decode(made[0, ids.shape[1] :])])
    return found


@pytest.mark.service("hf")
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_is_transformers_greedy(spec: EngineSpec, native: Any, tokenizer: Any, penalty: float) -> None:
    found = answer(spec, items(), greedy=True, repetition_penalty=penalty)
    assert texts(found) == native_texts(native, tokenizer, repetition_penalty=penalty)
    ended = native.generation_config.eos_token_id
    for result in found:
        [made] = result.answers
        last = tokenizer(made.text, add_special_tokens=False)["input_ids"][-1]
        assert (made.finish == "stop") == (last in ended)
        assert made.finish == "stop" or made.tokens == 20


@pytest.mark.service("hf")
@pytest.mark.parametrize("limits", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}])
def test_sampling_among_one_token_is_greedy(spec: EngineSpec, limits: dict[str, Any]) -> None:
    assert texts(answer(spec, items(), **limits)) == texts(answer(spec, items(), greedy=True))


@pytest.mark.service("hf")
def test_samples_depend_on_their_seeds_only(spec: EngineSpec) -> None:
    engine = TextEngine(spec)
    together = texts(engine.answer(items(3)))
    assert texts(engine.answer(items(3))) == together
    assert [texts(engine.answer([item]))[0] for item in items(3)] == together
    assert texts(engine.answer(items(5))[:]) != together
    assert [row[:3] for row in texts(engine.answer(items(5)))] == together
    assert len({text for row in together for text in row}) == 3 * len(QUESTIONS)


@pytest.mark.service("hf")
def test_tokens_are_drawn_as_often_as_they_should_be() -> None:
    import torch

    from nemo_skills.inference.offline.engine_hf import _Sampler

    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5]]).repeat(4000, 1)
    expected = (scores[0] / 0.8).softmax(-1)
    for limits, kept in (({}, 5), ({"top_k": 3}, 3), ({"top_p": 0.8}, 2), ({"min_p": 0.25}, 2)):
        spec = EngineSpec(engine="hf", model="", sampling=Sampling(temperature=0.8, **limits))
        sampler = _Sampler(spec, frozenset(), None, [sample_seed(0, i, 0) for i in range(4000)])
        drawn = Counter(sampler(None, scores).argmax(-1).tolist())
        best = expected.topk(kept)
        assert set(drawn) == set(best.indices.tolist()), limits
        shares = best.values / best.values.sum()
        for token, share in zip(best.indices.tolist(), shares.tolist(), strict=True):
            assert abs(drawn[token] / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5, limits


@pytest.mark.service("hf")
def test_logprobs_are_those_of_the_model(spec: EngineSpec, native: Any, tokenizer: Any) -> None:
    import torch

    for result in answer(spec, items(), logprobs=True, temperature=0.5, repetition_penalty=1.2):
        [made] = result.answers
        before = tokenizer(result.prompt)["input_ids"]
        after = tokenizer(made.text, add_special_tokens=False)["input_ids"]
        if len(after) != made.tokens:
            continue  # the text has another tokenization than the one that was generated
        with torch.inference_mode():
            logits = native(torch.tensor([before + after])).logits[0].log_softmax(-1)
        own = [float(logits[len(before) + i - 1, token]) for i, token in enumerate(after)]
        assert made.logprobs == pytest.approx(own, abs=1e-4)


@pytest.mark.service("hf")
def test_where_responses_end(spec: EngineSpec) -> None:
    free = flat(answer(spec, items(4)))
    letters = ("bag", "V")
    raw = answer(spec, items(4), end_strings=letters)
    clean = answer(replace(spec, clean=True), items(4), end_strings=letters)
    for whole, kept, cut in zip(free, flat(raw), flat(clean), strict=True):
        places = [whole.find(letter) for letter in letters if letter in whole]
        if not places:
            assert kept == whole
            continue
        assert whole.startswith(kept)
        assert kept.endswith(letters)
        assert len(cut) == min(places)
        assert not any(letter in cut for letter in letters)
    assert {made.finish for result in raw for made in result.answers} == {"stop", "length"}


@pytest.mark.service("hf")
def test_raw_responses_keep_the_turns_end_and_clean_ones_do_not(spec: EngineSpec, tokenizer: Any) -> None:
    likely = replace(spec, max_tokens=200)
    raw, clean = answer(likely, items(4)), answer(replace(likely, clean=True), items(4))
    ends = (tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id), "<|end|>")
    stopped = [a.text for result in raw for a in result.answers if a.finish == "stop"]
    assert stopped, "this model ends some of its turns"
    assert all(text.endswith(ends) for text in stopped)
    assert not any("<|" in text for row in texts(clean) for text in row)


@pytest.mark.service("hf")
def test_no_response_is_shorter_than_asked(spec: EngineSpec) -> None:
    likely = replace(spec, max_tokens=200)
    short = [a.tokens for r in answer(likely, items(4)) for a in r.answers if a.finish == "stop"]
    least = sorted(short)[len(short) // 2] + 5
    long = [a.tokens for r in answer(likely, items(4), min_tokens=least) for a in r.answers]
    assert min(short) < least < min(long)


@pytest.mark.service("hf")
def test_long_prompts(spec: EngineSpec, tokenizer: Any) -> None:
    text = "one two three four five six seven eight"
    size = len(tokenizer(text)["input_ids"])
    asked = [Item(prompt=text, seeds=(1,), bos=False), Item(prompt="one", seeds=(1,), bos=False)]
    tight = replace(spec, sampling=GREEDY, max_prompt=size - 4)

    skipped, kept = TextEngine(tight).answer(asked)
    assert skipped.refused == f"the prompt has {size} tokens, {size - 4} are allowed"
    assert (skipped.answers, len(kept.answers)) == ((), 1)
    assert kept == TextEngine(tight).answer(asked[1:])[0]

    left = TextEngine(replace(tight, long_prompts="truncate_left")).answer(asked)[0]
    right = TextEngine(replace(tight, long_prompts="truncate_right")).answer(asked)[0]
    assert text.endswith(left.prompt) and text.startswith(right.prompt)
    assert (left.cut, right.cut, left.prompt_tokens) == (4, 4, size)
    assert len(left.answers) == 1


@pytest.mark.service("hf")
@pytest.mark.parametrize("policy", ["truncate_left", "truncate_right"])
def test_messages_lose_words_but_no_tags(spec: EngineSpec, tokenizer: Any, policy: Any) -> None:
    long = [CHAT[0], {"role": "user", "content": " ".join(f"word{i}" for i in range(200))}]
    whole = tokenizer.apply_chat_template(long, tokenize=False, add_generation_prompt=True)
    engine = TextEngine(replace(spec, sampling=GREEDY, max_prompt=150, long_prompts=policy))
    result = engine.answer([Item(prompt=long, seeds=(1,))])[0]
    assert result.refused is None
    assert result.prompt_tokens == len(tokenizer(whole)["input_ids"])
    assert 100 < result.prompt_tokens - result.cut <= 150
    assert result.prompt.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
    assert result.prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert ("word199" in result.prompt) == (policy == "truncate_left")


@pytest.mark.service("hf")
def test_answers_give_way_to_long_prompts(spec: EngineSpec, tokenizer: Any) -> None:
    size = len(tokenizer(QUESTIONS[0])["input_ids"])
    shorter = replace(
        spec, sampling=GREEDY, context=size + 5, max_tokens=100, long_prompts="shorten_response"
    )
    short, none = TextEngine(shorter).answer(
        [Item(prompt=QUESTIONS[0], seeds=(1,), bos=False), Item(prompt="x y " * 99, seeds=(1,), bos=False)]
    )
    assert (short.longest, short.answers[0].tokens, short.answers[0].finish) == (5, 5, "length")
    assert none.refused


@pytest.mark.service("hf")
def test_chat_templates_and_begun_answers(spec: EngineSpec) -> None:
    engine = TextEngine(replace(spec, sampling=GREEDY))
    asked, begun = engine.answer(
        [
            Item(prompt=CHAT, seeds=(1,)),
            Item(prompt=[*CHAT, {"role": "assistant", "content": "It is"}], seeds=(1,)),
        ]
    )
    assert asked.prompt.endswith("<|im_start|>assistant\n")
    assert begun.prompt == asked.prompt + "It is"


@pytest.mark.service("hf")
def test_the_token_for_the_beginning(spec: EngineSpec) -> None:
    engine = TextEngine(replace(spec, sampling=GREEDY))
    plain, with_bos, empty = engine.answer(
        [Item(prompt="x", seeds=(1,), bos=bos) for bos in (False, True)]
        + [Item(prompt="", seeds=(1,), bos=False)]
    )
    assert with_bos.prompt_tokens == plain.prompt_tokens + 1
    assert empty.refused == "the prompt is empty, it has no token"


@pytest.mark.service("hf")
def test_an_engine_in_another_process_is_the_same(spec: EngineSpec) -> None:
    sampled = replace(spec, sampling=Sampling(logprobs=True, end_strings=("é", "z")))
    remote = open_engine(sampled, sys.executable, os.environ)
    try:
        assert isinstance(remote, RemoteEngine)
        asked = [*items(2), Item(prompt=CHAT, seeds=(5, 6)), Item(prompt="", seeds=(1, 2), bos=False)]
        assert remote.answer(asked) == TextEngine(sampled).answer(asked)
        with pytest.raises(UserError, match=r"chat template of .* refuses a row"):
            remote.answer([Item(prompt=[{"role": "user"}], seeds=(1,))])
        assert len(remote.answer(asked)) == len(asked), "it lives on after an error of the user's"
    finally:
        remote.close()


@pytest.mark.service("hf")
def test_an_engine_in_another_process_that_fails(spec: EngineSpec, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_engine(replace(spec, model=str(tmp_path / "none")), sys.executable, os.environ)
    with pytest.raises(UserError, match=r"Cannot start engine_python=.*/nopython"):
        open_engine(spec, str(tmp_path / "nopython"), os.environ)
    with pytest.raises(UserError, match="The process of engine hf ended with exit code 7"):
        script = tmp_path / "python"
        script.write_text("#!/bin/sh\nexit 7\n")
        script.chmod(0o755)
        open_engine(spec, str(script), os.environ)


@pytest.mark.service("vllm")
def test_vllm_says_what_transformers_says(spec: EngineSpec) -> None:
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    sampling = Sampling(
        greedy=True, min_tokens=3, end_strings=("e", "st"), repetition_penalty=1.2, logprobs=True
    )
    both = replace(spec, sampling=sampling, dtype="float32", max_tokens=24, clean=True)
    vllm = open_engine(replace(both, engine="vllm"), str(vllm_python()), os.environ | quiet)
    asked = [*items(2), Item(prompt=CHAT, seeds=(5, 6)), Item(prompt="x " * 600, seeds=(1, 2), bos=False)]
    try:
        found = vllm.answer(asked)
    finally:
        vllm.close()
    own = TextEngine(both).answer(asked)
    assert [_without_logprobs(result) for result in found] == [_without_logprobs(result) for result in own]
    for mine, theirs in zip(own, found, strict=True):
        for a, b in zip(mine.answers, theirs.answers, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


def _without_logprobs(result: Result) -> Result:
    return replace(result, answers=tuple(replace(a, logprobs=None) for a in result.answers))
