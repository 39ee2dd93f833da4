"""The tiny model: the same bytes for the same seed, loadable, usable for prompts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.prompt.utils import get_prompt

pytestmark = pytest.mark.service("hf")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "we ird'\"$dir"
    build(folder, hash_seed="1")
    return folder


@pytest.fixture(scope="module")
def tokenizer(built: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(built)


def build(folder: Path, *args: str, hash_seed: str) -> None:
    command = [sys.executable, "-m", "nemo_skills.examples.tiny_model", "--output", str(folder), *args]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_seed_decides_every_byte(built: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", hash_seed="2")
    build(tmp_path / "other", "--seed", "1", hash_seed="1")
    assert contents(tmp_path / "again") == contents(built)
    differing = {name for name, data in contents(tmp_path / "other").items() if data != contents(built)[name]}
    assert differing == {"model.safetensors"}


def test_it_generates_text_that_depends_on_the_prompt(built: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(built)
    assert 450_000 < sum(p.numel() for p in model.parameters()) < 550_000
    assert model.dtype == torch.float32
    assert {tokenizer.eos_token_id} < set(model.generation_config.eos_token_id)
    answers = []
    for question in ("A bus has 52 seats.", "A bus has 53 seats."):
        messages = get_prompt("generic/default").fill({"question": question})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
    assert answers[0] != answers[1]
    assert all(len(set(answer.split())) > 3 for answer in answers)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text())
def test_any_text_survives_tokenization(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_are_tokens_of_their_own(tokenizer: Any) -> None:
    tokens = tokenizer.tokenize("costs 1234 dollars")
    assert [t for t in tokens if t.isdigit()] == ["1", "2", "3", "4"]


def test_prompts_rendered_with_its_chat_template(built: Path) -> None:
    row = {"question": "{a}\n ünï 🙂 "}
    by_tokenizer = get_prompt("generic/default", tokenizer=str(built), system_message="S")
    by_template = get_prompt("generic/default", prompt_template="chatml", system_message="S")
    for prefix in ("", "It is \\boxed{ "):
        text = by_tokenizer.fill(row, assistant_prefix=prefix)
        assert text == by_template.fill(row, assistant_prefix=prefix)
        assert isinstance(text, str)
        assert text.endswith("<|im_start|>assistant\n" + prefix)


def tokenizer_variant(built: Path, folder: Path, template: str | None, *, adds_bos: bool) -> str:
    """Save a tokenizer that, like Llama's, may put BOS before everything it tokenizes."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built)
    if adds_bos:
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos[0]} $A", special_tokens=[bos]
        )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_reaches_the_model_exactly_once(built: Path, tmp_path: Path, adds_bos: bool) -> None:
    from transformers import AutoTokenizer

    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}>"
    path = tokenizer_variant(built, tmp_path / "bos", template, adds_bos=adds_bos)
    text = get_prompt("generic/default", tokenizer=path).fill({"question": "Q"})
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id) is adds_bos
    # what a completions endpoint does with the text
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_unusable_tokenizers_say_why(built: Path, tmp_path: Path) -> None:
    path = tokenizer_variant(built, tmp_path / "none", None, adds_bos=False)
    with pytest.raises(UserError, match="has no chat template"):
        get_prompt("generic/default", tokenizer=path)
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        get_prompt("generic/default", tokenizer=str(tmp_path / "absent"))
    strict = "{{ raise_exception('no system role') }}"
    path = tokenizer_variant(built, tmp_path / "strict", strict, adds_bos=False)
    with pytest.raises(UserError, match="no system role"):
        get_prompt("generic/default", tokenizer=path).fill({"question": "Q"})


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "nemo_skills.examples.tiny_model", "--output", str(tmp_path / "file")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "Cannot write" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_config_is_what_servers_read(built: Path) -> None:
    config = json.loads((built / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["vocab_size"] == len(json.loads((built / "tokenizer.json").read_text())["model"]["vocab"])
