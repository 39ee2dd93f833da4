"""Wrappers: options are declared once, and a call from Python and one from a shell are the same call."""

import inspect
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import JobFailedError, UserError
from nemo_skills.pipeline import cli
from nemo_skills.pipeline.declare import REQUIRED, option, options_of
from nemo_skills.pipeline.options import ClusterOptions, GenerateOptions, JobOptions, ServerOptions
from nemo_skills.pipeline.tokens import sort_words
from nemo_skills.pipeline.wrapper import Context, Wrapper, wrap_arguments, wrapper

GROUPS = (ClusterOptions, JobOptions, ServerOptions, GenerateOptions)
Call = tuple[Context, ClusterOptions, JobOptions, ServerOptions, GenerateOptions]
NEEDED = {"input_file": "in.jsonl", "output_dir": "out"}
NEEDED_WORDS = ["--input_file=in.jsonl", "--output_dir=out"]


@wrapper(main="some.main", schema="some.main:Config")
def sample(
    ctx: Context, cluster: ClusterOptions, job: JobOptions, server: ServerOptions, own: GenerateOptions
) -> Call:
    """Do something."""
    return ctx, cluster, job, server, own


@wrapper()
def command(ctx: Context, cluster: ClusterOptions, job: JobOptions) -> tuple[Context, ClusterOptions]:
    """Run something."""
    return ctx, cluster


@dataclass(frozen=True, kw_only=True)
class PlacedOptions:
    """Placed."""

    first: str = option(REQUIRED, "The first.", place="FIRST")
    second: str | None = option(None, "The second.", place="SECOND")
    style: str = option("plain", "A style.", choices=("plain", "fancy"))


@wrapper()
def placed(own: PlacedOptions) -> PlacedOptions:
    """Show something."""
    return own


@dataclass
class Shell:
    """Runs `ns sample ...` in this process and keeps what the wrapper's body received."""

    run: Callable[[list[str]], int]
    received: list[Any]


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    """`ns` with the commands above."""
    received: list[Any] = []
    module = ModuleType("sample_commands")
    originals: dict[str, Wrapper[Any]] = {"sample": sample, "command": command, "placed": placed}
    for name, original in originals.items():
        body = original._body

        def spy(*args: Any, _body: Callable[..., Any] = body, **kwargs: Any) -> None:
            received.append(_body(*args, **kwargs))

        copy: Wrapper[Any] = wrapper(main=original.main)(body)
        copy._body = spy
        setattr(module, name, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        for name in originals:
            patch.setitem(cli.COMMANDS, name, cli.CommandEntry(f"{module.__name__}:{name}", "Test."))
        root = logging.getLogger()
        patch.setattr(root, "handlers", list(root.handlers))
        patch.setattr(root, "level", root.level)
        yield Shell(cli.main, received)


def test_each_option_is_declared_once() -> None:
    names = [declared.name for group in GROUPS for declared in options_of(group)]
    assert len(names) == len(set(names)) == len(sample.options)


def test_every_option_has_help_and_a_panel() -> None:
    for declared in sample.options.values():
        assert declared.help.endswith((".", "...", ".)")), declared.name
        assert declared.panel


def test_an_option_in_two_groups_is_refused() -> None:
    with pytest.raises(AssertionError, match="twice"):

        @wrapper(main="some.main")
        def twice(ctx: Context, one: ClusterOptions, two: ClusterOptions) -> None:
            """Do nothing."""


def test_signature_is_flat_and_typed() -> None:
    parameters = inspect.signature(sample).parameters
    assert list(parameters)[:2] == ["ctx", "cluster"]
    assert parameters["ctx"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert parameters["server_gpus"].annotation is int
    assert parameters["server_gpus"].default == 0
    assert parameters["run_after"].annotation == tuple[str, ...]
    assert parameters["input_file"].default is inspect.Parameter.empty
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for name, p in parameters.items() if name != "ctx")
    assert sample.__name__ == "sample"
    assert sample.__doc__ == "Do something."


def test_ctx_is_positional_or_keyword() -> None:
    ctx = wrap_arguments("++a=1")
    assert sample(ctx, **NEEDED) == sample(ctx=ctx, **NEEDED)
    assert sample(ctx, **NEEDED)[0].args == ("++a=1",)
    assert sample(**NEEDED)[0].args == ()


# --- the same call from Python and from a shell

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
ITEM = TEXT.map(lambda text: "".join(text.replace(",", "").split())).filter(bool)
MAIN_ARGUMENTS = st.lists(
    st.sampled_from(
        [["++a.b=1"], ["+c='x y'"], ["~d"], ["e=</think>"], ["--config-path=/x y"], ["--config-name", "base"]]
    ),
    max_size=4,
)


def values_of(name: str) -> st.SearchStrategy[Any]:
    declared = sample.options[name]
    if declared.is_flag:
        return st.booleans()
    if declared.kind is int:
        number = st.integers(declared.minimum or 0, 10**6)
        return st.lists(number, max_size=3) if declared.is_list else number
    return st.lists(ITEM, max_size=3) if declared.is_list else TEXT


@st.composite
def calls(draw: st.DrawFn) -> tuple[dict[str, Any], list[str], list[str]]:
    """A call: its keywords, the same as words, and the main arguments that stand among them."""
    names = draw(st.sets(st.sampled_from(sorted(sample.options)))) | NEEDED.keys()
    keywords = {name: draw(values_of(name)) for name in draw(st.permutations(sorted(names)))}
    pieces = [words_for(draw, name, value) for name, value in keywords.items()]
    main = draw(MAIN_ARGUMENTS)
    for position, piece in enumerate(main):
        # kept in order among themselves, anywhere among the options
        pieces.insert(draw(st.integers(position, len(pieces))) if position == 0 else len(pieces), piece)
    return keywords, [word for piece in pieces for word in piece], [word for piece in main for word in piece]


def words_for(draw: st.DrawFn, name: str, value: Any) -> list[str]:
    flag = "--" + (draw(st.sampled_from([name, name.replace("_", "-")])) if name != "config_dir" else name)
    if isinstance(value, bool):
        return draw(st.sampled_from([[flag], [f"{flag}=true"]])) if value else [f"{flag}=false"]
    if isinstance(value, list):
        if draw(st.booleans()):
            return [f"{flag}={','.join(map(str, value))}"]
        return [f"{flag}={item}" for item in value]
    text = str(value)
    if text.startswith(("-", "+")) or draw(st.booleans()):
        return [f"{flag}={text}"]
    return [flag, text]


@settings(deadline=None)
@given(calls())
def test_python_and_shell_build_the_same_groups(
    shell: Shell, call: tuple[dict[str, Any], list[str], list[str]]
) -> None:
    keywords, words, main = call
    shell.received.clear()
    assert shell.run(["sample", *words]) == 0
    assert shell.received == [sample(wrap_arguments(main), **keywords)]


def test_python_values() -> None:
    _, cluster, job, server, own = sample(
        input_file=Path("a b.jsonl"),
        output_dir="out",
        mount_paths=["/a,b:/c"],
        run_after="one, two three",
        random_seeds=range(3),
        chunk_ids="0..2,7",
        cluster=None,
        server_gpus=None,
        server_nodes="2",
    )
    assert own.input_file == "a b.jsonl"
    assert cluster.mount_paths == ("/a,b:/c",)
    assert cluster.cluster is None
    assert job.run_after == ("one", "two", "three")
    assert own.random_seeds == (0, 1, 2)
    assert own.chunk_ids == (0, 1, 2, 7)
    assert (server.server_gpus, server.server_nodes) == (0, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"server_typ": "vllm"}, "Did you mean 'server_type'"),
        ({"prompt_config": "x"}, "ctx=wrap_arguments"),
        ({"server_gpus": "ten"}, "'server_gpus' takes a whole number, not 'ten'"),
        ({"server_gpus": True}, "whole number"),
        ({"server_gpus": 1.5}, "whole number"),
        ({"server_nodes": 0}, "'server_nodes' must be at least 1, not 0"),
        ({"random_seeds": [1, "x"]}, "whole number, not 'x'"),
        ({"random_seeds": "5..3"}, "empty"),
        ({"dry_run": "maybe"}, "true or false, not 'maybe'"),
        ({"dry_run": 1}, "true or false"),
        ({"model": 5}, "takes text, not 5"),
        ({"input_file": None}, "missing required option 'input_file'"),
        ({"input_file": None, "output_dir": None}, "options 'input_file' and 'output_dir'"),
        ({"ctx": "++a=1"}, "wrap_arguments"),
        ({"ctx": wrap_arguments("--model=x")}, "pass it as a keyword"),
        ({"ctx": wrap_arguments("--modle=x")}, "Did you mean '--model'"),
        ({"ctx": wrap_arguments("stray")}, "unexpected argument 'stray'"),
        ({"ctx": wrap_arguments("--help")}, "python -m some.main --help"),
    ],
)
def test_wrong_python_calls(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        sample(**{**NEEDED, **values})
    assert message in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--server_typ=vllm"], "unknown option '--server_typ'. Did you mean '--server_type'?"),
        (["--server-typ", "vllm"], "Did you mean '--server_type'?"),
        (["--config_path=/x"], "Did you mean '--config-path'?"),
        (["--inference.temperature=0.7"], "written ++name=value"),
        (["-x"], "unknown option '-x'"),
        (["stray"], "unexpected argument 'stray'"),
        (["--model"], "option '--model' needs a value"),
        (["--model", "--dry_run"], "'--model' needs a value; if '--dry_run' is its value"),
        (["--model", "++a=1"], "'--model' needs a value"),
        (["--config-path"], "'--config-path' needs a value"),
        (["--server_gpus=ten"], "'server_gpus' takes a whole number, not 'ten'"),
        (["--dry_run=perhaps"], "true or false"),
    ],
)
def test_wrong_shell_calls(
    shell: Shell, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    shell.received.clear()
    assert shell.run(["sample", *NEEDED_WORDS, *words]) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert not out
    assert not shell.received


def test_unknown_commands_and_flags(shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    assert shell.run(["generte"]) == 2
    assert "Did you mean 'generate'?" in capfd.readouterr().err
    assert shell.run(["--bogus"]) == 2
    err = capfd.readouterr().err
    assert "--bogus" in err
    assert err.count("\n") == 1


def test_the_last_of_a_repeated_option_wins_and_lists_collect(shell: Shell) -> None:
    shell.received.clear()
    words = ["--model=a", "--model", "b", "--run_after=x y", "--run_after=z", "--mount_paths=/a b:/c,/d:/e"]
    assert shell.run(["sample", *NEEDED_WORDS, *words]) == 0
    _, cluster, job, server, _ = shell.received[0]
    assert server.model == "b"
    assert job.run_after == ("x", "y", "z")
    assert cluster.mount_paths == ("/a b:/c", "/d:/e")


def test_server_args_take_words_that_look_like_options(shell: Shell) -> None:
    shell.received.clear()
    assert shell.run(["sample", *NEEDED_WORDS, "--server_args", "--max-len 5 --eager"]) == 0
    assert shell.run(["sample", *NEEDED_WORDS, "--server_args=--model"]) == 0
    assert [call[3].server_args for call in shell.received] == ["--max-len 5 --eager", "--model"]


def test_config_dir_with_a_dash_is_hydras(shell: Shell) -> None:
    shell.received.clear()
    assert shell.run(["sample", *NEEDED_WORDS, "--config_dir=ours", "--config-dir=hydras"]) == 0
    ctx, cluster, *_ = shell.received[0]
    assert cluster.config_dir == "ours"
    assert ctx.args == ("--config-dir=hydras",)


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (["python", "x.py", "--help"], ["python", "x.py", "--help"]),
        (["--expname", "e", "echo", "--cluster=b", "++c"], ["echo", "--cluster=b", "++c"]),
        (["--dry_run", "true", "a b", "$(x) '\""], ["true", "a b", "$(x) '\""]),
        (["--", "--odd", "--"], ["--odd", "--"]),
        (["sh", "-c", "a -- b", "--"], ["sh", "-c", "a -- b", "--"]),
        ([], []),
    ],
)
def test_a_command_passes_word_for_word(shell: Shell, words: list[str], args: list[str]) -> None:
    shell.received.clear()
    assert shell.run(["command", "--cluster=a", *words]) == 0
    ((ctx, cluster),) = shell.received
    assert ctx.args == tuple(args)
    assert cluster.cluster == "a"
    assert command(wrap_arguments(args), cluster="a") == (ctx, cluster)


def test_a_mistyped_option_is_no_command(shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    assert shell.run(["command", "--clustr=a", "echo"]) == 2
    assert "Did you mean '--cluster'?" in capfd.readouterr().err


# --- words that have a place, choices, commands that take nothing else


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        (["a b"], "a b", None),
        (["a", "b"], "a", "b"),
        (["a=1", "+b"], "a=1", "+b"),
        (["--first=a", "b"], "a", "b"),
        (["--second", "b", "a"], "a", "b"),
        (["--style=fancy", "a", "b"], "a", "b"),
    ],
)
def test_words_fill_places_in_order(shell: Shell, words: list[str], first: str, second: str | None) -> None:
    shell.received.clear()
    assert shell.run(["placed", *words]) == 0
    (own,) = shell.received
    assert (own.first, own.second) == (first, second)
    assert own == placed(first=first, second=second, style=own.style)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b", "c"], "unexpected argument 'c'."),
        (["a", "b", "++c=1"], "unexpected argument '++c=1'."),
        ([], "missing required option 'first'"),
        (["a", "--style=fncy"], "option 'style' is one of plain, fancy, not 'fncy'. Did you mean 'fancy'?"),
        (["a", "--config-dir=x"], "unknown option '--config-dir'."),
        (["a", "--frist=x"], "unknown option '--frist'. Did you mean '--first'?"),
    ],
)
def test_wrong_words_for_a_command_without_main(
    shell: Shell, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert shell.run(["placed", *words]) == 2
    assert capfd.readouterr().err == f"Error: {message}\n"


def test_a_command_without_main_takes_options_only() -> None:
    assert list(inspect.signature(placed).parameters) == ["first", "second", "style"]
    with pytest.raises(UserError, match="unexpected argument"):
        placed(wrap_arguments("a b ++c=1"), first="x")
    with pytest.raises(UserError, match="pass it as a keyword"):
        placed(wrap_arguments("a"), first="x")
    with pytest.raises(UserError) as error:
        placed(nothing="x")
    assert "ctx" not in str(error.value)


def test_help_of_placed_words_and_choices(shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    assert shell.run(["placed", "--help"]) == 0
    text = capfd.readouterr().out
    assert "ns placed FIRST [SECOND] [--option=value]...\n" in text
    assert "plain|fancy" in text
    assert "python -m" not in text


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("no"), 2), (JobFailedError("no", exit_code=7), 7), (KeyboardInterrupt(), 130)],
)
def test_exit_codes(
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(sys.modules["sample_commands"].sample, "_body", fail)
    assert shell.run(["sample", *NEEDED_WORDS]) == code
    assert "Traceback" not in capfd.readouterr().err


def test_a_bug_is_not_hidden(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["sample_commands"].sample, "_body", fail)
    with pytest.raises(ZeroDivisionError):
        shell.run(["sample", *NEEDED_WORDS])


# --- wrap_arguments


@given(st.lists(TEXT))
def test_text_is_split_as_a_shell_would(words: list[str]) -> None:
    assert wrap_arguments(shlex.join(words)) == wrap_arguments(words) == Context(tuple(words))
    assert wrap_arguments(shlex.join(words)).text == shlex.join(words)
    assert wrap_arguments(words).text is None


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="cannot split"):
        wrap_arguments("++a='open")
    with pytest.raises(UserError, match="5"):
        wrap_arguments(["++a=1", 5])  # type: ignore[list-item]


def test_a_dict_becomes_overrides() -> None:
    words = wrap_arguments({"inference.temperature": 0.7, "prompt_config": "generic/math"}).args
    assert words[0] == "++inference.temperature=0.7"
    assert words[1].startswith("++prompt_config=")
    assert sort_words(words, sample.options).args == words


def test_groups_are_declared_with_one_helper() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own:
        """Own options."""

        name: str = option(REQUIRED, "A name.")
        sizes: tuple[int, ...] = option((), "Sizes.", minimum=1)

    name, sizes = options_of(Own)
    assert (name.required, name.kind, name.is_list, name.panel) == (True, str, False, "Own options")
    assert (sizes.required, sizes.kind, sizes.is_list) == (False, int, True)
    with pytest.raises(UserError, match="at least 1"):
        sizes.read("2,0")
