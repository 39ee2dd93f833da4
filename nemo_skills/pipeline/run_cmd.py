"""`ns run_cmd`: any command, wherever jobs run."""

from dataclasses import dataclass

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.cluster.resolve import resolve_cluster
from nemo_skills.pipeline.launch.logdir import default_log_dir
from nemo_skills.pipeline.launch.plan import PYTHON, Argv, CodePath, Component, Job, Plan, chain, shell
from nemo_skills.pipeline.launch.records import Record
from nemo_skills.pipeline.launch.submit import launch
from nemo_skills.pipeline.options import (
    ClusterOptions,
    CommandOptions,
    HookOptions,
    JobOptions,
    ServerOptions,
)
from nemo_skills.pipeline.servers.component import server_components
from nemo_skills.pipeline.servers.sandbox import sandbox_component
from nemo_skills.pipeline.wrapper import Context, wrapper

NAME = "run_cmd"
_WAIT = CodePath("nemo_skills/inference/server/wait.py")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of the wrapper, with its cluster config found."""

    argv: Argv
    cluster: ClusterConfig
    log_dir: str
    job: JobOptions
    server: ServerOptions
    hooks: HookOptions
    own: CommandOptions


@wrapper()
def run_cmd(
    ctx: Context,
    cluster: ClusterOptions,
    job: JobOptions,
    server: ServerOptions,
    hooks: HookOptions,
    own: CommandOptions,
) -> Record | None:
    """Run a command: everything after the options, which come first.

    Several words are a program and its arguments, and reach it exactly as they are: no shell reads them
    again, so nothing needs to be quoted twice. A single word is a line of shell, run by bash -c, as in
    ns run_cmd --cluster=x "cd /data && ls | wc -l". From Python a text, wrap_arguments("..."), is a line of
    shell too, and a list is a program and its arguments. -- ends the options, for a program whose name begins
    with a dash.

    The command starts in the packaged code, /nemo_run/code, or where there is no cluster in this folder. As
    the first of several words, python means the interpreter of the container or of the virtual environment.
    With a server beside it, the command starts once that is ready, and finds its address in
    $NS_SERVER_ADDRESS.
    """
    config = resolve_cluster(cluster, [server.model] if server.model else [])
    log_dir = cluster.log_dir
    if log_dir is None:
        config, log_dir = default_log_dir(config, job.expname or NAME)
    request = Request(
        argv=read_command(ctx), cluster=config, log_dir=log_dir, job=job, server=server, hooks=hooks, own=own
    )
    return launch(plan_command(request), dry_run=job.dry_run)


def read_command(ctx: Context) -> Argv:
    """Return the command that a user wrote.

    Raises:
        UserError: there is none.
    """
    line = ctx.args[0] if ctx.text is None and len(ctx.args) == 1 else ctx.text
    if line is not None:
        ctx = Context((line,))
    if not "".join(ctx.args).strip():
        raise UserError('there is no command; write it after the options, as in: ns run_cmd "ls -l /data"')
    if line is not None:
        return shell(line)[0]
    first, *rest = ctx.args
    return (PYTHON if first == "python" else first, *rest)


def plan_command(request: Request) -> Plan:
    """Plan the one job. Pure.

    Raises:
        UserError: the options do not go together, or not with the cluster.
    """
    cluster, own, server, hooks = request.cluster, request.own, request.server, request.hooks
    on_slurm = cluster.executor == "slurm"
    if not on_slurm and (own.num_nodes > 1 or own.num_tasks > 1):
        raise UserError("--num_nodes and --num_tasks need a Slurm cluster (--cluster)")
    if own.num_nodes * own.num_tasks > 1 and (hooks.preprocess_cmd or hooks.postprocess_cmd):
        raise UserError("--preprocess_cmd and --postprocess_cmd would run in each process: use --run_after")
    own_server = server != ServerOptions(with_sandbox=server.with_sandbox)
    hosted = server_components(server, cluster) if own_server else ()
    sandboxes = (sandbox_component(),) if server.with_sandbox else ()
    argv: Argv = (PYTHON, _WAIT, "--", *request.argv) if hosted else request.argv
    main = Component(
        name="main",
        before=shell(hooks.preprocess_cmd),
        commands=(argv,),
        after=shell(hooks.postprocess_cmd),
        role=own.container,
        nodes=own.num_nodes,
        tasks_per_node=own.num_tasks,
        gpus=own.num_gpus,
        env=(("NS_SERVER_ADDRESS", server.server_address),) if server.server_address else (),
    )
    cluster.container(main.role)
    name = request.job.expname or NAME
    job = Job(name=name, components=(*hosted, *sandboxes, main))
    return Plan(
        expname=name,
        cluster=cluster,
        jobs=chain((job,), request.job.dependent_jobs if on_slurm else 0),
        log_dir=request.log_dir,
        options=request.job,
    )
