"""Server types: their commands, what users' flags replace, what is refused."""

import subprocess
import sys

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.servers.base import ServerRequest, get_server, launcher_args, server_names

MODEL = "/models/we ird'\"$dir"


def argv(name: str, *args: str, gpus: int = 0) -> str:
    words = get_server(name).argv(ServerRequest(model=MODEL, gpus=gpus, args=args))
    return " ".join("MODEL" if word == MODEL else word for word in words)


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        (
            "vllm",
            0,
            "python -m vllm.entrypoints.openai.api_server --model MODEL --host {host} --port {port}",
        ),
        (
            "vllm",
            8,
            "python -m vllm.entrypoints.openai.api_server --model MODEL --tensor-parallel-size 8"
            " --host {host} --port {port}",
        ),
        (
            "hf",
            0,
            "python -m transformers.cli.transformers serve MODEL --continuous-batching --device cpu"
            " --cb-num-blocks 128 --cb-max-batch-tokens 1024 --host {host} --port {port}",
        ),
        (
            "hf",
            1,
            "python -m transformers.cli.transformers serve MODEL --continuous-batching --device auto"
            " --host {host} --port {port}",
        ),
        (
            "sglang",
            4,
            "python -m sglang.launch_server --model-path MODEL --tp-size 4 --host {host} --port {port}",
        ),
        ("trtllm", 2, "trtllm-serve MODEL --tp_size 2 --host {host} --port {port}"),
        ("stub", 0, "python -m nemo_skills.inference.server.stub --model MODEL --host {host} --port {port}"),
    ],
)
def test_commands(name: str, gpus: int, expected: str) -> None:
    assert argv(name, gpus=gpus) == expected


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
        ("vllm", ServerRequest(model="m", nodes=2), ["one node"]),
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
    with pytest.raises(UserError, match=r"'vlm'\. Did you mean 'vllm'\? Known: hf, openai, "):
        get_server("vlm")


def test_every_type_is_complete() -> None:
    for name in server_names():
        spec = get_server(name)
        assert spec.name == name
        assert spec.ready_path.startswith("/")
        assert not spec.hosted or (spec.role and spec.program)


def test_launcher_arguments() -> None:
    request = ServerRequest(model="m")
    words = launcher_args(get_server("hf"), request, index=1, count=2, advertise="auto")
    before, after = words[: words.index("--")], words[words.index("--") + 1 :]
    assert after == get_server("hf").argv(request)
    assert " ".join(before) == (
        "--name hf --index 1 --count 2 --ready-path /health --advertise auto --model m"
        " --env HF_HUB_DISABLE_UPDATE_CHECK=1"
    )


def test_listing_types_loads_none() -> None:
    code = (
        "import sys; from nemo_skills.pipeline.servers.base import server_names as names\n"
        "loaded = [f'nemo_skills.pipeline.servers.{name}' for name in names()] + ['aiohttp', 'nemo_run']\n"
        "print([name for name in loaded if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
