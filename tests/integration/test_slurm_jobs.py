"""What a job on a real Slurm cluster does: starts, ends, signals, exit codes, nodes and options."""

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_skills.pipeline.launch.plan import Component
from tests.integration.slurm_jobs import SlurmUser, bash, job
from tests.services.process import wait_until

pytestmark = pytest.mark.service("slurm")

DEAF = "trap '' TERM; touch {mark}; while :; do sleep 0.1; done"
"""A server that does not listen to SIGTERM."""


@pytest.fixture
def user(slurm_user: SlurmUser) -> SlurmUser:
    return slurm_user


def q(path: Path) -> str:
    """Quote a path for a script; the folder's name is a nasty one."""
    return shlex.quote(str(path))


def state_of(user: SlurmUser, name: str, expname: str = "exp") -> str:
    return (user.exp_dir(expname) / name / "state").read_text().strip()


def ended(user: SlurmUser, name: str, expname: str = "exp") -> str:
    return (user.exp_dir(expname) / name / "ended").read_text().split()[0]


def seconds_to_end(user: SlurmUser, mark: Path, name: str) -> float:
    """How long the job lived on after its component had left a mark."""
    return (user.exp_dir() / name / "state").stat().st_mtime - mark.stat().st_mtime


# How jobs end


@pytest.mark.parametrize("code", [0, 7])
def test_the_main_decides_and_a_deaf_server_ends_within_two_seconds(user: SlurmUser, code: int) -> None:
    up, mark = user.workspace / "up", user.workspace / "main ended"
    main = f"until [[ -e {q(up)} ]]; do sleep 0.05; done; touch {q(mark)}; exit {code}"
    user.submit(job("exp", bash(DEAF.format(mark=q(up)), "server"), main))
    assert user.wait("exp") == {"exp": "FAILED" if code else "COMPLETED"}
    assert user.cluster.job(user.ids("exp")["exp"])["ExitCode"] == f"{code}:0"
    assert (state_of(user, "exp"), ended(user, "exp")) == ("failed" if code else "succeeded", str(code))
    assert seconds_to_end(user, mark, "exp") < 2.5  # the mark's time is the kernel's, a tick behind


def test_a_server_that_ends_early_lets_the_main_save_its_work(user: SlurmUser) -> None:
    mark = user.workspace / "server ended"
    main = "trap 'echo saving; sleep 0.3; echo saved; exit 3' TERM; while :; do sleep 0.1; done"
    user.submit(job("exp", bash(f"sleep 0.5; touch {q(mark)}; exit 5", "server"), main))
    assert user.wait("exp") == {"exp": "FAILED"}
    assert {"saving", "saved"} <= set(user.log("exp-main").splitlines())
    assert "server ended with exit code 5 while main was running" in user.log("exp-sbatch")
    assert (state_of(user, "exp"), ended(user, "exp")) == ("failed", "3")
    assert seconds_to_end(user, mark, "exp") < 4


def test_a_server_that_leaves_just_before_the_main_is_not_to_blame(user: SlurmUser) -> None:
    mark = user.workspace / "server ended"
    main = f"until [[ -e {q(mark)} ]]; do sleep 0.05; done; sleep 0.5"
    user.submit(job("exp", bash(f"touch {q(mark)}", "server"), main))
    assert user.wait("exp") == {"exp": "COMPLETED"}


def test_a_server_that_ends_well_fails_a_job_that_still_needed_it(user: SlurmUser) -> None:
    user.submit(job("exp", bash("true", "server"), "sleep 60"))
    assert user.wait("exp") == {"exp": "FAILED"}
    assert ended(user, "exp") not in ("", "0")


def test_the_job_goes_on_with_the_replicas_that_are_left(user: SlurmUser) -> None:
    server0 = bash("exit 4", "server0", replica=True, gpus=1)
    server1 = bash("echo $CUDA_VISIBLE_DEVICES; sleep 60", "server1", replica=True, gpus=1)
    user.submit(job("exp", server0, server1, "sleep 1"))
    assert user.wait("exp") == {"exp": "COMPLETED"}
    assert "server0 ended with exit code 4; the job goes on" in user.log("exp-sbatch")
    assert user.log("exp-server1").splitlines()[0] == "0,1"


def test_the_last_replica_ends_the_job(user: SlurmUser) -> None:
    servers = [bash(f"sleep 0.{i}; exit {i}", f"server{i}", replica=True) for i in (2, 4)]
    user.submit(job("exp", *servers, "sleep 60"))
    assert user.wait("exp") == {"exp": "FAILED"}
    assert "server4 ended with exit code 4 while main was running" in user.log("exp-sbatch")


def test_a_warned_main_may_save_its_work_also_when_another_command_would_follow(user: SlurmUser) -> None:
    mark = user.workspace / "up"
    save = f"trap 'sleep 1; echo saved; exit 9' TERM; touch {q(mark)}; while :; do sleep 0.1; done"
    main = Component(name="main", role="nemo-skills", commands=(("bash", "-c", save), ("echo", "never")))
    user.submit(job("exp", bash("sleep 60", "server"), main))
    wait_until("main is up", mark.exists)
    user.warn(user.ids("exp")["exp"])
    assert user.wait("exp") == {"exp": "FAILED"}
    assert state_of(user, "exp") == "timeout"
    assert "saved" in user.log("exp-main")
    assert "never" not in user.log("exp-main")


# Cancelled, requeued, out of time


def secret_file(user: SlurmUser, name: str = "exp") -> Path:
    return user.exp_dir() / name / "secrets.env"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", "canary-of-this-test")
    return "canary-of-this-test"


def test_scancel_leaves_a_state_and_no_secrets(user: SlurmUser, secret: str) -> None:
    mark = user.workspace / "up"
    user.submit(job("exp", f"[[ $HF_TOKEN == {secret} ]] && touch {q(mark)}; sleep 60"))
    wait_until("main is up", mark.exists)
    assert stat.S_IMODE(secret_file(user).stat().st_mode) == 0o600
    user.cluster.command("scancel", str(user.ids("exp")["exp"]))
    assert user.wait("exp") == {"exp": "CANCELLED"}
    wait_until("state", lambda: state_of(user, "exp") == "cancelled")
    assert not secret_file(user).exists()


def test_a_requeued_job_keeps_its_secrets_and_gets_a_fresh_run_folder(user: SlurmUser, secret: str) -> None:
    runs = user.workspace / "runs"
    main = f"echo $HF_TOKEN ${{NS_RUN_DIR##*/}} >> {q(runs)}; [[ -e {q(runs)}.2 ]] || sleep 60"
    user.submit(job("exp", main))
    wait_until("first run", runs.exists)
    job_id = user.ids("exp")["exp"]
    user.cluster.scontrol("requeue", str(job_id))
    (user.workspace / "runs.2").touch()
    user.cluster.release(job_id)
    assert user.wait("exp") == {"exp": "COMPLETED"}
    assert runs.read_text() == f"{secret} run-{job_id}-0\n{secret} run-{job_id}-1\n"
    assert state_of(user, "exp") == "succeeded"
    assert not secret_file(user).exists()


def test_dependents_of_a_failed_job_never_run_and_keep_no_secrets(user: SlurmUser, secret: str) -> None:
    user.submit(
        job("exp", "exit 1"),
        job("next", "touch ran", after=("exp",)),
        job("last", "touch ran", after=("next",)),
    )
    assert user.wait("exp") == {"exp": "FAILED", "next": "CANCELLED", "last": "CANCELLED"}
    assert not list(user.exp_dir().glob("*/secrets.env"))
    assert not list(user.folder.rglob("ran"))


def test_secrets_of_a_job_cancelled_in_the_queue_go_with_the_next_submission(
    user: SlurmUser, secret: str
) -> None:
    user.submit(job("exp", "true"), cluster={"sbatch_options": {"begin": "now+1hour"}})
    assert secret_file(user).exists()
    left = secret_file(user)
    user.submit(job("other", "sleep 1"), expname="other")
    assert left.exists()
    user.cluster.command("scancel", str(user.ids("exp")["exp"]))
    user.wait("exp")
    user.submit(job("third", "true"), expname="third")
    assert not left.exists()


def test_a_warned_main_saves_its_work_and_the_next_part_goes_on(user: SlurmUser, secret: str) -> None:
    work = user.workspace / "work"
    main = (
        'trap \'echo saved >> "$0"; exit 143\' TERM; echo run $HF_TOKEN >> "$0";'
        ' (($(grep -c run "$0") < 3)) || exit 0; while :; do sleep 0.1; done'
    )
    component = bash(main)
    component = type(component)(name="main", role="nemo-skills", commands=(("bash", "-c", main, str(work)),))
    user.submit(
        job("exp", bash("sleep 100", "server"), component),
        job("after", f"echo after >> {q(work)}", after=("exp",)),
        dependent_jobs=3,
    )
    ids = user.ids("exp")
    for number, name in enumerate(["exp", "exp-part2"], 1):
        wait_until(name, lambda number=number: work.exists() and work.read_text().count("run") == number)
        user.warn(ids[name])
    states = user.wait("exp")
    assert work.read_text() == f"run {secret}\nsaved\n" * 2 + f"run {secret}\nafter\n"
    assert states["exp-part3"] == states["exp-part4"] == states["after-part4"] == "COMPLETED"
    assert [state_of(user, name) for name in ("exp", "exp-part2", "exp-part3", "exp-part4")] == [
        *("timeout", "timeout", "succeeded", "succeeded")
    ]
    assert "nothing to continue: the state of job exp-part3 is 'succeeded'" in user.log("exp-part4-sbatch")
    assert not list(user.exp_dir().glob("*/secrets.env"))


def test_nothing_continues_a_job_that_failed_or_was_cancelled(user: SlurmUser) -> None:
    user.submit(job("exp", "exit 6"), job("merge", "true", after=("exp",)), dependent_jobs=2)
    assert user.wait("exp") == {
        "exp": "FAILED",
        "exp-part2": "FAILED",
        "exp-part3": "FAILED",
        **dict.fromkeys(["merge", "merge-part2", "merge-part3"], "CANCELLED"),
    } | {name: user.state(user.ids("exp")[name]) for name in ("merge-part2", "merge-part3")}
    assert not (user.record_folder / "merge-main.log").exists()


# Where jobs run, and with what


def test_a_server_on_two_nodes_and_gpus_of_their_own_for_each_component(user: SlurmUser) -> None:
    show = 'echo "$SLURM_PROCID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"'
    server = bash(f"{show}; sleep 30", "server", nodes=2, tasks_per_node=2, gpus=3)
    user.submit(job("exp", server, f"sleep 0.5; {show}"))
    assert user.wait("exp") == {"exp": "COMPLETED"}
    lines = sorted(line for line in user.log("exp-server").splitlines() if line[:1].isdigit())
    assert lines == [f"{rank} node{1 + rank // 2} 0,1,2" for rank in range(4)]
    assert user.log("exp-main").splitlines()[0].startswith("0 node1")


def test_components_that_each_want_gpus_become_a_heterogeneous_job(user: SlurmUser) -> None:
    mark = user.workspace / "server"
    server = bash(
        f"echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES > {q(mark)}; trap 'echo told; exit 1' TERM;"
        " while :; do sleep 0.1; done",
        "server",
        gpus=2,
    )
    main = bash(
        f"until [[ -s {q(mark)} ]]; do sleep 0.05; done; echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES", gpus=3
    )
    user.submit(job("exp", server, main), not_exclusive=False)
    assert user.wait("exp") == {"exp": "COMPLETED"}
    assert mark.read_text() == "node1 0,1\n"
    assert user.log("exp-main").splitlines()[0] == "node2 0,1,2"
    assert "told" in user.log("exp-server")


def test_options_reach_slurm(user: SlurmUser) -> None:
    user.submit(
        job("cpu", "sleep 30"),
        job("gpu", bash("sleep 30", gpus=1)),
        qos="high",
        time_min="00:01:00",
        not_exclusive=False,
        cluster={
            "account": "other",
            "partition": "batch",
            "cpu_partition": "cpu",
            "timeouts": {"cpu": "00:03:00", "batch": "00:04:00"},
            "job_name_prefix": "team-",
            "mail_user": "me@example.com",
            "mail_type": "FAIL",
            "sbatch_options": {"comment": 'it\'s "mine" 100%', "nice": 5},
        },
    )
    cpu, gpu = (user.cluster.job(user.ids("exp")[name]) for name in ("cpu", "gpu"))
    assert (cpu["Partition"], cpu["TimeLimit"]) == ("cpu", "00:03:00")
    assert (gpu["Partition"], gpu["TimeLimit"]) == ("batch", "00:04:00")
    assert {
        cpu[key] for key in ("JobName", "Account", "QOS", "MailUser", "MailType", "OverSubscribe", "TimeMin")
    } == {*("team-cpu", "other", "high", "me@example.com", "FAIL", "NO", "00:01:00")}
    assert cpu["Requeue"] == "1"
    comment = user.cluster.command("squeue", "-h", f"-j{user.ids('exp')['cpu']}", "-o%k")
    assert comment.strip() == 'it\'s "mine" 100%'


def test_code_is_where_words_say_it_is(user: SlurmUser) -> None:
    user.submit(job("exp", 'python3 /nemo_run/code/tool.py; pwd; echo "$NS_RUN_DIR"; touch here && rm here'))
    assert user.wait("exp") == {"exp": "COMPLETED"}
    tool, folder, run_dir = user.log("exp-main").splitlines()[:3]
    assert tool == "the tool of the user"
    assert folder == user.record("exp").code_dir
    assert Path(run_dir).parent == user.exp_dir("exp") / "exp"


def test_words_arrive_as_they_are(user: SlurmUser) -> None:
    words = ("a'b\"c", "$HOME `id`", "x y\\z", "*", "line\nbreak", "%j", "")
    argv = ("bash", "-c", "printf '<%s>' \"$@\"", "0", *words)
    component = Component(name="main", role="nemo-skills", commands=(argv,))
    user.submit(job("exp", component))
    assert user.wait("exp") == {"exp": "COMPLETED"}
    assert user.log("exp-main") == "".join(f"<{word}>" for word in words)


# Where ns itself runs


def test_a_job_can_submit_jobs(user: SlurmUser, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Slurm tells the job that ns runs in says nothing about the jobs that it submits."""
    monkeypatch.setenv("BACKUP_PASSWORD", "hunter2-hunter2")
    config = user.config()
    (user.workspace / "in.jsonl").write_text('{"question": "x"}\n')
    ns = [
        sys.executable,
        "-m",
        "nemo_skills.pipeline.cli",
        "generate",
        f"--cluster={config}",
        "--server_type=stub",
    ]
    ns += [
        "--model=m",
        f"--input_file={user.path('in.jsonl')}",
        f"--output_dir={user.path('out')}",
        "--expname=inner",
    ]
    ns += ["++prompt_config=generic/default", "--preprocess_cmd=env | sort; exec true"]
    outer = ["srun", "-N2", "-n1", "--ntasks-per-node=1", "--gres=gpu:2", "--time=3", "--partition=cpu", *ns]
    env = os.environ | {"SBATCH_TIMELIMIT": "1", "SLURM_NTASKS": "7", "SQUEUE_FORMAT": "%i"}
    done = subprocess.run(outer, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert user.wait("inner") == {"inner": "COMPLETED"}
    log = (user.workspace / "out/generation-logs/inner-main.log").read_text()
    seen = dict(line.split("=", 1) for line in log.splitlines() if "=" in line)
    assert seen["SLURM_JOB_NUM_NODES"] == seen["SLURM_NTASKS"] == "1"
    assert seen["SLURM_JOB_PARTITION"] == "batch"
    assert "CUDA_VISIBLE_DEVICES" not in seen
    assert "BACKUP_PASSWORD" not in seen
