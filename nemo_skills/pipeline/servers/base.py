"""What the launch side knows about a server type, and the registry of types."""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.pipeline.cluster.config import ClusterConfig

_NAMES = ("hf", "nemo", "openai", "sglang", "stub", "trtllm", "vllm")
LOOPBACK = "127.0.0.1"
MEETING = "comes from --server_nodes; the processes find one another by themselves"
_PORT = "the port is chosen on the node where the server runs"


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
    replicas: int = 1
    """How many servers of this kind share the work."""
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
    reserved: str = ""
    """Why the user must not set it, if so."""


@dataclass(frozen=True, kw_only=True)
class MultiNode:
    """How a server type runs on several nodes.

    Every process runs the same command, but for what is said here. Its words may hold the launcher's
    placeholders: `{head}` and `{head_port}`, where the processes meet, `{node_rank}`, `{address}` of a node.
    """

    program: tuple[str, ...] = ()
    """First words of the command, with the model; empty: those of one node."""
    worker_words: tuple[str, ...] = ()
    """Words that the processes after the first get at the end."""
    worker: tuple[str, ...] = ()
    """Their whole command, where it is another one."""
    tasks_per_node: int = 1
    mpi: str | None = None
    """Slurm's MPI plugin that connects the processes."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables besides the spec's."""


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
    """Our flags for so many nodes, in order, without host and port."""
    problems: Callable[[ServerRequest], Sequence[str]] = lambda _request: ()
    """What speaks against hosting this type in particular."""
    positional_model: bool = False
    """Whether the model is named by position, right after the program."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables for the server, for those that the job does not set."""
    multi_node: Callable[[ServerRequest], MultiNode] | None = None
    """How it runs on several nodes; None: it runs on one."""
    client_type: str = ""
    """What clients take a server for that a job starts; empty: its name."""
    on_cluster: "Callable[[ClusterConfig], ServerSpec] | None" = None
    """The type as a cluster has it, where that makes a difference."""

    def argv(self, request: ServerRequest) -> tuple[str, ...]:
        """Return the server's command, on several nodes that of the first one, which answers requests.

        `{host}` and `{port}` are filled in there. A flag that the user gives replaces ours.

        Raises:
            UserError: what `check` raises.
        """
        self.check(request)
        words = list(self.spread(request).program)
        if not words:
            words += [*self.program, *([request.model] if self.positional_model and request.model else [])]
        for flag in self._all_flags(request):
            if not any(is_given(request.args, name) for name in (flag.name, *flag.aliases)):
                words += [flag.name] if flag.value is None else [flag.name, flag.value]
        return (*words, *request.args)

    def worker_argv(self, request: ServerRequest) -> tuple[str, ...]:
        """Return the command of the processes after the first; empty when it is the first one's."""
        spread = self.spread(request)
        if spread.worker_words:
            return (*self.argv(request), *spread.worker_words)
        return spread.worker

    def spread(self, request: ServerRequest) -> MultiNode:
        """Return what several nodes change."""
        return self.multi_node(request) if self.multi_node and request.nodes > 1 else MultiNode()

    def check(self, request: ServerRequest) -> None:
        """Raise a `UserError` that names every problem with a request, one a line."""
        problems = self._address_problems(request) if request.address else self._hosting_problems(request)
        if problems:
            raise UserError("\n".join(problems))

    def _all_flags(self, request: ServerRequest) -> list[Flag]:
        where = [Flag(name="--host", value="{host}"), Flag(name="--port", value="{port}", reserved=_PORT)]
        return [*self.flags(request), *where]

    def _address_problems(self, request: ServerRequest) -> list[str]:
        own = {
            "server_args": request.args,
            "server_gpus": request.gpus,
            "server_nodes": request.nodes > 1,
            "server_replicas": request.replicas > 1,
        }
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
        if request.nodes > 1 and request.replicas > 1:
            problems.append(
                "--server_replicas share one node, --server_nodes spreads one server over several: choose one"
            )
        problems += [
            f"--server_args: {flag.name}: {flag.reserved}"
            for flag in self._all_flags(request)
            if flag.reserved and any(is_given(request.args, name) for name in (flag.name, *flag.aliases))
        ]
        return problems


def is_given(args: Sequence[str], name: str) -> bool:
    """Tell whether the user sets a flag."""
    return _flag_name(name) in map(_flag_name, args)


def given_value(args: Sequence[str], name: str) -> str | None:
    """Return what the user sets a flag to."""
    for place, word in enumerate(args, start=1):
        if _flag_name(word) == _flag_name(name):
            return word.partition("=")[2] if "=" in word else next(iter(args[place:]), None)
    return None


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
    spec: ServerSpec, request: ServerRequest, *, index: int = 0, advertise: str = LOOPBACK
) -> tuple[str, ...]:
    """Return the arguments with which `nemo_skills/inference/server/launch.py` starts the server.

    `index` says which replica this is; `advertise` is the host that clients are told: `auto` when they run on
    other nodes.
    """
    spread = spec.spread(request)
    words = ["--name", spec.name, "--index", str(index), "--count", str(request.replicas)]
    words += ["--ready-path", spec.ready_path, "--advertise", advertise]
    if request.model:
        words += ["--model", request.model]
    if request.replicas > 1 and request.gpus:
        words += ["--gpus", str(request.gpus)]
    if request.nodes > 1:
        words += ["--tasks", str(request.nodes * spread.tasks_per_node)]
    if worker := spec.worker_argv(request):
        words += ["--worker", json.dumps(worker)]
    for name, value in {**spec.env, **spread.env}.items():
        words += ["--env", f"{name}={value}"]
    return (*words, "--", *spec.argv(request))
