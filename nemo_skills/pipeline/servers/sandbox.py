"""The sandbox of a job: a component that runs code of the model's beside the main."""

from nemo_skills.pipeline.launch.layout import SANDBOX
from nemo_skills.pipeline.launch.plan import PYTHON, CodePath, Component
from nemo_skills.pipeline.servers.base import LOOPBACK

_LAUNCHER = CodePath("nemo_skills/inference/server/launch.py")
_SERVER = CodePath("nemo_skills/code_execution/server.py")


def sandbox_component() -> Component:
    """Return a sandbox, in the container of its role; the main finds it through the job's folder.

    It listens on loopback only: components without GPUs share a node with the main.
    """
    where = ("--kind", "sandbox", "--name", "sandbox", "--ready-path", "/health", "--advertise", LOOPBACK)
    server = ("python", _SERVER, "--port", "{port}")
    return Component(name="sandbox", commands=((PYTHON, _LAUNCHER, *where, "--", *server),), role=SANDBOX)
