"""`ns run_cmd`: what counts as a command, and the plan of its one job."""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline import cli
from nemo_skills.pipeline.cluster.config import ClusterConfig, Container
from nemo_skills.pipeline.launch.layout import host_path
from nemo_skills.pipeline.launch.logdir import default_log_dir
from nemo_skills.pipeline.launch.plan import PYTHON, Argv, CodePath, Plan
from nemo_skills.pipeline.launch.render import Site, render_argv
from nemo_skills.pipeline.options import CommandOptions, HookOptions, JobOptions, ServerOptions
from nemo_skills.pipeline.run_cmd import Request, plan_command, read_command
from nemo_skills.pipeline.wrapper import Context, wrap_arguments

HERE = ClusterConfig()
SLURM = ClusterConfig(name="s", executor="slurm", job_dir="/jobs", container_runtime="none")
DOCKER = ClusterConfig(
    name="d", executor="local", containers={"nemo-skills": Container(kind="image", ref="image")}
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@pytest.mark.parametrize(
    ("ctx", "argv"),
    [
        (Context(("ls", "-l", "a b")), ("ls", "-l", "a b")),
        (Context(("ls -l && pwd",)), ("bash", "-c", "ls -l && pwd")),
        (Context(("ls",)), ("bash", "-c", "ls")),
        (Context(("python", "x.py", "++a=[b]")), (PYTHON, "x.py", "++a=[b]")),
        (Context(("env", "python", "x.py")), ("env", "python", "x.py")),
        (wrap_arguments("python x.py ++a=[b]"), ("bash", "-c", "python x.py ++a=[b]")),
        (wrap_arguments("echo 'foo>=1' && ls"), ("bash", "-c", "echo 'foo>=1' && ls")),
        (wrap_arguments(["python", "x.py", "&&"]), (PYTHON, "x.py", "&&")),
        (wrap_arguments(["cd /data && ls"]), ("bash", "-c", "cd /data && ls")),
        (wrap_arguments("a\nb"), ("bash", "-c", "a\nb")),
    ],
)
def test_words_are_a_program_and_a_text_is_a_line_of_shell(ctx: Context, argv: Argv) -> None:
    assert read_command(ctx) == argv


@pytest.mark.parametrize("ctx", [Context(), Context(("",)), Context((" \n",)), wrap_arguments("")])
def test_no_command(ctx: Context) -> None:
    with pytest.raises(UserError, match="there is no command"):
        read_command(ctx)


@settings(deadline=None, max_examples=30)
@given(st.lists(TEXT, min_size=2, max_size=6))
def test_words_survive_rendering(words: list[str]) -> None:
    argv = read_command(wrap_arguments(["printf", "%s\\0", *words]))
    line = render_argv(argv, Site(interpreter="python3", code_dir="/code"))
    out = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert out == b"".join(word.encode() + b"\0" for word in words)


@given(TEXT.filter(lambda text: text.strip() != ""))
def test_a_line_survives_rendering(text: str) -> None:
    argv = read_command(Context((text,)))
    line = render_argv(argv, Site(interpreter="python3", code_dir="/code"))
    assert shlex.split(line) == ["bash", "-c", text]


def plan(cluster: ClusterConfig = HERE, log_dir: str = "/logs", **options: Any) -> Plan:
    server = {k: options.pop(k) for k in list(options) if k.startswith("server") or k == "model"}
    hooks = {k: options.pop(k) for k in list(options) if k.endswith("process_cmd")}
    job = {k: options.pop(k) for k in list(options) if k in ("expname", "dependent_jobs")}
    request = Request(
        argv=("ls", "-l"),
        cluster=cluster,
        log_dir=log_dir,
        job=JobOptions(**job),
        server=ServerOptions(**server),
        hooks=HookOptions(**hooks),
        own=CommandOptions(**options),
    )
    return plan_command(request)


def test_the_plan() -> None:
    (job,) = plan().jobs
    assert job.name == "run_cmd"
    assert job.main.commands == (("ls", "-l"),)
    (job,) = plan(preprocess_cmd="a && b", postprocess_cmd="c").jobs
    assert job.main.before == (("bash", "-c", "a && b"),)
    assert job.main.commands == (("ls", "-l"),)
    assert job.main.after == (("bash", "-c", "c"),)
    planned = plan(SLURM, expname="name", num_gpus=2, num_nodes=3, num_tasks=4)
    (job,) = planned.jobs
    assert (planned.expname, job.name) == ("name", "name")
    assert (job.main.gpus, job.main.nodes, job.main.tasks_per_node) == (2, 3, 4)
    assert [job.name for job in plan(SLURM, dependent_jobs=1).jobs] == ["run_cmd", "run_cmd-part2"]


def test_a_server_beside_it() -> None:
    (job,) = plan(server_type="stub", model="m").jobs
    assert [c.name for c in job.components] == ["server", "main"]
    (argv,) = job.main.commands
    assert argv == (PYTHON, CodePath("nemo_skills/inference/server/wait.py"), "--", "ls", "-l")
    (job,) = plan(server_type="openai", model="m", server_address="http://h:1/v1").jobs
    assert job.components == (job.main,)
    assert job.main.env == (("NS_SERVER_ADDRESS", "http://h:1/v1"),)
    assert job.main.commands == (("ls", "-l"),)


@pytest.mark.parametrize(
    ("cluster", "options", "message"),
    [
        (HERE, {"num_nodes": 2}, "need a Slurm cluster"),
        (DOCKER, {"num_tasks": 2}, "need a Slurm cluster"),
        (DOCKER, {"container": "nemo-skill"}, "Did you mean 'nemo-skills'"),
        (HERE, {"model": "m"}, "--server_type is missing"),
        (SLURM, {"num_nodes": 2, "preprocess_cmd": "a"}, "would run in each process"),
    ],
)
def test_options_that_do_not_fit(cluster: ClusterConfig, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(cluster, **options)


@pytest.mark.parametrize(
    ("cluster", "folder"),
    [
        (HERE, "{home}/ns_logs/exp"),
        (SLURM, "/jobs/logs/exp"),
        (DOCKER, "{home}/ns_logs/exp"),
        (ClusterConfig(name="p", executor="slurm", job_dir="/jobs"), "/jobs/logs/exp"),
    ],
)
def test_logs_have_a_place_that_jobs_see(cluster: ClusterConfig, folder: str, own_nemorun_home: Path) -> None:
    changed, log_dir = default_log_dir(cluster, "exp")
    assert host_path(changed, log_dir) == folder.format(home=own_nemorun_home)
    assert (log_dir == "/nemo_run/logs") == cluster.uses_containers


def test_from_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ctx = wrap_arguments("python x.py ++a=[b] && echo 'c d'")
    assert cli.run_cmd(ctx=ctx, dry_run=True, log_dir="/nowhere") is None
    out = capsys.readouterr().out
    assert "exec bash -c 'python x.py ++a=[b] && echo '\"'\"'c d'\"'\"''" in out
    assert not Path("/nowhere").exists()
