"""The SSH connection itself: shared, private, reopened, and clear words when there is none."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.ssh import SshTunnel
from nemo_skills.pipeline.cluster.tunnel import (
    ConnectionLostError,
    TunnelError,
)
from tests.integration.processes import processes_naming
from tests.services.process import wait_until
from tests.services.sshd import SshServer

pytestmark = pytest.mark.service("ssh")


def logins(server: SshServer) -> int:
    return (server.root / "sshd.log").read_text().count("Accepted publickey")


def masters(server: SshServer) -> dict[int, str]:
    """The connections that tunnels to this server keep open in the background."""
    return processes_naming(f"-F {server.config} ", "-oControlPersist=")


class TestConnection:
    def test_all_calls_share_one_private_connection(self, login: SshServer) -> None:
        before = logins(login)
        with SshTunnel(login.alias, config=login.config) as tunnel:
            with ThreadPoolExecutor(8) as pool:
                outputs = list(pool.map(lambda i: tunnel.run(f"echo {i}").stdout, range(24)))
            assert outputs == [f"{i}\n" for i in range(24)]
            assert logins(login) - before == 1
            [master] = masters(login).values()
            folder = Path(master.split("-oControlPath=")[1].split()[0]).parent
            assert folder.stat().st_mode & 0o777 == 0o700
        assert not folder.exists()
        wait_until("connection closed", lambda: not processes_naming(str(folder)))

    def test_it_opens_again_after_close(self, ssh: SshTunnel) -> None:
        assert ssh.run("echo 1").stdout == "1\n"
        ssh.close()
        ssh.close()
        assert ssh.run("echo 2").stdout == "2\n"

    def test_user_port_and_identity_without_an_alias(self, login: SshServer, tmp_path: Path) -> None:
        config = tmp_path / "config"
        config.write_text(f"UserKnownHostsFile {login.known_hosts}\n")
        options = {"user": login.user, "port": login.port, "identity": str(login.identity)}
        with SshTunnel(login.host, config=config, **options) as tunnel:
            assert tunnel.run("id -un").stdout == login.user + "\n"
            assert tunnel.where == f"{login.user}@{login.host}"

    def test_jump_host_forwardings_and_commands_of_the_config(self, login: SshServer, tmp_path: Path) -> None:
        config = tmp_path / "config"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            extra = f"  RemoteCommand echo no\n  LocalForward {taken.getsockname()[1]} localhost:1\n"
            inner = login.config_text.replace(login.alias, "inner") + f"  ProxyJump {login.alias}\n{extra}"
            jump = f"  ProxyCommand ssh -F {login.config} -W %h:%p {login.alias}\n"
            config.write_text(login.config_text + inner.replace(f"  ProxyJump {login.alias}\n", jump))
            before = logins(login)
            with SshTunnel("inner", config=config) as tunnel:
                assert tunnel.run("echo through").stdout == "through\n"
            assert logins(login) - before == 2

    def test_a_connection_opened_by_hand_is_used_and_left_open(
        self, login: SshServer, tmp_path: Path
    ) -> None:
        config = tmp_path / "config"
        config.write_text(login.config_text + f"  ControlPath {tmp_path}/hand\n")
        by_hand = ["ssh", "-F", str(config), login.alias]
        subprocess.run([*by_hand, "-MNf"], check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            before = logins(login)
            with SshTunnel(login.alias, config=config) as tunnel:
                assert tunnel.run("echo shared").stdout == "shared\n"
            assert logins(login) == before
            assert subprocess.run([*by_hand, "-Ocheck"], capture_output=True).returncode == 0
        finally:
            subprocess.run([*by_hand, "-Oexit"], capture_output=True)

    def test_dropped_in_the_middle_and_reconnected(
        self, login: SshServer, ssh: SshTunnel, tmp_path: Path
    ) -> None:
        mark = tmp_path / "begun"
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(ssh.run, f"touch {mark}; echo x; sleep 30; echo done")
            wait_until("script begun", mark.exists)
            login.drop_connections()
            with pytest.raises(ConnectionLostError, match="ended in the middle of a command"):
                running.result(timeout=20)
        assert ssh.run("echo back").stdout == "back\n"

    def test_a_transfer_cut_off_leaves_the_old_file(
        self, login: SshServer, ssh: SshTunnel, tmp_path: Path
    ) -> None:
        target = tmp_path / "t"
        target.write_text("old")
        big = tmp_path / "big"
        with big.open("wb") as file:
            file.truncate(40_000_000_000)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(ssh.put, big, str(target))
            wait_until("data flows", lambda: any(p.stat().st_size > 1000 for p in tmp_path.glob("t.*")))
            # the workstation is gone; the shell there sees the data end
            [master] = masters(login)
            os.kill(master, signal.SIGKILL)
            with pytest.raises(ConnectionLostError):
                running.result(timeout=20)
        wait_until("clean", lambda: not list(tmp_path.glob("t.*")))
        assert target.read_text() == "old"

    def test_the_connection_ends_with_the_program(self, login: SshServer, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from nemo_skills.pipeline.cluster.ssh import SshTunnel\n"
            "tunnel = SshTunnel(sys.argv[1], config=Path(sys.argv[2])); print(tunnel.run('echo hi').stdout)"
        )
        argv = [sys.executable, "-c", code, login.alias, str(login.config)]
        done = subprocess.run(
            argv, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True
        )
        assert done.stdout.strip() == "hi", done.stderr
        assert list(tmp_path.glob("ns-ssh-*")) == []
        wait_until("connection closed", lambda: not masters(login))

    def test_a_long_temporary_folder(
        self, login: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        long = tmp_path / ("x" * 120)
        long.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(long))
        with SshTunnel(login.alias, config=login.config) as tunnel:
            assert tunnel.run("echo hi").stdout == "hi\n"
        assert list(long.iterdir()) == []

    def test_forwarded_port(self, ssh: SshTunnel) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            ssh.forward(port, "127.0.0.1", server.getsockname()[1])
            with socket.create_connection(("127.0.0.1", port)) as client:
                peer, _ = server.accept()
                with peer:
                    peer.sendall(b"hello")
                    assert client.recv(5) == b"hello"
            with pytest.raises(TunnelError, match=f"cannot forward port {server.getsockname()[1]}"):
                ssh.forward(server.getsockname()[1], "127.0.0.1", 1)


class TestLoginShells:
    @pytest.fixture
    def forced(self, login: SshServer, tmp_path: Path) -> Iterator[SshTunnel]:
        """A key whose logins go through a command that the test writes to `tmp_path/shell`."""
        key = tmp_path / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        authorized = login.root / "authorized_keys"
        before = authorized.read_text()
        authorized.write_text(before + f'command="{tmp_path}/shell" ' + key.with_suffix(".pub").read_text())
        config = tmp_path / "config"
        config.write_text(login.config_text.replace(str(login.identity), str(key)))
        with SshTunnel(login.alias, config=config) as tunnel:
            yield tunnel
        authorized.write_text(before)

    def shell(self, folder: Path, text: str) -> None:
        (folder / "shell").write_text("#!/bin/bash\n" + text)
        (folder / "shell").chmod(0o755)

    def test_a_chatty_one_does_no_harm(self, forced: SshTunnel, tmp_path: Path) -> None:
        self.shell(tmp_path, 'echo "Welcome end 0"; fortune; sh -c "$SSH_ORIGINAL_COMMAND"; echo bye; exit 4')
        assert forced.run("echo mine; exit 2", check=False)[::2] == ("mine\n", 2)
        (tmp_path / "source").write_bytes(os.urandom(100_000))
        forced.put(tmp_path / "source", str(tmp_path / "there"))
        forced.get(str(tmp_path / "there"), tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / "source").read_bytes()

    def test_a_closed_account(self, forced: SshTunnel, tmp_path: Path) -> None:
        self.shell(tmp_path, "echo This account is not available >&2; exit 1")
        with pytest.raises(TunnelError, match=r"no bash could be started .* This account is not available"):
            forced.run("echo never")

    def test_a_script_that_arrives_cut_off_is_not_run(self, forced: SshTunnel, tmp_path: Path) -> None:
        self.shell(tmp_path, 'head -c 60 | sh -c "$SSH_ORIGINAL_COMMAND"')
        with pytest.raises(TunnelError, match="no bash could be started"):
            forced.run(f"touch {tmp_path}/a{'b' * 100}")
        assert not list(tmp_path.glob("a*"))


class TestErrors:
    def message(self, tunnel: SshTunnel) -> str:
        tunnel.connect_timeout = 1
        with tunnel, pytest.raises(TunnelError) as caught:
            tunnel.run("true")
        text = str(caught.value)
        assert "\n" not in text and text.startswith(f"cannot connect to {tunnel.where}: ")
        return text

    def test_unknown_host(self, login: SshServer) -> None:
        text = self.message(SshTunnel("no-such-host.invalid", config=login.config))
        assert "unknown host. Check ssh_tunnel.host" in text

    def test_refused(self, login: SshServer) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            text = self.message(SshTunnel(login.host, port=unused.getsockname()[1], config=login.config))
        assert "connection refused: no ssh server answers" in text

    def test_wrong_key_or_second_factor(self, login: SshServer, tmp_path: Path) -> None:
        config = tmp_path / "config"
        config.write_text(f"UserKnownHostsFile {login.known_hosts}\nIdentityAgent none\n")
        options = {"port": login.port, "user": login.user, "identity": str(login.root / "host_key")}
        text = self.message(SshTunnel(login.host, config=config, **options))
        assert "permission denied: wrong user or key" in text
        for hint in ("ssh-add", "second factor", f"'ssh {login.user}@{login.host}' by hand", "(publickey)"):
            assert hint in text

    def test_host_key_not_known_or_changed(self, login: SshServer, tmp_path: Path) -> None:
        known, config = tmp_path / "known", tmp_path / "config"
        config.write_text(login.config_text.replace(str(login.known_hosts), str(known)))
        known.touch()
        assert "its host key is not known yet" in self.message(SshTunnel(login.alias, config=config))
        other = (login.root / "user_key.pub").read_text()
        known.write_text(f"[{login.host}]:{login.port} {other}")
        text = self.message(SshTunnel(login.alias, config=config))
        assert "the host key has changed" in text and "ssh-keygen -R" in text

    def test_silent_port_times_out(self, login: SshServer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            text = self.message(SshTunnel(login.host, port=silent.getsockname()[1], config=login.config))
        assert "connection timed out" in text

    def test_a_port_that_hangs_up(self, login: SshServer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def hang_up() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        server.accept()[0].close()

            thread = threading.Thread(target=hang_up, daemon=True)
            thread.start()
            text = self.message(SshTunnel(login.host, port=server.getsockname()[1], config=login.config))
            server.shutdown(socket.SHUT_RDWR)
        assert "closed the connection" in text

    def test_nothing_is_left_after_a_failed_connection(self, login: SshServer, tmp_path: Path) -> None:
        tempdir = tmp_path / "tmp"
        tempdir.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tempfile.tempdir", str(tempdir))
            self.message(SshTunnel("no-such-host.invalid", config=login.config))
        assert list(tempdir.iterdir()) == []

    @pytest.mark.parametrize("host", ["", "-oProxyCommand=touch x", "a b", "a\nb"])
    def test_hosts_that_are_none(self, host: str) -> None:
        with pytest.raises(UserError, match="not a valid host name"):
            SshTunnel(host)
        if host:
            with pytest.raises(UserError, match="not a valid user name"):
                SshTunnel("host", user=host)

    def test_missing_key_or_program(
        self, login: SshServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=r"the ssh key /absent \(ssh_tunnel.identity\) does not exist"):
            SshTunnel(login.alias, identity="/absent", config=login.config).run("true")
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(TunnelError, match="'ssh' is not installed"):
            SshTunnel(login.alias, config=login.config).run("true")


def test_a_connection_begun_in_advance(login: SshServer) -> None:
    before = logins(login)
    with SshTunnel(login.alias, config=login.config) as tunnel:
        tunnel.connect_soon()
        tunnel.connect_soon()
        assert tunnel.run("echo here").stdout == "here\n"
        tunnel.connect_soon()
        assert tunnel.run("echo still").stdout == "still\n"
        assert logins(login) == before + 1


def test_a_connection_begun_and_not_used_is_ended(login: SshServer) -> None:
    tunnel = SshTunnel(login.alias, config=login.config)
    tunnel.connect_soon()
    tunnel.close()
    wait_until("no client", lambda: not masters(login))


def test_trouble_with_a_connection_begun_in_advance_is_told_by_the_first_call(login: SshServer) -> None:
    tunnel = SshTunnel("ns-no-such-host.invalid", config=login.config)
    tunnel.connect_soon()
    with pytest.raises(TunnelError, match="unknown host"):
        tunnel.run("true")
    tunnel = SshTunnel(login.alias, config=login.config, identity="/no/such/key")
    tunnel.connect_soon()
    with pytest.raises(UserError, match="does not exist"):
        tunnel.run("true")
