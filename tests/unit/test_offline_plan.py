"""What `ns generate --offline` plans: one component, no server, as many processes as GPUs."""

from typing import Any

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.config import ClusterConfig, parse_cluster_config
from nemo_skills.pipeline.generate import Progress, Request, plan_generate
from nemo_skills.pipeline.launch.plan import PYTHON, Component, Plan
from nemo_skills.pipeline.options import GenerateOptions, HookOptions, JobOptions, ServerOptions

HERE = ClusterConfig()
NO_HOOKS = HookOptions()


@pytest.fixture
def slurm(tmp_path: Any) -> Any:
    def make(**containers: str) -> ClusterConfig:
        images = any(not value.startswith(("venv:", "python")) for value in containers.values())
        text = ["executor: slurm", "job_dir: /jobs", f"container_runtime: {'pyxis' if images else 'none'}"]
        text += ["containers:", *(f"  {role}: '{value}'" for role, value in containers.items())]
        path = tmp_path / "cluster.yaml"
        path.write_text("\n".join(text))
        return parse_cluster_config(path)

    return make


def plan(
    cluster: ClusterConfig,
    hooks: HookOptions = NO_HOOKS,
    own: dict[str, Any] | None = None,
    **server: Any,
) -> Plan:
    values = {"input_file": "/in.jsonl", "output_dir": "/out", "offline": True} | (own or {})
    request = Request(
        cluster=cluster,
        log_dir="/logs",
        job=JobOptions(),
        server=ServerOptions(**{"model": "/models/m", "server_type": "hf"} | server),
        own=GenerateOptions(**values),
        hooks=hooks,
        args=("++prompt_config=generic/math",),
    )
    return plan_generate(request, Progress())


def main_of(plan: Plan) -> tuple[Component, list[object]]:
    [job] = plan.jobs
    [component] = job.components
    [argv] = component.commands
    assert argv[:3] == (PYTHON, "-m", "nemo_skills.inference.generate_offline")
    return component, list(argv[3:])


def test_on_this_machine_the_main_starts_the_processes() -> None:
    component, args = main_of(plan(HERE, server_gpus=4))
    assert (component.name, component.role, component.gpus, component.tasks_per_node) == (
        "main", "nemo-skills", 4, 1,
    )  # fmt: skip
    assert args == [
        "++input_file=/in.jsonl",
        "++output_file=/out/generation/output.jsonl",
        "++server.server_type=hf",
        "++server.model=/models/m",
        "++devices=4",
        "++prompt_config=generic/math",
    ]


def test_without_gpus_there_is_one_process() -> None:
    component, args = main_of(plan(HERE))
    assert component.gpus == 0
    assert not any("devices" in str(arg) for arg in args)


def test_on_slurm_every_process_is_a_task(slurm: Any) -> None:
    cluster = slurm(**{"nemo-skills": "image"})
    component, args = main_of(plan(cluster, server_gpus=8, server_nodes=2))
    assert (component.nodes, component.tasks_per_node, component.gpus) == (2, 8, 8)
    assert {"++devices=8", "++nodes=2"} <= set(args)


def test_an_image_of_the_engine_runs_the_main(slurm: Any) -> None:
    component, args = main_of(plan(slurm(vllm="image", **{"nemo-skills": "i"}), server_type="vllm"))
    assert component.role == "vllm"
    assert not any("engine_python" in str(arg) for arg in args)


def test_an_environment_of_the_engine_is_named(slurm: Any) -> None:
    cluster = slurm(vllm="venv:/envs/v llm", **{"nemo-skills": "venv:/envs/ns"})
    component, args = main_of(plan(cluster, server_type="vllm"))
    assert component.role == "nemo-skills"
    assert (
        "++engine_python='/envs/v llm/bin/python'" in args or "++engine_python=/envs/v llm/bin/python" in args
    )


def test_every_seed_has_its_output(slurm: Any) -> None:
    found = plan(slurm(**{"nemo-skills": "image"}), own={"num_random_seeds": 2})
    assert [job.name for job in found.jobs] == ["generate-rs0", "generate-rs1"]
    assert [job.writes for job in found.jobs] == [
        ("/out/generation/output-rs0.jsonl",), ("/out/generation/output-rs1.jsonl",),
    ]  # fmt: skip
    assert "++inference.random_seed=1" in found.jobs[1].components[0].commands[0]


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"server_type": "openai"}, "--offline needs --server_type, one of hf, vllm, trtllm"),
        ({"server_type": None}, "--offline needs --server_type"),
        ({"server_type": "vlm"}, "Did you mean 'vllm'"),
        ({"model": None}, "--offline needs --model"),
        ({"server_address": "http://x"}, "--server_address is for a server"),
        ({"server_args": "--x"}, r"use \+\+engine_args\.NAME=VALUE"),
        ({"server_replicas": 2}, "--server_replicas is for servers"),
        ({"server_nodes": 2}, "needs a Slurm cluster"),
        ({"server_type": "trtllm"}, "needs --server_gpus"),
    ],
)
def test_options_of_servers_are_refused(server: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(HERE, **server)


def test_chunks_are_for_servers() -> None:
    with pytest.raises(UserError, match="--num_chunks is for servers"):
        plan(HERE, own={"num_chunks": 2})


def test_hooks_run_once_or_not_at_all(slurm: Any) -> None:
    hooks = HookOptions(preprocess_cmd="date")
    component, _ = main_of(plan(HERE, hooks, server_gpus=2))
    assert component.before == (("bash", "-c", "date"),)
    with pytest.raises(UserError, match="would run in each process"):
        plan(slurm(**{"nemo-skills": "image"}), hooks, server_gpus=2)
