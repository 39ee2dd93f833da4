"""Writes planned files as a folder or a tar that appears complete or not at all, and goes on after a kill."""

import hashlib
import io
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

import orjson

from nemo_skills.conversion.byte_ranges import FilePlan, write_plan
from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import check_space, disk_errors, open_locked, write_file
from nemo_skills.core.log import get_logger
from nemo_skills.core.parent import die_with_this_process

LOG = get_logger(__name__)

SOURCES_FILE = "converted_from.json"
"""In a result: what it was made of."""
_SMALL = 1 << 20
_BYTES_PER_PROCESS = 1 << 29
_MOST_PROCESSES = 8


@dataclass(frozen=True, kw_only=True)
class Result:
    """What is to be written."""

    output: Path
    files: Sequence[FilePlan]
    sources: Mapping[str, object]
    """What the result is made of; a result of the same sources is left as it is."""
    processes: int
    check: Callable[[Path], None] | None = None
    """Called with the result before it gets its name; raises if the result is not as it must be."""

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(plan.nbytes for plan in self.files)


@dataclass(frozen=True)
class _Job:
    """A file to write, into a place of its own or a place inside a larger file."""

    plan: FilePlan
    path: Path
    start: int = 0

    def run(self) -> None:
        if self.start:
            write_plan(self.plan, self.path, self.start)
            return
        part = self.path.with_name(f"{self.path.name}.part")
        write_plan(self.plan, part)
        part.replace(self.path)


def number_of_processes(given: int | None, nbytes: int) -> int:
    """Return how many processes write so many bytes."""
    useful = 1 + nbytes // _BYTES_PER_PROCESS
    return given or max(1, min(_MOST_PROCESSES, len(os.sched_getaffinity(0)), useful))


def shard_size(most: int, nbytes: int, processes: int) -> int:
    """Return the size of files that gives each process one, if files may be that large."""
    # with some room for what surrounds the numbers
    return most if processes == 1 else min(most, nbytes // processes + _SMALL)


def describe(path: Path, files: Sequence[Path], settings: Mapping[str, object]) -> dict[str, object]:
    """Return what tells a source, and what is made of it, from others."""
    stats = [(file.name, file.stat()) for file in files]
    entries = [{"name": name, "size": stat.st_size, "time_ns": stat.st_mtime_ns} for name, stat in stats]
    return {"model": str(path.absolute()), "files": entries, "settings": dict(settings)}


def is_done(output: Path, sources: Mapping[str, object]) -> bool:
    """Whether a result of the same sources is there already.

    Raises:
        UserError: something else is there.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    with suppress(OSError, orjson.JSONDecodeError, tarfile.TarError, KeyError):
        if orjson.loads(_read_sources(output)) == sources:
            LOG.info("%s was converted from this already", output)
            return True
    raise UserError(f"{output} exists and was not converted from this; move it away or choose another name")


def _read_sources(output: Path) -> bytes:
    if output.is_dir():
        return (output / SOURCES_FILE).read_bytes()
    with tarfile.open(output, "r:") as tar:
        member = tar.extractfile(f"./{SOURCES_FILE}")
        return member.read() if member else b""


def write_result(result: Result) -> None:
    """Write a result.

    A killed conversion of the same sources goes on with the files that it had not finished. After an error
    nothing is left behind.

    Raises:
        UserError: the disk is full, another process writes the same, or a source cannot be read to its end.
    """
    output, start = result.output, time.monotonic()
    sources = FilePlan(SOURCES_FILE, (orjson.dumps(result.sources, option=orjson.OPT_INDENT_2),))
    files = [*result.files, sources]
    unfinished = output.with_name(f"{output.name}.unfinished")
    with disk_errors(output):
        unfinished.mkdir(parents=True, exist_ok=True)
        with open(open_locked(unfinished / "lock"), "rb"):  # noqa: PTH123  # another process may be at it
            try:
                _write(result, files, unfinished)
            except BaseException as error:
                if isinstance(error, Exception):
                    shutil.rmtree(unfinished, ignore_errors=True)
                raise
            _rename(unfinished / "result", output)
            shutil.rmtree(unfinished)
    seconds, size = time.monotonic() - start, result.nbytes / 1e9
    LOG.info("wrote %s: %.2f GB in %.1f s, %.2f GB/s", output, size, seconds, size / seconds)


def _write(result: Result, files: Sequence[FilePlan], unfinished: Path) -> None:
    _forget_other(unfinished, files)
    is_tar = result.output.suffix == ".nemo"
    target = unfinished / "result"
    jobs = _tar_jobs(files, target) if is_tar else _folder_jobs(files, target)
    check_space(result.output, sum(job.plan.nbytes for job in jobs))
    if len(jobs) < len(files):
        LOG.info("going on with %d of %d files", len(jobs), len(files))
    if is_tar:
        _write_tar_frame(files, target)
    _run(jobs, result.processes)
    if result.check is not None:
        result.check(target)


def _forget_other(unfinished: Path, files: Sequence[FilePlan]) -> None:
    """Remove what a conversion of something else has left."""
    digest = hashlib.sha256()
    for plan in files:
        digest.update(plan.name.encode())
        for part in plan.parts:
            digest.update(part if isinstance(part, bytes) else repr(part).encode())
    mark = unfinished / "plan"
    if not mark.is_file() or mark.read_text() != digest.hexdigest():
        target = unfinished / "result"
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
        write_file(mark, digest.hexdigest().encode())


def _folder_jobs(files: Sequence[FilePlan], target: Path) -> list[_Job]:
    jobs = [_Job(plan, target / plan.name) for plan in files]
    for job in jobs:
        job.path.parent.mkdir(parents=True, exist_ok=True)
    return [job for job in jobs if not (job.path.is_file() and job.path.stat().st_size == job.plan.nbytes)]


def _tar_jobs(files: Sequence[FilePlan], target: Path) -> list[_Job]:
    return [_Job(plan, target, start) for plan, start in zip(files, _tar_frame(files)[1], strict=True)]


def _tar_frame(files: Sequence[FilePlan]) -> tuple[list[tuple[int, bytes]], list[int], int]:
    """Return the headers of a tar with their places, the places of the files, and the size of all."""
    headers: list[tuple[int, bytes]] = []
    starts: list[int] = []
    position = 0
    folders: set[str] = set()
    for plan in files:
        for folder in [str(p) for p in PurePosixPath(plan.name).parents][:-1]:
            if folder not in folders:
                folders.add(folder)
                headers.append((position, _tar_header(folder, 0, tarfile.DIRTYPE)))
                position += len(headers[-1][1])
        headers.append((position, _tar_header(plan.name, plan.nbytes, tarfile.REGTYPE)))
        starts.append(position + len(headers[-1][1]))
        position = starts[-1] + -(-plan.nbytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    end = position + 2 * tarfile.BLOCKSIZE
    return headers, starts, -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _tar_header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(f"./{name}")
    info.size, info.type, info.mtime = size, kind, int(time.time())
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _write_tar_frame(files: Sequence[FilePlan], target: Path) -> None:
    headers, _, size = _tar_frame(files)
    with target.open("wb") as file:
        for start, header in headers:
            file.seek(start, io.SEEK_SET)
            file.write(header)
        file.truncate(size)


def _run(jobs: Sequence[_Job], processes: int) -> None:
    large = [job for job in jobs if job.plan.nbytes > _SMALL]
    side_by_side = min(processes, len(large))
    if side_by_side > 1:
        # copies of this process: a script that calls this needs no guard around its main part
        with ProcessPoolExecutor(
            side_by_side, get_context("fork"), initializer=_begin, initargs=(die_with_this_process(),)
        ) as pool:
            try:
                list(pool.map(_Job.run, large))
            except BrokenProcessPool:
                raise UserError(
                    "a process that wrote files was killed; is memory short?", exit_code=1
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    for job in jobs:
        if side_by_side <= 1 or job.plan.nbytes <= _SMALL:
            job.run()


def _begin(die_with_parent: Callable[[], None]) -> None:
    """Prepare a process that writes: when the one that started it is killed, it must not go on."""
    die_with_parent()
    if "torch" in sys.modules:
        import torch

        # threads of the parent do not exist here, and torch would wait for them
        torch.set_num_threads(1)


def _rename(result: Path, output: Path) -> None:
    if output.is_dir():
        output.rmdir()
    result.rename(output)
