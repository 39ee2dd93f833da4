"""The commands, for Python (`from nemo_skills.pipeline.cli import generate`) and for a shell (`ns generate`).

To add a command, write its module and add its line to `COMMANDS` (and to the imports for type checkers).
"""

import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.core.log import setup_logging
from nemo_skills.pipeline.tokens import HELP_FLAGS, sort_words
from nemo_skills.pipeline.wrapper import AnyWrapper, Context, Wrapper, wrap_arguments

if TYPE_CHECKING:
    from nemo_skills.pipeline.generate import generate


class CommandEntry(NamedTuple):
    """Where a command is defined, and its line in `ns --help`, which imports no command."""

    target: str
    help: str


COMMANDS = {
    "generate": CommandEntry(
        "nemo_skills.pipeline.generate:generate", "Let a model answer every row of a JSONL file."
    ),
}

__all__ = ["COMMANDS", "Context", "app", "generate", "main", "wrap_arguments"]


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

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ARG002
        name = args[0]
        if name not in COMMANDS:
            raise UserError(f"unknown command '{name}'.{did_you_mean(name, COMMANDS)} See ns --help.")
        return name, _Command(name, load_command(name)), args[1:]

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        from nemo_skills.pipeline.help import HELP_ROW, Row, Section, show

        commands = [Row(name, "", entry.help) for name, entry in COMMANDS.items()]
        options = [Row("--version", "", "Show the version."), HELP_ROW]
        about = [inspect.cleandoc(_ns.__doc__ or ""), "Each command has its own help: ns COMMAND --help"]
        show("ns COMMAND ...", about, [Section("Commands", commands), Section("Options", options)])


class _Command(TyperCommand):
    """A wrapper as a command; its words are sorted and read as those of a call from Python."""

    def __init__(self, name: str, wrapper: AnyWrapper) -> None:
        super().__init__(name)
        self._wrapper = wrapper

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.obj = sort_words(args, self._wrapper.options, passthrough=self._wrapper.passthrough)
        return []

    def invoke(self, ctx: Any) -> None:
        if ctx.obj.wants_help:
            from nemo_skills.pipeline.help import show_command

            show_command(ctx.info_name, self._wrapper)
            return
        setup_logging()
        self._wrapper(Context(ctx.obj.args), **ctx.obj.values)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("nemo-skills"))
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": list(HELP_FLAGS)},
)


@app.callback()
def _ns(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version)] = False,
) -> None:
    """From raw data to an evaluated, trained LLM: on this machine, in Docker or on a Slurm cluster."""


def main(args: Sequence[str] | None = None) -> int:
    """Run `ns` and return its exit code; errors that the user can fix are one line on stderr."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        code = app(words or ["--help"], prog_name="ns", standalone_mode=False)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        # Typer's errors of usage have no public base class
        if not hasattr(error, "format_message"):
            raise
        print(f"Error: {error.format_message()}", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
