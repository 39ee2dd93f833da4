"""What became of experiments: Slurm is asked about their jobs, or the files of this machine are read."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.config import ClusterConfig, load_cluster_config, parse_cluster_config
from nemo_skills.pipeline.launch.owner import Life, life_of
from nemo_skills.pipeline.launch.records import (
    ENDED_FILE,
    RUNNING,
    STATE_FILE,
    JobRecord,
    Record,
    all_latest,
    history,
)
from nemo_skills.pipeline.launch.slurm import open_tunnel
from nemo_skills.pipeline.launch.slurm_after import state_file
from nemo_skills.pipeline.launch.slurm_remote import on_login_node
from nemo_skills.pipeline.launch.slurm_state import (
    JobState,
    Outcome,
    duration,
    left_behind,
    query_script,
    read_answer,
    read_problem,
)
from nemo_skills.pipeline.options import WhereOptions

LOG = get_logger(__name__)

_ATTEMPTS = 20


@dataclass(frozen=True)
class JobStatus:
    """One job and what is known of it."""

    record: Record
    job: JobRecord
    state: JobState

    @property
    def active(self) -> bool:
        """Whether the job waits or runs."""
        return self.state.outcome is Outcome.ACTIVE


def choose(names: Sequence[str], where: WhereOptions) -> list[str]:
    """Return the names of some experiments, or of all, on `--cluster` if that is given, the newest last."""
    if names:
        return list(dict.fromkeys(names))
    records = all_latest()
    if where.cluster is None:
        return [record.expname for record in records]
    cluster = load_cluster_config(where.cluster, where.config_dir).name
    return [record.expname for record in records if record.cluster == cluster]


def attempts(names: Iterable[str]) -> list[Record]:
    """Return what was launched under some names lately: a call submits only what another has left undone.

    Raises:
        UserError: nothing was launched under one of the names from this machine.
    """
    return [record for name in names for record in history(name)[-_ATTEMPTS:]]


def attempts_in_one_place(name: str) -> list[Record]:
    """Return what was launched under a name lately, where it was launched last.

    Raises:
        UserError: nothing was launched under that name from this machine.
    """
    records = attempts([name])
    last = records[-1]
    return [r for r in records if (r.executor, r.config) == (last.executor, last.config)]


def current(found: Iterable[JobStatus]) -> list[JobStatus]:
    """Return of the attempts at a job the newest, and any that has not ended."""
    found = list(found)
    newest = {(one.record.expname, one.job.log): one for one in found}
    return [one for one in found if one.active or newest[one.record.expname, one.job.log] is one]


def cluster_of(record: Record, where: WhereOptions) -> ClusterConfig:
    """Return the config of the cluster that an experiment was launched on.

    Raises:
        UserError: its file is gone or malformed.
    """
    if where.cluster:
        return load_cluster_config(where.cluster, where.config_dir)
    if record.config is None:
        return ClusterConfig(name=record.cluster, executor=record.executor)
    path = Path(record.config)
    if not path.is_file():
        raise UserError(
            f"the cluster config of experiment '{record.expname}', {path}, is gone;"
            " name another with --cluster"
        )
    return parse_cluster_config(path)


def statuses(records: Sequence[Record], where: WhereOptions) -> list[JobStatus]:
    """Return the states of all jobs; one call for each Slurm cluster.

    A cluster that cannot be asked is a warning, and its jobs are of unknown state.
    """
    states = {_key(one): one for one in local_statuses(records)}
    for config in dict.fromkeys(record.config for record in records if record.executor == "slurm"):
        there = [r for r in records if r.executor == "slurm" and r.config == config]
        try:
            answer = open_tunnel(cluster_of(there[0], where)).run(status_script(there)).stdout
        except UserError as error:
            LOG.warning("%s", error)
            answer = ""
        states |= {_key(one): one for one in read_statuses(there, answer)}
    return [states[record.id, job.name] for record in records for job in record.jobs]


def status_script(records: Iterable[Record], *, before: str = "") -> str:
    """Return the script that asks Slurm about all jobs of experiments, after it has done something else."""
    files = {job.slurm_id: state_file(r, job) for r in records for job in r.jobs if job.slurm_id}
    return on_login_node(before + query_script(files))


def read_statuses(records: Iterable[Record], answer: str) -> list[JobStatus]:
    """Return the states of the jobs of experiments from what `status_script` printed."""
    if problem := read_problem(answer):
        LOG.warning("Slurm's controller gave no answer (%s)", problem)
    jobs = {job.slurm_id: (record, job) for record in records for job in record.jobs if job.slurm_id}
    return [JobStatus(*jobs[slurm_id], state) for slurm_id, state in read_answer(answer, jobs).items()]


def local_statuses(records: Iterable[Record]) -> list[JobStatus]:
    """Return the states of the jobs of those experiments that ran, or run, on this machine."""
    return [
        JobStatus(record, job, local_state(record, job))
        for record in records
        if record.executor != "slurm"
        for job in record.jobs
    ]


def _key(one: JobStatus) -> tuple[str, str]:
    return one.record.id, one.job.name


def local_state(record: Record, job: JobRecord) -> JobState:
    """Return the state of a job of this machine, in Slurm's words."""
    life = life_of(record.owner) if record.owner else Life.GONE
    lost = record.state == RUNNING and life is Life.GONE
    folder = Path(record.exp_dir or record.folder) / job.name
    word = _text(folder / STATE_FILE)
    if word == RUNNING and not lost:
        elapsed = duration(max(0.0, time.time() - (folder / STATE_FILE).stat().st_mtime))
        reason = "on another machine" if life is Life.ELSEWHERE else ""
        return JobState(state="RUNNING", outcome=Outcome.ACTIVE, elapsed=elapsed, reason=reason)
    if word and word != RUNNING:
        return left_behind(word, _text(folder / ENDED_FILE))
    if lost:
        return JobState(state="LOST", outcome=Outcome.FAILED, reason="the ns that ran it was killed")
    if record.state == RUNNING:
        return JobState(state="PENDING", outcome=Outcome.ACTIVE, reason="jobs before it")
    reason = f"the experiment had {record.state}"
    return JobState(state="NOT_STARTED", outcome=Outcome.FAILED, reason=reason)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
