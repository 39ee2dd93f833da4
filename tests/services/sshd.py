"""A real sshd on a loopback port, with throw-away keys, whose sessions see a Slurm cluster."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.services.process import Daemon, free_ports, program, run, wait_until

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync")
HOST = "127.0.0.1"
ALIAS = "ns-test-login"
# Where sshd's unprivileged child is locked up; compiled in, made by Debian's service script.
PRIVILEGE_SEPARATION_DIR = Path("/run/sshd")

SSHD_CONFIG = """\
Port {port}
ListenAddress {host}
HostKey {root}/host_key
PidFile {root}/sshd.pid
AuthorizedKeysFile {root}/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PrintMotd no
# One multiplexed connection may carry many sessions at once.
MaxSessions 100
MaxStartups 100
Subsystem sftp internal-sftp
{environment}
"""

CLIENT_CONFIG = """\
Host {alias}
  HostName {host}
  Port {port}
  User {user}
  IdentityFile {identity}
  IdentitiesOnly yes

Host {alias} {host}
  UserKnownHostsFile {known_hosts}
"""


class SshServer:
    """sshd for the present user; `environment` is set in every session (`SLURM_CONF`, say)."""

    host = HOST
    alias = ALIAS

    def __init__(self, root: Path, environment: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.environment = dict(environment or {})
        self.port = free_ports(1)[0]
        self.user = getpass.getuser()
        self.identity = root / "user_key"
        self.known_hosts = root / "known_hosts"
        self._daemon: Daemon | None = None

    @property
    def config_text(self) -> str:
        """An ssh client configuration that knows the server as `alias`."""
        return CLIENT_CONFIG.format(
            alias=self.alias,
            host=self.host,
            port=self.port,
            user=self.user,
            identity=self.identity,
            known_hosts=self.known_hosts,
        )

    @property
    def env(self) -> dict[str, str]:
        """A client's environment in which ssh libraries and `ssh` itself know the alias and the host key.

        Libraries read `$HOME/.ssh/config`; OpenSSH takes the home from the user database instead, hence an
        `ssh` on the PATH that names the configuration.
        """
        home, path = (
            self.root / "home",
            f"{self.root / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        )
        return {**os.environ, "HOME": str(home), "PATH": path}

    @property
    def config(self) -> Path:
        """`config_text` as a file, for `ssh -F`."""
        return self.root / "ssh_config"

    def __enter__(self) -> SshServer:
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
        """Make keys, start the daemon, wait until a client gets in."""
        self.root.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            PRIVILEGE_SEPARATION_DIR.mkdir(mode=0o755, exist_ok=True)
        for name in ("host_key", "user_key"):
            if not (self.root / name).exists():
                run([program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(self.root / name)])
        (self.root / "authorized_keys").write_text((self.root / "user_key.pub").read_text())
        host_key = (self.root / "host_key.pub").read_text()
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {host_key}")
        self._write_client_files()
        self.start_daemon()

    def _write_client_files(self) -> None:
        self.config.write_text(self.config_text)
        folder = self.root / "home" / ".ssh"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config").write_text(self.config_text)
        (folder / "known_hosts").write_text(self.known_hosts.read_text())
        (self.root / "bin").mkdir(exist_ok=True)
        wrapper = self.root / "bin" / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {program("ssh")} -F {self.config} "$@"\n')
        wrapper.chmod(0o755)

    def start_daemon(self) -> None:
        """Start sshd (again), on the same port with the same keys."""
        pairs = " ".join(f'"{name}={value}"' for name, value in self.environment.items())
        environment = f"SetEnv {pairs}" if pairs else ""
        values = {"port": self.port, "host": self.host, "root": self.root, "environment": environment}
        (self.root / "sshd_config").write_text(SSHD_CONFIG.format(**values))
        # sshd insists on an absolute path, because it runs itself again for every connection.
        argv = [program("sshd"), "-D", "-e", "-f", str(self.root / "sshd_config")]
        self._daemon = Daemon(argv, self.root / "sshd.log")
        self._daemon.wait_ready(lambda: self.run("true") == "")

    def run(self, command: str) -> str:
        """Standard output of a command line run over ssh, which must succeed."""
        return run([program("ssh"), "-F", str(self.config), "-o", "BatchMode=yes", self.alias, command])

    def processes(self) -> list[int]:
        """Pids of the daemon and of all sessions."""
        return self._daemon.processes() if self._daemon else []

    def drop_connections(self) -> None:
        """Cut every open session, as a broken network would; new ones are welcome."""
        daemon = self._daemon
        if daemon is not None:
            daemon.end_offspring()
            wait_until("sessions gone", lambda: daemon.processes() == [daemon.pid])

    def stop(self) -> None:
        """End the daemon and every session."""
        if self._daemon is not None:
            self._daemon.stop()
            self._daemon = None
