"""Replicas in plans: which nodes and GPUs they get, on Slurm and under Docker."""

import shlex

from nemo_skills.pipeline.cluster.config import ClusterConfig, Container
from nemo_skills.pipeline.launch.docker import render_for
from nemo_skills.pipeline.launch.docker_engine import Engine
from nemo_skills.pipeline.launch.layout import Layout
from nemo_skills.pipeline.launch.plan import Component, Job, Plan
from nemo_skills.pipeline.launch.slurm_script import render_job
from nemo_skills.pipeline.options import ServerOptions
from nemo_skills.pipeline.servers.component import server_components

SLURM = ClusterConfig(executor="slurm", job_dir="/jobs")
MAIN = Component(name="main", commands=(("true",),), role="nemo-skills")
SANDBOX = Component(name="sandbox", commands=(("true",),), role="nemo-skills")


def job(*more: Component, gpus: int = 2, replicas: int = 3) -> Job:
    options = ServerOptions(server_type="vllm", model="m", server_gpus=gpus, server_replicas=replicas)
    return Job(name="j", components=(*server_components(options, SLURM), *more, MAIN))


def names(made: Job) -> list[list[str]]:
    return [[component.name for component in group] for group in made.node_groups]


def test_replicas_share_nodes_and_components_with_gpus_do_not() -> None:
    assert names(job()) == [["server0", "server1", "server2", "main"]]
    assert names(job(SANDBOX, gpus=0)) == [["server0", "server1", "server2", "sandbox", "main"]]
    judge = Component(name="judge", commands=(("true",),), role="vllm", gpus=1)
    assert names(job(judge)) == [["server0", "server1", "server2", "main"], ["judge"]]
    assert names(job(judge, replicas=1)) == [["server", "main"], ["judge"]]


def test_slurm_is_asked_for_the_gpus_of_all() -> None:
    cluster = ClusterConfig(name="c", executor="slurm", job_dir="/jobs", container_runtime="none")
    plan = Plan(expname="e", cluster=cluster, jobs=(job(),), log_dir="/logs")
    files = dict(render_job(plan, Layout(exp_dir="/jobs/e", code_dir="/code"), plan.jobs[0]).files)
    script = files["job.sbatch"]
    assert "#SBATCH --gpus-per-node=6\n" in script
    assert "#SBATCH --nodes=1\n" in script
    assert script.count("--job-name=server") == 3


def test_docker_gives_each_its_own() -> None:
    containers = {role: Container.parse("image:1") for role in ("vllm", "nemo-skills")}
    cluster = ClusterConfig(name="c", executor="local", containers=containers)
    plan = Plan(expname="e", cluster=cluster, jobs=(job(),), log_dir="/logs")
    engine = Engine(images=(("vllm", "image:1"), ("nemo-skills", "image:1")))
    [rendered] = render_for(plan, engine)
    scripts = dict(rendered.files)
    for index in range(3):
        words = shlex.split(scripts[f"server{index}.docker.sh"])
        assert f'--gpus="device={2 * index},{2 * index + 1}"' in words
        # what it sees is its own already, so that its launcher takes all
        assert "--env=CUDA_VISIBLE_DEVICES=0,1" in words
