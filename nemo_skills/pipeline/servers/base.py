"""What the launch side knows about a server type, and the registry of types."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nemo_skills.core.errors import UserError, did_you_mean

_NAMES = ("hf", "openai", "sglang", "stub", "trtllm", "vllm")
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class ServerRequest:
    """The server that a user asked for."""

    model: str | None = None
    """Path or name of the model."""
    address: str | None = None
    """Where a running server is; None: the job hosts one."""
    gpus: int = 0
    """GPUs per node."""
    nodes: int = 1
    args: tuple[str, ...] = ()
    """The user's own flags, word for word."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag that we set unless the user sets it."""

    name: str
    value: str | None = None
    """None: the flag takes no value."""
    aliases: tuple[str, ...] = ()
    """Other spellings by which users set, or unset, the same thing."""
    fixed: bool = False
    """The user must not set it."""


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """One server type."""

    name: str
    role: str = ""
    """Container role that the server runs in."""
    hosted: bool = True
    """Whether a job can host it; otherwise it is reached by its address only."""
    ready_path: str = "/health"
    """Path that answers 200 once the model is loaded."""
    program: tuple[str, ...] = ()
    """First words of the command; `python` stands for the role's interpreter."""
    flags: Callable[[ServerRequest], Sequence[Flag]] = lambda _request: ()
    """Our flags, in order, without host and port."""
    problems: Callable[[ServerRequest], Sequence[str]] = lambda _request: ()
    """What speaks against hosting this type in particular."""
    positional_model: bool = False
    """Whether the model is named by position, right after the program."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables for the server, for those that the job does not set."""
    multi_node: Callable[[ServerRequest], tuple[str, ...]] | None = None
    """The command of one node of many; None: the type runs on one node."""

    def argv(self, request: ServerRequest) -> tuple[str, ...]:
        """Return the server's command; `{host}` and `{port}` are filled in on its node.

        A flag that the user gives replaces ours.

        Raises:
            UserError: what `check` raises.
        """
        self.check(request)
        if request.nodes > 1 and self.multi_node is not None:
            return self.multi_node(request)
        words = list(self.program)
        if self.positional_model and request.model:
            words.append(request.model)
        given = set(map(_flag_name, request.args))
        for flag in self._all_flags(request):
            if not given & {_flag_name(name) for name in (flag.name, *flag.aliases)}:
                words += [flag.name] if flag.value is None else [flag.name, flag.value]
        return (*words, *request.args)

    def check(self, request: ServerRequest) -> None:
        """Raise a `UserError` that names every problem with a request, one a line."""
        problems = self._address_problems(request) if request.address else self._hosting_problems(request)
        if problems:
            raise UserError("\n".join(problems))

    def _all_flags(self, request: ServerRequest) -> list[Flag]:
        where = [Flag(name="--host", value="{host}"), Flag(name="--port", value="{port}", fixed=True)]
        return [*self.flags(request), *where]

    def _address_problems(self, request: ServerRequest) -> list[str]:
        own = {"server_args": request.args, "server_gpus": request.gpus, "server_nodes": request.nodes > 1}
        problems = [
            f"--{option} is for servers that the job starts; --server_address={request.address} runs already"
            for option, given in own.items()
            if given
        ]
        if not self.hosted and not request.model:
            problems.append(f"server_type {self.name} needs --model")
        return problems

    def _hosting_problems(self, request: ServerRequest) -> list[str]:
        if not self.hosted:
            missing = ["--server_address"] + (["--model"] if not request.model else [])
            return [f"server_type {self.name} needs {option}" for option in missing]
        problems = list(self.problems(request))
        if not request.model:
            problems.append(f"server_type {self.name} needs --model")
        if request.gpus < 0 or request.nodes < 1:
            problems.append("--server_gpus must be 0 or more, --server_nodes 1 or more")
        if request.nodes > 1 and self.multi_node is None:
            problems.append(
                f"server_type {self.name} runs on one node, not on {request.nodes} (--server_nodes)"
            )
        given = {_flag_name(word): word for word in request.args}
        problems += [
            f"--server_args: {given[flag.name]}: the port is chosen on the node where the server runs"
            for flag in self._all_flags(request)
            if flag.fixed and flag.name in given
        ]
        return problems


def _flag_name(word: str) -> str:
    """Return the flag that a word sets: `--max_len=5` sets `--max-len`."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("-") else word


def server_names() -> tuple[str, ...]:
    """Return the known server types."""
    return _NAMES


def get_server(name: str) -> ServerSpec:
    """Return the spec of a server type.

    Raises:
        UserError: there is no such type.
    """
    if name not in _NAMES:
        hint = did_you_mean(name, _NAMES)
        raise UserError(f"unknown server_type '{name}'.{hint} Known: {', '.join(_NAMES)}")
    spec = importlib.import_module(f"nemo_skills.pipeline.servers.{name}").SPEC
    assert isinstance(spec, ServerSpec)
    return spec


def launcher_args(
    spec: ServerSpec, request: ServerRequest, *, index: int = 0, count: int = 1, advertise: str = LOOPBACK
) -> tuple[str, ...]:
    """Return the arguments with which `nemo_skills/inference/server/launch.py` starts the server.

    `advertise` is the host that clients are told: `auto` when they run on other nodes.
    """
    words = ["--name", spec.name, "--index", str(index), "--count", str(count)]
    words += ["--ready-path", spec.ready_path, "--advertise", advertise]
    if request.model:
        words += ["--model", request.model]
    for name, value in spec.env.items():
        words += ["--env", f"{name}={value}"]
    return (*words, "--", *spec.argv(request))
