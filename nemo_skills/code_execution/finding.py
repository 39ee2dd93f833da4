"""Finds the sandbox that a main uses: one that is named, or its own job's."""

import os
import time
from pathlib import Path

from nemo_skills.code_execution.client import Sandbox, SandboxUnavailableError
from nemo_skills.core.errors import UserError

_POLL_S = 0.2
READY_S = 300.0
_LAUNCHED_S = 120.0
"""Launchers tell the job at once where they are; only containers that are fetched first take so long."""
_HERE_S = 3.0
_NONE = (
    "Running code needs a sandbox: launch with --with_sandbox, or start one with"
    " python -m nemo_skills.code_execution.server and give its address as sandbox_address."
)


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
        raise UserError(_NONE)
    return _own(Path(folder), ready_timeout_s)


def _own(folder: Path, seconds: float) -> Sandbox:
    from nemo_skills.inference.server.published import read_published

    if _has_none(folder):
        raise UserError(f"This job has no sandbox. {_NONE}")
    started = time.monotonic()
    while (waited := time.monotonic() - started) < seconds:
        found = read_published(folder, "sandbox")
        if not found and waited > _LAUNCHED_S:
            raise UserError(
                f"No sandbox was started in this job within {_LAUNCHED_S:g} s. {_NONE}", exit_code=1
            )
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
    raise UserError(f"The job's sandbox did not answer within {seconds:g} s. {_NONE}", exit_code=1)


def _has_none(folder: Path) -> bool:
    """Tell whether a job surely has no sandbox: on this machine the scripts of all components come first."""
    scripts = {path.stem for path in folder.glob("*.sh")}
    return bool(scripts) and "sandbox" not in scripts


def _client(address: str) -> Sandbox:
    try:
        return Sandbox(address)
    except ValueError as error:
        raise UserError(f"sandbox_address: {error}") from None
