"""Files that one process at a time writes."""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger

_log = get_logger(__name__)


def open_locked(path: Path) -> int:
    """Open `path` for appending and lock it; the locked file is surely still the one of that name.

    Raises:
        UserError: another process holds the lock.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # its former owner finished and removed it between our two calls
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"Another process is writing this output ({path} is locked)."
            " Wait for it, or stop it, then run again."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        _log.warning("The file system of %s has no locks: take care to run one client at a time.", path)
