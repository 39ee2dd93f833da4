"""Running commands and moving files where jobs are submitted: on this machine, or over SSH."""

import contextlib
import io
import os
import shlex
import shutil
import stat
import tarfile
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, NamedTuple, Protocol, Self

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster._shell import LOCAL_ARGV, Exchange, ExchangeTimeoutError, Feed, exchange

_MESSAGE_LINES = 5
_CHUNK = 1 << 20


class TunnelError(UserError):
    """The place where jobs are submitted cannot be reached or used."""


class ConnectionLostError(TunnelError):
    """The connection ended before the script did; whether the script ran to its end is unknown."""


class TunnelTimeoutError(TunnelError):
    """A script did not end within its time limit; at a remote end it may still be running."""


class Result(NamedTuple):
    """What a script printed and its exit code."""

    stdout: str
    stderr: str
    code: int


class CommandError(TunnelError):
    """A script ended with a non-zero exit code."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


class Tunnel(Protocol):
    """A shell and a file system at the place where jobs are submitted.

    Paths at that place are absolute, or relative to the folder its shells start in. `put` and `get` take the
    final name of a file, or of a folder whose content is merged into an existing one.
    """

    @property
    def where(self) -> str:
        """The place, as messages name it."""

    def run(
        self,
        script: str,
        *,
        check: bool = True,
        timeout: float | None = None,
        input: bytes | None = None,  # noqa: A002 (as in subprocess)
    ) -> Result:
        """Run a bash script; `input` is its stdin, which is otherwise empty."""

    def put(self, local: Path, remote: str) -> None:
        """Copy a file (atomically, with its mode) or a folder there."""

    def put_bytes(self, data: bytes, remote: str, mode: int = 0o644) -> None:
        """Write a file there, atomically and never readable to more than `mode` says."""

    def get(self, remote: str, local: Path) -> None:
        """Copy a file or a folder from there."""

    def close(self) -> None:
        """End the connection; a later call opens it again."""


def assignments(**values: str | int) -> str:
    """Return shell lines that set variables to exactly these values, to be put before a constant script."""
    return "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in values.items())


# The size is checked because a stream that breaks looks like one that ends
_PUT_FILE = """\
set -eu
mkdir -p -- "$(dirname -- "$target")"
if test -d "$target"; then echo "$target is a folder" >&2; exit 1; fi
part=$(mktemp -- "$target.XXXXXXXX")
trap 'rm -f -- "$part"' EXIT
cat > "$part"
test "$(wc -c < "$part")" -eq "$size" || { echo "the data arrived incomplete" >&2; exit 1; }
chmod "$mode" -- "$part"
mv -f -- "$part" "$target"
"""
_PUT_FOLDER = 'set -eu\nmkdir -p -- "$target"\ntar -xf - -C "$target"\n'
# tar exits with 1 when a file grew while it was read, as logs do
_GET = """\
if test -d "$source"; then set -- -C "$source" .
elif test -e "$source"; then set -- -h -C "$(dirname -- "$source")" -- "./$(basename -- "$source")"
else echo "$source does not exist" >&2; exit 3
fi
tar -cf - "$@" || test $? = 1
"""


class ShellTunnel(ABC):
    """What every tunnel that leads to a bash has in common."""

    @property
    @abstractmethod
    def where(self) -> str:
        """The place, as messages name it."""

    @abstractmethod
    def _argv(self) -> tuple[str, ...]:
        """Return the command that leads to the bootstrap, connecting first where there is need."""

    def _no_shell(self, done: Exchange) -> TunnelError:
        """Explain why no script was started."""
        return TunnelError(f"no bash could be started on {self.where}{_last_lines(done.errors())}")

    def close(self) -> None:  # noqa: B027 (nothing to close is a valid answer)
        """End the connection; a later call opens it again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def run(
        self,
        script: str,
        *,
        check: bool = True,
        timeout: float | None = None,
        input: bytes | None = None,  # noqa: A002 (as in subprocess)
    ) -> Result:
        """Run a bash script; `input` is its stdin, which is otherwise empty.

        Raises:
            CommandError: the exit code is not 0 and `check` is set.
            ConnectionLostError: the connection ended before the script.
            TunnelTimeoutError: the script did not end within `timeout` seconds.
        """
        with contextlib.closing(
            self._exchange(script, _copy_feed(io.BytesIO(input or b"")), timeout)
        ) as done:
            result = Result(done.output().decode(errors="replace"), done.errors(), done.code)
        if check and result.code != 0:
            raise self._failed("a command", result)
        return result

    def put_bytes(self, data: bytes, remote: str, mode: int = 0o644) -> None:
        """Write a file there, atomically and never readable to more than `mode` says."""
        self._put_stream(io.BytesIO(data), len(data), remote, mode)

    def put(self, local: Path, remote: str) -> None:
        """Copy a file (atomically, with its mode) or a folder there."""
        if local.is_dir():
            self._transfer(assignments(target=remote) + _PUT_FOLDER, f"writing {remote}", _tar_feed(local))
            return
        try:
            file = local.open("rb")
        except OSError as error:
            raise UserError(f"cannot read {local}: {error.strerror}") from error
        with file:
            info = os.fstat(file.fileno())
            self._put_stream(file, info.st_size, remote, stat.S_IMODE(info.st_mode))

    def get(self, remote: str, local: Path) -> None:
        """Copy a file or a folder from there."""
        with contextlib.closing(self._exchange(assignments(source=remote) + _GET, None, None)) as done:
            if done.code != 0:
                raise self._failed(f"reading {remote}", Result("", done.errors(), done.code))
            done.stdout.seek(done.start or 0)
            _unpack(done.stdout, local)

    def _put_stream(self, data: IO[bytes], size: int, remote: str, mode: int) -> None:
        script = assignments(target=remote, size=size, mode=f"{mode:04o}") + _PUT_FILE
        self._transfer(script, f"writing {remote}", _copy_feed(data))

    def _transfer(self, script: str, what: str, feed: Feed) -> None:
        with contextlib.closing(self._exchange(script, feed, None)) as done:
            if done.code != 0:
                raise self._failed(what, Result("", done.errors(), done.code))

    def _exchange(self, script: str, feed: Feed | None, timeout: float | None) -> Exchange:
        argv = self._argv()
        try:
            done = exchange(argv, script, feed, timeout)
        except ExchangeTimeoutError:
            raise TunnelTimeoutError(
                f"a command on {self.where} did not end within {timeout:g} seconds"
            ) from None
        except FileNotFoundError as error:
            if error.filename != argv[0]:
                raise
            raise TunnelError(f"the program '{argv[0]}' is not installed on this machine") from None
        if done.end is not None:
            return done
        with contextlib.closing(done):
            if done.start is None:
                raise self._no_shell(done)
            raise self._lost(done)

    def _lost(self, done: Exchange) -> ConnectionLostError:
        return ConnectionLostError(
            f"the connection to {self.where} ended in the middle of a command;"
            f" it is unknown whether the command was completed{_last_lines(done.errors())}"
        )

    def _failed(self, what: str, result: Result) -> CommandError:
        # The script itself is not shown: it may hold a secret
        return CommandError(
            f"{what} on {self.where} failed with exit code {result.code}{_last_lines(result.stderr)}", result
        )


class LocalTunnel(ShellTunnel):
    """The machine this program runs on."""

    @property
    def where(self) -> str:
        """The place, as messages name it."""
        return "this machine"

    def _argv(self) -> tuple[str, ...]:
        return LOCAL_ARGV


def _last_lines(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f": {'; '.join(lines[-_MESSAGE_LINES:])}" if lines else ""


def _copy_feed(data: IO[bytes]) -> Feed:
    def feed(stream: IO[bytes]) -> None:
        shutil.copyfileobj(data, stream, _CHUNK)

    return feed


def _tar_feed(folder: Path) -> Feed:
    def feed(stream: IO[bytes]) -> None:
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            tar.add(folder, arcname=".")

    return feed


def _unpack(stream: IO[bytes], local: Path) -> None:
    """Unpack what `_GET` sent: `.` and below for a folder, else one file, which replaces `local` at once."""
    local.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        first = tar.next()
        assert first is not None
        if first.isdir():
            # Debian 12's Python is older than extraction filters
            tar.extraction_filter = getattr(tarfile, "tar_filter", None)
            tar.extractall(local)  # noqa: S202 (from the user's own account on the cluster)
            return
        content = tar.extractfile(first)
        if content is None:
            raise UserError(f"cannot copy {first.name}: it is neither a file nor a folder")
        with tempfile.NamedTemporaryFile(
            dir=local.parent, prefix=f".{local.name[:32]}.", delete=False
        ) as part:
            try:
                shutil.copyfileobj(content, part, _CHUNK)
                Path(part.name).chmod(first.mode & 0o777)
                Path(part.name).replace(local)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
