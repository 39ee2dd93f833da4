"""A real Docker engine in one folder, with a base image that needs no registry.

`python -m tests.services.docker` starts one by hand and prints what to export.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from types import TracebackType

from tests.services import rootfs
from tests.services.process import Daemon, ServiceError, program, run

PROGRAMS = ("dockerd", "containerd", "iptables")
BASE_IMAGE = "ns-test-base:latest"


class DockerEngine:
    """dockerd on a socket of its own. `env` (with `DOCKER_HOST`) is the whole environment for clients.

    The only networks are the host's (`--network=host`) and none: a bridge would need the machine's iptables,
    and two engines would fight over them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "docker.socket"
        self.host = f"unix://{self.socket}"
        self.env = {**os.environ, "DOCKER_HOST": self.host, "DOCKER_CONFIG": str(root / "client")}
        # Debian's client, which install.sh brings, rather than a newer one of the machine.
        self.client = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else program("docker")
        self._daemon: Daemon | None = None

    def __enter__(self) -> DockerEngine:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the engine and import the base image."""
        base = rootfs.build_rootfs()
        (self.root / "client").mkdir(parents=True, exist_ok=True)
        folders = [f"--data-root={self.root / 'data'}", f"--exec-root={self.root / 'exec'}"]
        network = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
        options = [f"--host={self.host}", f"--pidfile={self.root / 'pid'}"]
        argv = [program("dockerd"), *folders, *network, *options]
        env = {**os.environ, "TMPDIR": str(self.root)}
        # Its mounts stay its own and go with it, even when it is killed.
        self._daemon = Daemon(argv, self.root / "dockerd.log", env, private_mounts=True)
        self._daemon.wait_ready(lambda: self.docker("version"))
        self.import_image(base, BASE_IMAGE)

    def stop(self) -> None:
        """End the engine and every container."""
        if self._daemon is not None:
            # The engine gives each container 10 s; most first processes ignore SIGTERM.
            with contextlib.suppress(ServiceError):
                if running := self.docker("ps", "--quiet").split():
                    self.docker("rm", "--force", *running)
            self._daemon.stop()
            self._daemon = None

    def processes(self) -> list[int]:
        """Pids of the engine and of everything it started, containers included."""
        return self._daemon.processes() if self._daemon else []

    def docker(self, *args: str) -> str:
        """Standard output of `docker ARGS`, which must succeed."""
        return run([self.client, *args], self.env)

    def import_image(self, folder: Path, name: str) -> None:
        """Make an image of a root folder."""
        tar = subprocess.Popen([program("tar"), "-C", str(folder), "-c", "."], stdout=subprocess.PIPE)
        changes = [f"--change=ENV {key}={value}" for key, value in rootfs.ENVIRONMENT.items()]
        argv = [self.client, "import", *changes, "-", name]
        done = subprocess.run(argv, stdin=tar.stdout, env=self.env, capture_output=True, text=True)
        assert tar.stdout is not None
        tar.stdout.close()
        if tar.wait() or done.returncode:
            raise ServiceError(f"docker import {name}: {done.stderr}")


def main() -> None:
    """Run an engine until Ctrl-C."""
    import tempfile

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ns-docker-"))
        engine = stack.enter_context(DockerEngine(Path(folder)))
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        print(f"export DOCKER_HOST={engine.host}  # image {BASE_IMAGE}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
