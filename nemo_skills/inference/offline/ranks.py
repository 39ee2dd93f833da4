"""Which of several processes this one is, and how several are started on one machine."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from nemo_skills.core.errors import JobFailedError, UserError
from nemo_skills.core.log import get_logger
from nemo_skills.inference.server.family import die_with_launcher

_JOB = "NS_OFFLINE_JOB"
_GRACE_S = 10.0
_POLL_S = 0.05
_log = get_logger(__name__)

# What launchers tell their processes; an engine must not take it as meant for itself
_LAUNCHER_PREFIXES = ("TORCHELASTIC_", "SLURM_", "PMI", "OMPI_")
_LAUNCHER_NAMES = frozenset(
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"}
    | {"ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCH_NCCL_ASYNC_ERROR_HANDLING"}
)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that do one job together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on its own machine."""
    job: str = ""
    """The same for all of them and different for every other job, as far as the launcher says so."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Ranks | None":
        """Read what torchrun, `srun` or our own launcher says; None for a process that is alone.

        Raises:
            UserError: the variables make no sense.
        """
        if "RANK" in env and "WORLD_SIZE" in env:
            job = [env.get(name, "") for name in (_JOB, "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")]
            local = env.get("LOCAL_RANK", env["RANK"])
            return _checked(env["RANK"], env["WORLD_SIZE"], local, [*job, *_slurm_job(env)])
        # in a batch script the variables describe the job's first task, but nobody has started the others
        in_batch_script = "SLURM_JOB_ID" in env and "SLURM_STEP_ID" not in env
        if "SLURM_PROCID" in env and "SLURM_NTASKS" in env and not in_batch_script:
            size = env.get("SLURM_STEP_NUM_TASKS", env["SLURM_NTASKS"])
            local = env.get("SLURM_LOCALID", env["SLURM_PROCID"])
            return _checked(env["SLURM_PROCID"], size, local, _slurm_job(env))
        return None

    def grouped(self, processes: int) -> "Ranks | None":
        """Return the ranks when so many processes share one model; None for one that has nothing to do.

        The first process of a group drives the GPUs of all.

        Raises:
            UserError: the processes cannot be grouped so.
        """
        if self.size % processes:
            raise UserError(
                f"{self.size} processes cannot be split into groups of {processes} (tensor parallel size)."
            )
        if self.rank % processes:
            return None
        return Ranks(
            rank=self.rank // processes, size=self.size // processes, local_rank=self.local_rank, job=self.job
        )


def _slurm_job(env: Mapping[str, str]) -> list[str]:
    return [env.get("SLURM_JOB_ID", ""), env.get("SLURM_STEP_ID", ""), env.get("SLURM_RESTART_COUNT", "")]


def _checked(rank: str, size: str, local: str, job: list[str]) -> Ranks:
    try:
        ranks = Ranks(rank=int(rank), size=int(size), local_rank=int(local), job=":".join(job))
    except ValueError:
        raise UserError(f"The launcher's variables say rank {rank!r} of {size!r}: no numbers.") from None
    if not 0 <= ranks.rank < ranks.size:
        raise UserError(f"The launcher's variables say rank {rank} of {size}: ranks count from 0.")
    return ranks


def engine_env(env: Mapping[str, str], local_rank: int | None, gpus: int, threads: int) -> dict[str, str]:
    """Return the environment for the engine of one rank: without the launcher's variables, with its GPUs.

    Args:
        env: This process's environment.
        local_rank: Number of the first GPU, None to leave the engine all GPUs.
        gpus: How many it drives.
        threads: Threads on a CPU.

    Raises:
        UserError: there are fewer GPUs than that.
    """
    kept = {
        name: value
        for name, value in env.items()
        if name not in _LAUNCHER_NAMES and not name.startswith(_LAUNCHER_PREFIXES)
    }
    kept["OMP_NUM_THREADS"] = str(threads)
    if local_rank is not None:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(_gpus(env.get("CUDA_VISIBLE_DEVICES"), local_rank, gpus))
    return kept


def _gpus(visible: str | None, first: int, count: int) -> list[str]:
    if visible is None:
        return [str(first + i) for i in range(count)]
    names = [name for name in visible.split(",") if name.strip()]
    # none: there is no GPU; as many as needed: the launcher has bound each process to its own
    if not names or len(names) == count:
        return names
    if first + count > len(names):
        raise UserError(
            f"Process {first} of this machine needs GPUs {first} to {first + count - 1}, but sees only"
            f" {len(names)} (CUDA_VISIBLE_DEVICES={visible})."
        )
    return names[first : first + count]


def run_ranks(count: int) -> None:
    """Run this program again in `count` processes and wait for them; the first failure ends all.

    Raises:
        JobFailedError: a process failed.
    """
    argv = [sys.executable, *sys.orig_argv[1:]]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), _JOB: uuid.uuid4().hex}
    _log.info("starting %d processes", count)
    die = die_with_launcher()
    children: list[subprocess.Popen[bytes]] = []
    stopped: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda signum, _: stopped.append(signum))
    try:
        for rank in range(count):
            env = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            children.append(subprocess.Popen(argv, env=env, preexec_fn=die))  # noqa: PLW1509
        _wait(children, stopped)
    finally:
        _end(children)
        signal.signal(signal.SIGTERM, previous)


def _wait(children: list["subprocess.Popen[bytes]"], stopped: list[int]) -> None:
    while True:
        codes = [child.poll() for child in children]
        for rank, code in enumerate(codes):
            if code:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise JobFailedError(
                    f"Process {rank} of {len(children)} {how}. Finished rows are kept; run the same command"
                    " again to go on.",
                    exit_code=128 - code if code < 0 else code,
                )
        if stopped:
            raise JobFailedError("Stopped. Run the same command again to go on.", exit_code=128 + stopped[0])
        if all(code == 0 for code in codes):
            return
        time.sleep(_POLL_S)


def _end(children: list["subprocess.Popen[bytes]"]) -> None:
    alive = [child for child in children if child.poll() is None]
    for child in alive:
        child.terminate()
    deadline = time.monotonic() + _GRACE_S
    for child in alive:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
