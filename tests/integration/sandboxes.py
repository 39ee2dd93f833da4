"""Starts the real sandbox server for tests."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nemo_skills.code_execution import Sandbox
from tests.services.require import require

CANARY = "canary-c0ffee-secret"


@dataclass
class RunningSandbox:
    """A running server and its client."""

    client: Sandbox
    process: subprocess.Popen[str]


@contextmanager
def running_sandbox(*options: str) -> Iterator[RunningSandbox]:
    """Start a server whose environment holds a secret; it ends with the block."""
    argv = [sys.executable, "-m", "nemo_skills.code_execution.server", *options]
    env = {**os.environ, "HF_TOKEN": CANARY}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        if "listens on" not in line:
            require("sandbox", False, process.stderr.read().splitlines()[0])
        yield RunningSandbox(Sandbox(line.split()[-1], connect_timeout_s=1), process)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
