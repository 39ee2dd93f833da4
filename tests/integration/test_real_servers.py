"""Real servers through our launcher: ready, the right model, an answer, and nothing left behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.inference.server import launch
from nemo_skills.inference.server.ready import Endpoint, ServerTarget, wait_until_ready
from nemo_skills.pipeline.servers.base import ServerRequest, get_server, launcher_args
from tests.integration.sandboxes import check_code_execution

REPO = Path(__file__).resolve().parents[2]
VLLM_ARGS = ("--max-model-len=1024", "--enforce-eager")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from nemo_skills.examples.tiny_model import build

    return str(build(tmp_path_factory.mktemp("models") / "we ird'\"$dir"))


@pytest.fixture
def vllm_python() -> str:
    return os.environ.get("NS_TEST_VLLM_PYTHON", str(REPO / ".venv-vllm" / "bin" / "python"))


class Server:
    """A launcher and the family under it."""

    def __init__(self, python: str, server_type: str, request: ServerRequest, folder: Path) -> None:
        self.folder = folder
        self.type = server_type
        log = folder / "server.log"
        small = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2"}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [python, launch.__file__, *launcher_args(get_server(server_type), request)],
                env=os.environ | small | {"NS_RUN_DIR": str(folder), "NS_SERVER_LOG": str(log)},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait(self, model: str | None) -> Endpoint:
        target = ServerTarget(server_type=self.type, model=model, ready_timeout_s=240)
        [endpoint] = asyncio.run(wait_until_ready(target, run_dir=self.folder))
        return endpoint

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)
        self.process.wait(timeout=30)


@contextlib.contextmanager
def running(python: str, server_type: str, request: ServerRequest, folder: Path) -> Iterator[Server]:
    server = Server(python, server_type, request, folder)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGTERM)


def ask(endpoint: Endpoint, path: str, **body: Any) -> dict[str, Any]:
    async def post() -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(endpoint.base_url + path, json={"model": endpoint.model, **body}) as response,
        ):
            assert response.status == 200, await response.text()
            return await response.json()

    return asyncio.run(post())


def none_alive(family: list[psutil.Process], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family):
            return True
        time.sleep(0.05)
    return False


QUESTION = [{"role": "user", "content": "What is 2+2?"}]


@pytest.mark.service("hf")
def test_hf(model: str, weird_tmp_path: Path) -> None:
    with running(sys.executable, "hf", ServerRequest(model=model), weird_tmp_path) as server:
        endpoint = server.wait(model)
        assert endpoint.model == model
        answer = ask(endpoint, "/chat/completions", messages=QUESTION, max_tokens=5)
        assert answer["choices"][0]["message"]["content"]
        family = server.family()
        # the default cache takes half of the machine's memory
        assert sum(process.memory_info().rss for process in family) < 2 * 2**30
        server.end(signal.SIGTERM)
        assert none_alive(family, 5)


@pytest.mark.service("hf")
def test_hf_without_its_model_says_why(weird_tmp_path: Path) -> None:
    request = ServerRequest(model=str(weird_tmp_path / "no-such-model"))
    with (
        running(sys.executable, "hf", request, weird_tmp_path) as server,
        pytest.raises(UserError, match=r"(?s)hf server ended with exit code 1.*no-such-model"),
    ):
        server.wait(request.model)


@pytest.mark.service("vllm")
def test_vllm(model: str, vllm_python: str, weird_tmp_path: Path) -> None:
    request = ServerRequest(model=model, args=VLLM_ARGS)
    with running(vllm_python, "vllm", request, weird_tmp_path) as server:
        endpoint = server.wait(model + "/")
        assert endpoint.model == model
        answer = ask(endpoint, "/completions", prompt="2+2=", max_tokens=5, temperature=0)
        assert answer["usage"]["completion_tokens"] >= 1
        check_code_execution(endpoint.base_url, weird_tmp_path)
        elsewhere = ServerTarget(server_type="openai", model="no-such-model", addresses=(endpoint.base_url,))
        with pytest.raises(UserError, match="no model 'no-such-model'"):
            asyncio.run(wait_until_ready(elsewhere, run_dir=None))
        family = server.family()
        assert len(family) > 2, "vLLM's engine runs in a process of its own"
        server.end(signal.SIGKILL)
        assert none_alive(family, 10)
