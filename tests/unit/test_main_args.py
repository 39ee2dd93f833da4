"""Main arguments on the launch side: what is accepted, how it travels, what is refused beforehand."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import compose
from nemo_skills.pipeline.main_args import encode_override, normalise, parse_main_args, validate
from tests.unit.hydra_demo import DemoConfig

SCHEMA = "tests.unit.hydra_demo:DemoConfig"
GIVEN = "++input_file=x"
ROOT = Path(__file__).parents[2]


def refused(*args: str, local_files: bool = True) -> list[str]:
    with pytest.raises(UserError) as caught:
        validate(SCHEMA, args, local_files=local_files)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def test_overrides_and_flags_are_accepted_in_every_spelling() -> None:
    tokens = ["++a=1", "+b.c=2", "d=", "~e", "--config-path", "/x y", "--config-name=z", "-cd", "w"]
    assert parse_main_args(tokens).args == (
        "--config-path=/x y", "--config-name=z", "--config-dir=w", "++a=1", "+b.c=2", "d=", "~e",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("--server_typ=vllm", "unknown option"),
        ("--config_nam=x", "Did you mean '--config-name'?"),
        ("--temperature=1", "Did you mean '++temperature=1'?"),
        ("++a", "has no value"),
        ("++a b=1", "not a main argument"),
        ("++=1", "not a main argument"),
        ("+++a=1", "not a main argument"),
        ("", "not a main argument"),
        ("word", "write ++word=..."),
    ],
)
def test_stray_tokens_are_refused(token: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_main_args(["++fine=1", token])
    assert message in str(caught.value)
    assert "fine" not in str(caught.value)


def test_every_stray_token_is_named() -> None:
    with pytest.raises(UserError) as caught:
        normalise(["one", "++fine=1", "two"])
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["one", "two"]


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("++end_reasoning_string=</think>", "++end_reasoning_string='</think>'"),
        ("++a=x,y", "++a='x,y'"),
        ("++a=glob(*)", "++a='glob(*)'"),
        ("++a=range(1,3)", "++a='range(1,3)'"),
        ("++a=it's <", '++a="it\'s <"'),
        ("++a=two\nlines", "++a='two\nlines'"),
        ("++a=<${b}>", "++a='<${b}>'"),
        ("++a=[1,2]", "++a=[1,2]"),
        ("++a={b:1}", "++a={b:1}"),
        ('++a={"b c": 1}', '++a={"b c": 1}'),
        ("++a='</think>'", "++a='</think>'"),
        ("++a=two words", "++a=two words"),
        ("++a=", "++a="),
        ("~a", "~a"),
    ],
)
def test_what_is_sent_is_in_hydras_grammar(typed: str, sent: str) -> None:
    assert normalise([typed]) == (sent,)
    assert normalise(normalise([typed])) == (sent,)


def test_normalised_arguments_give_the_same_config(weird_tmp_path: Path) -> None:
    (weird_tmp_path / "c.yaml").write_text("stop: [a]\n")
    typed = [GIVEN, "++suffix=</think>", "--config-path", str(weird_tmp_path), "--config-name", "c"]
    config = compose(DemoConfig, normalise(typed))
    assert config == compose(DemoConfig, typed)
    assert (config.suffix, config.stop) == ("</think>", ["a"])


def test_good_arguments_pass() -> None:
    validate(SCHEMA, [GIVEN, "++inference.temperature=0.7", encode_override("stop", ["</think>"])])


def test_mistakes_are_reported_together() -> None:
    assert refused("++inference.temprature=0.7", "++max_samples=ten") == [
        "input_file: missing, give ++input_file=... (Rows to read)",
        "++max_samples: expected int | null, got 'ten'",
        "++inference.temprature: unknown key. Did you mean 'inference.temperature'?",
    ]


def test_local_config_file_is_checked(weird_tmp_path: Path) -> None:
    (weird_tmp_path / "c.yaml").write_text("input_file: x\ninference:\n  top_q: 1\n")
    for local_files in (True, False):
        (line,) = refused(f"--config-path={weird_tmp_path}", "--config-name=c", local_files=local_files)
        assert line == (
            f"{weird_tmp_path}/c.yaml:3: inference.top_q: unknown key. Did you mean 'inference.top_k'?"
        )


REMOTE = ("--config-path=/only/over/there", "--config-name=c")


def test_remote_config_file_leaves_only_its_own_keys_unchecked() -> None:
    validate(SCHEMA, [*REMOTE, "++suffix=${system}", "++max_samples=${given.there}"], local_files=False)
    assert refused(*REMOTE, "++qqqq=1", "++max_samples=ten", local_files=False) == [
        "++qqqq: unknown key",
        "++max_samples: expected int | null, got 'ten'",
    ]


def test_missing_folder_is_an_error_where_the_job_sees_these_files() -> None:
    (line,) = refused(GIVEN, *REMOTE)
    assert line == "--config-name: no c.yaml in /only/over/there."


@pytest.mark.parametrize("inside", [False, True])
def test_packaged_code_is_read_from_the_repository(
    weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    (weird_tmp_path / ".git").mkdir()
    (weird_tmp_path / "conf").mkdir()
    (weird_tmp_path / "sub").mkdir()
    (weird_tmp_path / "conf/c.yaml").write_text("max_sample: 1\n")
    monkeypatch.chdir(weird_tmp_path / "sub" if inside else weird_tmp_path)
    args = [GIVEN, "--config-path=/nemo_run/code/conf", "--config-name=c"]
    (line,) = refused(*args, local_files=False)
    assert line.endswith("c.yaml:1: max_sample: unknown key. Did you mean 'max_samples'?")


def test_packaged_folder_that_is_not_here_counts_as_remote(
    weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weird_tmp_path)
    validate(SCHEMA, ["--config-path=/nemo_run/code/conf", "--config-name=c"], local_files=False)


def run(script: str) -> str:
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_light() -> None:
    heavy = "{'hydra', 'omegaconf', 'yaml', 'antlr4', 'nemo_run'}"
    script = "import sys, nemo_skills.pipeline.main_args as m; m.encode_override('a', {'b': '<'})"
    script += f"; print({heavy} & set(sys.modules))"
    assert run(script) == "set()\n"


def test_a_typo_is_found_within_two_seconds() -> None:
    started = time.monotonic()
    script = f"""
from nemo_skills.pipeline.main_args import UserError, normalise, validate
try:
    validate({SCHEMA!r}, normalise(['++inference.temprature=0.7', '++suffix=</think>']))
except UserError as error:
    print(error)
"""
    assert "Did you mean 'inference.temperature'?" in run(script)
    assert time.monotonic() - started < 2
