"""A tunnel over the system's `ssh` client: one authenticated connection, shared by all calls."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import weakref
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster._shell import REMOTE_COMMAND, Exchange, kill_group
from nemo_skills.pipeline.cluster.tunnel import ShellTunnel, TunnelError

# Room for the name ssh itself appends while it binds; the limit of a socket path is 108 bytes
_LONGEST_FOLDER = 70
_IDLE_SECONDS = 600
_OPTIONS = (
    "BatchMode=yes",
    # Forwardings and commands of the user's config are for terminals; ports may be taken by one of those
    "ClearAllForwardings=yes",
    "RemoteCommand=none",
    "RequestTTY=no",
    # A dead network is noticed within 45 seconds
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
    # Hides banners, keeps every reason for a failure
    "LogLevel=ERROR",
)


class SshTunnel(ShellTunnel):
    """A machine reached over SSH, by the rules of the user's own ssh config (aliases, ProxyJump, keys).

    The first call connects; the connection then serves all calls until `close`, the end of the program, or
    ten idle minutes. A shared connection that the user has opened by hand (`ControlMaster`, as clusters with
    a second factor ask for) is used instead where there is one, and left open.
    """

    def __init__(
        self,
        host: str,
        *,
        user: str | None = None,
        port: int | None = None,
        identity: str | None = None,
        config: Path | None = None,
    ) -> None:
        """Describe the connection; nothing is sent yet.

        Args:
            host: a name, an address or an alias of the ssh config.
            user: account there.
            port: port there.
            identity: private key file; `~` is expanded.
            config: ssh config to use instead of the user's.
        """
        for what, value in (("host", host), ("user", user or "u")):
            if not value or value.startswith("-") or not value.isprintable() or " " in value:
                raise UserError(f"ssh_tunnel.{what} {value!r} is not a valid {what} name")
        self.connect_timeout = 15
        self._host = host
        self._where = f"{user}@{host}" if user else host
        base = ["ssh", "-T", *(f"-o{option}" for option in _OPTIONS)]
        if config is not None:
            base += ["-F", str(config)]
        if user:
            base += ["-l", user]
        if port:
            base += ["-p", str(port)]
        self._identity = Path(identity).expanduser() if identity else None
        if self._identity:
            base += ["-i", str(self._identity), "-oIdentitiesOnly=yes"]
        self._base = tuple(base)
        self._lock = threading.Lock()
        self._starting: _Master | None = None
        self._own: _Master | None = None
        self._shared = False

    @property
    def where(self) -> str:
        """The place, as messages name it."""
        return self._where

    def connect(self) -> None:
        """Connect now; UserError says what is wrong in one line. Does nothing on a living connection."""
        with self._lock:
            if not self._connected:
                self._begin()
            if self._starting:
                master, self._starting = self._starting, None
                self._own = self._started(master)

    def connect_soon(self) -> None:
        """Begin to connect while the caller has other things to do; trouble is told by the first call."""
        with self._lock, contextlib.suppress(UserError):
            if not self._connected:
                self._begin()

    @property
    def _connected(self) -> bool:
        return self._shared or bool(self._starting) or bool(self._own and self._own.alive())

    def _begin(self) -> None:
        if self._identity and not self._identity.is_file():
            raise UserError(f"the ssh key {self._identity} (ssh_tunnel.identity) does not exist")
        self._close()
        try:
            check = [*self._base, "-O", "check", "--", self._host]
            self._shared = subprocess.run(check, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            raise TunnelError("the program 'ssh' is not installed on this machine") from None
        if not self._shared:
            self._starting = self._start_master()

    def close(self) -> None:
        """End the connection, unless it is the user's own; a later call opens it again."""
        with self._lock:
            self._close()

    def forward(self, local_port: int, host: str, port: int) -> None:
        """Let `host:port`, as seen from there, answer on `127.0.0.1:local_port` until the connection ends."""
        self.connect()
        route = f"127.0.0.1:{local_port}:{host}:{port}"
        # The first mention of an option counts; cleared forwardings would include this one
        argv = ["ssh", "-oClearAllForwardings=no", *self._client()[1:], "-O", "forward", "-L", route]
        argv += ["--", self._host]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise TunnelError(f"cannot forward port {local_port} over {self.where}: {reason}")

    def stop_forwarding(self, local_port: int, host: str, port: int) -> None:
        """Undo `forward`: a connection that the user has opened would keep it."""
        route = f"127.0.0.1:{local_port}:{host}:{port}"
        argv = ["ssh", "-oClearAllForwardings=no", *self._client()[1:], "-O", "cancel", "-L", route]
        argv += ["--", self._host]
        subprocess.run(argv, capture_output=True, check=False)

    def _argv(self) -> tuple[str, ...]:
        self.connect()
        return (*self._client(), "--", self._host, REMOTE_COMMAND)

    def _client(self) -> tuple[str, ...]:
        control = ("-oControlMaster=no", f"-oControlPath={self._own.socket}") if self._own else ()
        return (*self._base, f"-oConnectTimeout={self.connect_timeout}", *control)

    def _no_shell(self, done: Exchange) -> TunnelError:
        if done.process_code == 255:
            self._shared = False
            said = done.errors()
            known = any(sign in said for sign, _ in _REASONS)
            return self._explain(said) if known else self._lost(done)
        return super()._no_shell(done)

    def _start_master(self) -> "_Master":
        folder = tempfile.mkdtemp(prefix="ns-ssh-")
        if len(folder.encode()) > _LONGEST_FOLDER:
            Path(folder).rmdir()
            folder = tempfile.mkdtemp(prefix="ns-ssh-", dir="/tmp")
        timeout = f"-oConnectTimeout={self.connect_timeout}"
        return _Master(Path(folder), (*self._base, timeout), self._host)

    def _started(self, master: "_Master") -> "_Master":
        # The handshake of a server behind a jump host has no limit of its own
        reason = master.wait(3 * self.connect_timeout)
        if reason is None:
            return master
        master.close()
        raise self._explain(reason)

    def _explain(self, stderr: str) -> TunnelError:
        return TunnelError(explain_failure(stderr, self._host, self._where))

    def _close(self) -> None:
        for master in (self._starting, self._own):
            if master:
                master.close()
        self._starting, self._own, self._shared = None, None, False


class _Master:
    """The background ssh that holds the connection, in a private folder of its own."""

    def __init__(self, folder: Path, base: tuple[str, ...], host: str) -> None:
        self.socket = folder / "s"
        self._log = folder / "log"
        socket_option = f"-oControlPath={self.socket}"
        start = (*base, "-M", "-N", "-f", socket_option, f"-oControlPersist={_IDLE_SECONDS}", "--", host)
        # stderr is a file: the connection that stays in the background would keep a pipe open for ever
        with self._log.open("wb") as stderr:
            self._process = subprocess.Popen(
                start,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        stop = (*base, socket_option, "-O", "exit", "--", host)
        self._finalizer = weakref.finalize(self, _stop_master, folder, stop, os.getpid(), self._process)

    def wait(self, timeout: float) -> str | None:
        """Wait until the connection is there; returns what ssh said if it will not be."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return "Connection timed out"
        return None if code == 0 and self.alive() else self._log.read_text(errors="replace")

    def alive(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True

    def close(self) -> None:
        self._finalizer()


def _stop_master(folder: Path, stop: tuple[str, ...], owner: int, process: "subprocess.Popen[bytes]") -> None:
    # A forked child must not take down its parent's connection
    if os.getpid() != owner:
        return
    kill_group(process)
    process.wait()
    if (folder / "s").exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(stop, capture_output=True, check=False, timeout=10)
    shutil.rmtree(folder, ignore_errors=True)


_BY_HAND = "Try 'ssh {where}' by hand"
# The first text found in ssh's own words decides: specific ones stand before general ones
_REASONS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key has changed since the last visit. If you know why, forget the old one with "
        "'ssh-keygen -R {host}'; otherwise ask the cluster's administrators",
    ),
    (
        "Host key verification failed",
        f"its host key is not known yet. {_BY_HAND} once and compare the fingerprint",
    ),
    ("Could not resolve hostname", "unknown host. Check ssh_tunnel.host, your ssh config, and VPN or DNS"),
    ("UNPROTECTED PRIVATE KEY", "the private key is readable for others, ssh refuses it. 'chmod 600' it"),
    ("Bad owner or permissions", "ssh refuses its config file: others may write to it"),
    ("Bad configuration option", "ssh does not understand its config file"),
    (
        "Too many authentication failures",
        "the server refused before the right key was tried. Name the key in ssh_tunnel.identity",
    ),
    (
        "Permission denied (",
        "permission denied: wrong user or key, a key whose passphrase nobody typed (run 'ssh-add'), or a "
        f"second factor is asked for. {_BY_HAND}; with a second factor, keep that connection open as "
        "ControlMaster, and it will be used",
    ),
    ("Connection refused", "connection refused: no ssh server answers on that port"),
    ("timed out", "connection timed out. Check the address, VPN and firewalls"),
    ("No route to host", "there is no route to it. Check the address and VPN"),
    ("Network is unreachable", "the network is unreachable. Check your connection and VPN"),
    ("Connection closed", f"the server closed the connection. {_BY_HAND}, or again in a moment"),
    ("Connection reset", f"the server closed the connection. {_BY_HAND}, or again in a moment"),
    ("kex_exchange_identification", f"that port does not speak ssh. {_BY_HAND}"),
)


def explain_failure(stderr: str, host: str, where: str) -> str:
    """Return one line that says why ssh could not connect and what to do, from what ssh itself said."""
    said = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no reason given")
    reason = next((text for sign, text in _REASONS if sign in stderr), _BY_HAND)
    return f"cannot connect to {where}: {reason.format(host=host, where=where)} (ssh: {said})"
