"""Waiting for servers: what counts as ready, what ends the wait, which model name comes out."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from nemo_skills.core.errors import UserError
from nemo_skills.inference.server.models import ServedModel, choose_model
from nemo_skills.inference.server.ready import (
    Endpoint,
    ServerTarget,
    base_url,
    environment_proxy,
    wait_until_ready,
)
from nemo_skills.inference.server.stub import StubOptions, StubServer

Handler = Callable[[web.BaseRequest], Coroutine[Any, Any, web.StreamResponse]]


def target(*addresses: str, **values: Any) -> ServerTarget:
    defaults = {"server_type": "openai", "model": "m", "ready_timeout_s": 10.0, "connect_timeout_s": 0.5}
    return ServerTarget(addresses=addresses, **(defaults | values))


def publish(folder: Path, index: int = 0, **values: Any) -> None:
    entry = {
        "name": "vllm", "index": index, "count": 1, "state": "starting", "host": "127.0.0.1", "port": 1,
        "exit_code": None, "ready_path": "/health", "model": None, "log": None,
    }  # fmt: skip
    (folder / f"server-{index}.json").write_text(json.dumps(entry | values))


def with_servers(
    scenario: Callable[[list[str]], Coroutine[Any, Any, Any]], *handlers: Handler | StubOptions
) -> Any:
    """Run a scenario; it gets the base URLs of the servers made of the handlers."""

    async def run() -> Any:
        stubs, runners, urls = [], [], []
        for handler in handlers:
            if isinstance(handler, StubOptions):
                stubs.append(StubServer(handler))
                urls.append(await stubs[-1].start())
                continue
            runners.append(web.ServerRunner(web.Server(handler)))
            await runners[-1].setup()
            await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
            urls.append(f"http://127.0.0.1:{runners[-1].addresses[0][1]}/v1")
        try:
            return await scenario(urls)
        finally:
            for one in [*[s.close() for s in stubs], *[r.cleanup() for r in runners]]:
                await one

    return asyncio.run(run())


def port(url: str) -> int:
    return int(url.rsplit(":", 1)[1].removesuffix("/v1"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_given_addresses_in_their_order() -> None:
    async def scenario(urls: list[str]) -> list[Endpoint]:
        bare = [url.removeprefix("http://").removesuffix("/v1") for url in urls]
        return await wait_until_ready(target(*bare), run_dir=None)

    found = with_servers(scenario, StubOptions(model="m", latency=0), StubOptions(model="m"))
    assert [endpoint.model for endpoint in found] == ["m", "m"]
    assert found[0].base_url != found[1].base_url
    assert found[0].base_url.startswith("http://127.0.0.1:")
    assert found[0].base_url.endswith("/v1")


def test_a_replica_that_never_starts_leaves_the_work_to_the_others(
    weird_tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(urls: list[str]) -> list[Endpoint]:
        publish(weird_tmp_path, 0, count=3, state="exited", exit_code=7, port=None)
        publish(weird_tmp_path, 1, count=3, port=port(urls[0]))
        publish(weird_tmp_path, 2, count=3, port=port(urls[1]))
        return await wait_until_ready(target(), run_dir=weird_tmp_path)

    found = with_servers(scenario, StubOptions(model="m"), StubOptions(model="m"))
    assert len({endpoint.base_url for endpoint in found}) == 2
    assert "one of 3 servers is missing" in caplog.text
    assert "exit code 7" in caplog.text


def test_no_replica_starts(weird_tmp_path: Path) -> None:
    for index in (0, 1):
        publish(weird_tmp_path, index, count=2, state="exited", exit_code=7 + index)
    with pytest.raises(UserError, match="exit code 7"):
        asyncio.run(wait_until_ready(target(), run_dir=weird_tmp_path))


def test_a_refused_connection_ends_after_its_own_deadline() -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be reached .*Is the server running"):
        asyncio.run(wait_until_ready(target(f"127.0.0.1:{free_port()}"), run_dir=None))
    assert 0.5 <= time.monotonic() - start < 3


def test_one_bad_address_among_good_ones_ends_the_wait() -> None:
    async def scenario(urls: list[str]) -> None:
        await wait_until_ready(target(*urls, f"127.0.0.1:{free_port()}"), run_dir=None)

    with pytest.raises(UserError, match="cannot be reached"):
        with_servers(scenario, StubOptions(model="m"))


def test_the_api_key_is_sent_and_its_lack_explained() -> None:
    async def scenario(urls: list[str]) -> list[Endpoint]:
        with pytest.raises(UserError, match=r"api_key_env"):
            await wait_until_ready(target(*urls), run_dir=None)
        return await wait_until_ready(target(*urls, api_key="secret"), run_dir=None)

    assert len(with_servers(scenario, StubOptions(api_key="secret", model="m"))) == 1


def test_an_address_without_its_path_is_told_from_a_server_without_a_list() -> None:
    async def nothing(_request: web.BaseRequest) -> web.Response:
        return web.Response(status=404)

    async def no_list(request: web.BaseRequest) -> web.Response:
        return web.Response(status=422 if request.path == "/v1/chat/completions" else 404)

    async def scenario(urls: list[str]) -> list[Endpoint]:
        with pytest.raises(UserError, match="is the address complete"):
            await wait_until_ready(target(urls[0]), run_dir=None)
        return await wait_until_ready(target(urls[1]), run_dir=None)

    assert with_servers(scenario, nothing, no_list)[0].model == "m"


def test_a_given_server_may_still_be_loading() -> None:
    answers = iter([503, 200, 500])

    async def slow(_request: web.BaseRequest) -> web.Response:
        status = next(answers, None)
        if status == 200:
            return web.Response(text="<html>a proxy's page</html>")
        return web.json_response({"data": [{"id": "m"}]}) if status is None else web.Response(status=status)

    async def scenario(urls: list[str]) -> list[Endpoint]:
        return await wait_until_ready(target(*urls), run_dir=None)

    assert with_servers(scenario, slow)[0].model == "m"


def test_nothing_to_talk_to() -> None:
    with pytest.raises(UserError, match=r"server\.address"):
        asyncio.run(wait_until_ready(target(), run_dir=None))


def test_published_servers_are_waited_for(weird_tmp_path: Path) -> None:
    async def scenario(urls: list[str]) -> list[Endpoint]:
        waiting = asyncio.create_task(wait_until_ready(target(server_type="vllm"), run_dir=weird_tmp_path))
        await asyncio.sleep(0.3)
        (weird_tmp_path / "server-9.json").write_text("{half")
        publish(weird_tmp_path, 0, count=2, port=free_port())
        await asyncio.sleep(0.3)
        publish(weird_tmp_path, 1, count=2, port=port(urls[1]))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        publish(weird_tmp_path, 0, count=2, port=port(urls[0]))  # the launcher moved to another port
        found = await waiting
        assert [endpoint.base_url for endpoint in found] == urls
        return found

    found = with_servers(scenario, StubOptions(model="m"), StubOptions(model="m"))
    assert found[0].proxy is None


def test_a_404_is_not_ready(weird_tmp_path: Path) -> None:
    asked = []

    async def loading(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=404)

    async def scenario(urls: list[str]) -> None:
        publish(weird_tmp_path, port=port(urls[0]))
        await wait_until_ready(target(server_type="vllm", ready_timeout_s=0.7), run_dir=weird_tmp_path)

    with pytest.raises(UserError, match=r"not ready after 0\.7 s \(HTTP 404\)"):
        with_servers(scenario, loading)
    assert set(asked) == {"/health"}


def test_a_dead_server_ends_the_wait_at_once_with_its_last_words(weird_tmp_path: Path) -> None:
    log = weird_tmp_path / "server.log"
    log.write_text("".join(f"line {i}\n" for i in range(1000)) + "CUDA out of memory\n")

    async def scenario() -> float:
        publish(weird_tmp_path, port=free_port())
        waiting = asyncio.create_task(wait_until_ready(target(server_type="vllm"), run_dir=weird_tmp_path))
        await asyncio.sleep(0.3)
        publish(weird_tmp_path, state="exited", exit_code=1, log=str(log))
        start = time.monotonic()
        with pytest.raises(UserError) as caught:
            await waiting
        assert caught.value.exit_code == 1
        text = str(caught.value)
        assert "the vllm server ended with exit code 1" in text
        assert "CUDA out of memory" in text
        assert "line 900\n" not in text
        return time.monotonic() - start

    assert asyncio.run(scenario()) < 1.5


def test_the_log_is_also_found_through_the_environment(
    weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (weird_tmp_path / "log").write_text("no such model\n")
    monkeypatch.setenv("NS_SERVER_LOG", str(weird_tmp_path / "log"))
    publish(weird_tmp_path, state="exited", exit_code=1)
    with pytest.raises(UserError, match="no such model"):
        asyncio.run(wait_until_ready(target(), run_dir=weird_tmp_path))


def test_no_launcher_ever_publishes(weird_tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is published"):
        asyncio.run(wait_until_ready(target(ready_timeout_s=0.4), run_dir=weird_tmp_path))


def test_hf_is_pinned_to_what_it_was_started_with(weird_tmp_path: Path) -> None:
    async def scenario(urls: list[str]) -> list[Endpoint]:
        publish(weird_tmp_path, name="hf", port=port(urls[0]), model="/models/tiny")
        return await wait_until_ready(target(server_type="hf", model=None), run_dir=weird_tmp_path)

    assert with_servers(scenario, StubOptions(model="cached/other"))[0].model == "/models/tiny"


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("localhost:8000", "http://localhost:8000/v1"),
        ("10.0.0.1:80/", "http://10.0.0.1:80/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
        (" https://api.example.com/v1/ ", "https://api.example.com/v1"),
        ("https://example.com/v1beta/openai", "https://example.com/v1beta/openai"),
    ],
)
def test_addresses(address: str, url: str) -> None:
    assert base_url(address) == url


@pytest.mark.parametrize("address", ["ftp://host", "http://", "host:port", "a b:80", "http://h:99999/v1", ""])
def test_no_addresses(address: str) -> None:
    with pytest.raises(UserError, match=r"server\.address"):
        base_url(address)


def test_proxies_are_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert environment_proxy("http://out.example/v1") == "http://proxy:1"
    assert environment_proxy("http://inside.example/v1") is None
    assert environment_proxy("http://127.0.0.1:80/v1") is None


ONE = [ServedModel("org/name", "/cache/org/name")]
PATH = [ServedModel("/models/llama/", None)]
TWO = [ServedModel("base", "/models/base"), ServedModel("adapter", "/models/lora")]


@pytest.mark.parametrize(
    ("wanted", "served", "our_own", "expected"),
    [
        ("org/name", ONE, False, "org/name"),
        (None, ONE, False, "org/name"),
        ("/cache/org/name", ONE, False, "org/name"),
        ("/models/llama", PATH, False, "/models/llama/"),
        ("/elsewhere/name", ONE, False, "org/name"),
        ("llama", PATH, False, "/models/llama/"),
        ("/models/x", ONE, True, "org/name"),
        ("/models/lora/", TWO, True, "adapter"),
    ],
)
def test_model_names(wanted: str | None, served: list[ServedModel], our_own: bool, expected: str) -> None:
    assert choose_model(wanted, served, "it", our_own=our_own) == expected


@pytest.mark.parametrize(
    ("wanted", "served", "message"),
    [
        ("bsae", TWO, r"it has no model 'bsae'\. Did you mean 'base'\? It has adapter, base"),
        ("other/name", ONE, "no model 'other/name'"),
        (None, TWO, r"server\.model is missing; it has base, adapter|adapter, base"),
        ("x", [], "no model at all"),
        ("x", [ServedModel(f"m{i:02}", None) for i in range(30)], "m09 and 20 more"),
    ],
)
def test_models_that_are_not_there(wanted: str | None, served: list[ServedModel], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_model(wanted, served, "it", our_own=False)
