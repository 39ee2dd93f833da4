"""Runs jobs while the wrapper waits, one after the other, as a NeMo-Run experiment."""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import JobFailedError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.launch.plan import Plan
from nemo_skills.pipeline.launch.records import (
    CANCELLED,
    ENDED_FILE,
    FAILED,
    RUNNING,
    STATE_FILE,
    SUCCEEDED,
    UNFINISHED,
    Record,
    new_id,
    require_success,
)
from nemo_skills.pipeline.launch.supervise import Process, run_job, terminal_env

LOG = get_logger(__name__)
_FAILURE_FILE = "failure.json"
"""In the folder of an experiment: what its first job that failed did so with, while others still run."""


@dataclass(frozen=True, kw_only=True)
class LocalProcess:
    """One component as a script of this machine."""

    name: str
    script: str
    log: str
    is_main: bool
    replica: bool = False
    up: str | None = None
    """File that the component creates when it has started, where that takes a moment."""


@dataclass(frozen=True, kw_only=True)
class LocalJob:
    """One job as processes of this machine; plain values only, as NeMo-Run keeps it in its metadata."""

    name: str
    processes: tuple[LocalProcess, ...]
    run_dir: str
    """A fresh folder of this run of the job; marks its processes as such."""
    clean_up: tuple[str, ...] = ()
    """Command that ends what a killed process may leave behind."""
    despite_failure: bool = False
    """Whether it runs although one before it has failed."""
    before_others: bool = False
    """Whether such a job comes after it, so that its own failure does not end the experiment yet."""
    continues: str | None = None
    """Name of the job that it continues if that is not finished."""
    unfinished_code: int | None = None
    """Exit code of a main that is to be continued."""
    continued: bool = False
    """Whether a job follows that does so."""


def new_record(plan: Plan) -> Record:
    """Return the record of an experiment that is about to start.

    Raises:
        UserError: an experiment of `run_after` has not succeeded.
    """
    require_success(plan.options.run_after)
    return Record.of(plan, new_id(plan.expname), state=RUNNING)


@contextmanager
def _own_logging() -> Iterator[None]:
    """Keep our handlers, which blank out secrets: an experiment puts its own in their place."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        # when it is gone it removes the first handler, whichever that is
        root.handlers[:] = [logging.NullHandler(), *handlers]
        root.setLevel(level)
        logging.getLogger("nemo_run").setLevel(logging.WARNING)


def run_experiment(record: Record, jobs: Sequence[LocalJob]) -> Record:
    """Run all jobs and keep the record up to date.

    Raises:
        JobFailedError: a job failed; of the ones after it only those were started that run all the same.
    """
    import nemo_run

    with _own_logging():
        experiment = nemo_run.Experiment(
            record.expname,
            id=record.id,
            executor=nemo_run.LocalExecutor(),
            log_level="WARNING",
            clean_mode=True,
            enable_goodbye_message=False,
            skip_status_at_exit=True,
        )
    record = dataclasses.replace(record, exp_dir=str(_job_folder(jobs[0].run_dir).parent))
    with experiment:
        for job in _with_order(jobs):
            task = nemo_run.Partial(run_local_job, spec=json.dumps(dataclasses.asdict(job)))
            experiment.add(task, name=job.name)
        record.save()
        state = FAILED
        try:
            experiment.run(direct=True)
            _raise_failure(Path(record.exp_dir or ""))
            state = SUCCEEDED
        except (KeyboardInterrupt, SystemExit):
            state = CANCELLED
            raise
        finally:
            record = dataclasses.replace(record, state=state)
            record.save()
    return record


def run_local_job(spec: str) -> None:
    """Run one job, given as the JSON of a `LocalJob`; what NeMo-Run calls."""
    job = json.loads(spec)
    folder = Path(job["run_dir"])
    failure = folder.parents[1] / _FAILURE_FILE
    if failure.exists() and not job["despite_failure"]:
        return
    if job["continues"] and _succeeded(folder.parents[1] / job["continues"]):
        _leave_state(folder.parent, SUCCEEDED, "0 0")
        return
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for process in job["processes"]:
        script = folder / f"{process['name']}.sh"
        script.write_text(process["script"], encoding="utf-8")
        processes.append(
            Process(
                name=process["name"],
                script=script,
                log=Path(process["log"]),
                is_main=process["is_main"],
                replica=process["replica"],
                up=Path(process["up"]) if process["up"] else None,
            )
        )
    env = os.environ | terminal_env() | {"NS_RUN_DIR": job["run_dir"]}
    try:
        with _state_kept(_job_folder(job["run_dir"]), job["unfinished_code"]):
            run_job(job["name"], processes, env, clean_up=job["clean_up"])
    except JobFailedError as error:
        if job["continued"] and error.exit_code == job["unfinished_code"]:
            LOG.info("job %s is not finished; the next one goes on", job["name"])
            return
        if not job["before_others"]:
            _raise_failure(failure.parent)  # the first one tells more
            raise
        LOG.error("%s", error)
        if not failure.exists():
            failure.write_text(json.dumps([str(error), error.exit_code]), encoding="utf-8")


def _with_order(jobs: Sequence[LocalJob]) -> list[LocalJob]:
    return [
        dataclasses.replace(
            job,
            before_others=any(later.despite_failure for later in jobs[place:]),
            continued=any(later.continues == job.name for later in jobs[place:]),
        )
        for place, job in enumerate(jobs, start=1)
    ]


def _raise_failure(folder: Path) -> None:
    """Raise what an earlier job of the experiment in this folder failed with, if one did."""
    path = folder / _FAILURE_FILE
    if path.exists():
        message, code = json.loads(path.read_text(encoding="utf-8"))
        raise JobFailedError(message, exit_code=code)


def _job_folder(run_dir: str) -> Path:
    return Path(run_dir).parent


@contextmanager
def _state_kept(folder: Path, unfinished_code: int | None) -> Iterator[None]:
    """Say in a job's folder how far the job is, in the files that a Slurm batch script leaves."""
    started = time.monotonic()
    _leave_state(folder, RUNNING)
    state, code = FAILED, 1
    try:
        yield
        state, code = SUCCEEDED, 0
    except JobFailedError as error:
        code = error.exit_code
        state = UNFINISHED if code == unfinished_code else FAILED
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        state = CANCELLED
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 130
        raise
    finally:
        _leave_state(folder, state, f"{code} {time.monotonic() - started:.0f}")


def _leave_state(folder: Path, state: str, ended: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if ended:
        (folder / ENDED_FILE).write_text(f"{ended}\n", encoding="utf-8")
    (folder / STATE_FILE).write_text(f"{state}\n", encoding="utf-8")


def _succeeded(folder: Path) -> bool:
    path = folder / STATE_FILE
    return path.exists() and path.read_text(encoding="utf-8").strip() == SUCCEEDED
