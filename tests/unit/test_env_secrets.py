"""Secrets: resolved by name, never shown, and exact to the byte after a real shell has read them."""

import os
import pickle
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.env import JobEnv, redact, render_secrets_file, resolve_env

CANARY = "canary-3f'9$(id)"
VALUES = st.binary(max_size=60).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
NAMES = st.from_regex(r"K_[A-Za-z0-9_]{0,8}", fullmatch=True)


def sourced(
    content: bytes, tmp_path: Path, *, shell: str = "bash", options: str = "eu"
) -> dict[bytes, bytes]:
    """Return the environment of a program started after a shell sourced `content`."""
    file = tmp_path / "secrets"
    file.write_bytes(content)
    script = f'set -{options}; . "$1"; exec /usr/bin/env -0'
    done = subprocess.run([shell, "-c", script, shell, str(file)], env={}, capture_output=True, check=True)
    return dict(entry.split(b"=", 1) for entry in done.stdout.split(b"\0") if entry)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=4), st.sampled_from(["bash", "sh"]))
@example({"K_A": "".join(map(chr, range(1, 128)))}, "bash")
@example({"K_A": "a\r\n'b'\n\n", "K_B": "", "K_C": "\\", "K_D": '!$`"\x01\x7f'}, "bash")
@example({"K_A": "\udcff'\udc81'\\", "K_B": "naïve–😀"}, "bash")
def test_any_value_survives_a_real_shell(
    tmp_path_factory: pytest.TempPathFactory, secrets: dict[str, str], shell: str
) -> None:
    content = render_secrets_file(JobEnv(secrets=tuple(secrets.items())))
    seen = sourced(content, tmp_path_factory.mktemp("env"), shell=shell)
    assert {k: v for k, v in seen.items() if k.startswith(b"K_")} == {
        os.fsencode(k): os.fsencode(v) for k, v in secrets.items()
    }


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("options", ["x", "v", "xv"])
def test_a_traced_shell_prints_no_value_and_stays_traced(tmp_path: Path, shell: str, options: str) -> None:
    file = tmp_path / "secrets"
    file.write_bytes(render_secrets_file(JobEnv(secrets=(("A_KEY", "canaryvalue"), ("B", "x\ncanaryvalue")))))
    script = (
        f'set -{options}\n. "$1"\ntest ${{#A_KEY}} = 11\necho "flags $-" _ns_flags=${{_ns_flags-unset}}\n'
    )
    # the script comes on stdin, as a scheduler or a remote shell reads it
    done = subprocess.run(
        [shell, "-s", "--", str(file)], input=script, capture_output=True, text=True, check=True
    )
    assert "canaryvalue" not in done.stdout + done.stderr
    assert "_ns_flags=unset" in done.stdout
    assert set(options) <= set(done.stdout.split()[1])


def test_names_values_and_known_keys() -> None:
    environ = {"HF_TOKEN": "hf", "MINE": "m", "OTHER": "o", "OPENAI_API_KEY": "sk", "HOME": "/h"}
    env = resolve_env(["MINE", "ABSENT", "NCCL_DEBUG=INFO", "X=a=b"], ["OTHER"], environ)
    assert env.plain == (("NCCL_DEBUG", "INFO"), ("X", "a=b"))
    assert env.secrets == (("HF_TOKEN", "hf"), ("MINE", "m"), ("OPENAI_API_KEY", "sk"), ("OTHER", "o"))


def test_a_key_written_in_the_config_is_still_a_secret_and_wins() -> None:
    env = resolve_env(
        ["HF_TOKEN=config", "AWS_SECRET_ACCESS_KEY=a", "DB_PASSWORD=p"], ["HF_TOKEN"], {"HF_TOKEN": "e"}
    )
    assert env == JobEnv(
        secrets=(("AWS_SECRET_ACCESS_KEY", "a"), ("DB_PASSWORD", "p"), ("HF_TOKEN", "config"))
    )


def test_all_missing_variables_are_listed_at_once() -> None:
    with pytest.raises(UserError, match="A_ONE, EMPTY, Z_TWO") as caught:
        resolve_env(["A"], ["A_ONE", "SET", "EMPTY", "Z_TWO", "GIVEN=1"], {"SET": "s", "EMPTY": ""})
    assert "SET" not in str(caught.value)


@pytest.mark.parametrize("entry", ["1A", "", "=x", "A-B", "A B=c", "é", "A\n", "UID", "PPID=3", "$(id)=x"])
def test_bad_names(entry: str) -> None:
    for env_vars, required in (([entry], []), ([], [entry])):
        with pytest.raises(UserError):
            resolve_env(env_vars, required, {entry: "x"})


def test_a_pasted_key_is_not_repeated_in_the_error() -> None:
    key = "sk-" + "0123456789" * 5
    with pytest.raises(UserError) as caught:
        resolve_env([key], [], {})
    assert key[10:] not in str(caught.value)


def test_conflicting_values_and_zero_bytes() -> None:
    assert resolve_env(["A=1", "A=1"], ["A=1"], {}).plain == (("A", "1"),)
    with pytest.raises(UserError, match="A is given twice"):
        resolve_env(["A=1"], ["A=2"], {})
    for value in ("1\0", "\ud800", "\udc41"):
        with pytest.raises(UserError, match="value of A holds a zero byte or is not text"):
            resolve_env([f"A={value}"], [], {})


def test_nothing_printable_shows_a_value() -> None:
    env = JobEnv(plain=(("P", CANARY),), secrets=(("S", CANARY),))
    shown = [repr(env), str(env), f"{env}", f"{env!r:>5}", "%s" % env, repr([env]), repr({"e": env})]  # noqa: UP031
    assert all(CANARY not in text and "P" in text and "S" in text for text in shown)
    assert pickle.loads(pickle.dumps(env)) == env


@given(
    st.text(max_size=30),
    st.lists(st.text(min_size=6, max_size=12), min_size=1, max_size=3),
    st.text(max_size=30),
)
def test_redacted_text_holds_no_secret(before: str, values: list[str], after: str) -> None:
    env = JobEnv(secrets=tuple((f"S{i}", value.replace("\0", "0")) for i, value in enumerate(values)))
    text = before + "".join(value for _, value in env.secrets) + after
    redacted = redact(text, env)
    for _, value in env.secrets:
        assert value not in redacted or "*" in value


def test_redaction_takes_the_longest_value_and_single_lines() -> None:
    env = JobEnv(
        secrets=(("A", "abcdef"), ("B", "abcdefghi"), ("C", "first-line\nsecond-line"), ("D", "INFO"))
    )
    assert redact("abcdefghi abcdef second-line INFO", env) == "*** *** *** INFO"
    assert redact("nothing", JobEnv()) == "nothing"
