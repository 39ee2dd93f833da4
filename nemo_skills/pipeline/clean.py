"""`ns clean`: removes what old experiments have left, here and on a cluster."""

import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.config import load_cluster_config
from nemo_skills.pipeline.launch.cleaning import Leftover, clean_script, read_leftovers
from nemo_skills.pipeline.launch.experiments import local_statuses
from nemo_skills.pipeline.launch.logdir import local_logs
from nemo_skills.pipeline.launch.records import Record, all_records, nemorun_home
from nemo_skills.pipeline.launch.slurm import job_dir, open_tunnel
from nemo_skills.pipeline.launch.slurm_remote import NO_CONTROLLER
from nemo_skills.pipeline.options import CleanOptions, WhereOptions
from nemo_skills.pipeline.wrapper import wrapper

LOG = get_logger(__name__)

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@wrapper()
def clean(where: WhereOptions, own: CleanOptions) -> list[Leftover]:
    """List what old experiments have left here, and with --cluster on that cluster; --yes removes it.

    That is their folders, the code that only they used, packages, and logs that were given no place by
    --log_dir. Results, and anything of jobs that have not ended, stay.
    """
    before = time.time() - seconds(own.older_than)
    found: list[Leftover] = []
    if where.cluster:
        cluster = load_cluster_config(where.cluster, where.config_dir)
        if cluster.executor == "slurm":
            tunnel = open_tunnel(cluster)
            done = tunnel.run(clean_script(job_dir(cluster), int(before), remove=own.yes), check=False)
            if done.code:
                what = (
                    "Slurm's controller does not answer" if done.code == NO_CONTROLLER else "cannot clean up"
                )
                raise UserError(f"{what} on {tunnel.where}: {done.stderr.strip()}", exit_code=1)
            found = read_leftovers(done.stdout)
    gone = {one.path for one in found if one.kind == "experiment"}
    found += clean_here(before, gone, remove=own.yes)
    _show(found, removed=own.yes)
    return found


def clean_here(before: float, gone: set[str], *, remove: bool) -> list[Leftover]:
    """Find, and perhaps remove, what is older than a time on this machine.

    `gone` are the folders of experiments that were found to be old on a cluster.
    """
    home = nemorun_home().absolute()
    found = []
    kept = []
    for record in all_records():
        if record.executor == "slurm":
            old = record.exp_dir in gone
        else:
            old = int(record.id.rpartition("_")[2]) < before * 1e9
            if old and any(one.active for one in local_statuses([record])):
                found.append(Leftover("busy", str(record.folder), 0))
                old = False
        if not old:
            kept.append(record)
            continue
        found += _drop("experiment", _folders(home, record), remove=remove)
        if remove:
            record.file.unlink(missing_ok=True)
    used = {record.code_dir for record in kept}
    names = {record.expname for record in kept}
    code = [path for path in (home / "ns_code").glob("*") if str(path) not in used]
    logs = [path for path in local_logs().glob("*") if path.name not in names]
    found += _drop("code", _older(code, before), remove=remove)
    found += _drop("package", _older((home / "ns_packages").glob("*"), before), remove=remove)
    found += _drop("logs", _older(logs, before), remove=remove)
    if remove:
        _remove_empty(home)
    return found


def seconds(age: str) -> float:
    """Read an age such as `7d`.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"(\d+)\s*([mhdw])", age.strip())
    if match is None:
        raise UserError(f"--older_than={age}: write a number and m, h, d or w, as in 12h or 7d")
    return float(match[1]) * _UNITS[match[2]]


def _folders(home: Path, record: Record) -> list[Path]:
    found = [record.folder.absolute(), home / "ns_docker" / record.expname / record.id]
    return [path for path in found if path.is_dir()]


def _older(paths: Iterable[Path], before: float) -> Iterator[Path]:
    return (path for path in paths if path.lstat().st_mtime < before)


def _drop(kind: str, paths: Iterable[Path], *, remove: bool) -> list[Leftover]:
    found = []
    for path in sorted(paths):
        what = Leftover(kind, str(path), _kilobytes(path))
        if remove:
            try:
                _remove(path)
            except OSError as error:
                LOG.warning("cannot remove %s: %s", path, error.strerror)
                what = Leftover("failed", str(path), what.kilobytes)
        found.append(what)
    return found


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _kilobytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_blocks for file in files) // 2


def _remove_empty(home: Path) -> None:
    for folder in ("experiments", "ns_docker", "ns_records"):
        for path in (home / folder).glob("*"):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _show(found: Iterable[Leftover], *, removed: bool) -> None:
    found = list(found)
    for one in found:
        note = {"busy": "kept, its jobs have not ended", "failed": "could not be removed"}.get(one.kind)
        print(f"{one.path}  ({note or f'{one.kind}, {_size(one.kilobytes)}'})")
    old = [one for one in found if one.kind not in ("busy", "failed")]
    total = _size(sum(one.kilobytes for one in old))
    print(f"{len(old)} {'removed' if removed else 'found'}, {total}" + _hint(old, removed=removed))


def _hint(old: list[Leftover], *, removed: bool) -> str:
    return "" if removed or not old else "; --yes removes them"


def _size(kilobytes: int) -> str:
    return f"{kilobytes / 1024:.1f} MB" if kilobytes >= 1024 else f"{kilobytes} kB"
