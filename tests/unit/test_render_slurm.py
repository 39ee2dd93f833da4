"""Batch scripts, component scripts and submissions for Slurm, word for word; and scripts for this machine."""

import dataclasses
import sys

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.config import ClusterConfig, Container
from nemo_skills.pipeline.cluster.env import JobEnv
from nemo_skills.pipeline.cluster.mounts import Mount
from nemo_skills.pipeline.launch import local
from nemo_skills.pipeline.launch.layout import Layout
from nemo_skills.pipeline.launch.plan import PYTHON, Component, Job, Plan, chain
from nemo_skills.pipeline.launch.slurm_batch import EPILOGUE, PROLOGUE
from nemo_skills.pipeline.launch.slurm_queue import Order, submit_calls
from nemo_skills.pipeline.launch.slurm_remote import Answer, Calls, submit_script
from nemo_skills.pipeline.launch.slurm_script import render_job, seconds
from nemo_skills.pipeline.options import JobOptions, ServerOptions
from nemo_skills.pipeline.servers.component import server_components
from tests.golden_files import assert_golden

CONTAINERS = {
    "nemo-skills": "/lustre/containers/nemo-skills.sqsh",
    "vllm": "vllm/vllm-openai:v0.11.0",
    "trtllm": "/lustre/containers/trtllm.sqsh",
    "sandbox": "/lustre/containers/sandbox.sqsh",
}
PYXIS = ClusterConfig(
    name="slurm",
    executor="slurm",
    account="my_account",
    partition="batch",
    cpu_partition="cpu",
    timeouts={"batch": "04:00:00", "cpu": "00:04:00"},
    job_dir="/lustre/me/jobs",
    containers={role: Container.parse(ref) for role, ref in CONTAINERS.items()},
    mounts=(Mount("/lustre/my work", "/workspace"), Mount("/lustre/models", "/hf_models", read_only=True)),
)
BARE = ClusterConfig(
    name="bare",
    executor="slurm",
    container_runtime="none",
    partition="batch",
    job_dir="/shared/it's here/jobs",
    containers={"nemo-skills": Container.parse("venv:/shared/envs/nemo skills")},
)
MAIN = Component(
    name="main",
    commands=((PYTHON, "-m", "nemo_skills.inference.generate", '++prompt_config=it\'s "here"'),),
    role="nemo-skills",
)
SANDBOX = Component(name="sandbox", commands=((PYTHON, "-m", "sandbox"),), role="sandbox")
# the sandbox has no place in BARE's containers: it runs under the node's own python3
LAYOUT = Layout(exp_dir="/lustre/me/jobs/my exp/my exp_1", code_dir="/lustre/me/jobs/code/abc")
BARE_LAYOUT = Layout(exp_dir="/shared/it's here/jobs/exp/exp_1", code_dir="/shared/it's here/jobs/code/abc")


def servers(kind: str, **options: object) -> tuple[Component, ...]:
    return server_components(
        ServerOptions(server_type=kind, model="/hf_models/m", **options),  # type: ignore[arg-type]
        PYXIS,
    )


def plan(*jobs: Job, cluster: ClusterConfig = PYXIS, **options: object) -> Plan:
    return Plan(
        expname="my exp",
        cluster=cluster,
        jobs=jobs,
        log_dir="/workspace/logs",
        options=JobOptions(**options),  # type: ignore[arg-type]
        env=(("PLAIN", "a 'plain' value"),),
    )


def one(*components: Component, **values: object) -> Job:
    return Job(name="my exp-rs0", components=components, **values)  # type: ignore[arg-type]


def text(planned: Plan, layout: Layout = LAYOUT, *, whole: bool = False) -> str:
    """Return all files of all jobs; what is the same in every batch script only where it is asked for."""
    parts = []
    for job in planned.jobs:
        for name, script in render_job(planned, layout, job).files:
            shown = script
            if not whole:
                shown = shown.replace(PROLOGUE, "<prologue>").replace(EPILOGUE, "<epilogue>\n")
            parts.append(f"==== {job.name}/{name}\n{shown}")
    return "".join(parts)


def test_main_alone_with_all_that_batch_scripts_have() -> None:
    assert_golden("slurm/main.txt", text(plan(one(MAIN)), whole=True))


def test_server_and_main() -> None:
    assert_golden("slurm/server.txt", text(plan(one(*servers("vllm", server_gpus=8), MAIN))))


@pytest.mark.parametrize("kind", ["vllm", "trtllm"])
def test_server_on_two_nodes(kind: str) -> None:
    job = one(*servers(kind, server_gpus=8, server_nodes=2), MAIN)
    assert_golden(f"slurm/server_{kind}_2_nodes.txt", text(plan(job)))


def test_replicas() -> None:
    job = one(*servers("vllm", server_gpus=4, server_replicas=2), MAIN)
    assert_golden("slurm/replicas.txt", text(plan(job)))


def test_sandbox() -> None:
    job = one(*servers("vllm", server_gpus=8), SANDBOX, MAIN)
    assert_golden("slurm/sandbox.txt", text(plan(job)))


def test_heterogeneous_job() -> None:
    training = dataclasses.replace(MAIN, nodes=4, tasks_per_node=8, gpus=8)
    job = one(*servers("vllm", server_gpus=2), training)
    assert_golden("slurm/heterogeneous.txt", text(plan(job)))


def test_without_containers() -> None:
    stub = servers("stub")
    main = dataclasses.replace(
        MAIN,
        before=(("bash", "-c", "python /nemo_run/code/prepare.py > /nemo_run/codes"),),
        commands=((PYTHON, "/nemo_run/code/main.py", "--data=/nemo_run/code"),),
    )
    job = one(*stub, main)
    assert_golden("slurm/bare.txt", text(plan(job, cluster=BARE), BARE_LAYOUT))


def test_options() -> None:
    cluster = dataclasses.replace(
        PYXIS,
        qos="low",
        job_name_prefix="team's ",
        mail_user="me@example.com",
        mail_type="FAIL,END",
        sbatch_options={
            "constraint": "h100&ib",
            "--comment": 'a "b" $c',
            "mem-per-cpu": "4G",
            "exclude": "n1",
        },
    )
    options = {"qos": "high", "time_min": "01:00:00", "not_exclusive": True, "partition": "gpu%1"}
    planned = plan(one(*servers("vllm", server_gpus=1), MAIN), cluster=cluster, **options)
    batch = text(planned).split("==== ")[1]
    assert_golden("slurm/options.txt", batch)


FAN_OUT = (
    Job(name="g-chunk0", components=(MAIN,)),
    Job(name="g-chunk1", components=(MAIN,)),
    Job(name="g-merge", components=(MAIN,), after=("g-chunk0", "g-chunk1"), after_ids=("12",)),
    Job(name="g-score", components=(MAIN,), after=("g-merge",), despite_failure=True),
)


def test_dependencies() -> None:
    chained = plan(*chain(FAN_OUT, 1), cluster=dataclasses.replace(PYXIS, dependency_type="afterany"))
    order = Order(plan=chained, layout=LAYOUT, root="/lustre/me/jobs", env=JobEnv(), before=("7", "8"))
    heads = [
        line
        for job in chained.jobs
        for line in dict(render_job(chained, LAYOUT, job).files)["job.sbatch"].splitlines()
        if line.startswith(("job_dir=", "previous=", "next=", "doomed="))
    ]
    assert_golden("slurm/dependencies.txt", "\n".join([*submit_calls(order), "", *heads]) + "\n")


def test_submission() -> None:
    calls = Calls(
        root="/lustre/me/jobs",
        exp_dir=LAYOUT.exp_dir,
        folders=("/lustre/my work/logs", "/lustre/my work/out"),
        code_dir=LAYOUT.code_dir,
        submit=("submit 'my exp'",),
        secret_names=("MY_ODD_ONE",),
        replaces=("3",),
    )
    assert_golden("slurm/submission.txt", submit_script(calls))


def test_this_machine() -> None:
    cluster = ClusterConfig(containers={"nemo-skills": Container.parse("venv:/envs/nemo skills")})
    stub, *_ = server_components(ServerOptions(server_type="stub", model="m"), cluster)
    main = dataclasses.replace(MAIN, before=(("bash", "-c", "echo 'first'"),), env=(("OWN", "1"),))
    planned = plan(one(stub, main), cluster=cluster)
    scripts = "".join(f"==== {file.name}\n{file.text}" for job in local.render(planned) for file in job.files)
    repository = local.__file__.partition("/nemo_skills/")[0]
    assert_golden("none/server.txt", scripts.replace(repository, "REPOSITORY"))
    plain = plan(
        one(dataclasses.replace(MAIN, commands=((PYTHON, "/nemo_run/code/x.py"),))), cluster=ClusterConfig()
    )
    script = local.render(plain)[0].files[0].text
    assert "/nemo_run/code" not in script
    assert sys.executable in script


# The pure parts


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [
        *(("90", 5400), ("1:30", 90), ("1:00:00", 3600), ("2-12", 216_000), ("1-0:30", 88_200)),
        *(("1-00:00:10", 86_410), ("UNLIMITED", None), ("infinite", None), ("soon", None)),
    ],
)
def test_time_limits(limit: str, wanted: int | None) -> None:
    assert seconds(limit) == wanted


@pytest.mark.parametrize(
    ("limit", "warning"),
    [("00:01:00", 15), ("00:04:00", 60), ("04:00:00", 120), ("UNLIMITED", 120), (None, 120)],
)
def test_the_warning_comes_late_in_a_short_job(limit: str | None, warning: int) -> None:
    cluster = dataclasses.replace(BARE, default_timeout=limit)
    planned = plan(one(MAIN), cluster=cluster)
    assert f"#SBATCH --signal=B:USR1@{warning}\n" in text(planned, BARE_LAYOUT)


def test_no_secret_is_in_what_is_rendered() -> None:
    planned = plan(one(*servers("vllm", server_gpus=8), SANDBOX, MAIN))
    scripts = dict(render_job(planned, LAYOUT, planned.jobs[0]).files)
    assert ". /nemo_run/job/secrets.env" in scripts["main.sh"]
    assert ". /nemo_run/job/secrets.env" in scripts["server.sh"]
    assert "secrets.env" not in scripts["sandbox.sh"]


@pytest.mark.parametrize("name", ["a/b", "-x", ".hidden", "", "a\nb", "a'b", "a,b", "a\\b"])
def test_names_that_no_folder_or_job_should_have(name: str) -> None:
    with pytest.raises(UserError, match="--expname="):
        Plan(expname=name, cluster=BARE, jobs=(), log_dir="/logs")


@pytest.mark.parametrize(
    ("line", "active"),
    [
        ("RUNNING\tNone\trunning\twhole", True),
        ("PENDING\tDependency\tqueued\twhole", True),
        ("PENDING\tDependencyNeverSatisfied\tqueued\twhole", False),
        ("PENDING\tJobHeldUser\tqueued\tpart", False),
        ("PENDING\tBeginTime\trunning\twhole", True),
        ("COMPLETING\tNone\tcancelled\twhole", False),
        ("COMPLETING\tNone\trunning\twhole", True),
    ],
)
def test_which_jobs_of_the_queue_still_write(line: str, active: bool) -> None:
    answer = Answer.read(f"noise\nwriter\t17\t{line}\t/jobs/exp/exp_1/exp-chunk0\t/out/a|b.jsonl\n")
    (writer,) = answer.writers
    assert (writer.job.id, writer.job.job, writer.job.expname) == ("17", "exp-chunk0", "exp")
    assert writer.path == "/out/a|b.jsonl"
    assert writer.active is active
