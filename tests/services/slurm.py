"""A real Slurm cluster of two virtual nodes in one folder, on the loopback, with accounting or without.

`python -m tests.services.slurm` starts one by hand and prints what to export.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from tests.services import spank
from tests.services.process import Daemon, ServiceError, free_ports, program, run, wait_until

PROGRAMS = (
    *("slurmctld", "slurmd", "slurmdbd", "sbatch", "srun", "sacct", "sacctmgr"),
    *("munged", "mariadbd", "mariadb-install-db", "gcc"),
)
NODES = ("node1", "node2")
ACCOUNTS = ("test", "other")
FINAL_STATES = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "DEADLINE")
ASSOCIATIONS = (
    "add cluster nstest",
    "add qos high",
    f"add account {','.join(ACCOUNTS)} qos=normal,high",
    f"add user root account={','.join(ACCOUNTS)}",
    f"modify user root set defaultaccount={ACCOUNTS[0]}",
)
# The path of a Unix socket has at most 107 bytes, and those of MariaDB and munge lie in the cluster's folder.
MAX_ROOT_LENGTH = 80

SLURM_CONF = """\
ClusterName=nstest
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge.socket
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
PlugStackConfig={root}/plugstack.conf
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# More CPUs than the machine has would otherwise make the nodes INVALID.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
ReturnToService=2
JobRequeue=1
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Everything that waits, waits briefly. Slurm itself looks at time limits every 30 s only.
KillWait=2
OverTimeLimit=0
CompleteWait=0
UnkillableStepTimeout=10
MessageTimeout=10
SlurmdTimeout=20
SlurmctldTimeout=30
BatchStartTimeout=5
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=10000,batch_sched_delay=0,bf_interval=1,bf_yield_interval=100000
PriorityType=priority/basic
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
{accounting}
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={node1_port} CPUs=8 RealMemory=8000 Gres=gpu:8
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={node2_port} CPUs=8 RealMemory=8000 Gres=gpu:8
PartitionName=batch Nodes=ALL Default=YES MaxTime=7-0 DefaultTime=10 PriorityTier=10
PartitionName=cpu Nodes=ALL MaxTime=7-0 DefaultTime=10 PriorityTier=10
PartitionName=short Nodes=ALL MaxTime=1 DefaultTime=1 PriorityTier=10
PartitionName=urgent Nodes=ALL MaxTime=7-0 DefaultTime=10 PriorityTier=100 PreemptMode=off
{extra}
"""

WITH_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
# For this connection Slurm takes munge's socket from here.
AccountingStoragePass={root}/munge.socket
AccountingStorageEnforce=associations,qos
AccountingStorageTRES=gres/gpu"""

WITHOUT_ACCOUNTING = "AccountingStorageType=accounting_storage/none"

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
CommitDelay=0
"""


class SlurmCluster:
    """Two virtual nodes of 8 CPUs and 8 pretend GPUs each.

    Partitions: `batch` (default), `cpu`, `short` (1 minute at most) and `urgent`, which preempts the others
    by requeueing. With accounting, jobs need one of `ACCOUNTS` (`test` is the default) and may name the QOS
    `normal` or `high`. `env` is the whole environment for clients; `settings` are more lines for slurm.conf.
    """

    def __init__(
        self, root: Path, accounting: bool = True, settings: Mapping[str, str] | None = None
    ) -> None:
        if len(str(root)) > MAX_ROOT_LENGTH or any(c.isspace() for c in str(root)):
            raise ServiceError(
                f"{root}: too long for Unix sockets, or blanks, which slurm.conf cannot express"
            )
        self.root = root
        self.accounting = accounting
        self.settings = dict(settings or {})
        self.env = {**os.environ, "SLURM_CONF": str(self.conf)}
        self._daemons: list[Daemon] = []
        self._slurmd: dict[str, Daemon] = {}
        self._ctld: Daemon | None = None

    @property
    def conf(self) -> Path:
        """The cluster's slurm.conf; clients find the cluster by it."""
        return self.root / "slurm.conf"

    @property
    def images(self) -> Path:
        """Folder of container roots; the container plugin looks up image names here (`/`, `:` become `+`)."""
        return self.root / "images"

    def __enter__(self) -> SlurmCluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start every daemon and wait until both nodes are idle."""
        for name in ("state", "images", "containers", "gpus", *(f"spool-{node}" for node in NODES)):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self._write_conf()
        self._start_munge()
        if self.accounting:
            self._start_accounting()
        self.start_slurmctld()
        for node in NODES:
            self.start_slurmd(node, wait=False)
        for node in NODES:
            self._wait_node(node)

    def stop(self) -> None:
        """End every daemon and job; nothing started here is left running."""
        for daemon in [*self._slurmd.values(), *reversed(self._daemons)]:
            daemon.stop()
        self._slurmd.clear()
        self._daemons.clear()
        self._ctld = None

    def processes(self) -> list[int]:
        """Pids of all daemons and of everything they started, jobs included."""
        return [pid for daemon in [*self._daemons, *self._slurmd.values()] for pid in daemon.processes()]

    def add_image(self, name: str, folder: Path) -> None:
        """Let `--container-image=NAME` find a root folder."""
        link = self.images / name.translate(str.maketrans("/:#", "+++"))
        link.unlink(missing_ok=True)
        link.symlink_to(folder)

    def command(self, *argv: str) -> str:
        """Standard output of a Slurm client command that must succeed."""
        return run(argv, env=self.env)

    def scontrol(self, *args: str) -> str:
        """`scontrol ARGS`."""
        return self.command("scontrol", *args)

    def sbatch(self, *args: str) -> int:
        """Submit and return the job's number."""
        return int(self.command("sbatch", "--parsable", *args).split(";")[0])

    def job(self, job_id: int) -> dict[str, str]:
        """What the controller knows about a job, by the field names of `scontrol show job`."""
        words = self.scontrol("--oneliner", "show", "job", str(job_id)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_job(self, job_id: int, *states: str, timeout_s: float = 60.0) -> dict[str, str]:
        """Wait until the job is in one of the states (default: any final one); return its fields."""
        wanted = states or (
            "COMPLETED",
            "FAILED",
            "CANCELLED",
            "TIMEOUT",
            "NODE_FAIL",
            "PREEMPTED",
            "OUT_OF_MEMORY",
        )
        wait_until(
            f"job {job_id} in {'/'.join(wanted)}", lambda: self.job(job_id)["JobState"] in wanted, timeout_s
        )
        return self.job(job_id)

    def expire(self, job_id: int) -> None:
        """Let a running job's time limit end now: within 30 s Slurm kills it as at any walltime."""
        self.scontrol("update", f"JobId={job_id}", "EndTime=now")

    def release(self, job_id: int) -> None:
        """Let a requeued job start now: Slurm makes it wait for two minutes."""
        self.wait_job(job_id, "PENDING")
        # a node takes a job for killed that comes again within the second in which it was ended
        time.sleep(1.1)
        self.scontrol("update", f"JobId={job_id}", "StartTime=now")

    def start_slurmctld(self) -> None:
        """Start the controller (again)."""
        log = self.root / "slurmctld.log"
        self._ctld = Daemon([program("slurmctld"), "-D", "-i", "-f", str(self.conf)], log, self.env)
        self._daemons.append(self._ctld)
        self._ctld.wait_ready(self._answers("scontrol", "ping"))

    def stop_slurmctld(self, crash: bool = False) -> None:
        """Take the controller down; a crash loses what it has not saved (it saves every few seconds)."""
        daemon = self._ctld
        if daemon is not None:
            daemon.kill(signal.SIGKILL if crash else signal.SIGTERM)
            wait_until("slurmctld gone", lambda: not daemon.alive())

    def start_slurmd(self, node: str, wait: bool = True) -> None:
        """Start a node's daemon (again)."""
        if node in self._slurmd:
            self._daemons.append(self._slurmd.pop(node))
        log = self.root / f"slurmd-{node}.log"
        self._slurmd[node] = Daemon(
            [program("slurmd"), "-D", "-N", node, "-f", str(self.conf)], log, self.env
        )
        if wait:
            self._wait_node(node)

    def kill_slurmd(self, node: str, jobs: bool = True) -> None:
        """Let a node die: its daemon is killed, and (`jobs`) all job processes on it too."""
        daemon = self._slurmd[node]
        daemon.kill(signal.SIGKILL)
        wait_until(f"slurmd of {node} gone", lambda: not daemon.alive())
        if jobs:
            self._slurmd.pop(node).stop()

    def mark_down(self, node: str) -> None:
        """Let the controller give a dead node up now, not after SlurmdTimeout; its jobs are requeued."""
        self.scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=dead")

    def _answers(self, *argv: str) -> Callable[[], bool]:
        def ready() -> bool:
            self.command(*argv)
            return True

        return ready

    def _wait_node(self, node: str) -> None:
        def up() -> bool:
            states = self.command("sinfo", "-h", "-N", "-n", node, "-o", "%T").split()
            return bool(states) and all(state in {"idle", "mixed", "allocated"} for state in states)

        self._slurmd[node].wait_ready(up)

    def _write_conf(self) -> None:
        names = ("ctld_port", "dbd_port", "node1_port", "node2_port")
        values = {name: str(port) for name, port in zip(names, free_ports(len(names)), strict=True)}
        values["root"] = str(self.root)
        values["extra"] = "\n".join(f"{key}={value}" for key, value in self.settings.items())
        values["accounting"] = (WITH_ACCOUNTING if self.accounting else WITHOUT_ACCOUNTING).format(**values)
        self.conf.write_text(SLURM_CONF.format(**values))
        dbd_conf = self.root / "slurmdbd.conf"
        dbd_conf.write_text(SLURMDBD_CONF.format(**values))
        dbd_conf.chmod(0o600)
        # Only device files count as GPUs; their numbers become CUDA_VISIBLE_DEVICES.
        for index in range(8):
            (self.root / "gpus" / f"fakegpu{index}").symlink_to("/dev/null")
        gres = f"NodeName={','.join(NODES)} Name=gpu File={self.root}/gpus/fakegpu[0-7]\n"
        (self.root / "gres.conf").write_text(gres)
        plugin = spank.build(self.root)
        stack = f"required {plugin} images={self.images} state={self.root / 'containers'}\n"
        (self.root / "plugstack.conf").write_text(stack)

    def _start_munge(self) -> None:
        key = self.root / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        socket = self.root / "munge.socket"
        files = [f"--{name}-file={self.root}/munge.{name}" for name in ("key", "log", "pid", "seed")]
        # --force: it dislikes a socket folder that only root may enter; all users here are root.
        argv = [program("munged"), "--foreground", "--force", f"--socket={socket}", *files]
        daemon = Daemon(argv, self.root / "munged.out", self.env)
        self._daemons.append(daemon)
        daemon.wait_ready(socket.exists)

    def _start_accounting(self) -> None:
        data, socket = self.root / "mariadb", self.root / "mariadb.socket"
        common = ["--no-defaults", f"--datadir={data}", "--user=root", "--innodb-log-file-size=8M"]
        trust = "--auth-root-authentication-method=normal"
        run([program("mariadb-install-db"), *common, trust, "--skip-test-db", "--skip-name-resolve"])
        # A throw-away database need not survive a power cut.
        fast = ["--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0"]
        argv = [program("mariadbd"), *common, *fast, f"--socket={socket}", "--skip-networking"]
        database = Daemon(argv, self.root / "mariadb.log")
        self._daemons.append(database)
        database.wait_ready(socket.exists)
        # slurmdbd has no setting for the database's socket; the client library reads this variable.
        env = {**self.env, "MYSQL_UNIX_PORT": str(socket)}
        slurmdbd = Daemon([program("slurmdbd"), "-D"], self.root / "slurmdbd.log", env)
        self._daemons.append(slurmdbd)
        slurmdbd.wait_ready(self._answers("sacctmgr", "-n", "show", "cluster"))
        # One client for all: each connection to slurmdbd costs 0.2 s.
        run([program("sacctmgr"), "-i"], self.env, stdin="".join(line + "\n" for line in ASSOCIATIONS))


def main() -> None:
    """Run a cluster until Ctrl-C."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ns-slurm-") as folder:
        began = time.monotonic()
        accounting = "--no-accounting" not in sys.argv
        with SlurmCluster(Path(folder), accounting) as cluster, contextlib.suppress(KeyboardInterrupt):
            print(f"up after {time.monotonic() - began:.1f} s\nexport SLURM_CONF={cluster.conf}", flush=True)
            signal.pause()


if __name__ == "__main__":
    main()
