"""The Docker engine of this machine: whether it answers, whose files containers write, its images."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.config import ClusterConfig, Container

LOG = get_logger(__name__)

_BUILD_TAIL = 20
# Found in what `docker` says, in this order, when no engine can be used
_NO_ENGINE = ("permission denied", "Cannot connect to the Docker daemon", "error during connect")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What container command lines need to know of the engine and of its user."""

    user: str | None = None
    """`uid:gid` that processes run as, so that results belong to the user; None: the image's own."""
    groups: tuple[int, ...] = ()
    """Further groups of the user: shared folders are often readable through them only."""
    flags: tuple[str, ...] = ()
    """Options of `docker run` that this engine needs for mounted folders to be usable."""
    images: tuple[tuple[str, str], ...] = ()
    """Container role to the image that runs it."""
    devices: tuple[str, ...] | None = None
    """GPUs that the user may use, from `CUDA_VISIBLE_DEVICES`; None: all."""

    def image(self, role: str) -> str:
        """Return the image of a role."""
        return dict(self.images)[role]


def this_user() -> Engine:
    """Return what the current process decides: its user and its GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = None if visible is None else tuple(filter(None, map(str.strip, visible.split(","))))
    if os.getuid() == 0:
        return Engine(devices=devices)
    groups = tuple(sorted(set(os.getgroups()) - {os.getgid()}))
    return Engine(user=f"{os.getuid()}:{os.getgid()}", groups=groups, devices=devices)


def find_engine() -> Engine:
    """Ask the engine how it treats users and mounted folders.

    Raises:
        UserError: there is no `docker` command, no engine, or no permission to use it.
    """
    done = call("info", "--format", "{{json .SecurityOptions}}")
    if done.returncode:
        raise UserError(_why_no_engine(done.stderr))
    options = {option.partition(",")[0] for option in json.loads(done.stdout) or []}
    engine = this_user()
    if "name=rootless" in options:
        # root inside is the user outside, and every other user is a stranger there
        engine = dataclasses.replace(engine, user=None, groups=())
    flags = []
    if "name=userns" in options:
        flags.append("--userns=host")
    if "name=selinux" in options:
        flags.append("--security-opt=label=disable")
    return dataclasses.replace(engine, flags=tuple(flags))


def provide_images(cluster: ClusterConfig, roles: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return the image of every role; absent ones are pulled, and those of Dockerfiles are built.

    Raises:
        UserError: a role has no image, or it cannot be pulled or built.
    """
    images: dict[str, str] = {}
    provided: dict[Container, str] = {}
    for role in sorted(set(roles)):
        container = cluster.container(role)
        if container not in provided:
            try:
                provided[container] = _provide(container)
            except UserError as error:
                raise UserError(f"cluster config '{cluster.name}': containers.{role}: {error}") from None
        images[role] = provided[container]
    return tuple(images.items())


def image_name(container: Container) -> str:
    """Return the name under which the engine has, or will have, a container's image."""
    if container.kind != "dockerfile":
        return container.ref
    path = Path(container.ref).expanduser().absolute()
    suffix = path.name.partition(".")[2] or path.parent.name
    role = re.sub(r"[^a-z0-9]+", "-", suffix.lower()).removeprefix("nemo-skills").strip("-")
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()
    # without '/': names of this form belong to nobody on Docker Hub
    return f"nemo-skills{'-' if role else ''}{role}:{digest[:12]}"


def call(*args: str) -> "subprocess.CompletedProcess[str]":
    """Run a quick `docker` command; only its absence is an error."""
    try:
        return subprocess.run(["docker", *args], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("executor local needs Docker, but there is no 'docker' command") from None


def _why_no_engine(stderr: str) -> str:
    lines = [line.strip().removeprefix("ERROR: ") for line in stderr.splitlines()]
    for words in _NO_ENGINE:
        for line in lines:
            if words in line:
                hint = " Are you in the group 'docker'?" if words == _NO_ENGINE[0] else ""
                return f"executor local: {line.partition(': Get ')[0]}{hint}"
    return f"executor local: 'docker info' failed: {_last_line(stderr)}"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def _provide(container: Container) -> str:
    name = image_name(container)
    if container.kind == "dockerfile":
        _build(Path(container.ref).expanduser().absolute(), name)
    elif container.kind == "image":
        if call("image", "inspect", "--format={{.Id}}", name).returncode:
            _pull(name)
    else:
        what = f"{container.kind}:{container.ref}".rstrip(":")
        raise UserError(f"'{what}' is not an image or dockerfile:path, which executor local needs")
    return name


def _pull(image: str) -> None:
    LOG.info("pulling %s", image)
    # Docker's own progress bars, where somebody can see them
    visible = sys.stdout.isatty()
    done = subprocess.run(
        ["docker", "pull", image],
        stdout=None if visible else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"cannot pull {image}: {_last_line(done.stderr)}")


def _build(dockerfile: Path, tag: str) -> None:
    """Build an image; Docker's cache makes this quick when nothing has changed.

    Raises:
        UserError: with the end of Docker's output.
    """
    if not dockerfile.is_file():
        raise UserError(f"{dockerfile} does not exist")
    folder = dockerfile.parent
    # Dockerfiles in a folder of that name copy the project around it
    context = folder.parent if folder.name == "dockerfiles" else folder
    LOG.info("building %s from %s", tag, dockerfile)
    # force-rm: else the container of a failed step stays
    options = ["--force-rm", "--network=host", f"--tag={tag}", f"--file={dockerfile}"]
    code, lines = _run_verbose(["docker", "build", *options, str(context)])
    if code:
        said = "".join(f"\n  | {line}" for line in lines)
        raise UserError(f"{dockerfile} cannot be built. The end of Docker's output:{said}")


def _run_verbose(argv: Sequence[str]) -> tuple[int, list[str]]:
    """Run a command, its output at log level debug; returns its exit code and last lines."""
    last: deque[str] = deque(maxlen=_BUILD_TAIL)
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                LOG.debug("%s", line.rstrip())
                last.append(line.rstrip())
        except BaseException:
            process.terminate()
            raise
    return process.returncode, list(last)
