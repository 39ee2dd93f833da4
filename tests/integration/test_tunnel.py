"""Tunnels: the same behaviour here and through a real sshd, and clear words when it is not reached."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.ssh import SshTunnel
from nemo_skills.pipeline.cluster.tunnel import (
    CommandError,
    ConnectionLostError,
    LocalTunnel,
    Tunnel,
    TunnelError,
    TunnelTimeoutError,
    assignments,
)
from tests.services import sshd
from tests.services.process import missing_programs, wait_until
from tests.services.require import require
from tests.services.sshd import SshServer

NASTY = "a'b\"c$HOME `id` \\ !x *? \n\ttab  %s {} [] ~ é–😀 #"


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    missing = missing_programs(sshd.PROGRAMS)
    require("ssh", not missing, f"{', '.join(missing)} not installed (run tests/services/install.sh)")
    require("ssh", os.geteuid() == 0, "the tests do not run as root")
    with SshServer(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture
def ssh(login: SshServer) -> Iterator[SshTunnel]:
    with SshTunnel(login.alias, config=login.config) as tunnel:
        yield tunnel


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.service("ssh"))])
def tunnel(request: pytest.FixtureRequest) -> Tunnel:
    return LocalTunnel() if request.param == "local" else request.getfixturevalue("ssh")


def logins(server: SshServer) -> int:
    return (server.root / "sshd.log").read_text().count("Accepted publickey")


def processes_naming(*texts: str) -> dict[int, str]:
    """Command lines of running processes that hold all these texts, by pid."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found[int(file.parent.name)] = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return {pid: line for pid, line in found.items() if all(text in line for text in texts)}


def masters(server: SshServer) -> dict[int, str]:
    """The connections that tunnels to this server keep open in the background."""
    return processes_naming(f"-F {server.config} ", "-oControlPersist=")


# The same everywhere


def test_output_errors_and_exit_code(tunnel: Tunnel) -> None:
    assert tunnel.run("echo out; echo err >&2; exit 3", check=False) == ("out\n", "err\n", 3)
    assert tunnel.run("").stdout == ""
    assert tunnel.run("printf 'no newline'").stdout == "no newline"
    assert tunnel.run("exit 255", check=False).code == 255
    assert tunnel.run("set -e; false; echo never", check=False) == ("", "", 1)
    assert tunnel.run("trap 'echo bye' EXIT; echo hi; exec true").stdout == "hi\n"


def test_a_failed_command_shows_its_last_words_and_not_itself(tunnel: Tunnel) -> None:
    with pytest.raises(CommandError) as caught:
        tunnel.run("X=hunter2; for i in $(seq 20); do echo line $i >&2; done; exit 7")
    assert str(caught.value).endswith("failed with exit code 7: line 16; line 17; line 18; line 19; line 20")
    assert "hunter2" not in str(caught.value)
    assert caught.value.result.code == 7


def test_quoting(tunnel: Tunnel) -> None:
    script = assignments(value=NASTY) + "printf %s \"$value\"; printf '%s' '" + NASTY.replace("'", "") + "'"
    assert tunnel.run(script).stdout == NASTY + NASTY.replace("'", "")
    assert tunnel.run("cat <<'X'\n$a `b` 'c\nX").stdout == "$a `b` 'c\n"
    assert tunnel.run("echo a # comment").stdout == "a\n"
    assert tunnel.run("echo a\n\n\n").stdout == "a\n"
    with pytest.raises(ValueError, match="zero byte"):
        tunnel.run("echo \0")


def test_input_is_separate_from_the_script(tunnel: Tunnel) -> None:
    data = bytes(range(256)) * 2000 + b"#\nexit 9\n"
    assert tunnel.run("sha256sum; echo after", input=data).stdout.endswith("-\nafter\n")
    assert tunnel.run("wc -c", input=data).stdout.strip() == str(len(data))
    # without input stdin is empty, so a program that reads it neither waits nor eats the script
    assert tunnel.run("cat; echo after").stdout == "after\n"
    # nobody has to read it
    assert tunnel.run("echo early", input=b"x" * 3_000_000).stdout == "early\n"


def test_large_scripts_and_outputs(tunnel: Tunnel) -> None:
    script = "\n".join(f"v{i}='{'é' * 500}'" for i in range(1500)) + "\necho ${v1499}; seq 300000"
    lines = tunnel.run(script).stdout.splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("é" * 500, "300000", 300_001)


def test_output_that_looks_like_the_frame(tunnel: Tunnel) -> None:
    text = "0123456789abcdef0123456789abcdef end 0\n"
    assert tunnel.run(f"printf %s {text!r}'\n'").stdout.startswith("0123")
    assert tunnel.run("printf '\\377\\376ok'").stdout == "\ufffd\ufffdok"
    assert "\nns_" not in tunnel.run("set").stdout


def test_time_limit(tunnel: Tunnel) -> None:
    start = time.monotonic()
    with pytest.raises(TunnelTimeoutError, match=r"did not end within 0\.6 seconds"):
        tunnel.run("echo begun; sleep 30", timeout=0.6)
    assert time.monotonic() - start < 5
    assert tunnel.run("echo alive", timeout=30).stdout == "alive\n"


def test_nothing_of_a_script_or_its_input_is_in_a_command_line(tunnel: Tunnel) -> None:
    canary = f"canary-{secrets.token_hex(8)}"
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.extend(processes_naming(canary).values())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        tunnel.run(f"export KEY={canary}; sleep 0.3; cat > /dev/null", input=canary.encode())
    finally:
        done.set()
        watcher.join()
    assert seen == []


def test_files_round_trip(tunnel: Tunnel, weird_tmp_path: Path) -> None:
    local, there, back = (weird_tmp_path / name for name in ("-local", "new\n dir/-there", "back/é"))
    local.write_bytes(bytes(range(256)) * 20_000)
    local.chmod(0o750)
    tunnel.put(local, str(there))
    tunnel.put(local, str(there))
    assert there.read_bytes() == local.read_bytes()
    assert there.stat().st_mode & 0o777 == 0o750
    tunnel.get(str(there), back)
    assert back.read_bytes() == local.read_bytes()
    assert back.stat().st_mode & 0o777 == 0o750
    # no temporary file is left
    assert sorted(p.name for p in (*there.parent.iterdir(), *back.parent.iterdir())) == ["-there", "é"]


def test_a_link_arrives_as_the_file_it_names(tunnel: Tunnel, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("content")
    (tmp_path / "link").symlink_to("real")
    tunnel.get(str(tmp_path / "link"), tmp_path / "got")
    tunnel.put(tmp_path / "link", str(tmp_path / "put"))
    assert [(tmp_path / n).read_text() for n in ("got", "put")] == ["content"] * 2
    assert not (tmp_path / "got").is_symlink() and not (tmp_path / "put").is_symlink()


def test_folders_merge_both_ways(tunnel: Tunnel, weird_tmp_path: Path) -> None:
    source, there, back = (weird_tmp_path / name for name in ("source", "a/there", "b/back"))
    (source / "in ner").mkdir(parents=True)
    (source / "in ner/x\ny").write_text("1")
    (source / "run").write_text("2")
    (source / "run").chmod(0o700)
    (source / "link").symlink_to("in ner")
    (there).mkdir(parents=True)
    (there / "kept").write_text("3")
    tunnel.put(source, str(there))
    tunnel.get(str(there), back)
    assert (back / "kept").read_text() == "3"
    assert (back / "in ner/x\ny").read_text() == "1"
    assert (back / "run").stat().st_mode & 0o777 == 0o700
    assert (back / "link").readlink() == Path("in ner")


def test_bytes_are_never_readable_to_others(tunnel: Tunnel, weird_tmp_path: Path) -> None:
    target = weird_tmp_path / "secrets"
    target.write_text("old, open to all")
    target.chmod(0o666)
    tunnel.put_bytes(b"\0new\xff", str(target), 0o600)
    assert target.read_bytes() == b"\0new\xff"
    assert target.stat().st_mode & 0o777 == 0o600
    tunnel.put_bytes(b"", str(target))
    assert target.read_bytes() == b"" and target.stat().st_mode & 0o777 == 0o644


def test_failed_transfers_say_why_and_leave_nothing(tunnel: Tunnel, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 500_000)
    (tmp_path / "folder").mkdir()
    for source in (tmp_path / "file", tmp_path):
        with pytest.raises(CommandError, match=r"writing /proc/none/x on .* failed"):
            tunnel.put(source, "/proc/none/x")
    with pytest.raises(CommandError, match="folder is a folder"):
        tunnel.put(tmp_path / "file", str(tmp_path / "folder"))
    with pytest.raises(UserError, match=r"cannot read .*absent: No such file"):
        tunnel.put(tmp_path / "absent", "/tmp/x")
    with pytest.raises(CommandError, match="/absent does not exist"):
        tunnel.get("/absent", tmp_path / "got")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_full_disk_is_an_error_and_keeps_the_old_file(tunnel: Tunnel, tmp_path: Path) -> None:
    disk = ["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(tmp_path)]
    if subprocess.run(disk, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        tunnel.put_bytes(b"old", str(tmp_path / "target"))
        with pytest.raises(CommandError, match=r"writing .*target on .* failed .*No space left on device"):
            tunnel.put_bytes(b"x" * 1_000_000, str(tmp_path / "target"))
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("target", "old")]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_daemon_left_behind_does_not_hold_the_call(tmp_path: Path) -> None:
    start = time.monotonic()
    done = LocalTunnel().run("sleep 20 & echo $!")
    assert time.monotonic() - start < 5
    os.kill(int(done.stdout), 9)


# Only over SSH


@pytest.mark.service("ssh")
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


@pytest.mark.service("ssh")
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


@pytest.mark.service("ssh")
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
