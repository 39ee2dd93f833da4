"""Who gets the next request, and when."""

import asyncio
import time
from typing import Any

import pytest

from nemo_skills.inference.endpoints import EndpointPool, EndpointState, Load
from nemo_skills.inference.queues import Queue, read_queue
from nemo_skills.inference.retry import RunStoppedError
from nemo_skills.inference.server.ready import Endpoint


def pool_of(*urls: str, **load: Any) -> EndpointPool:
    endpoints = [Endpoint(base_url=url, model="m") for url in urls]
    return EndpointPool(endpoints, Load(**{"most_in_flight": 4, **load}))


async def soon(waiter: "asyncio.Task[EndpointState]") -> EndpointState:
    return await asyncio.wait_for(waiter, 2)


def test_the_least_loaded_first_and_never_more_than_allowed() -> None:
    async def run() -> None:
        pool = pool_of("http://a/v1", "http://b/v1")
        taken = [await pool.acquire(1) for _ in range(4)]
        assert [state.in_flight for state in pool.states] == [2, 2]
        assert pool.room == 0
        waiters = [asyncio.create_task(pool.acquire(1)) for _ in range(2)]
        again = [asyncio.create_task(pool.acquire(1, again=True)) for _ in range(2)]
        await asyncio.sleep(0)
        for waiter, state in zip([*again, waiters[0]], taken[:3], strict=True):
            pool.release(state)
            assert await soon(waiter) is state
        assert not waiters[1].done()
        waiters[1].cancel()
        for state in pool.states:
            while state.in_flight:
                pool.release(state)
        assert (pool.in_flight, pool.room) == (0, 4)

    asyncio.run(run())


def test_a_place_given_to_someone_who_left_is_not_lost() -> None:
    async def run() -> None:
        pool = pool_of("http://a/v1", most_in_flight=1)
        state = await pool.acquire(1)
        waiter = asyncio.create_task(pool.acquire(1))
        await asyncio.sleep(0)
        pool.release(state)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert pool.in_flight == 0

    asyncio.run(run())


def test_a_pause_holds_for_all_requests_to_that_server() -> None:
    async def run() -> None:
        pool = pool_of("http://a/v1", adaptive=False)
        state = await pool.acquire(1)
        pool.refused(state, time.monotonic(), 0.3)
        pool.release(state)
        start = time.monotonic()
        await asyncio.gather(*(pool.acquire(1) for _ in range(3)))
        assert 0.3 <= time.monotonic() - start < 0.5

    asyncio.run(run())


def test_the_run_stops_when_a_server_wants_too_long_a_pause() -> None:
    async def run() -> None:
        pool = pool_of("http://a/v1", "http://b/v1", longest_pause_s=600)
        keeper = asyncio.create_task(pool.keep())
        pool.refused(pool.states[0], 0.0, 86_400)
        await asyncio.sleep(0.3)
        assert not keeper.done()
        pool.refused(pool.states[1], 0.0, 7200)
        with pytest.raises(RunStoppedError, match="pause"):
            await asyncio.wait_for(keeper, 2)

    asyncio.run(run())


def test_a_server_that_is_down_gets_nothing_until_it_opens_the_door() -> None:
    async def run() -> None:
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        pool = pool_of(f"http://127.0.0.1:{port}/v1", "http://127.0.0.1:9/v1")
        down, other = pool.states
        pool.down(down, "refused")
        assert [await pool.acquire(1) for _ in range(3)] == [other] * 3
        pool.down(other, "refused")
        keeper = asyncio.create_task(pool.keep())
        waiter = asyncio.create_task(pool.acquire(1))
        await asyncio.sleep(0.5)
        assert not waiter.done()
        assert not keeper.done()
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", port)
        assert await soon(waiter) is down
        keeper.cancel()
        server.close()

    asyncio.run(run())


def test_the_run_stops_when_all_are_gone_for_too_long() -> None:
    async def run() -> None:
        pool = pool_of("http://127.0.0.1:9/v1", "http://127.0.0.1:19/v1", outage_s=1.0)
        pool.down(pool.states[0], "refused")
        keeper = asyncio.create_task(pool.keep())
        await asyncio.sleep(1.5)
        assert not keeper.done()
        pool.down(pool.states[1], "refused too")
        start = time.monotonic()
        with pytest.raises(RunStoppedError, match="refused too"):
            await asyncio.wait_for(keeper, 5)
        assert 0.9 < time.monotonic() - start < 2

    asyncio.run(run())


def test_requests_a_minute() -> None:
    async def run() -> None:
        pool = pool_of("http://a/v1", most_in_flight=100, adaptive=False, requests_per_minute=600)
        start = time.monotonic()
        for _ in range(15):
            await pool.acquire(1)
        # ten of them in the burst of the first second
        assert 0.3 < time.monotonic() - start < 0.8

    asyncio.run(run())


def test_tokens_a_minute_are_what_answers_really_had() -> None:
    async def run() -> None:
        load = {"most_in_flight": 100, "tokens_per_minute": 60_000, "longest_answer": 2000}
        pool = pool_of("http://a/v1", adaptive=False, **load)
        start = time.monotonic()
        for _ in range(30):
            state = await pool.acquire(400)
            pool.finished(state, start, 400, (10, 10))
        # guessed, they would be a minute's worth; 30 answers of 20 tokens are not
        assert time.monotonic() - start < 3

    asyncio.run(run())


@pytest.mark.parametrize(
    ("metrics", "queue"),
    [
        (b'vllm:num_requests_running{e="0"} 3.0\nvllm:num_requests_waiting{e="0"} 2.0\n', Queue(3, 2)),
        (
            b'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_running{engine="1"} 4.0\n'
            b"vllm:num_requests_waiting 1e1\nvllm:num_requests_waiting_by_reason{reason=\"x\"} 9.0\n",
            Queue(7, 10),
        ),
        (b'sglang:num_running_reqs{m="x"} 5.0\nsglang:num_queue_reqs{m="x"} 6.0\n', Queue(5, 6)),
        (b"python_info 1.0\n", None),
        (b"<html>", None),
    ],
)  # fmt: skip
def test_queues_of_servers(metrics: bytes, queue: Queue | None) -> None:
    assert read_queue(metrics) == queue
