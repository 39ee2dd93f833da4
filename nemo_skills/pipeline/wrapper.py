"""Turns a function of option groups into a Python callable with flat keywords and a command of `ns`."""

import dataclasses
import inspect
import shlex
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.pipeline.declare import REQUIRED, Option, options_of
from nemo_skills.pipeline.tokens import Rest, sort_words

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Context:
    """What a wrapper passes on: the arguments of its main script, or the command to run."""

    args: tuple[str, ...] = ()
    text: str | None = field(default=None, compare=False)
    """The text that `args` were split from, for commands, to which its quotes may mean more."""


def wrap_arguments(arguments: str | Sequence[str] | Mapping[str, object] = "") -> Context:
    """Make the `ctx` of a wrapper.

    Args:
        arguments: A text, split as a shell would; a list, taken word for word; or a dict of the main script's
            arguments, names to any Python values.
    """
    if isinstance(arguments, str):
        try:
            return Context(tuple(shlex.split(arguments)), arguments)
        except ValueError as error:
            raise UserError(f"cannot split these arguments ({error}): {arguments}") from None
    if isinstance(arguments, Mapping):
        from nemo_skills.pipeline.main_args import encode_override

        return Context(tuple(encode_override(key, value) for key, value in arguments.items()))
    wrong = [word for word in arguments if not isinstance(word, str)]
    if wrong:
        raise UserError(f"wrap_arguments takes a list of texts, but {wrong[0]!r} is none")
    return Context(tuple(arguments))


class Wrapper(Generic[ResultT]):
    """A command: call it from Python with the options of all its groups as keywords."""

    def __init__(
        self, body: Callable[..., ResultT], main: str | None, schema: str | None, rest: Rest
    ) -> None:
        self.main = main
        self.schema = schema
        self.rest = rest
        self._body = body
        self._groups = _groups_of(body)
        declared = [option for group in self._groups.values() for option in options_of(group)]
        self.options: dict[str, Option] = {option.name: option for option in declared}
        assert len(self.options) == len(declared), f"{body.__name__} declares an option twice"
        self.__name__ = body.__name__
        self.__qualname__ = body.__qualname__
        self.__module__ = body.__module__
        self.__doc__ = body.__doc__
        self.__signature__ = _flat_signature(body, declared)

    def __call__(self, ctx: Context = Context(), **options: Any) -> ResultT:
        """Run the wrapper; a wrong name or value raises `UserError`, and a failed job `JobFailedError`."""
        groups = self.bind(options)
        if not isinstance(ctx, Context):
            raise UserError(f"ctx takes wrap_arguments(...), not {ctx!r}")
        self._check_arguments(ctx.args)
        return self._body(**groups) if self.rest is Rest.NOTHING else self._body(ctx, **groups)

    def bind(self, values: Mapping[str, object]) -> dict[str, Any]:
        """Build the option groups, by parameter name, from flat `values`."""
        for name in values:
            if name not in self.options:
                hint = did_you_mean(name, self.options)
                if not hint and self.rest is not Rest.NOTHING:
                    hint = " Main arguments go into ctx=wrap_arguments(...)."
                raise UserError(f"{self.__name__}() has no option '{name}'.{hint}")
        read = {name: option.read(values.get(name)) for name, option in self.options.items()}
        missing = [f"'{name}'" for name, value in read.items() if value is REQUIRED]
        if missing:
            raise UserError(f"missing required option{'s' if missing[1:] else ''} {' and '.join(missing)}")
        return {
            parameter: group(**{field.name: read[field.name] for field in dataclasses.fields(group)})
            for parameter, group in self._groups.items()
        }

    def _check_arguments(self, args: Sequence[str]) -> None:
        if self.rest is Rest.COMMAND:
            return
        words = sort_words(args, self.options, self.rest)
        for name in words.values:
            raise UserError(f"'{name}' is an option of {self.__name__}(): pass it as a keyword, not in ctx")
        if words.wants_help:
            raise UserError(f"list the arguments with: python -m {self.main} --help")


AnyWrapper: typing.TypeAlias = Wrapper[Any]


def wrapper(
    *, main: str | None = None, schema: str | None = None, overrides: bool = False
) -> Callable[[Callable[..., ResultT]], Wrapper[ResultT]]:
    """Make a command of a function of option groups.

    If the function also takes a `ctx`, that holds the arguments of `main`, or where there is no main a
    command to run: everything after the options.

    Args:
        main: Module that the command runs, which `--help` names.
        schema: Its config class, as `module:Class`, to check arguments against before submission.
        overrides: Whether `ctx` holds overrides although there is no main.
    """

    def wrap(body: Callable[..., ResultT]) -> Wrapper[ResultT]:
        if "ctx" not in inspect.signature(body).parameters:
            return Wrapper(body, main, schema, Rest.NOTHING)
        return Wrapper(body, main, schema, Rest.OVERRIDES if main or overrides else Rest.COMMAND)

    return wrap


def _groups_of(body: Callable[..., object]) -> dict[str, type]:
    hints = typing.get_type_hints(body)
    return {name: hints[name] for name in inspect.signature(body).parameters if name != "ctx"}


def _flat_signature(body: Callable[..., object], options: Sequence[Option]) -> inspect.Signature:
    empty = inspect.Parameter.empty
    ctx = inspect.Parameter(
        "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=Context(), annotation=Context
    )
    keywords = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=empty if option.required else option.default,
            annotation=option.annotation,
        )
        for option in options
    ]
    returns = inspect.signature(body).return_annotation
    before = [ctx] if "ctx" in inspect.signature(body).parameters else []
    return inspect.Signature([*before, *keywords], return_annotation=returns)
