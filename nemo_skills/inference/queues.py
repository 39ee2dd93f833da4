"""What servers say of their own queues, in the Prometheus metrics that vLLM and SGLang have."""

import asyncio
import re
from typing import TYPE_CHECKING, NamedTuple

from nemo_skills.inference.endpoints import EndpointPool, EndpointState

if TYPE_CHECKING:
    import aiohttp

_FIRST_POLL_S, _POLL_S = 0.3, 1.0
_TIMEOUT_S = 5.0
_GIVE_UP_AFTER = 3
_GAUGE = re.compile(
    rb"^(?:vllm:num_requests_|sglang:num_)(running|waiting|queue)(?:_reqs)?(?:\{[^}]*\})? ([0-9.eE+]+)$",
    re.MULTILINE,
)


class Queue(NamedTuple):
    """Requests inside a server."""

    running: float
    waiting: float


def read_queue(metrics: bytes) -> Queue | None:
    """Find the gauges, summed over the engines of a server; None when it has none."""
    running = waiting = 0.0
    found = False
    for name, value in _GAUGE.findall(metrics):
        found = True
        if name == b"running":
            running += float(value)
        else:
            waiting += float(value)
    return Queue(running, waiting) if found else None


async def watch_queues(pool: EndpointPool) -> None:
    """Keep asking every server for its queue, until cancelled; those that do not say are left alone."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        # a hosted service, reached through a proxy or by TLS, has no metrics for us
        own = [state for state in pool.states if state.endpoint.proxy is None and _is_plain(state)]
        await asyncio.gather(*(_watch(session, state) for state in own))
    await asyncio.Event().wait()


def _is_plain(state: EndpointState) -> bool:
    return state.endpoint.base_url.startswith("http://")


async def _watch(session: "aiohttp.ClientSession", state: EndpointState) -> None:
    import aiohttp

    url = state.endpoint.base_url.removesuffix("/v1") + "/metrics"
    unknown, pause = 0, _FIRST_POLL_S
    while unknown < _GIVE_UP_AFTER:
        await asyncio.sleep(pause)
        pause = _POLL_S
        if state.down_since is not None:
            continue
        try:
            async with session.get(url) as response:
                queue = read_queue(await response.read()) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            continue
        if queue is None:
            unknown += 1
            continue
        unknown = 0
        state.queued = queue.waiting
        state.limit.queue(queue.running, queue.waiting, state.in_flight)
