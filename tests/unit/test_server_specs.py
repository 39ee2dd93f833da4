"""Server types: their commands, what users' flags replace, what is refused."""

import dataclasses
import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.inference.server import launch
from nemo_skills.inference.server.announce import Meeting
from nemo_skills.pipeline.cluster.config import ClusterConfig, Container
from nemo_skills.pipeline.options import ServerOptions
from nemo_skills.pipeline.servers.base import ServerRequest, get_server, launcher_args, server_names
from nemo_skills.pipeline.servers.component import (
    client_values,
    server_components,
    server_request,
    server_spec,
)
from tests.golden_files import assert_golden

HERE, SLURM = ClusterConfig(), ClusterConfig(executor="slurm", container_runtime="none", job_dir="/jobs")
MODEL = "/models/we ird'\"$dir"


def argv(name: str, *args: str, gpus: int = 0, nodes: int = 1) -> str:
    words = get_server(name).argv(ServerRequest(model=MODEL, gpus=gpus, nodes=nodes, args=args))
    return " ".join("MODEL" if word == MODEL else word for word in words)


def listing(words: Sequence[str]) -> str:
    """Return a command as a shell takes it, a flag a line."""
    return " ".join(f"\\\n  {shlex.quote(w)}" if w.startswith("-") else shlex.quote(w) for w in words)


def described(options: ServerOptions, cluster: ClusterConfig) -> str:
    """Return all that a job is told of its servers."""
    text = []
    for component in server_components(options, cluster):
        spec, request = server_spec(options, cluster), server_request(options)
        [[_python, _launcher, *words]] = component.commands
        text.append(
            f"# {component.name}: {component.role}, nodes {component.nodes},"
            f" tasks per node {component.tasks_per_node}, GPUs {component.gpus}, MPI {component.mpi}"
        )
        arguments = list(map(str, words))
        if "--worker" in arguments:
            place = arguments.index("--worker") + 1
            assert json.loads(arguments[place]) == list(spec.worker_argv(request))
            arguments[place] = "[THE COMMAND BELOW]"
        text.append("launch.py " + listing(arguments))
        if worker := spec.worker_argv(request):
            text.append("# its processes after the first\n" + listing(worker))
    return "\n".join(text) + "\n"


PLAIN = "/models/llama"
RAY = "--distributed-executor-backend ray"
GOLDENS: dict[str, dict[str, Any]] = {
    "vllm_cpu": {"server_type": "vllm"},
    "vllm_8_gpus": {"server_type": "vllm", "server_gpus": 8},
    "vllm_2_nodes": {"server_type": "vllm", "server_gpus": 8, "server_nodes": 2},
    "vllm_2_nodes_cpu": {"server_type": "vllm", "server_nodes": 2},
    "vllm_2_nodes_ray": {"server_type": "vllm", "server_gpus": 8, "server_nodes": 2, "server_args": RAY},
    "vllm_2_replicas": {"server_type": "vllm", "server_gpus": 4, "server_replicas": 2},
    "sglang_cpu": {"server_type": "sglang"},
    "sglang_4_gpus": {"server_type": "sglang", "server_gpus": 4},
    "sglang_2_nodes": {"server_type": "sglang", "server_gpus": 8, "server_nodes": 2},
    "sglang_2_nodes_cpu": {"server_type": "sglang", "server_nodes": 2},
    "trtllm_2_gpus": {"server_type": "trtllm", "server_gpus": 2},
    "trtllm_2_nodes": {"server_type": "trtllm", "server_gpus": 8, "server_nodes": 2, "model": PLAIN},
    "nemo": {"server_type": "nemo", "server_args": "--hf-model-name /hf/m --max-model-len 512"},
    "nemo_venv": {"server_type": "nemo"},
    "nemo_image_8_gpus": {"server_type": "nemo", "server_gpus": 8},
    "nemo_venv_2_nodes": {"server_type": "nemo", "server_gpus": 8, "server_nodes": 2},
    "hf_cpu": {"server_type": "hf"},
    "hf_1_gpu": {"server_type": "hf", "server_gpus": 1},
    "stub": {"server_type": "stub"},
    "stub_2_nodes": {"server_type": "stub", "server_nodes": 2},
    "stub_2_replicas": {"server_type": "stub", "server_replicas": 2},
}
VLLM_VENV = {"vllm": Container.parse("venv:/envs/vllm")}
CLUSTERS = {
    "nemo_venv": dataclasses.replace(HERE, containers=VLLM_VENV),
    "nemo_image_8_gpus": ClusterConfig(executor="local", containers={"vllm": Container.parse("vllm:v1")}),
    "nemo_venv_2_nodes": dataclasses.replace(SLURM, containers=VLLM_VENV),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_commands(name: str) -> None:
    options = ServerOptions(**{"model": MODEL, **GOLDENS[name]})
    cluster = CLUSTERS.get(name, HERE if options.server_nodes == 1 else SLURM)
    assert_golden(f"servers/{name}.txt", described(options, cluster))


def test_clients_ask_nemo_servers_as_what_serves_the_copy() -> None:
    hosted = ServerOptions(server_type="nemo", model=MODEL)
    elsewhere = dataclasses.replace(hosted, server_address="http://h:1/v1")
    for options, cluster, known_as in (
        (hosted, CLUSTERS["nemo_venv"], "vllm"), (hosted, SLURM, "hf"), (elsewhere, SLURM, "nemo"),
    ):  # fmt: skip
        values = client_values(options, cluster)
        assert (values["server.server_type"], values["server.model"]) == (known_as, MODEL)


def test_every_hosted_type_has_golden_files() -> None:
    hosted = {name for name in server_names() if get_server(name).hosted}
    assert hosted == {str(options["server_type"]) for options in GOLDENS.values()}


def test_who_divides_the_gpus_otherwise_is_left_to_it() -> None:
    flat = argv("vllm", "-tp", "16", gpus=8, nodes=2)
    assert "--pipeline-parallel-size" not in flat
    assert "--tensor-parallel-size" not in flat
    staged = argv("vllm", "--pipeline_parallel_size=4", gpus=4, nodes=4)
    assert staged.count("pipeline") == 1
    assert "--tensor-parallel-size 4" in staged


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vllm", ("--nnodes", "3")),
        ("vllm", ("-r=1",)),
        ("vllm", ("--master_port=1",)),
        ("sglang", ("--dist-init-addr", "a:1")),
    ],
)
def test_where_processes_meet_is_not_the_users_to_say(name: str, args: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="comes from --server_nodes"):
        argv(name, *args, gpus=8, nodes=2)
    argv(name, *args, gpus=8)


def test_several_nodes_need_slurm() -> None:
    options = ServerOptions(server_type="vllm", model="m", server_gpus=8, server_nodes=2)
    with pytest.raises(UserError, match="needs a Slurm cluster"):
        server_components(options, HERE)


@pytest.mark.parametrize("given", ["--tensor-parallel-size=4", "--tensor_parallel_size=4", "-tp=4"])
def test_a_users_flag_replaces_ours(given: str) -> None:
    command = argv("vllm", "--max-model-len", "1024", given, gpus=8)
    assert "--tensor-parallel-size 8" not in command
    assert command.endswith(f"--host {{host}} --port {{port}} --max-model-len 1024 {given}")


def test_a_users_opposite_replaces_ours() -> None:
    assert "--continuous-batching " not in argv("hf", "--no-continuous-batching")
    assert "--host {host}" not in argv("vllm", "--host", "::1")


def test_server_args_arrive_word_for_word() -> None:
    wild = ("--hf-overrides", '{"a b": "$HOME"}', "--x=it's", "{port}")
    words = get_server("vllm").argv(ServerRequest(model=MODEL, args=wild))
    assert words[-4:] == wild


@pytest.mark.parametrize("given", ["--port", "--port=8000"])
def test_the_port_is_not_the_users_to_choose(given: str) -> None:
    with pytest.raises(UserError, match="chosen on the node"):
        argv("vllm", given)


@pytest.mark.parametrize(
    ("name", "request_", "words"),
    [
        ("vllm", ServerRequest(), ["--model"]),
        ("openai", ServerRequest(), ["--server_address", "--model"]),
        ("openai", ServerRequest(address="http://a/v1"), ["--model"]),
        ("hf", ServerRequest(model="m", nodes=2), ["one node"]),
        ("vllm", ServerRequest(model="m", nodes=2, replicas=2), ["--server_replicas", "--server_nodes"]),
        ("vllm", ServerRequest(address="h:1", replicas=2), ["--server_replicas", "h:1"]),
        ("trtllm", ServerRequest(model="a b", nodes=2, gpus=1), ["a b", "blanks"]),
        ("trtllm", ServerRequest(model="m"), ["--server_gpus"]),
        ("vllm", ServerRequest(model="m", gpus=-1), ["--server_gpus"]),
        ("vllm", ServerRequest(model="m", address="h:1", args=("--x",)), ["--server_args", "h:1"]),
    ],
)
def test_what_is_missing_is_named(name: str, request_: ServerRequest, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        get_server(name).check(request_)
    for word in words:
        assert word in str(caught.value)


def test_running_servers_need_no_more_than_an_address() -> None:
    get_server("openai").check(ServerRequest(model="m", address="http://a/v1"))
    get_server("vllm").check(ServerRequest(address="http://a/v1"))


def test_unknown_type() -> None:
    with pytest.raises(UserError, match=r"'vlm'\. Did you mean 'vllm'\? Known: hf, nemo, openai, "):
        get_server("vlm")


def test_every_type_is_complete() -> None:
    for name in server_names():
        spec = get_server(name)
        assert spec.name == name
        assert spec.ready_path.startswith("/")
        assert not spec.hosted or (spec.role and spec.program)


def test_launcher_arguments() -> None:
    request = ServerRequest(model="m", replicas=2)
    words = launcher_args(get_server("hf"), request, index=1, advertise="auto")
    before, after = words[: words.index("--")], words[words.index("--") + 1 :]
    assert after == get_server("hf").argv(request)
    assert " ".join(before) == (
        "--name hf --index 1 --count 2 --ready-path /health --advertise auto --model m"
        " --env HF_HUB_DISABLE_UPDATE_CHECK=1"
    )


@pytest.mark.parametrize("name", ["vllm_2_nodes", "vllm_2_nodes_ray", "sglang_2_nodes", "trtllm_2_nodes"])
def test_the_launcher_fills_in_all_places(name: str) -> None:
    options = ServerOptions(**{"model": MODEL, **GOLDENS[name]})
    [component] = server_components(options, SLURM)
    [[_python, _launcher, *words]] = component.commands
    parsed = launch.parse(list(map(str, words)))
    assert parsed.tasks == component.nodes * component.tasks_per_node
    values = launch.placeholders(parsed, 1, "10.0.0.2", Meeting("10.0.0.1", 2))
    filled = launch.fill(json.dumps([parsed.command, parsed.worker, parsed.env]), values)
    assert re.findall(r"\{\w+\}", filled) == []
    if not name.startswith("trtllm"):  # whose processes Slurm's MPI brings together
        assert "10.0.0.1" in filled


def test_on_ray_workers_wait_for_the_head_and_the_server_comes_last(weird_tmp_path: Path) -> None:
    python = weird_tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(weird_tmp_path / "calls"))}\n')
    python.chmod(0o755)
    options = {"advertise": "127.0.0.1"}
    request = server_request(ServerOptions(**{"model": "m", **GOLDENS["vllm_2_nodes_ray"]}))
    parsed = launch.parse([*launcher_args(get_server("vllm"), request, **options)])
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        values = launch.placeholders(parsed, 1, "127.0.0.1", Meeting(*head.getsockname()))
        values["python"] = str(python)
        first, later = ([launch.fill(w, values) for w in words] for words in (parsed.command, parsed.worker))
        with subprocess.Popen(later) as worker:
            with pytest.raises(subprocess.TimeoutExpired):
                worker.wait(timeout=0.5)
            subprocess.run(first, check=True)
            head.listen()
            assert worker.wait(timeout=10) == 0
    started, served, joined = (weird_tmp_path / "calls").read_text().splitlines()
    assert f"start --head --node-ip-address=127.0.0.1 --port={values['head_port']}" in started
    assert served.startswith("-m vllm.entrypoints.cli.main serve m ")
    assert f"start --address=127.0.0.1:{values['head_port']}" in joined
    assert joined.endswith("--block")


def test_listing_types_loads_none() -> None:
    code = (
        "import sys; from nemo_skills.pipeline.servers.base import server_names as names\n"
        "loaded = [f'nemo_skills.pipeline.servers.{name}' for name in names()] + ['aiohttp', 'nemo_run']\n"
        "print([name for name in loaded if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
