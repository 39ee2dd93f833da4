"""One process's part of a job: its batches, its journal, and if it is the last one the merge.

A batch is a run of neighbouring rows that does not depend on the number of ranks; rank r takes every batch
whose number leaves r when divided by the number of ranks. A batch is done as a whole or again as a whole, so
its answers do not depend on when a job was killed either.
"""

import os
import time
from dataclasses import dataclass, field

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import Journal, Shards
from nemo_skills.core.log import get_logger
from nemo_skills.inference.offline.engine import Engine, open_engine
from nemo_skills.inference.offline.merge import BAD_ROW, EMPTY, TOO_LONG, Counts, Entry, Refusal, merge
from nemo_skills.inference.offline.ranks import Ranks, engine_env, run_ranks
from nemo_skills.inference.offline.session import Identity, Session
from nemo_skills.inference.offline.spec import EngineSpec, Item, Result
from nemo_skills.inference.offline.task import Inputs, Place, Task
from nemo_skills.inference.offline.text import check_model

_SYNC_S = 10.0
_LOG_S = 30.0
_SHOWN = 5
_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a job is computed and spread."""

    spec: EngineSpec
    batch: int
    """Rows that the engine gets together."""
    python: str | None = None
    """Interpreter of the environment that has the engine; None: this one."""
    devices: int | None = None
    """Processes per machine; None: what the launcher has started, or one."""
    nodes: int = 1
    resume: bool = True


def run_offline(task: Task, launch: Launch) -> None:
    """Do this process's part of a job, or as a process that is alone start those that do it.

    Raises:
        UserError: bad input, settings or files; finished rows are kept.
    """
    check_model(launch.spec.model)
    started = Ranks.from_env(os.environ)
    alone = started is None or started.size == 1
    if alone and launch.devices is not None and launch.devices > 1 and launch.nodes == 1:
        run_ranks(launch.devices)
        return
    ranks = _place(started or Ranks(), launch)
    if ranks is None:
        return
    _refuse_same_file(task)
    inputs = Inputs(task, launch.batch)
    restarted = any(os.environ.get(name, "0") not in ("", "0") for name in _RESTARTS)
    identity = Identity(
        ranks=ranks,
        settings=task.settings,
        source=inputs.fingerprint,
        resume=launch.resume or restarted,
    )
    if ranks.rank == 0 and inputs.batch_count < ranks.size:
        _log.warning(
            "%d rows in batches of %d are %d batches for %d processes: make batches smaller to keep all busy",
            *(inputs.total, launch.batch, inputs.batch_count, ranks.size),
        )
    session = Session.join(task.paths, identity)
    if session is None:
        _log.info("Nothing to do: %s is complete.", task.paths.output)
        return
    with session:
        Rank(task=task, launch=launch, ranks=ranks, inputs=inputs, session=session).run()


def _refuse_same_file(task: Task) -> None:
    paths = task.paths
    written = {path.resolve() for path in (paths.output, paths.journal, paths.failed, paths.done)}
    for path in task.source.paths:
        if path.absolute().resolve() in written:
            raise UserError(f"Input and output must differ: {path} would be overwritten.")


def _place(started: Ranks, launch: Launch) -> Ranks | None:
    """Return this process's place among those that drive a model; None when it drives none."""
    shared = launch.spec.tensor_parallel
    if launch.devices is not None:
        if started.size != launch.devices * launch.nodes:
            raise UserError(
                f"{launch.nodes} nodes with {launch.devices} processes each are"
                f" {launch.devices * launch.nodes} processes, but {started.size} were started. Start as many"
                " with torchrun or srun, or give the numbers that are started."
            )
        if launch.devices % shared:
            raise UserError(f"{launch.devices} processes per node cannot share models by {shared}.")
    if started.size == 1:
        return started
    ranks = started.grouped(shared)
    if ranks is None:
        _log.info("process %d lends its GPU to process %d", started.rank, started.rank // shared * shared)
    return ranks


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One of the processes that answer rows."""

    task: Task
    launch: Launch
    ranks: Ranks
    inputs: Inputs
    session: Session

    def run(self) -> None:
        """Answer this rank's rows; the last rank of the job merges."""
        rank, size = self.ranks.rank, self.ranks.size
        journal = Journal.open(self.session.files.journal(rank))
        try:
            if missing := self._missing():
                self._answer(journal, missing)
            else:
                _log.info("rank %d of %d has nothing to do", rank, size)
        finally:
            journal.close()
        lock = self.session.finish(rank, size)
        if lock is not None:
            with lock:
                self._merge()

    def _missing(self) -> dict[int, int]:
        """Check this rank's rows; return its batches that the journals do not hold, and their sizes."""
        missing, bad = {}, 0
        with self._recorded() as shards:
            if shards.found:
                _log.info("going on from %d of %d rows", shards.found, self.inputs.total)
            for number, places in self.inputs.batches(self.ranks):
                if all(shards.has(place.position) for place in places):
                    continue
                missing[number] = len(places)
                for place in places:
                    question = self._question(place)
                    bad += isinstance(question, Refusal)
                    if isinstance(question, Refusal) and bad <= _SHOWN:
                        _log.warning("Row skipped: %s", question.error)
        return missing

    def _recorded(self) -> Shards:
        shards = Shards(self.inputs.checks)
        for path in self.session.files.journals():
            shards.add(path)
        return shards

    def _answer(self, journal: Journal, missing: dict[int, int]) -> None:
        spec = self.launch.spec
        rows = sum(missing.values())
        _log.info("rank %d of %d has %d rows to do", self.ranks.rank, self.ranks.size, rows)
        alone = self.ranks.size * spec.tensor_parallel == 1
        first_gpu = None if alone else self.ranks.local_rank
        env = engine_env(os.environ, first_gpu, spec.tensor_parallel, spec.threads)
        engine = open_engine(spec, self.launch.python, env)
        try:
            progress, synced = _Progress(total=rows), time.monotonic()
            for number, places in self.inputs.batches(self.ranks):
                if number not in missing:
                    continue
                tokens = self._answer_batch(journal, engine, places)
                journal.flush()
                progress.add(len(places), tokens)
                if time.monotonic() - synced > _SYNC_S:
                    journal.sync()
                    synced = time.monotonic()
            journal.sync()
        finally:
            engine.close()

    def _answer_batch(self, journal: Journal, engine: Engine, places: list[Place]) -> int:
        questions = [self._question(place) for place in places]
        asked = [question for question in questions if isinstance(question, Item)]
        results = iter(engine.answer(asked) if asked else ())
        tokens = 0
        for place, question in zip(places, questions, strict=True):
            if isinstance(question, Refusal):
                entry = Entry(Counts(), None, question)
            else:
                result = next(results)
                tokens += sum(answer.tokens for answer in result.answers)
                entry = self._entry(place, result)
            journal.append(place.position, place.line.raw, entry.encode())
        return tokens

    def _question(self, place: Place) -> Item | Refusal:
        try:
            return self.task.item(place.line, place.position)
        except UserError as error:
            if not self.task.skips_bad_rows:
                raise
            return Refusal(BAD_ROW, str(error))

    def _entry(self, place: Place, result: Result) -> Entry:
        if result.refused is None:
            return Entry(Counts.of(result), self.task.row(place.line, result))
        if self.launch.spec.long_prompts == "error":
            raise UserError(f"{place.line.place}: {result.refused}.")
        return Entry(Counts(), None, Refusal(TOO_LONG if result.prompt_tokens else EMPTY, result.refused))

    def _merge(self) -> None:
        with self._recorded() as shards:
            if self.task.paths.done.exists():
                return
            if shards.found < self.inputs.total:
                _log.info("%d rows are still to come from other ranks", self.inputs.total - shards.found)
                return
            merge(self.task, self.inputs, shards)
        self.session.remove_all()


@dataclass(kw_only=True)
class _Progress:
    """Says now and then how far this rank is."""

    total: int
    rows: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    spoken: float = field(default_factory=time.monotonic)

    def add(self, rows: int, tokens: int) -> None:
        self.rows += rows
        self.tokens += tokens
        now = time.monotonic()
        if now - self.spoken < _LOG_S:
            return
        self.spoken = now
        seconds = now - self.started
        _log.info(
            "%d of %d rows of this rank, %.0f tokens/s, about %.0f s left",
            *(self.rows, self.total, self.tokens / seconds, (self.total - self.rows) * seconds / self.rows),
        )
