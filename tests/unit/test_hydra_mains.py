"""Structured mains: values arrive unchanged, mistakes are named, `--help` lists every key."""

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import compose, encode, encode_override, main, normalise, opt
from tests.unit import hydra_demo
from tests.unit.hydra_demo import DemoConfig, Inference, Level, Server

DEMO = Path(hydra_demo.__file__)
GIVEN = "++input_file=x"
NASTY = [
    *("", " ", "\n", "a\nb", "\ttab\t", "a\r\nb", "\u2028", " lead", "trail ", "🙂 é 日本", "</think>"),
    *(
        "'",
        '"',
        'it\'s "so"',
        "\\",
        "\\'",
        '\\\\"',
        "a\\",
        "$(rm -rf /)",
        "`ls`",
        "$HOME",
        "!x",
        "%s",
        "@",
        "#",
    ),
    *(
        "{}",
        "[]",
        "{a: 1}",
        "[a, b]",
        "${oc.env:HOME}",
        "\\${x}",
        "\\\\${x}",
        "${",
        "${a",
        "a: b #c",
        "=",
        "a=b",
    ),
    *("null", "NULL", "true", "False", "123", "1_000", "1e5", "nan", "-inf", "???", "~", "--x", "++y=z"),
    *("a,b", "glob(*)", "range(1,3)", "choice(a,b)", "interval(0,1)", "sort(2,1)", "int(3)"),
]

text = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.lists(
        st.sampled_from([*"\\'\"${}[](),:= \n\tab1.=?<>/~+-#", "${", "null", "???", "🙂"]), max_size=15
    ).map("".join),
    st.sampled_from(NASTY),
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text)
values = st.recursive(
    leaves, lambda v: st.one_of(st.lists(v, max_size=4), st.dictionaries(text, v, max_size=4)), max_leaves=10
)
thorough = settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def same(a: object, b: object) -> bool:
    """Equal in value and type, all the way down; NaN equals NaN, 0.0 is not -0.0, keys keep their order."""
    return json.dumps(a) == json.dumps(b) and type(a) is type(b)


def get(*args: str) -> DemoConfig:
    return compose(DemoConfig, [GIVEN, *args])


def problems(*args: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        compose(DemoConfig, args)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def run_demo(*args: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(DEMO), *args], capture_output=True, text=True, **options)


# ---- values arrive unchanged


@thorough
@given(values)
@example({"a b": [1, {"": "${x}"}], "null": None, "1": 1.0, "true": True})
@example(["\\", "\\'", "${", "\\${x}", "'", '"'])
def test_any_value_arrives_unchanged(value: Any) -> None:
    assert same(get(encode_override("anything", value)).anything, value)


@thorough
@given(text)
def test_any_text_arrives_in_text_fields(value: str) -> None:
    config = get(encode_override("suffix", value), encode_override("system", value))
    assert (config.suffix, config.system) == (value, value)


@thorough
@given(values)
def test_encoded_values_are_not_rewritten_further(value: Any) -> None:
    typed = encode_override("anything", value)
    assert normalise(typed) == typed


@settings(thorough, max_examples=300)
@given(text)
def test_normalise_changes_no_meaning(value: str) -> None:
    for key in ("suffix", "system", "anything", "stop", "max_samples", "inference.extra_body"):
        typed = f"++{key}={value}"
        assert repr(outcome(typed)) == repr(outcome(normalise(typed)))


def outcome(typed: str) -> object:
    try:
        return get(typed)
    except UserError as error:
        return str(error)


def test_thousand_values_arrive_through_a_shell_and_a_main() -> None:
    sent: list[Any] = list(NASTY)

    @settings(thorough, database=None, phases=[Phase.generate])
    @given(values)
    def collect(value: Any) -> None:
        sent.append(value)

    collect()
    assert len(sent) > 1000
    for batch in batches(sent):
        # one key for each value: all of them pass through one shell and one program
        args = [encode_override(f"inference.extra_body.k{i}", value) for i, value in enumerate(batch)]
        command = shlex.join([sys.executable, str(DEMO), GIVEN, *args])
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        arrived = json.loads(result.stdout)["inference"]["extra_body"]
        for i, value in enumerate(batch):
            assert same(arrived[f"k{i}"], value), (value, args[i])


def batches(sent: list[Any]) -> Iterator[list[Any]]:
    """Cut into pieces that fit the kernel's limit for one word."""
    batch: list[Any] = []
    size = 0
    for value in sent:
        length = len(shlex.quote(encode(value)).encode()) + 40
        if size + length > 120_000:
            yield batch
            batch, size = [], 0
        batch, size = [*batch, value], size + length
    yield batch


def test_encoded_values_mean_the_same_in_plain_hydra() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    for value in [*NASTY, [1, "a,b", ["${x}"]], {"a": {"b": "</think>"}}, math.inf, None]:
        parsed = OverridesParser.create().parse_override(encode_override("k", value)).value()
        if value != "???":
            resolved = OmegaConf.to_container(OmegaConf.create({"k": parsed}), resolve=True)
            assert same(resolved, {"k": value})


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(UserError, match="set"):
        encode({1, 2})
    with pytest.raises(UserError, match="key"):
        encode_override("a b", 1)


# ---- what people type


@pytest.mark.parametrize("value", [v for v in NASTY if v.strip().lower() != "null" and "${oc" not in v])
def test_text_arrives_as_typed(value: str) -> None:
    quoted = value.strip()[:1] in ("'", '"') and len(value) > 1 and value[0] == value[-1]
    if not quoted and "${x}" not in value:
        assert get(f"++suffix={value}").suffix == value


@pytest.mark.parametrize(
    ("typed", "key", "expected"),
    [
        ("++suffix='a, b'", "suffix", "a, b"),
        ('++suffix="it\'s"', "suffix", "it's"),
        ("++suffix='a' b", "suffix", "'a' b"),
        ("++suffix=", "suffix", ""),
        ("++suffix=\\${x}", "suffix", "${x}"),
        ("++suffix=costs ${ 5", "suffix", "costs ${ 5"),
        ("++suffix=in ${folder}!", "suffix", "in data!"),
        ("++suffix='null'", "suffix", "null"),
        ("++system=null", "system", None),
        ("suffix=x", "suffix", "x"),
        ("+suffix=x", "suffix", "x"),
        ("++max_samples=1_000", "max_samples", 1000),
        ("++max_samples='7'", "max_samples", 7),
        ("++max_samples=1e3", "max_samples", 1000),
        ("++max_samples=null", "max_samples", None),
        ("++verbose=True", "verbose", True),
        ("++verbose=off", "verbose", False),
        ("++stop=[a b, 'c,d', 5, true]", "stop", ["a b", "c,d", "5", "true"]),
        ('++stop=["a\'b","c"]', "stop", ["a'b", "c"]),
        ("++sizes=[1,2]", "sizes", (1, 2)),
        ("++seeds=3", "seeds", 3),
        ("++seeds=[3,4]", "seeds", [3, 4]),
        ("++level=HIGH", "level", Level.HIGH),
        ("++level=2", "level", Level.HIGH),
        ("++color=green", "color", "green"),
        ("++folder=a/b", "folder", Path("a/b")),
        ("++folder=/d", "where", "/d/logs"),
        ("++anything=a,b", "anything", "a,b"),
        ("++anything=glob(*)", "anything", "glob(*)"),
        ("++anything=[range(1,3)]", "anything", "[range(1,3)]"),
        ("++anything=[1,{a:2}]", "anything", [1, {"a": 2}]),
        ('++anything={"a b": [1, "${x}"]}', "anything", {"a b": [1, "${x}"]}),
        ("++anything=x\\,y", "anything", "x\\,y"),
        ("++inference={temperature:0.5}", "inference", Inference(temperature=0.5)),
        ("++inference.temperature=1", "inference", Inference(temperature=1.0)),
        ("++inference.extra_body.a.b=1", "inference", Inference(extra_body={"a": {"b": 1}})),
        ("++server.port=80", "server", Server(port=80)),
        ("++server={port:80}", "server", Server(port=80)),
    ],
)
def test_meaning_of_typed_values(typed: str, key: str, expected: object) -> None:
    value = getattr(get(typed), key)
    assert value == expected
    assert type(value) is type(expected)


def test_interpolations_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "Graz")
    config = get("++suffix=from <${oc.env:PLACE}>", "++stop=['${oc.env:PLACE}']", "++anything=${stop}")
    assert (config.suffix, config.stop, config.anything) == ("from <Graz>", ["Graz"], ["Graz"])


def test_later_overrides_win_and_tilde_returns_to_the_default() -> None:
    assert get("++suffix=a", "++suffix=b").suffix == "b"
    assert get("++system=a", "~system").system == "be kind"
    assert get("++inference={extra_body:{a:1,b:2}}", "~inference.extra_body.a").inference.extra_body == {
        "b": 2
    }
    assert get("++stop=[a,b]", "++stop.1=c").stop == ["a", "c"]


def test_configs_do_not_share_defaults() -> None:
    get().stop.append("x")
    get().inference.extra_body["x"] = 1
    assert get().stop == []
    assert get().inference.extra_body == {}


# ---- mistakes


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (
            "++inference.temprature=0.7",
            "++inference.temprature: unknown key. Did you mean 'inference.temperature'?",
        ),
        (
            "inference.temprature=0.7",
            "inference.temprature: unknown key. Did you mean 'inference.temperature'?",
        ),
        ("++infrence.top_k=1", "++infrence.top_k: unknown key. Did you mean 'inference.top_k'?"),
        ("++top_k=1", "++top_k: unknown key. Did you mean 'inference.top_k'?"),
        ("++qqqqq=1", "++qqqqq: unknown key"),
        ("~qqqqq", "~qqqqq: no such key"),
        ("++inference={temprature:1}", "++inference: inference.temprature: unknown key. Did you mean"),
        ("++max_samples=ten", "++max_samples: expected int | null, got 'ten'"),
        ("++max_samples=1.5", "++max_samples: expected int | null, got 1.5"),
        ("++max_samples=true", "++max_samples: expected int | null, got true"),
        ("++inference.top_k=null", "++inference.top_k: expected int, got null"),
        ("++inference.temperature=hot", "++inference.temperature: expected float, got 'hot'"),
        ("++inference=5", "++inference: expected keys of Inference, got 5"),
        ("++inference.endpoint=chet", "++inference.endpoint: expected chat | text, got 'chet'"),
        ("++level=MID", "++level: expected LOW | HIGH, got 'MID'"),
        ("++color=blue", "++color: expected red | green, got 'blue'"),
        ("++verbose=maybe", "++verbose: expected bool, got 'maybe'"),
        ("++suffix=null", "++suffix: expected str, got null"),
        ("++stop=a,b", "++stop: expected list[str], got 'a,b' (a list is written [a,b])"),
        ("++stop=[[a]]", "++stop: stop.0: expected str, got ['a']"),
        ("++seeds=[1,x]", "++seeds: seeds.1: expected int, got 'x'"),
        ("++inference.extra_body=[1]", "++inference.extra_body: expected dict[str, any], got [1]"),
        ("++inference.temperature=-1", "inference: temperature must be at least 0, not -1.0"),
        ("++suffix=${nope}", "++suffix: Interpolation key 'nope' not found"),
        ("++server={}", "server.port: missing, give ++server.port=... (Port to listen on)"),
        ("++stop", "++stop: has no value"),
        ("max_samples 5", "max_samples 5: not a main argument"),
        ("--max_samples=5", "--max_samples=5: unknown option"),
        (
            "--config-nam=5",
            "--config-nam=5: unknown option (main arguments look like ++key=value). Did you mean '--c",
        ),
        ("--config-path", "--config-path: needs a value"),
        ("--config-path=x", "--config-path and --config-dir need --config-name"),
        ("--config-name=nowhere", "--config-name: no nowhere.yaml in ."),
    ],
)
def test_a_mistake_is_one_line(typed: str, line: str) -> None:
    (only,) = problems(GIVEN, typed)
    assert only.startswith(line)


def test_all_problems_are_reported_together() -> None:
    found = problems("++max_samples=ten", "++inference.temprature=1", "++stop=${nope}", "++suffix=fine")
    assert sorted(line.partition(":")[0] for line in found) == [
        "++inference.temprature", "++max_samples", "++stop", "input_file",
    ]  # fmt: skip


# ---- config files


@pytest.fixture
def folder(weird_tmp_path: Path) -> Path:
    (weird_tmp_path / "base.yaml").write_text(
        "suffix: '</think>'\nmax_samples: 3\nstop: [x]\n"
        "inference:\n  temperature: 0.5\n  extra_body: {a: 1}\n"
    )
    return weird_tmp_path


@pytest.mark.parametrize("name", ["base", "base.yaml"])
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("flag", ["--config-path", "--config-dir"])
def test_file_over_schema_and_overrides_over_file(folder: Path, name: str, joined: bool, flag: str) -> None:
    flags = (
        [f"{flag}={folder}", f"--config-name={name}"]
        if joined
        else [flag, str(folder), "--config-name", name]
    )
    config = get("++inference.extra_body.b=2", *flags, "++max_samples=4")
    assert (config.suffix, config.max_samples, config.stop) == ("</think>", 4, ["x"])
    assert config.inference == Inference(temperature=0.5, extra_body={"a": 1, "b": 2})
    assert get(*flags, "~suffix").suffix == ""


def test_packaged_code_is_the_current_folder_where_nothing_is_packaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert get(f"--config-path=/nemo_run/code/{folder.name}", "--config-name=base").max_samples == 3


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            "inference:\n  temprature: 1\n",
            ":2: inference.temprature: unknown key. Did you mean 'inference.temp",
        ),
        ("\nnew:\n  a:\n    b: 1\n", ":4: new.a.b: unknown key"),
        ("max_samples: ten\n", ":1: max_samples: expected int | null, got 'ten'"),
        ("stop:\n- a\n- [b]\n", ":1: stop: stop.1: expected str, got ['b']"),
        ("suffix: [\n", ":2: not valid YAML"),
        ("- a\n", ": expected a mapping"),
        ("defaults: [other]\n", ": has a list of defaults"),
        ("suffix: ${nope}\n", ":1: suffix: Interpolation key 'nope' not found"),
    ],
)
def test_mistakes_in_files_name_the_line(weird_tmp_path: Path, content: str, line: str) -> None:
    file = weird_tmp_path / "conf.yaml"
    file.write_text(content)
    (only,) = problems(GIVEN, f"--config-path={weird_tmp_path}", "--config-name=conf")
    assert only.startswith(f"{file}{line}")


def test_misspelt_file_name(folder: Path) -> None:
    (only,) = problems(GIVEN, f"--config-path={folder}", "--config-name=bas")
    assert only.endswith("Did you mean 'base'?")


# ---- programs


def test_program_runs_and_prints_its_config(weird_tmp_path: Path) -> None:
    result = run_demo("++input_file=</think>", "--print_config", cwd=weird_tmp_path)
    assert result.returncode == 0, result.stderr
    assert "input_file: </think>\n" in result.stdout
    assert "where: data/logs\n" in result.stdout
    assert list(weird_tmp_path.iterdir()) == []


def test_help_lists_every_key_without_hydra() -> None:
    result = run_demo("--help", "++ignored=1")
    lines = result.stdout.splitlines()
    assert result.returncode == 0
    assert lines[0].startswith("Usage: python ")
    assert lines[2] == "Print the config as JSON."
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    assert rows["input_file"] == ["str", "required", "Rows", "to", "read"]
    assert rows["max_samples"][:4] == ["int", "|", "null", "null"]
    assert rows["inference.temperature"][:2] == ["float", "0.0"]
    assert rows["inference.endpoint"][:4] == ["chat", "|", "text", "chat"]
    assert rows["server.port"][:2] == ["int", "required"]
    assert rows["level"][:4] == ["LOW", "|", "HIGH", "LOW"]
    assert lines.index("inference:") < lines.index("server:")
    helps = {
        line.index(word)
        for line in lines
        for word in ("Rows to read", "Randomness", "Port to")
        if word in line
    }
    assert len(helps) == 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("++max_samples=ten",), 2, "Error: input_file: missing"),
        ((GIVEN, "++suffix=raise"), 5, "Error: the suffix is bad"),
        ((GIVEN, "++suffix=interrupt"), 130, ""),
    ],
)
def test_exit_codes_without_tracebacks(args: tuple[str, ...], code: int, message: str) -> None:
    result = run_demo(*args)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_declaring_a_main_imports_no_hydra() -> None:
    script = (
        "import sys, tests.unit.hydra_demo as d; print({'hydra', 'omegaconf', 'yaml'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, env={**os.environ}
    )
    assert result.stdout == "set()\n", result.stderr


def test_main_takes_arguments_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    program = main(Inference)(seen.append)
    program(["++top_k=4"])
    assert seen == [Inference(top_k=4)]
    with pytest.raises(SystemExit) as ended:
        program(["++topk=4"])
    assert ended.value.code == 2
    assert "Did you mean 'top_k'?" in capsys.readouterr().err


def test_opt_keeps_help_and_choices() -> None:
    field = opt(3, "a line", choices=(3, 4))
    assert dict(field.metadata) == {"help": "a line", "choices": (3, 4)}


def test_items_of_a_list_are_reached_by_number_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "steps.yaml").write_text(
        "input_file: x\nanything:\n- {name: first, size: 1}\n- {name: second, size: [1, 2]}\n"
    )
    file = (f"--config-path={tmp_path}", "--config-name=steps")
    done = compose(
        DemoConfig, [*file, "++anything.0.size=5", "++anything.second.size.1=9", "++anything.first.new=a"]
    )
    assert done.anything == [
        {"name": "first", "size": 5, "new": "a"},
        {"name": "second", "size": [1, 9]},
    ]
    with pytest.raises(UserError, match=r"anything.secnd: no such item.*Did you mean 'second'"):
        compose(DemoConfig, [*file, "++anything.secnd.size=5"])
