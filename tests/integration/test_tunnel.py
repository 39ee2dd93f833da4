"""Tunnels behave the same on this machine and through a real sshd."""

import os
import secrets
import subprocess
import threading
import time
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.tunnel import (
    CommandError,
    LocalTunnel,
    Tunnel,
    TunnelTimeoutError,
    assignments,
)
from tests.integration.processes import processes_naming

NASTY = "a'b\"c$HOME `id` \\ !x *? \n\ttab  %s {} [] ~ é–😀 #"


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.service("ssh"))])
def tunnel(request: pytest.FixtureRequest) -> Tunnel:
    return LocalTunnel() if request.param == "local" else request.getfixturevalue("ssh")


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
