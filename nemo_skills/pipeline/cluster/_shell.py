"""How a script travels to a bash at the other end of a pipe, and how its output comes back.

The script and its input share one stream: a header line `<length> <mark>`, the script, the input. The
command line is the same constant for every script, so nothing a script holds is seen in a process list, no
quoting is lost on the way (whatever the login shell is), and programs in the script cannot eat the rest of
it. The mark is random per call: it separates the script's output from a chatty login shell, and its absence
tells a connection that dropped from a script that failed.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

# Holds no single quote, backslash or '!' so that sh, csh and fish login shells all pass it on unchanged.
# A script that arrives cut off is not run: its last line must be the mark.
_BOOTSTRAP = (
    'read -r ns_n ns_id && ns_s=$(head -c "$ns_n") && test "${ns_s: -32}" = "$ns_id" && echo "$ns_id begin" '
    '&& (eval "unset ns_n ns_id ns_s; ${ns_s%"#$ns_id"}"); ns_n=$?; echo "$ns_id end $ns_n"; exit $ns_n'
)
REMOTE_COMMAND = f"exec bash -c '{_BOOTSTRAP}'"
LOCAL_ARGV = ("bash", "--noprofile", "--norc", "-c", _BOOTSTRAP)

Feed = Callable[[IO[bytes]], None]
"""Writes a script's input to the stream it is given."""

_HEAD = 1 << 20
_TAIL = 1 << 12


@dataclass
class Exchange:
    """What came back: the raw streams, and where in stdout the script's own output lies."""

    stdout: IO[bytes]
    stderr: IO[bytes]
    process_code: int
    start: int | None
    """Offset of the script's output; None when no shell ever started the script."""
    end: int | None
    """Offset behind the script's output; None when the end of the script was never seen."""
    code: int
    """Exit code of the script, or of the carrier when the script's is unknown."""

    def output(self) -> bytes:
        """Return the script's stdout."""
        self.stdout.seek(self.start or 0)
        return self.stdout.read() if self.end is None else self.stdout.read(self.end - (self.start or 0))

    def errors(self) -> str:
        """Return stderr as text."""
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace")

    def close(self) -> None:
        """Drop the streams."""
        self.stdout.close()
        self.stderr.close()


class ExchangeTimeoutError(Exception):
    """The time limit passed; the local end was killed."""


def exchange(argv: Sequence[str], script: str, feed: Feed | None, timeout: float | None) -> Exchange:
    """Start `argv`, which leads to the bootstrap, and hand it a script and its input."""
    if "\0" in script:
        raise ValueError("a script cannot hold a zero byte")
    mark = secrets.token_hex(16)
    body = f"{script}\n#{mark}".encode("utf-8", "surrogateescape")
    # Files instead of pipes: nothing can fill up and block, and a daemon left behind cannot keep us waiting
    stdout = tempfile.TemporaryFile()  # noqa: SIM115 (handed to the caller)
    stderr = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, start_new_session=True
    )
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        kill_group(process)

    timer = threading.Timer(timeout, expire) if timeout is not None else None
    if timer:
        timer.daemon = True
        timer.start()
    assert process.stdin is not None
    try:
        # A script may end without reading its input: only its exit code counts
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{len(body)} {mark}\n".encode() + body)
            if feed:
                feed(process.stdin)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
    except BaseException:
        kill_group(process)
        process.wait()
        raise
    finally:
        if timer:
            timer.cancel()
    result = _parse(stdout, stderr, process.returncode, mark.encode())
    if expired.is_set() and result.end is None:
        result.close()
        raise ExchangeTimeoutError
    return result


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process started in a session of its own, with all its children."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _parse(stdout: IO[bytes], stderr: IO[bytes], process_code: int, mark: bytes) -> Exchange:
    result = Exchange(stdout, stderr, process_code, start=None, end=None, code=process_code)
    stdout.seek(0)
    begin = mark + b" begin\n"
    found = stdout.read(_HEAD).find(begin)
    if found < 0:
        return result
    result.start = found + len(begin)
    size = stdout.seek(0, os.SEEK_END)
    tail_start = max(result.start, size - _TAIL)
    stdout.seek(tail_start)
    tail = stdout.read()
    end = mark + b" end "
    found = tail.rfind(end)
    line, newline, _ = tail[found + len(end) :].partition(b"\n")
    if found >= 0 and newline:
        result.end = tail_start + found
        result.code = int(line)
    return result
