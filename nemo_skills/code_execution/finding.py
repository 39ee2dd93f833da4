"""Finds the sandbox that a main uses: one that is named, or its own job's."""

import os
import time
from pathlib import Path

from nemo_skills.code_execution.client import Sandbox, SandboxUnavailableError
from nemo_skills.core.errors import UserError

_POLL_S = 0.2
READY_S = 300.0
_HERE_S = 3.0


def find_sandbox(address: str | None, *, ready_timeout_s: float = READY_S) -> Sandbox:
    """Return a sandbox that answers.

    Args:
        address: where it is; None takes the one that the job started.
        ready_timeout_s: how long it may take to start.

    Raises:
        UserError: there is none.
    """
    if address is not None:
        sandbox = _client(address)
        try:
            sandbox.health(_HERE_S)
        except SandboxUnavailableError as error:
            raise UserError(f"{error}. Start one with python -m nemo_skills.code_execution.server.") from None
        return sandbox
    folder = os.environ.get("NS_RUN_DIR")
    if not folder:
        raise UserError(
            "Running code needs a sandbox: launch with --with_sandbox, or start one with"
            " python -m nemo_skills.code_execution.server and give its address as sandbox_address."
        )
    return _own(Path(folder), ready_timeout_s)


def _own(folder: Path, seconds: float) -> Sandbox:
    from nemo_skills.inference.server.published import read_published

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = read_published(folder, "sandbox")
        if found and found[0].exited:
            raise UserError(f"The job's sandbox is gone: {found[0].obituary()}", exit_code=1)
        if found and found[0].port:
            sandbox = _client(found[0].root)
            try:
                sandbox.health(_POLL_S)
                return sandbox
            except SandboxUnavailableError:
                pass
        time.sleep(_POLL_S)
    raise UserError(
        f"The job's sandbox did not answer within {seconds:g} s. Was it launched with --with_sandbox?",
        exit_code=1,
    )


def _client(address: str) -> Sandbox:
    try:
        return Sandbox(address)
    except ValueError as error:
        raise UserError(f"sandbox_address: {error}") from None
