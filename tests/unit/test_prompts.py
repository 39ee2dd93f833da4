"""Prompts: rows go in unchanged, and everything that cannot work says why."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.prompt.lookup import EXAMPLES
from nemo_skills.prompt.text import TextTemplate
from nemo_skills.prompt.utils import get_prompt, list_examples, list_prompts, list_templates

LLAMA_HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n"


def write_prompt(folder: Path, text: str) -> str:
    path = folder / "my prompt.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(*args: object, **kwargs: object) -> str:
    with pytest.raises(UserError) as caught:
        get_prompt(*args, **kwargs)  # type: ignore[arg-type]
    return str(caught.value)


# --- values arrive unchanged


@given(problem=st.text(), choices=st.text())
def test_any_values_arrive_unchanged(problem: str, choices: str) -> None:
    row = {"problem": problem, "choices": choices}
    markers = {"problem": "<<problem>>", "choices": "<<choices>>"}
    [message] = get_prompt("generic/multichoice").fill(markers)
    [filled] = get_prompt("generic/multichoice").fill(row)
    before, rest = message["content"].split("<<problem>>")
    between, after = rest.split("<<choices>>")
    assert filled == {"role": "user", "content": before + problem + between + choices + after}


@given(st.text(), st.sampled_from(["{{", "}}", "{{x}}", "\\boxed{{}}", "${{y}}", ""]))
def test_escaped_braces_surround_values(value: str, escaped: str) -> None:
    template = TextTemplate.parse(f"{escaped}{{key}}{escaped}", "here")
    literal = escaped.replace("{{", "{").replace("}}", "}")
    assert template.fill({"key": value}) == literal + value + literal


def test_three_braces_are_a_brace_around_a_value() -> None:
    assert TextTemplate.parse("\\boxed{{{answer}}}", "here").fill({"answer": "{7}"}) == "\\boxed{{7}}"


def test_binding_keeps_the_other_keys() -> None:
    template = TextTemplate.parse("{a}-{b}-{a}-{c}", "here").bind("a", "{b}")
    assert template.keys == ("b", "c")
    assert template.fill({"b": "1", "c": "2"}) == "{b}-1-{b}-2"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (7, "7"),
        (0.5, "0.5"),
        (True, "true"),
        (["é", "b"], '["é", "b"]'),
        ({"a": None}, '{"a": null}'),
        ("", ""),
    ],
)
def test_values_that_are_no_text_stand_as_json(value: object, shown: str) -> None:
    [message] = get_prompt("generic/default").fill({"question": value})
    assert message["content"] == shown


def test_unused_keys_of_a_row_do_not_matter() -> None:
    row = {"question": "why?", "examples": "mine", "messages": [1]}
    assert get_prompt("generic/default").fill(row) == [{"role": "user", "content": "why?"}]


# --- shipped configs


@pytest.mark.parametrize("name", list_prompts())
@pytest.mark.parametrize("template", [None, *list_templates()])
def test_every_shipped_prompt_and_template_work_together(name: str, template: str | None) -> None:
    prompt = get_prompt(name, prompt_template=template)
    keys = ("question", "problem", "choices", "expected_answer", "predicted_answer", "example_test")
    filled = prompt.fill({key: f"value of {key}" for key in (*keys, "format_note")})
    text = filled if isinstance(filled, str) else filled[-1]["content"]
    assert isinstance(filled, str) == prompt.is_text == (template is not None)
    assert "value of " in text
    assert len(prompt.stop_phrases) <= 4, "the OpenAI API takes no more"


def test_shipped_names() -> None:
    generic = {"codegen", "default", "instruction", "math", "math-base", "math-code"}
    generic |= {"multichoice", "multichoice-base", "multichoice-direct"}
    code = {"human-eval", "livecodebench", "mbpp"}
    names = {f"generic/{name}" for name in generic} | {f"code/{name}" for name in code}
    assert set(list_prompts()) == names | {"judge/math"}
    assert set(list_templates()) == {"chatml", "llama3-base", "llama3-instruct", "qwen-instruct"}


@pytest.mark.parametrize("name", list_examples())
def test_shipped_examples_calculate_correctly(name: str) -> None:
    rows = [json.loads(line) for line in EXAMPLES.find(name).read_text().splitlines()]
    assert len(rows) == 4
    for row in rows:
        steps = re.findall(r"([\d */+-]+\d) = (\d+)", row["solution"])
        assert steps
        assert all(eval(left) == int(right) for left, right in steps)
        assert row["solution"].endswith(f"\\boxed{{{row['expected_answer']}}}.")


# --- few-shot examples


def test_examples_are_off_until_asked_for() -> None:
    [zero_shot] = get_prompt("generic/math").fill({"problem": "P"})
    [few_shot] = get_prompt("generic/math", examples_type="math_word_problems").fill({"problem": "P"})
    assert "solved problems" not in zero_shot["content"]
    assert few_shot["content"].count("Solution: ") == 4
    assert few_shot["content"].index("\\boxed{282}") < few_shot["content"].index("P", -1)


def test_base_prompt_stops_at_the_next_problem() -> None:
    prompt = get_prompt("generic/math-base", prompt_template="llama3-base")
    text = prompt.fill({"problem": "P"})
    assert isinstance(text, str)
    assert text.endswith("Problem:\nP\n\nSolution:")
    assert "<|" not in text
    assert set(prompt.stop_phrases) == {"\n\n\nProblem:", "\nProblem:", "<|end_of_text|>"}


def test_examples_of_a_config_and_of_a_file(weird_tmp_path: Path) -> None:
    name = write_prompt(
        weird_tmp_path,
        'user: "{examples}{x}"\n'
        "few_shot_examples:\n"
        '  prefix: "[{{"\n  template: "{q}->{a};"\n  suffix: "}}]"\n'
        "  examples: [{q: '{x}', a: 1}, {q: two, a: '{a}'}]\n",
    )
    assert get_prompt(name).fill({"x": "X"})[0] == {"role": "user", "content": "[{{x}->1;two->{a};}]X"}
    examples = weird_tmp_path / "mine.jsonl"
    examples.write_text('{"q": "\u2028", "a": "b"}\n\n')
    assert get_prompt(name, examples_type=str(examples)).fill({"x": "X"})[0]["content"] == "[{\u2028->b;}]X"
    examples.write_text('{"q": 1, "a": 2}\n{"q": \n')
    assert f"{examples}:2" in refusal(name, examples_type=str(examples))
    examples.write_text('{"q": 1, "a": 2}\n{"q": 1, "b": 2}\n')
    assert "example 2" in refusal(name, examples_type=str(examples))


def test_examples_that_would_never_be_shown_are_an_error(weird_tmp_path: Path) -> None:
    name = write_prompt(weird_tmp_path, 'user: "{x}"\nfew_shot_examples: {template: "{q}"}\n')
    assert "put {examples} where" in refusal(name)
    assert "no few_shot_examples" in refusal("generic/default", examples_type="math_word_problems")


# --- messages and text


def test_system_message_and_history(weird_tmp_path: Path) -> None:
    name = write_prompt(weird_tmp_path, 'system: "Speak {language}."\nuser: "{x}"\n')
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    system = {"role": "system", "content": "Speak Maltese."}
    prompt = get_prompt(name)
    row = {"language": "Maltese", "x": "c"}
    assert prompt.fill(row) == [system, {"role": "user", "content": "c"}]
    assert prompt.messages(row, history) == [system, *history, {"role": "user", "content": "c"}]
    assert get_prompt(name, system_message="Be {x}.").fill({"x": "c"})[0]["content"] == "Be c."
    assert get_prompt(name, system_message="").fill({"x": "c"}) == [{"role": "user", "content": "c"}]


def test_llama3_text() -> None:
    prompt = get_prompt("generic/default", prompt_template="llama3-instruct", system_message="S")
    expected = (
        f"{LLAMA_HEAD.format('system')}S<|eot_id|>{LLAMA_HEAD.format('user')}Q<|eot_id|>"
        f"{LLAMA_HEAD.format('assistant')}"
    )
    assert prompt.fill({"question": "Q"}) == expected
    assert prompt.fill({"question": "Q"}, assistant_prefix="So {far ") == expected + "So {far "
    assert "<|eot_id|>" in prompt.stop_phrases


def test_chatml_text_of_several_turns() -> None:
    prompt = get_prompt("generic/default", prompt_template="chatml")
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert prompt.fill({"question": "c"}, history=history) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_begun_reply_is_the_last_chat_message() -> None:
    filled = get_prompt("generic/default").fill({"question": "Q"}, assistant_prefix="So")
    assert filled == [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "So"}]


def test_own_template_by_path(weird_tmp_path: Path) -> None:
    path = weird_tmp_path / "t.yaml"
    path.write_text('user_begin: "U:"\nassistant_begin: " A:"\nstop_phrases: ["U:"]\n')
    prompt = get_prompt("generic/default", prompt_template=str(path))
    assert prompt.fill({"question": "Q"}) == "U:Q A:"
    assert prompt.stop_phrases == ("U:",)


def test_ready_made_messages_pass_through() -> None:
    messages = [
        {"role": "system", "content": "{not a key}"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "ann"},
    ]
    prompt = get_prompt(prompt_format="openai")
    assert prompt.fill({"messages": messages}) == messages
    with pytest.raises(UserError, match=r"'messages'.*question, id"):
        prompt.fill({"question": "Q", "id": 3})
    assert "drop prompt_config" in refusal("generic/math", prompt_format="openai")
    assert "'nemo'" in refusal("generic/math", prompt_format="nemo")


def test_ready_made_messages_as_text() -> None:
    prompt = get_prompt(prompt_format="openai", prompt_template="chatml")
    begun = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b "}]
    assert prompt.fill({"messages": begun}) == ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb ")
    with pytest.raises(UserError, match="not a text"):
        prompt.fill({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]})
    with pytest.raises(UserError, match="role 'tool'"):
        prompt.fill({"messages": [{"role": "tool", "content": "x"}]})


# --- what cannot work


def test_missing_keys_name_what_is_there() -> None:
    with pytest.raises(UserError) as caught:
        get_prompt("judge/math").fill({"problm": "P", "expected_answer": None, "predicted_answer": "3"})
    message = str(caught.value)
    assert "'problem' is missing. Did you mean 'problm'?" in message
    assert "'expected_answer' is null" in message
    assert message.endswith("Keys of the row: problm, expected_answer, predicted_answer")


def test_unknown_names_suggest_the_nearest() -> None:
    assert "Did you mean 'generic/math'?" in refusal("generic/mth")
    assert "nemo_skills/prompt/config" in refusal("nothing like it")
    assert "Did you mean 'llama3-instruct'?" in refusal("generic/math", prompt_template="llama-instruct")
    assert "math_word_problems" in refusal("generic/math", examples_type="gsm")
    assert "Did you mean 'generic/math'?" in refusal("generic/math.yaml")
    assert "generic/math" in refusal()
    assert "not both" in refusal("generic/math", prompt_template="chatml", tokenizer="x")


def test_path_without_its_ending(weird_tmp_path: Path) -> None:
    path = write_prompt(weird_tmp_path, 'user: "x"\n')
    assert f"Did you mean the file '{path}'?" in refusal(path.removesuffix(".yaml"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("user: x\nsytem: y\n", "unknown key 'sytem'. Did you mean 'system'?"),
        ("user: x\nfew_shot_examples: {template: t, prefx: p}\n", "few_shot_examples: unknown key 'prefx'"),
        ("user: x\nfew_shot_examples: {prefix: p}\n", "the key 'template' is missing"),
        ("user: x\nfew_shot_examples: {template: t, examples: [1]}\n", "example 1"),
        ("user: '{examples}'\nfew_shot_examples: {template: t, prefix: '{x}', examples: [{}]}\n", "prefix"),
        ("system: x\n", "the key 'user' is missing"),
        ("user: 5\n", "'user' must be a text, not 5"),
        ("user: x\nstop_phrases: stop\n", "'stop_phrases' must be a list"),
        ("user: x\nstop_phrases: [1]\n", "'stop_phrases' must be a list of texts"),
        ("- user\n", "must hold 'key: value' pairs, not a list"),
        ("", "not nothing"),
        ("user: |\n  ok\n bad\n", "line 3"),
        ("user: 'a\n", "not YAML"),
        ("user: |\n  one\n  \\boxed{}\n", "line 2 of the text"),
        ("user: 'f(x}'\n", "write {{ or }}"),
    ],
)
def test_faulty_configs_say_what_is_wrong(text: str, problem: str, weird_tmp_path: Path) -> None:
    name = write_prompt(weird_tmp_path, text)
    message = refusal(name)
    assert problem in message
    assert name in message


def test_unreadable_config(weird_tmp_path: Path) -> None:
    path = weird_tmp_path / "latin.yaml"
    path.write_bytes(b"user: \xff\n")
    assert f"cannot read {path}" in refusal(str(path))


def test_importing_prompts_is_light() -> None:
    code = (
        "import sys, nemo_skills.prompt.utils as u; u.get_prompt('generic/math', prompt_template='chatml')\n"
        "print({'torch', 'transformers', 'hydra', 'omegaconf', 'jinja2'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
