"""A NeMo checkpoint as a Hugging Face folder: made once, and found again by the checkpoint's content."""

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nemo_skills.conversion import nemo_to_hf
from nemo_skills.conversion.config import ConvertConfig
from nemo_skills.conversion.inspect import detect_format
from nemo_skills.conversion.nemo_files import files_below
from nemo_skills.conversion.nemo_source import given_files
from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import open_locked
from nemo_skills.core.log import get_logger

LOG = get_logger(__name__)

SUFFIX = ".hf-copies"
"""Of the folder beside a checkpoint that holds copies of it."""
_LAYOUT = "1"
"""To be changed when copies made before are not to be found any more."""
_SAMPLES = 16
_SAMPLE_BYTES = 4096
_POLL_S = 0.5


def hf_copy(checkpoint: Path, hf_model_name: str | None = None) -> Path:
    """Return a folder with the same model in Hugging Face format; a model in that format is its own copy.

    Processes that want the same copy at the same time wait for the one that makes it. A copy gets its name
    when it is complete.

    Args:
        checkpoint: NeMo folder or .nemo file.
        hf_model_name: Folder or hub name of config and tokenizer, if the checkpoint has none.

    Raises:
        UserError: there is no such checkpoint, it cannot be converted, or there is no room for the copy.
    """
    if not checkpoint.exists():
        raise UserError(f"there is no model {checkpoint}")
    if detect_format(checkpoint) == "hf":
        LOG.info("%s is in Hugging Face format already", checkpoint)
        return checkpoint
    name = fingerprint(checkpoint, hf_model_name)
    places = list(_places(checkpoint))
    for place in places:
        if (place / name).is_dir():
            return place / name
    copy = places[-1] / name
    with _locked(copy.with_name(f"{name}.lock")):
        if not copy.is_dir():
            LOG.info("converting %s once, to %s", checkpoint, copy)
            start = time.monotonic()
            nemo_to_hf.convert(
                ConvertConfig(
                    input_model=str(checkpoint), output_model=str(copy), hf_model_name=hf_model_name
                )
            )
            LOG.info("converted in %.1f s", time.monotonic() - start)
    return copy


def fingerprint(checkpoint: Path, hf_model_name: str | None = None) -> str:
    """Return a name for what a checkpoint holds: from sizes, times and samples of all its files."""
    files = [checkpoint] if checkpoint.is_file() else files_below(checkpoint)
    digest = hashlib.sha256(f"{_LAYOUT}\0{hf_model_name}\0".encode())
    for file in [*files, *given_files(hf_model_name)]:
        stat = file.stat()
        place = file.relative_to(checkpoint) if file.is_relative_to(checkpoint) else file.name
        place = "" if file == checkpoint else place
        digest.update(f"{place}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
        with file.open("rb") as data:
            for sample in range(min(_SAMPLES, -(-stat.st_size // _SAMPLE_BYTES))):
                data.seek(sample * max(_SAMPLE_BYTES, stat.st_size // _SAMPLES))
                digest.update(data.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _places(checkpoint: Path) -> Iterator[Path]:
    """Yield folders in which a copy may be, the last one being that in which it is to be made."""
    beside = checkpoint.absolute()
    beside = beside.with_name(f"{beside.name}{SUFFIX}")
    yield beside
    if _can_write(beside):
        return
    for place in _user_folders():
        yield place
        if _can_write(place):
            LOG.info("%s cannot be written: the copy goes to %s", beside.parent, place)
            return
    raise UserError(
        f"nowhere to put a copy of {checkpoint} in Hugging Face format: {place} cannot be written",
        exit_code=1,
    )


def _can_write(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    return False


def _user_folders() -> Iterator[Path]:
    yield Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nemo-skills" / "hf-copies"
    yield _own_temporary_folder()


def _own_temporary_folder() -> Path:
    """Return a folder that nobody else can have filled."""
    folder = Path(tempfile.gettempdir()) / f"nemo-skills-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.getuid() and not folder.is_symlink():
            return folder / "hf-copies"
    return Path(tempfile.mkdtemp(prefix="nemo-skills-"))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for a lock, which the kernel releases when its holder dies, and take it."""
    said = False
    while True:
        try:
            descriptor = open_locked(path)
            break
        except UserError:
            if not said:
                LOG.info("another process converts it: waiting")
            said = True
            time.sleep(_POLL_S)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
