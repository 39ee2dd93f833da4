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
from nemo_skills.pipeline.declare import Option
from nemo_skills.pipeline.tokens import HELP_FLAGS, sort_words
from nemo_skills.pipeline.wrapper import Context, Wrapper, wrap_arguments

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


def load_command(name: str) -> Wrapper[Any]:
    """Import a command of `COMMANDS`."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, Wrapper), f"{COMMANDS[name].target} is no @wrapper"
    return command


def __getattr__(name: str) -> Wrapper[Any]:
    if name not in COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load_command(name)


class _Commands(TyperGroup):
    """Lists commands from the table, and imports only the one that is run."""

    def get_help_option(self, ctx: Any) -> Any:
        return _tidy(super().get_help_option(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ARG002
        name = args[0]
        if name not in COMMANDS:
            raise UserError(f"unknown command '{name}'.{did_you_mean(name, COMMANDS)} See ns --help.")
        return name, _typer_command(name, load_command(name)), args[1:]


def _tidy(flag: Any) -> Any:
    """Show `--help` without a type."""
    flag.metavar = ""
    return flag


def _typer_command(name: str, wrapper: Wrapper[Any]) -> Any:
    class Command(TyperCommand):
        """Typer shows the help; words are sorted and read as they are for calls from Python."""

        def get_help_option(self, ctx: Any) -> Any:
            return _tidy(super().get_help_option(ctx))

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            words = sort_words(args, wrapper.options, passthrough=wrapper.passthrough)
            if words.wants_help:
                return super().parse_args(ctx, ["--help"])
            ctx.obj = words
            return []

        def invoke(self, ctx: Any) -> None:
            from nemo_skills.core.log import setup_logging

            setup_logging()
            wrapper(Context(ctx.obj.args), **ctx.obj.values)

    def show() -> None:
        """Carry the signature that Typer reads."""

    parameters = [_typer_parameter(option) for option in wrapper.options.values()]
    show.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    rest = "COMMAND..." if wrapper.passthrough else "[++MAIN_ARGUMENT=VALUE]..."
    single.command(name, cls=Command, help=_help_text(wrapper), options_metavar=f"[OPTIONS] {rest}")(show)
    return typer.main.get_command(single)


def _typer_parameter(option: Option) -> inspect.Parameter:
    plain_flag = option.is_flag and not option.default
    details = typer.Option(
        f"--{option.name}",
        help=option.help.replace("[", r"\["),
        metavar=option.metavar,
        rich_help_panel=option.panel,
    )
    shown = str(option.default) if option.default and not option.is_flag else None
    default = inspect.Parameter.empty if option.required else shown
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if plain_flag else default,
        annotation=Annotated[bool if plain_flag else str, details],
    )


def _help_text(wrapper: Wrapper[Any]) -> str:
    summary = inspect.cleandoc(wrapper.__doc__ or "")
    return (
        f"{summary}\n\nIt runs python -m {wrapper.main}. List its arguments (++name=value) with:\n\n"
        f"python -m {wrapper.main} --help"
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("nemo-skills"))
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": list(HELP_FLAGS)},
)


@app.callback()
def _ns(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version.", metavar="", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """From raw data to an evaluated, trained LLM: on this machine, in Docker or on a Slurm cluster."""


for _name, _entry in COMMANDS.items():
    # Only its name and help are used: `_Commands` loads the real command when it is run
    app.command(_name, help=_entry.help)(lambda: None)


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
