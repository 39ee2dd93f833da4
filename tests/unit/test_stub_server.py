"""The stub server: answers that can be relied on, faults that come when asked for."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_skills.inference.server.stub import StubOptions, StubServer, parse_options
from nemo_skills.inference.server.stub_answers import Oracle, Request

CHAT = {"messages": [{"role": "user", "content": "How many apples?"}]}
Ask = Callable[..., Awaitable[tuple[int, Any]]]


def with_stub(scenario: Callable[[Ask, StubServer], Awaitable[Any]], **options: Any) -> Any:
    """Run a scenario against a fresh stub; `ask(body)` posts to it and returns status and answer."""

    async def run() -> Any:
        server = StubServer(StubOptions(**options))
        base = await server.start()
        async with aiohttp.ClientSession() as session:

            async def ask(body: Any = CHAT, path: str = "/chat/completions", **more: Any) -> tuple[int, Any]:
                async with session.post(base + path, json=body, **more) as response:
                    return response.status, await response.json()

            try:
                return await scenario(ask, server)
            finally:
                await server.close()

    return asyncio.run(run())


def answers(bodies: list[dict[str, Any]], **options: Any) -> list[Any]:
    async def scenario(ask: Ask, _server: StubServer) -> list[Any]:
        return [await ask(body) for body in bodies]

    return with_stub(scenario, **options)


def texts(bodies: list[dict[str, Any]], **options: Any) -> list[str]:
    return [body["choices"][0]["message"]["content"] for _, body in answers(bodies, **options)]


def test_same_question_same_answer_across_instances() -> None:
    other = {"messages": [{"role": "user", "content": "How many pears?"}]}
    first = texts([CHAT, other, CHAT])
    assert first[0] == first[2] != first[1]
    assert texts([CHAT, other]) == first[:2]
    assert texts([CHAT], seed=1) != first[:1]


def test_request_seed_matters_only_when_sampling() -> None:
    sampled = texts([CHAT | {"temperature": 0.7, "seed": s} for s in (1, 2, 1)])
    assert sampled[0] == sampled[2] != sampled[1]
    greedy = texts([CHAT | {"temperature": 0, "seed": s} for s in (1, 2)])
    assert greedy[0] == greedy[1]


def test_several_choices() -> None:
    ((_, sampled), (_, greedy)) = answers([CHAT | {"n": 3, "temperature": t} for t in (1.0, 0.0)])
    assert [choice["index"] for choice in sampled["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in sampled["choices"]}) == 3
    assert len({choice["message"]["content"] for choice in greedy["choices"]}) == 1


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.text(max_size=50),
    limit=st.integers(1, 40),
    stop=st.lists(st.sampled_from(["The", "answer is", "e ", "xyz"]), max_size=2),
)
def test_limits_and_stop_strings_hold(prompt: str, limit: int, stop: list[str]) -> None:
    body = {"prompt": prompt, "max_tokens": limit, "stop": stop, "temperature": 0}
    [answer] = Oracle(0).answers(Request.parse(body, chat=False))
    [whole] = Oracle(0).answers(Request.parse({"prompt": prompt, "max_tokens": 99}, chat=False))
    assert len(answer.tokens) <= limit
    assert not any(phrase in answer.text for phrase in stop)
    full = Oracle(0).answers(
        Request.parse({"prompt": prompt, "max_tokens": 99, "temperature": 0}, chat=False)
    )
    assert full[0].text.startswith(answer.text)
    was_cut = len(answer.tokens) == limit and answer.text != full[0].text
    assert answer.finish_reason == "stop" or was_cut
    assert whole.finish_reason == "stop"


def test_usage_and_finish_reason() -> None:
    (_, whole), (_, cut) = answers([CHAT, CHAT | {"max_tokens": 2}])
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 2
    assert cut["usage"]["total_tokens"] == cut["usage"]["prompt_tokens"] + 2


def test_completions_take_one_prompt_or_many() -> None:
    async def scenario(ask: Ask, _server: StubServer) -> Any:
        one = await ask({"prompt": "b", "max_tokens": 50, "temperature": 0}, "/completions")
        many = await ask({"prompt": ["a", "b"], "max_tokens": 50, "temperature": 0, "n": 2}, "/completions")
        return one[1], many[1]

    one, many = with_stub(scenario)
    found = [choice["text"] for choice in many["choices"]]
    assert found[0] == found[1] != found[2] == found[3] == one["choices"][0]["text"]
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2, 3]


def test_logprobs_fit_the_text() -> None:
    async def scenario(ask: Ask, _server: StubServer) -> Any:
        chat = await ask(CHAT | {"logprobs": True, "top_logprobs": 3})
        text = await ask({"prompt": "a", "logprobs": 2}, "/completions")
        return chat[1]["choices"][0], text[1]["choices"][0]

    chat, text = with_stub(scenario)
    content = chat["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == chat["message"]["content"]
    assert {len(entry["top_logprobs"]) for entry in content} == {3}
    assert "".join(text["logprobs"]["tokens"]) == text["text"]
    for start, token in zip(text["logprobs"]["text_offset"], text["logprobs"]["tokens"], strict=True):
        assert text["text"][start:].startswith(token)


def test_stream_says_the_same_as_a_whole_answer() -> None:
    async def scenario(ask: Ask, server: StubServer) -> Any:
        _, whole = await ask(CHAT)
        body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
        async with (
            aiohttp.ClientSession() as session,
            session.post(server.base_url + "/chat/completions", json=body) as response,
        ):
            lines = (await response.text()).split("\n\n")
        return whole, [line.removeprefix("data: ") for line in lines if line]

    whole, events = with_stub(scenario)
    assert events.pop() == "[DONE]"
    *chunks, usage = [json.loads(event) for event in events]
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert said == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"] == whole["usage"]


def test_errors_come_at_their_rate_and_always_the_same() -> None:
    first = [status for status, _ in answers([CHAT] * 200, error_rate=0.3, rate_limit_rate=0.2)]
    assert first == [status for status, _ in answers([CHAT] * 200, error_rate=0.3, rate_limit_rate=0.2)]
    counts = {status: first.count(status) for status in set(first)}
    assert set(counts) == {200, 429, 500}
    assert 20 < counts[429] < 60
    assert 30 < counts[500] < 75


def test_rate_limit_names_when_to_come_back() -> None:
    async def scenario(ask: Ask, server: StubServer) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.post(server.base_url + "/chat/completions", json=CHAT) as response,
        ):
            return response.status, response.headers["Retry-After"]

    assert with_stub(scenario, rate_limit_rate=1.0, retry_after=0.25) == (429, "0.25")


def test_too_many_at_once_are_refused_and_a_client_that_left_does_not_count() -> None:
    async def scenario(ask: Ask, server: StubServer) -> Any:
        statuses = [status for status, _ in await asyncio.gather(*[ask() for _ in range(5)])]
        left = asyncio.create_task(ask())
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.sleep(0.05)
        again = [status for status, _ in await asyncio.gather(*[ask() for _ in range(2)])]
        return sorted(statuses), again

    assert with_stub(scenario, max_concurrent=2, latency=0.2) == ([200, 200, 429, 429, 429], [200, 200])


def test_slots_make_others_wait_and_metrics_say_so() -> None:
    async def scenario(ask: Ask, server: StubServer) -> Any:
        pending = [asyncio.create_task(ask()) for _ in range(5)]
        await asyncio.sleep(0.1)
        async with (
            aiohttp.ClientSession() as session,
            session.get(server.base_url.removesuffix("/v1") + "/metrics") as response,
        ):
            metrics = await response.text()
        await asyncio.gather(*pending)
        return metrics, server.peak

    metrics, peak = with_stub(scenario, slots=2, latency=0.3)
    assert 'vllm:num_requests_running{model_name="stub"} 2.0' in metrics
    assert 'vllm:num_requests_waiting{model_name="stub"} 3.0' in metrics
    assert peak == 5


def test_truncated_body_breaks_the_connection() -> None:
    async def scenario(ask: Ask, _server: StubServer) -> None:
        with pytest.raises(aiohttp.ClientPayloadError):
            await ask(CHAT)

    with_stub(scenario, truncate_rate=1.0)


def test_hanging_request_is_never_answered_and_does_not_hold_up_the_end() -> None:
    async def scenario(ask: Ask, _server: StubServer) -> None:
        with pytest.raises(TimeoutError):
            await ask(CHAT, timeout=aiohttp.ClientTimeout(total=0.3))

    with_stub(scenario, hang_rate=1.0)


def test_context_limit_speaks_as_servers_do() -> None:
    [(status, body)] = answers([CHAT | {"max_tokens": 100}], context_limit=50)
    assert status == 400
    assert "maximum context length is 50 tokens" in body["error"]["message"]
    assert answers([CHAT | {"max_tokens": 5}], context_limit=50)[0][0] == 200


def test_requests_that_can_never_succeed() -> None:
    async def scenario(ask: Ask, server: StubServer) -> list[int]:
        key = {"Authorization": "Bearer secret"}
        return [
            (await ask(body, headers=headers))[0]
            for body, headers in (
                (CHAT | {"model": "m"}, key),
                (CHAT | {"model": "other"}, key),
                (CHAT | {"model": "m"}, {}),
                ({"model": "m"}, key),
                ([], key),
                ({"model": "m", "messages": [{"role": "user", "content": "a bad row"}]}, key),
                (CHAT | {"model": "m", "max_tokens": "many"}, key),
            )
        ]

    assert with_stub(scenario, api_key="secret", model="m", fail_rows="bad.*row") == [
        200, 404, 401, 400, 400, 400, 400,
    ]  # fmt: skip


def test_dies_after_so_many_requests() -> None:
    command = [sys.executable, "-m", "nemo_skills.inference.server.stub", "--die-after=2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]

        async def ask() -> list[str]:
            outcomes = []
            async with aiohttp.ClientSession() as session:
                for _ in range(3):
                    try:
                        async with session.post(url + "/chat/completions", json=CHAT) as response:
                            outcomes.append(str(response.status))
                    except aiohttp.ClientError:
                        outcomes.append("gone")
            return outcomes

        assert asyncio.run(ask()) == ["200", "200", "gone"]
        assert process.wait(timeout=10) == 1


@pytest.mark.parametrize("args", [["--error-rate=2"], ["--fail-rows=("], ["--porrt=1"]])
def test_wrong_options_are_refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(args)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_options_reach_the_stub() -> None:
    options = parse_options(["--latency", "0.5", "--slots=3", "--answer", "yes", "--model=/a b"])
    assert options == StubOptions(latency=0.5, slots=3, answer="yes", model="/a b")
    assert (
        texts([CHAT, {"messages": [{"role": "user", "content": "?"}]}], answer="so it is") == ["so it is"] * 2
    )
