"""`ns start_server`: keeps a model server up, and says where it is."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

from nemo_skills.core.errors import JobFailedError, UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cancel import cancel_on_slurm
from nemo_skills.pipeline.cluster.resolve import resolve_cluster
from nemo_skills.pipeline.cluster.ssh import SshTunnel
from nemo_skills.pipeline.cluster.tunnel import LocalTunnel, TunnelError
from nemo_skills.pipeline.launch.experiments import JobStatus, read_statuses, status_script
from nemo_skills.pipeline.launch.logdir import default_log_dir
from nemo_skills.pipeline.launch.owner import this_process
from nemo_skills.pipeline.launch.plan import Job, Plan
from nemo_skills.pipeline.launch.records import Record, history
from nemo_skills.pipeline.launch.serving import Server, read_servers, ready_servers, servers_script
from nemo_skills.pipeline.launch.slurm import open_tunnel
from nemo_skills.pipeline.launch.slurm_state import read_problem
from nemo_skills.pipeline.launch.submit import launch
from nemo_skills.pipeline.options import ClusterOptions, JobOptions, ServerOptions, TunnelOptions
from nemo_skills.pipeline.servers.component import server_components
from nemo_skills.pipeline.wrapper import wrapper

LOG = get_logger(__name__)

NAME = "start_server"
POLL_S = 2.0
"""How often a server on Slurm is looked at until it is ready."""
WATCH_S = 5.0
"""How often afterwards."""
_POLL_HERE_S = 0.3


@wrapper()
def start_server(
    cluster: ClusterOptions, job: JobOptions, server: ServerOptions, own: TunnelOptions
) -> Record | None:
    """Start a model server and keep it up until Ctrl-C, which takes it down.

    Once it is ready its address is printed. On a cluster, that is the address inside of it; --create_tunnel
    makes the server answer on this machine too, through the ssh connection.
    """
    if server.with_sandbox:
        raise UserError("--with_sandbox is for commands whose job has a main that finds it, such as generate")
    config = resolve_cluster(cluster, [server.model] if server.model else [])
    log_dir = cluster.log_dir
    if log_dir is None:
        config, log_dir = default_log_dir(config, job.expname or NAME)
    on_slurm = config.executor == "slurm"
    components = server_components(server, config)
    if not components:
        raise UserError("--server_address names a server that runs already; there is none to start")
    name = job.expname or NAME
    planned = Job(name=name, components=components)
    plan = Plan(expname=name, cluster=config, jobs=(planned,), log_dir=log_dir, options=job)
    if job.dry_run:
        return launch(plan, dry_run=True)
    if own.create_tunnel and config.ssh_tunnel is None:
        LOG.info("no tunnel is needed: the server can be reached from this machine")
    if not on_slurm:
        with _announcing(name):
            return launch(plan)
    with _termination_raises():
        record = launch(plan)
        assert record is not None
        _Watch(record, plan, own).run(cluster)
    return record


def announce(servers: tuple[Server, ...], addresses: list[str]) -> None:
    """Print where the servers are."""
    model = f" (model {servers[0].model})" if servers[0].model else ""
    print(f"the server is ready: {','.join(addresses)}{model}\nCtrl-C takes it down", flush=True)


@contextlib.contextmanager
def _announcing(expname: str) -> Iterator[None]:
    """While this process runs an experiment, look for its servers, and announce them once."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(_POLL_HERE_S):
            with contextlib.suppress(UserError):
                record = history(expname)[-1]
                if record.owner != this_process() or record.exp_dir is None:
                    continue
                script = servers_script(f"{record.exp_dir}/{record.jobs[0].name}")
                servers = ready_servers(read_servers(LocalTunnel().run(script).stdout))
                if servers:
                    announce(servers, [server.address for server in servers])
                    return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=1)


@contextlib.contextmanager
def _termination_raises() -> Iterator[None]:
    """Let the end of this process take the server down, whoever asks for it."""

    def stop(signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class _Watch:
    """Looks after a server on Slurm until its job ends, or somebody wants it to."""

    def __init__(self, record: Record, plan: Plan, own: TunnelOptions) -> None:
        self._record = record
        self._tunnel = open_tunnel(plan.cluster)
        self._forward = own.create_tunnel and isinstance(self._tunnel, SshTunnel)
        self._port = own.tunnel_port
        self._announced: tuple[Server, ...] = ()
        self._forwarded: list[tuple[int, str, int]] = []
        self._said = ""

    def run(self, where: ClusterOptions) -> None:
        """Keep watch.

        Raises:
            JobFailedError: the job ended, which nobody had asked for.
        """
        try:
            status = self._look()
            while status is None or status.active:
                time.sleep(WATCH_S if self._announced else POLL_S)
                status = self._look()
        except BaseException:
            LOG.info("taking the server down")
            self._stop_forwarding()
            self._cancel(where)
            raise
        how = ", ".join(filter(None, (status.state.state, status.state.reason)))
        raise JobFailedError(
            f"the server ended ({how}); its log: ns logs {self._record.expname}",
            exit_code=status.state.exit_code or 1,
        )

    def _cancel(self, where: ClusterOptions) -> None:
        try:
            cancel_on_slurm([self._record], where)
        except UserError as error:
            name = self._record.expname
            raise UserError(
                f"{error}\nThe server may still run; try again with: ns cancel {name}", exit_code=1
            ) from None

    def _look(self) -> JobStatus | None:
        """Look once; None when the cluster could not be reached, which may pass."""
        job = self._record.jobs[0]
        script = status_script([self._record], before=servers_script(f"{self._record.exp_dir}/{job.name}"))
        try:
            answer = self._tunnel.run(script, timeout=60).stdout
            servers = ready_servers(read_servers(answer))
            if servers and (servers != self._announced or not self._tunnel_stands()):
                self._announce(servers)
        except TunnelError as error:
            self._say(f"lost sight of the server: {error}")
            self._forwarded = []
            return None
        if problem := read_problem(answer):
            self._say(f"Slurm's controller gave no answer: {problem}")
            return None
        (status,) = read_statuses([self._record], answer)
        if status.active and not self._announced:
            reason = f": {status.state.reason}" if status.state.reason else ""
            self._say(f"the server's job {job.slurm_id} is {status.state.state}{reason}")
        return status

    def _announce(self, servers: tuple[Server, ...]) -> None:
        addresses = [server.address for server in servers]
        if self._forward:
            self._stop_forwarding()
            assert isinstance(self._tunnel, SshTunnel)
            addresses = []
            for server in servers:
                port = local_port(self._port or server.port, required=bool(self._port))
                self._tunnel.forward(port, server.host, server.port)
                self._forwarded.append((port, server.host, server.port))
                addresses.append(f"http://127.0.0.1:{port}/v1")
            LOG.info("on the cluster it is %s", ",".join(server.address for server in servers))
        self._announced = servers
        announce(servers, addresses)

    def _tunnel_stands(self) -> bool:
        """Tell whether the tunnel works: a new connection in the place of a lost one knows nothing of it."""
        if not self._forward:
            return True
        for port, _, _ in self._forwarded:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
            except OSError:
                return False
        return bool(self._forwarded)

    def _stop_forwarding(self) -> None:
        while self._forwarded:
            route = self._forwarded.pop()
            assert isinstance(self._tunnel, SshTunnel)
            with contextlib.suppress(TunnelError):
                self._tunnel.stop_forwarding(*route)

    def _say(self, text: str) -> None:
        if text != self._said:
            LOG.info("%s", text)
            self._said = text


def local_port(wanted: int, *, required: bool) -> int:
    """Return a free port of this machine: the wanted one, or unless that is required any other.

    Raises:
        UserError: the required one is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            if required:
                raise UserError(f"--tunnel_port={wanted}: {error.strerror}") from None
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
