"""`ns generate --offline`: the main loads the model itself, one process per GPU, and no server is started."""

from collections.abc import Mapping, Sequence

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.launch.plan import Argv, Component, shell
from nemo_skills.pipeline.options import HookOptions, ServerOptions
from nemo_skills.pipeline.servers.place import Place, engine_place

MAIN = "nemo_skills.inference.generate_offline"
SCHEMA = "nemo_skills.inference.generate_offline:OfflineConfig"
_ENGINES = ("hf", "vllm", "trtllm")


def offline_component(
    server: ServerOptions, hooks: HookOptions, cluster: ClusterConfig, commands: Sequence[Argv]
) -> Component:
    """Return the only component of a job without a server.

    On Slurm every process is a task; elsewhere the main starts the others.

    Raises:
        UserError: the options are about a server, or cannot be done here.
    """
    on_slurm = cluster.executor == "slurm"
    tasks = _processes(server) if on_slurm else 1
    problems = [text for wrong, text in _problems(server, on_slurm=on_slurm) if wrong]
    if tasks * server.server_nodes > 1 and (hooks.preprocess_cmd or hooks.postprocess_cmd):
        problems.append(
            "--preprocess_cmd and --postprocess_cmd would run in each process; use ns run_cmd before"
            " and after (--run_after)"
        )
    if problems:
        raise UserError("\n".join(problems))
    role, _ = _place(server, cluster)
    return Component(
        name="main",
        role=role,
        nodes=server.server_nodes,
        tasks_per_node=tasks,
        gpus=server.server_gpus,
        before=tuple(shell(hooks.preprocess_cmd)),
        commands=tuple(commands),
        after=tuple(shell(hooks.postprocess_cmd)),
        independent=True,
    )


def offline_values(server: ServerOptions, cluster: ClusterConfig) -> Mapping[str, object]:
    """Return the main's arguments about the model and its processes."""
    values: dict[str, object] = {"server.server_type": server.server_type, "server.model": server.model}
    if _processes(server) * server.server_nodes > 1:
        values["devices"] = _processes(server)
    if server.server_nodes > 1:
        values["nodes"] = server.server_nodes
    if python := _place(server, cluster).engine_python:
        values["engine_python"] = python
    return values


def _processes(server: ServerOptions) -> int:
    return max(1, server.server_gpus)


def _problems(server: ServerOptions, *, on_slurm: bool) -> list[tuple[bool, str]]:
    engine = server.server_type or ""
    return [
        (
            engine not in _ENGINES,
            f"--offline needs --server_type, one of {', '.join(_ENGINES)}.{did_you_mean(engine, _ENGINES)}",
        ),
        (server.with_sandbox, "--with_sandbox is for answers of a server; drop --offline"),
        (not server.model, "--offline needs --model, the folder of the model"),
        (
            bool(server.server_address),
            "--server_address is for a server; --offline loads the model itself",
        ),
        (
            bool(server.server_args),
            "--server_args is for a server; with --offline use ++engine_args.NAME=VALUE",
        ),
        (
            server.server_replicas > 1,
            "--server_replicas is for servers; --offline loads the model in a process per GPU",
        ),
        (
            server.server_nodes > 1 and not on_slurm,
            f"--server_nodes={server.server_nodes} needs a Slurm cluster (--cluster)",
        ),
        (
            engine == "trtllm" and not server.server_gpus,
            "server_type trtllm needs --server_gpus: it does not run on a CPU",
        ),
    ]


def _place(server: ServerOptions, cluster: ClusterConfig) -> Place:
    # an unknown engine is refused where the plan is made
    return engine_place(server.server_type if server.server_type in _ENGINES else "hf", cluster)
