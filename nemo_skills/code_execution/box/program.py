"""What runs as the program's process: everything here is at the program's mercy."""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import gc
import io
import json
import linecache
import os
import signal
import socket
import struct
import sys
import threading
import traceback
from types import ModuleType
from typing import Any

from nemo_skills.code_execution.box import isolation
from nemo_skills.code_execution.box.limits import BoxOrder

FILE_NAME = "main.py"
_LENGTH = struct.Struct(">I")


def run_script(order: BoxOrder, code: str, streams: tuple[int, int, int]) -> None:
    """Run a whole program in this process, which ends with it."""
    _prepare(order, streams, keep=())
    try:
        with open(FILE_NAME, "w", encoding="utf-8", errors="surrogatepass") as file:  # noqa: PTH123
            file.write(code)  # child processes of multiprocessing read it
    except OSError:
        pass
    module = _fresh_main(os.path.abspath(FILE_NAME))  # noqa: PTH100
    status = _execute(code, FILE_NAME, module, interactive=False)
    _finish(status)


def run_session(order: BoxOrder, streams: tuple[int, int, int], control: int) -> None:
    """Run cells as they come, with variables kept from one to the next."""
    _prepare(order, streams, keep=(control,))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = _fresh_main(None)
    number = 0
    with socket.socket(fileno=control) as channel:
        while True:
            try:
                code = receive(channel)["code"]
                number += 1
                status = _execute(code, f"cell {number}", module, interactive=True)
                _flush()
                send(channel, {"exit_code": status})
            except KeyboardInterrupt:  # it came a moment too late
                continue
            except (OSError, EOFError):
                _finish(1)


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send a message."""
    body = json.dumps(message).encode()
    channel.sendall(_LENGTH.pack(len(body)) + body)


def receive(channel: socket.socket) -> Any:
    """Receive a message.

    Raises:
        EOFError: the other side is gone.
    """
    return json.loads(_exactly(channel, _LENGTH.unpack(_exactly(channel, _LENGTH.size))[0]))


def _exactly(channel: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = channel.recv(min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _prepare(order: BoxOrder, streams: tuple[int, int, int], keep: tuple[int, ...]) -> None:
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    low = 3
    for kept in sorted(keep):
        os.closerange(low, kept)
        low = kept + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
    isolation.become_program(order)
    _open_streams()
    for name in [name for name in sys.modules if name.partition(".")[0] == "nemo_skills"]:
        del sys.modules[name]
    gc.enable()


def _open_streams() -> None:
    """Give this process streams like those of a new interpreter; what was inherited is another process's."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8", "surrogateescape")
    for name, number in (("stdout", 1), ("stderr", 2)):
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        stream = io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=number == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.__stdin__ = sys.stdin  # type: ignore[misc]


def _fresh_main(path: str | None) -> ModuleType:
    module = ModuleType("__main__")
    if path is not None:
        module.__file__ = path
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv = [FILE_NAME]
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    return module


def _execute(code: str, name: str, module: ModuleType, *, interactive: bool) -> int:
    """Run code; return what would be the exit code."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    try:
        _run(code, name, module, interactive=interactive)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        _report(error, name)
        return 1
    return 0


def _run(code: str, name: str, module: ModuleType, *, interactive: bool) -> None:
    variables = module.__dict__
    tree = ast.parse(code, name)
    last = tree.body.pop() if interactive and tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec", dont_inherit=True), variables)  # noqa: S102
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), variables)  # noqa: S307
        if value is not None:
            print(repr(value))


def _report(error: BaseException, name: str) -> None:
    """Print a traceback that begins with the program's own code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != name:
        trace = trace.tb_next
    try:
        _flush()
        traceback.print_exception(type(error), error, trace)
    except BaseException:  # the program may have broken anything
        os.write(2, f"{type(error).__name__}\n".encode())


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # closed or replaced by the program
            stream.flush()


def _finish(status: int) -> None:
    """End this process as the interpreter would."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException as error:
        traceback.print_exception(error)
    _flush()
    os._exit(status)
