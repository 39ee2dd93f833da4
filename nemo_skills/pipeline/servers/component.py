"""From server options to what a job needs: a server component, and arguments that lead the client to it."""

import shlex
from collections.abc import Mapping

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.launch.plan import PYTHON, CodePath, Component
from nemo_skills.pipeline.options import ServerOptions
from nemo_skills.pipeline.servers.base import (
    LOOPBACK,
    ServerRequest,
    ServerSpec,
    get_server,
    launcher_args,
    server_names,
)

_LAUNCHER = CodePath("nemo_skills/inference/server/launch.py")


def server_components(options: ServerOptions, cluster: ClusterConfig) -> tuple[Component, ...]:
    """Return the server that the job has to start, or its replicas; none when it already runs elsewhere.

    Raises:
        UserError: the options do not go together, or the server type needs one that is missing.
    """
    spec = server_spec(options, cluster)
    one_machine = cluster.executor != "slurm"
    request = server_request(options)
    spec.check(request)
    if request.address:
        return ()
    if one_machine and request.nodes > 1:
        raise UserError(f"--server_nodes={request.nodes} needs a Slurm cluster (--cluster)")
    spread = spec.spread(request)
    advertise = LOOPBACK if one_machine else "auto"
    several = request.replicas > 1
    return tuple(
        Component(
            name=f"server{index}" if several else "server",
            commands=((PYTHON, _LAUNCHER, *launcher_args(spec, request, index=index, advertise=advertise)),),
            role=spec.role,
            nodes=request.nodes,
            tasks_per_node=spread.tasks_per_node,
            gpus=request.gpus,
            replica=several,
            mpi=spread.mpi,
        )
        for index in range(request.replicas)
    )


def client_values(options: ServerOptions, cluster: ClusterConfig) -> Mapping[str, object]:
    """Return the main's `server.*` arguments; without an address it waits for the job's own server."""
    values: dict[str, object] = {"server.server_type": engine_type(options, cluster)}
    if options.model:
        values["server.model"] = options.model
    if options.server_address:
        values["server.address"] = options.server_address
    return values


def engine_type(options: ServerOptions, cluster: ClusterConfig) -> str:
    """Return what answers requests: the server type, or what a job starts for it."""
    spec = server_spec(options, cluster)
    return spec.name if options.server_address else spec.client_type or spec.name


def server_spec(options: ServerOptions, cluster: ClusterConfig) -> ServerSpec:
    """Return the server type that the options name, as the cluster has it.

    Raises:
        UserError: they name none, or one that is unknown.
    """
    if not options.server_type:
        raise UserError(f"--server_type is missing; one of {', '.join(server_names())}")
    spec = get_server(options.server_type)
    return spec.on_cluster(cluster) if spec.on_cluster and not options.server_address else spec


def server_request(options: ServerOptions) -> ServerRequest:
    """Return what the options ask of the server type."""
    try:
        args = tuple(shlex.split(options.server_args))
    except ValueError as err:
        raise UserError(f"--server_args: {err}: {options.server_args}") from None
    return ServerRequest(
        model=options.model,
        address=options.server_address,
        gpus=options.server_gpus,
        nodes=options.server_nodes,
        replicas=options.server_replicas,
        args=args,
    )
