"""The commands, for Python (`from nemo_skills.pipeline.cli import generate`) and for a shell (`ns generate`).

To add a command, write its module and add its line to `COMMANDS` (and to the imports for type checkers).
"""

import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.core.log import setup_logging
from nemo_skills.core.main_guard import watch_reimport
from nemo_skills.pipeline.tokens import HELP_FLAGS, sort_words
from nemo_skills.pipeline.wrapper import AnyWrapper, Context, Wrapper, wrap_arguments

if TYPE_CHECKING:
    from nemo_skills.pipeline.cancel import cancel
    from nemo_skills.pipeline.clean import clean
    from nemo_skills.pipeline.compare import compare
    from nemo_skills.pipeline.convert import convert
    from nemo_skills.pipeline.eval import eval  # noqa: A004 (the command is called so)
    from nemo_skills.pipeline.generate import generate
    from nemo_skills.pipeline.logs import logs
    from nemo_skills.pipeline.prepare_data import prepare_data
    from nemo_skills.pipeline.recipe import recipe
    from nemo_skills.pipeline.run_cmd import run_cmd
    from nemo_skills.pipeline.setup import setup
    from nemo_skills.pipeline.start_server import start_server
    from nemo_skills.pipeline.status import status
    from nemo_skills.pipeline.summarize_results import summarize_results
    from nemo_skills.pipeline.train import train
    from nemo_skills.pipeline.view import view

watch_reimport()


class CommandEntry(NamedTuple):
    """Where a command is defined, and its line in `ns --help`, which imports no command."""

    target: str
    help: str


COMMANDS = {
    "generate": CommandEntry(
        "nemo_skills.pipeline.generate:generate", "Let a model answer every row of a JSONL file."
    ),
    "eval": CommandEntry("nemo_skills.pipeline.eval:eval", "Score a model on benchmarks."),
    "summarize_results": CommandEntry(
        "nemo_skills.pipeline.summarize_results:summarize_results", "Show scores, models side by side."
    ),
    "compare": CommandEntry(
        "nemo_skills.pipeline.compare:compare", "Compare the scores of two models, problem by problem."
    ),
    "view": CommandEntry("nemo_skills.pipeline.view:view", "Read generations on a local web page."),
    "prepare_data": CommandEntry(
        "nemo_skills.pipeline.prepare_data:prepare_data", "Prepare benchmarks for evaluation."
    ),
    "run_cmd": CommandEntry("nemo_skills.pipeline.run_cmd:run_cmd", "Run any command."),
    "setup": CommandEntry("nemo_skills.pipeline.setup:setup", "Write a cluster config, and check it."),
    "start_server": CommandEntry("nemo_skills.pipeline.start_server:start_server", "Keep a model server up."),
    "train": CommandEntry(
        "nemo_skills.pipeline.train:train", "Fine-tune a model, and average its checkpoints."
    ),
    "convert": CommandEntry("nemo_skills.pipeline.convert:convert", "Convert a model to another format."),
    "recipe": CommandEntry("nemo_skills.pipeline.recipe:recipe", "List, show and export training recipes."),
    "status": CommandEntry("nemo_skills.pipeline.status:status", "Show the state of jobs."),
    "logs": CommandEntry("nemo_skills.pipeline.logs:logs", "Show what jobs print."),
    "cancel": CommandEntry("nemo_skills.pipeline.cancel:cancel", "End jobs."),
    "clean": CommandEntry("nemo_skills.pipeline.clean:clean", "Remove what old experiments have left."),
}

__all__ = [
    "COMMANDS",
    "Context",
    "app",
    "cancel",
    "clean",
    "compare",
    "convert",
    "eval",
    "generate",
    "logs",
    "main",
    "prepare_data",
    "recipe",
    "run_cmd",
    "setup",
    "start_server",
    "status",
    "summarize_results",
    "train",
    "view",
    "wrap_arguments",
]


def load_command(name: str) -> AnyWrapper:
    """Import a command of `COMMANDS`."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, Wrapper), f"{COMMANDS[name].target} is no @wrapper"
    return command


def __getattr__(name: str) -> AnyWrapper:
    if name not in COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load_command(name)


class _Commands(TyperGroup):
    """Lists commands from the table, and imports only the one that is run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else "--help"
        if first in HELP_FLAGS:
            _show_commands()
            raise typer.Exit
        if first == "--version":
            print(_version())
            raise typer.Exit
        if first not in COMMANDS:
            kind = "option" if first.startswith("-") else "command"
            raise UserError(f"unknown {kind} '{first}'.{did_you_mean(first, COMMANDS)} See ns --help.")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ARG002
        return args[0], _Command(args[0], load_command(args[0])), args[1:]


class _Command(TyperCommand):
    """A wrapper as a command; its words are sorted and read as those of a call from Python."""

    def __init__(self, name: str, wrapper: AnyWrapper) -> None:
        super().__init__(name, add_help_option=False)
        self._wrapper = wrapper

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.obj = sort_words(args, self._wrapper.options, self._wrapper.rest)
        return []

    def invoke(self, ctx: Any) -> None:
        if ctx.obj.wants_help:
            from nemo_skills.pipeline.help import show_command

            show_command(ctx.info_name, self._wrapper)
            return
        setup_logging()
        self._wrapper(Context(ctx.obj.args), **ctx.obj.values)


def _show_commands() -> None:
    from nemo_skills.pipeline.help import HELP_ROW, Row, Section, show

    commands = [Row(name, "", entry.help) for name, entry in COMMANDS.items()]
    options = [Row("--version", "", "Show the version."), HELP_ROW]
    about = [inspect.getdoc(_ns) or "", "Each command has its own help: ns COMMAND --help"]
    show("ns COMMAND ...", about, [Section("Commands", commands), Section("Options", options)])


def _version() -> str:
    from importlib.metadata import version

    return version("nemo-skills")


# Typer is shown no options, not even --help: it would import pydantic to read them
app = typer.Typer(cls=_Commands, add_completion=False, add_help_option=False, pretty_exceptions_enable=False)


@app.callback()
def _ns() -> None:
    """From raw data to an evaluated, trained LLM: on this machine, in Docker or on a Slurm cluster."""


def main(args: Sequence[str] | None = None) -> int:
    """Run `ns` and return its exit code; errors that the user can fix are one line on stderr."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        code = app(words, prog_name="ns", standalone_mode=False)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
