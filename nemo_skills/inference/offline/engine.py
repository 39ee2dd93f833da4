"""How a rank gets its engine: in its own process, or in one of another environment."""

import dataclasses
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.inference.offline.spec import EngineSpec, Item, Result
from nemo_skills.inference.server.family import die_with_launcher

_WORKER = "nemo_skills.inference.offline.worker"
_CODE_DIR = str(Path(__file__).resolve().parents[3])
_END_GRACE_S = 10.0
_log = get_logger(__name__)


class Engine(Protocol):
    """Answers prompts."""

    def answer(self, items: Sequence[Item]) -> list[Result]:
        """Answer a batch. The same batch always gets the same answers, whatever came before it."""

    def close(self) -> None:
        """End what was started."""


def open_engine(spec: EngineSpec, python: str | None, env: Mapping[str, str]) -> Engine:
    """Load a model.

    Args:
        spec: The model and its engine.
        python: Interpreter of the environment that has the engine; None: this process has it.
        env: Environment variables for the engine.

    Raises:
        UserError: the engine is not there, or cannot load the model.
    """
    _log.info("loading %s into %s", spec.model, spec.engine)
    return _LocalEngine(spec, env) if python is None else RemoteEngine(spec, python, env)


class _LocalEngine:
    def __init__(self, spec: EngineSpec, env: Mapping[str, str]) -> None:
        from nemo_skills.inference.offline.text import TextEngine

        # engines read these when they are imported
        os.environ.clear()
        os.environ.update(env)
        self._engine = TextEngine(spec)

    def answer(self, items: Sequence[Item]) -> list[Result]:
        return self._engine.answer(items)

    def close(self) -> None:
        """The process ends with it."""


class RemoteEngine:
    """An engine in a process of its own, which speaks lines of JSON through two pipes."""

    def __init__(self, spec: EngineSpec, python: str, env: Mapping[str, str]) -> None:
        """Start the process and wait until it has loaded the model."""
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        path = os.pathsep.join(filter(None, (_CODE_DIR, env.get("PYTHONPATH"))))
        try:
            self._process = subprocess.Popen(
                [python, "-m", _WORKER, str(theirs_in), str(theirs_out)],
                env={**env, "PYTHONPATH": path},
                pass_fds=(theirs_in, theirs_out),
                preexec_fn=die_with_launcher(),  # noqa: PLW1509
            )
        except OSError as error:
            for descriptor in (ours_in, ours_out):
                os.close(descriptor)
            raise UserError(f"Cannot start engine_python={python}: {error.strerror}.") from None
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._name = spec.engine
        self._requests: BinaryIO = os.fdopen(ours_out, "wb")
        self._replies: BinaryIO = os.fdopen(ours_in, "rb")
        try:
            self._ask({"spec": dataclasses.asdict(spec)})
        except BaseException:
            self.close()
            raise

    def answer(self, items: Sequence[Item]) -> list[Result]:
        """Answer a batch."""
        reply = self._ask({"items": [dataclasses.asdict(item) for item in items]})
        return [Result.of(result) for result in reply["results"]]

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(_END_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self._requests.write(orjson.dumps(message) + b"\n")
            self._requests.flush()
            line = self._replies.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            code = self._process.wait()
            raise UserError(
                f"The process of engine {self._name} ended with exit code {code}; its messages are above."
                " Finished rows are kept.",
                exit_code=1,
            )
        reply: dict[str, Any] = orjson.loads(line)
        if "error" in reply:
            raise UserError(reply["error"], exit_code=reply["exit_code"])
        return reply
