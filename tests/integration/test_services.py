"""The test services themselves: real Slurm, Docker and sshd do what the other tests count on."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.docker import BASE_IMAGE, DockerEngine
from tests.services.process import Daemon, ServiceError, wait_until
from tests.services.slurm import SlurmCluster
from tests.services.sshd import SshServer

REPO = Path(__file__).resolve().parents[2]


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def command_runs(command: str, count: int = 1) -> bool:
    """Whether that many processes run this command line, its words joined by NUL."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += entry.read_text(errors="replace").rstrip("\0") == command
        except OSError:
            continue
    return found >= count


@pytest.fixture
def job_dir() -> Iterator[Path]:
    """Slurm's own options cannot hold every character, so job folders here are plain ones."""
    with tempfile.TemporaryDirectory(prefix="ns-job-") as folder:
        yield Path(folder)


# ---- the guard ----


def test_daemon_takes_double_forked_offspring_along(tmp_path: Path) -> None:
    script = "setsid sh -c 'sleep 1000 & exec sleep 1000' & exec sleep 1000"
    daemon = Daemon(["/bin/sh", "-c", script], tmp_path / "log")
    wait_until("offspring", lambda: len(daemon.processes()) == 3)
    pids = daemon.processes()
    daemon.stop()
    assert gone(pids)
    daemon.stop()


def test_daemon_dies_with_a_killed_parent(tmp_path: Path) -> None:
    code = f"""
import os, signal, time
from pathlib import Path
from tests.services.process import Daemon, wait_until
daemon = Daemon(["/bin/sh", "-c", "setsid sleep 1000 & exec sleep 1000"], Path({str(tmp_path / "log")!r}))
wait_until("offspring", lambda: len(daemon.processes()) == 2)
print(*daemon.processes(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    pids = [int(pid) for pid in done.stdout.split()]
    assert done.returncode == -9 and len(pids) == 2, done.stderr
    wait_until("offspring gone", lambda: gone(pids), timeout_s=10)


def test_daemon_that_dies_early_shows_its_log(tmp_path: Path) -> None:
    daemon = Daemon(["/bin/sh", "-c", "echo no such luck; exit 3"], tmp_path / "log")
    with pytest.raises(ServiceError, match="no such luck"):
        daemon.wait_ready(lambda: False, timeout_s=10)
    daemon.stop()


# ---- Slurm ----


@pytest.mark.service("slurm")
def test_srun_spans_two_nodes_with_gpus(slurm_cluster: SlurmCluster) -> None:
    show = "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
    out = slurm_cluster.command("srun", "-N2", "--gres=gpu:2", "bash", "-c", show)
    assert sorted(out.splitlines()) == ["node1 0,1", "node2 0,1"]


@pytest.mark.service("slurm")
def test_accounting_keeps_jobs(slurm_cluster: SlurmCluster, job_dir: Path) -> None:
    job_id = slurm_cluster.sbatch(f"--output={job_dir}/out", "--wrap=exit 7")
    assert slurm_cluster.wait_job(job_id)["JobState"] == "FAILED"
    ask = ("sacct", "-nXP", "-j", str(job_id), "-o", "State,ExitCode,Account,Partition")
    wait_until("accounted", lambda: slurm_cluster.command(*ask).strip() == "FAILED|7:0|test|batch")


@pytest.mark.service("slurm")
def test_unknown_account_and_too_long_jobs_are_refused(slurm_cluster: SlurmCluster) -> None:
    with pytest.raises(ServiceError, match="Invalid account"):
        slurm_cluster.sbatch("--account=nobody", "--wrap=true")
    with pytest.raises(ServiceError, match="time limit"):
        slurm_cluster.sbatch("--partition=short", "--time=5", "--wrap=true")
    slurm_cluster.command("srun", "--account=other", "--qos=high", "true")


@pytest.mark.service("slurm")
def test_scontrol_requeue_runs_the_job_again(slurm_cluster: SlurmCluster, job_dir: Path) -> None:
    script = job_dir / "script"
    script.write_text(
        f'#!/bin/sh\necho "run ${{SLURM_RESTART_COUNT:-0}}" >> {job_dir}/runs\nexec sleep 300\n'
    )
    job_id = slurm_cluster.sbatch("--requeue", f"--output={job_dir}/out", str(script))
    wait_until("first run", (job_dir / "runs").exists)
    slurm_cluster.scontrol("requeue", str(job_id))
    slurm_cluster.release(job_id)
    wait_until("second run", lambda: (job_dir / "runs").read_text() == "run 0\nrun 1\n")
    slurm_cluster.command("scancel", str(job_id))
    assert slurm_cluster.wait_job(job_id)["JobState"] == "CANCELLED"


@pytest.mark.service("slurm")
def test_urgent_jobs_preempt(slurm_cluster: SlurmCluster, job_dir: Path) -> None:
    victim = slurm_cluster.sbatch("-N2", "--exclusive", f"--output={job_dir}/out", "--wrap=sleep 300")
    slurm_cluster.wait_job(victim, "RUNNING")
    slurm_cluster.command("srun", "--partition=urgent", "true")
    assert slurm_cluster.wait_job(victim, "PENDING")["Restarts"] == "1"
    slurm_cluster.command("scancel", str(victim))


@pytest.mark.service("slurm")
def test_walltime_ends_a_job(slurm_cluster: SlurmCluster, job_dir: Path) -> None:
    script = job_dir / "script"
    script.write_text(f"#!/bin/sh\ntrap 'echo caught > {job_dir}/signal; exit 1' TERM\nsleep 300 & wait\n")
    job_id = slurm_cluster.sbatch("--partition=short", f"--output={job_dir}/out", str(script))
    slurm_cluster.wait_job(job_id, "RUNNING")
    slurm_cluster.expire(job_id)
    assert slurm_cluster.wait_job(job_id, timeout_s=90)["JobState"] == "TIMEOUT"
    assert "DUE TO TIME LIMIT" in (job_dir / "out").read_text()


@pytest.mark.service("slurm")
def test_jobs_of_a_dead_node_are_requeued(slurm_cluster: SlurmCluster, job_dir: Path) -> None:
    job_id = slurm_cluster.sbatch("--requeue", "-w", "node1", f"--output={job_dir}/out", "--wrap=sleep 4321")
    slurm_cluster.wait_job(job_id, "RUNNING")
    wait_until("the job's process", lambda: command_runs("sleep\x004321"))
    slurm_cluster.kill_slurmd("node1")
    assert not command_runs("sleep\x004321")
    slurm_cluster.mark_down("node1")
    slurm_cluster.wait_job(job_id, "PENDING")
    slurm_cluster.start_slurmd("node1")
    slurm_cluster.release(job_id)
    assert slurm_cluster.wait_job(job_id, "RUNNING")["Restarts"] == "1"
    slurm_cluster.command("scancel", str(job_id))


@pytest.mark.service("slurm")
def test_controller_comes_back_with_its_jobs(slurm_cluster: SlurmCluster, job_dir: Path) -> None:
    job_id = slurm_cluster.sbatch(f"--output={job_dir}/out", "--wrap=sleep 300")
    slurm_cluster.wait_job(job_id, "RUNNING")
    slurm_cluster.stop_slurmctld()
    with pytest.raises(ServiceError, match="Unable to contact slurm controller"):
        slurm_cluster.command("squeue")
    slurm_cluster.start_slurmctld()
    assert slurm_cluster.job(job_id)["JobState"] == "RUNNING"
    slurm_cluster.command("scancel", str(job_id))


@pytest.mark.service("slurm")
def test_cluster_without_accounting(slurm_cluster_noacct: SlurmCluster, job_dir: Path) -> None:
    job_id = slurm_cluster_noacct.sbatch("--account=any", f"--output={job_dir}/out", "--wrap=echo hello")
    assert slurm_cluster_noacct.wait_job(job_id)["JobState"] == "COMPLETED"
    assert (job_dir / "out").read_text() == "hello\n"
    with pytest.raises(ServiceError, match="accounting storage is disabled"):
        slurm_cluster_noacct.command("sacct")


@pytest.mark.service("slurm")
def test_nothing_survives_a_cluster(service_root: Path, slurm_cluster_noacct: SlurmCluster) -> None:
    with SlurmCluster(service_root / "short-lived", accounting=False) as cluster:
        cluster.sbatch("--output=/dev/null", "--wrap=setsid sleep 5432 & sleep 5432")
        wait_until("the job's processes", lambda: command_runs("sleep\x005432", count=2))
        pids = cluster.processes()
        assert len(pids) >= 6
    assert gone(pids)
    assert not command_runs("sleep\x005432")
    # The other cluster, at the same time, was left alone.
    slurm_cluster_noacct.command("srun", "true")


# ---- the container plugin ----


def in_container(cluster: SlurmCluster, *options: str, script: str, **env: str) -> str:
    argv = ["srun", *options, "bash", "-c", script]
    done = subprocess.run(argv, env={**cluster.env, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


IMAGE = f"--container-image={BASE_IMAGE}"


@pytest.mark.service("slurm")
@pytest.mark.usefixtures("container_rootfs")
class TestContainerPlugin:
    def test_enters_the_image_on_both_nodes(self, slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
        script = f"pwd; python -c 'import sys; print(sys.executable)'; test -e {tmp_path} || echo hidden"
        out = in_container(slurm_cluster, "-N2", IMAGE, script=script)
        assert sorted(out.split()) == sorted(["/", "/usr/local/bin/python", "hidden"] * 2)

    def test_mounts_hold_any_path_and_flag(self, slurm_cluster: SlurmCluster, weird_tmp_path: Path) -> None:
        source = weird_tmp_path / "data"
        source.mkdir()
        (source / "file").write_text("from outside")
        mounts = f"--container-mounts={source}:/a b/rw,{source}:/ro:ro,{source}/file:/new/file"
        script = (
            "pwd; echo new > rw/out; cat /ro/out /ro/file /new/file; touch /ro/x 2>/dev/null || echo refused"
        )
        out = in_container(slurm_cluster, IMAGE, mounts, "--container-workdir=/a b", script=script)
        assert out == "/a b\nnew\nfrom outsidefrom outsiderefused\n"
        assert sorted(path.name for path in source.iterdir()) == ["file", "out"]

    def test_image_environment_wins_unless_listed(self, slurm_cluster: SlurmCluster) -> None:
        script = 'echo "$NS_TEST_IMAGE,$NS_TEST_OTHER"'
        env = {"NS_TEST_IMAGE": "mine", "NS_TEST_OTHER": "a b"}
        assert in_container(slurm_cluster, IMAGE, script=script, **env) == "base,a b\n"
        listed = "--container-env=FOO,NS_TEST_IMAGE"
        assert in_container(slurm_cluster, IMAGE, listed, script=script, **env) == "mine,a b\n"

    def test_writes_stay_in_the_container(self, slurm_cluster: SlurmCluster, container_rootfs: Path) -> None:
        in_container(slurm_cluster, IMAGE, script='touch /written && test -z "$(ls -A /tmp)"')
        assert not (container_rootfs / "written").exists()
        assert in_container(slurm_cluster, IMAGE, script="ls /written || true") == ""

    def test_named_container_lives_as_long_as_its_job(
        self, slurm_cluster: SlurmCluster, job_dir: Path
    ) -> None:
        script = job_dir / "script"
        lines = [
            "#!/bin/sh",
            f"srun {IMAGE} --container-name=box sh -c 'echo kept > /written'",
            f"srun --container-name=box cat /written > {job_dir}/seen",
        ]
        script.write_text("\n".join(lines))
        job_id = slurm_cluster.sbatch(f"--output={job_dir}/out", str(script))
        state = slurm_cluster.wait_job(job_id)["JobState"]
        assert state == "COMPLETED", (job_dir / "out").read_text()
        assert (job_dir / "seen").read_text() == "kept\n"
        wait_until("state removed", lambda: not list((slurm_cluster.root / "containers").glob(f"{job_id}_*")))

    def test_sqsh_file_may_be_a_tar(self, slurm_cluster: SlurmCluster, job_dir: Path) -> None:
        image = job_dir / "image.sqsh"
        (job_dir / "tiny.c").write_text('#include <stdio.h>\nint main(void) { puts("tiny"); }\n')
        subprocess.run(["gcc", "-static", "-o", job_dir / "tiny", job_dir / "tiny.c"], check=True)
        subprocess.run(["tar", "-C", job_dir, "-cf", image, "tiny"], check=True)
        assert slurm_cluster.command("srun", f"--container-image={image}", "/tiny") == "tiny\n"

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("--container-image=absent:1", "failed to import image absent:1"),
            ("--container-mounts=/no/such:/x", "mount source /no/such"),
            ("--container-workdir=/no/such", "couldn't chdir to /no/such"),
        ],
    )
    def test_mistakes_fail_the_step(self, slurm_cluster: SlurmCluster, option: str, message: str) -> None:
        options = [option] if "image" in option else [IMAGE, option]
        with pytest.raises(ServiceError, match=message):
            slurm_cluster.command("srun", *options, "true")


# ---- Docker ----


@pytest.mark.service("docker")
def test_docker_runs_the_base_image(docker_engine: DockerEngine, weird_tmp_path: Path) -> None:
    source = weird_tmp_path / "data"
    source.mkdir()
    mount = ["--mount", f'"type=bind","source={str(source).replace(chr(34), chr(34) * 2)}","target=/data"']
    script = "import os; open('/data/out', 'w').write(os.environ['NS_TEST_IMAGE'])"
    docker_engine.docker("run", "--rm", "--network=host", *mount, BASE_IMAGE, "python", "-c", script)
    assert (source / "out").read_text() == "base"


@pytest.mark.service("docker")
def test_docker_sdk_finds_the_engine(docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", docker_engine.host)
    client = sdk.from_env()
    out = client.containers.run(BASE_IMAGE, ["python", "-c", "print(6 * 7)"], network="host", remove=True)
    client.close()
    assert out == b"42\n"


@pytest.mark.service("docker")
def test_nothing_survives_an_engine(service_root: Path, docker_engine: DockerEngine) -> None:
    with DockerEngine(service_root / "short-lived-docker") as engine:
        engine.docker("run", "--detach", "--network=host", BASE_IMAGE, "sleep", "6543")
        wait_until("the container", lambda: command_runs("sleep\x006543"))
        pids = engine.processes()
    assert gone(pids)
    assert not command_runs("sleep\x006543")
    assert "short-lived-docker" not in Path("/proc/self/mountinfo").read_text()
    assert BASE_IMAGE in docker_engine.docker("image", "ls", "--format={{.Repository}}:{{.Tag}}")


# ---- sshd ----


@pytest.mark.service("ssh")
def test_sbatch_over_ssh(ssh_server: SshServer, slurm_cluster: SlurmCluster) -> None:
    job_id = int(ssh_server.run("sbatch --parsable --output=/dev/null --wrap=true"))
    assert slurm_cluster.wait_job(job_id)["JobState"] == "COMPLETED"


@pytest.mark.service("ssh")
def test_rsync_over_ssh(ssh_server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "file").write_text("text")
    for name, options in ((ssh_server.alias, ""), (ssh_server.host, f" -p {ssh_server.port}")):
        target = f"{name}:{tmp_path}/to-{name}/"
        shell = f"ssh -i {ssh_server.identity}{options}"
        argv = ["rsync", "-a", "-e", shell, f"{tmp_path}/from/", target]
        subprocess.run(argv, check=True, env=ssh_server.env)
        assert (tmp_path / f"to-{name}" / "file").read_text() == "text"


@pytest.mark.service("ssh")
def test_paramiko_with_the_key_and_the_alias(
    ssh_server: SshServer, slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric = pytest.importorskip("fabric")
    key = {"key_filename": str(ssh_server.identity)}
    with fabric.Connection(ssh_server.host, ssh_server.user, ssh_server.port, connect_kwargs=key) as direct:
        assert direct.run("echo $SLURM_CONF", hide=True, in_stream=False).stdout.strip() == str(
            slurm_cluster.conf
        )
    monkeypatch.setenv("HOME", ssh_server.env["HOME"])
    with fabric.Connection(ssh_server.alias) as named:
        assert "node[1-2]" in named.run("sinfo", hide=True, in_stream=False).stdout
        named.put(__file__, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == Path(__file__).read_bytes()


@pytest.mark.service("ssh")
def test_connections_can_be_cut(ssh_server: SshServer) -> None:
    argv = ["ssh", "-F", str(ssh_server.config), ssh_server.alias, "echo in; exec sleep 300"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None and session.stdout.readline() == "in\n"
        ssh_server.drop_connections()
        assert session.wait(timeout=10) == 255
    assert ssh_server.run("echo back") == "back\n"
