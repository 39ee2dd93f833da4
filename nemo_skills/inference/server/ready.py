"""Waits until the servers of a job answer, and settles which model name they know."""

import asyncio
import time
import urllib.request
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.inference.server.models import ServedModel, choose_model, parse_models
from nemo_skills.inference.server.published import Published, read_published

if TYPE_CHECKING:
    import aiohttp

LOG = get_logger(__name__)

_T = TypeVar("_T")
_POLL_S = 0.2
_REQUEST_TIMEOUT_S = 10.0
_REPORT_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class ServerTarget:
    """What the caller asked for."""

    server_type: str
    """`vllm`, `hf`, `openai`, …"""
    model: str | None
    """Model name or path; None takes the only model that the server has."""
    addresses: tuple[str, ...] = ()
    """Addresses of running servers; empty: read those that the job's launchers publish in its run folder."""
    ready_timeout_s: float = 1800.0
    """How long a server may take to load its model."""
    connect_timeout_s: float = 30.0
    """How long an explicitly given address may refuse connections."""
    api_key: str | None = None
    """Sent as a bearer token when set."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server that answers."""

    base_url: str
    """Ends in `/v1`, without a trailing slash: `{base_url}/chat/completions` is where requests go."""
    model: str
    """The name by which this server knows the model."""
    proxy: str | None = None
    """The proxy that requests go through; a job's own servers are always reached directly."""


@dataclass(frozen=True)
class _Answer:
    """What came back from one GET; status 0: no connection, and `text` says why."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        try:
            return orjson.loads(self.text)
        except orjson.JSONDecodeError:
            return None

    @property
    def is_ready(self) -> bool:
        """Whether this is a server's own yes, and not the page of some proxy."""
        return self.status == 200 and (not self.text.strip() or self.json is not None)

    def __str__(self) -> str:
        return self.text if self.status == 0 else f"HTTP {self.status}"


class _Probe:
    """Asks servers for things, and never raises for what they answer."""

    def __init__(self, session: "aiohttp.ClientSession", proxy: str | None = None) -> None:
        self._session = session
        self._proxy = proxy

    async def get(self, url: str) -> _Answer:
        return await self._ask("GET", url)

    async def has_generation(self, base_url: str) -> bool:
        """Tell whether requests could go there: a server without a model list refuses an empty one by 4xx."""
        answer = await self._ask("POST", f"{base_url}/chat/completions")
        return answer.status not in (0, 404, 405) and answer.status < 500

    async def _ask(self, method: str, url: str) -> _Answer:
        import aiohttp

        body: dict[str, object] | None = {} if method == "POST" else None
        try:
            async with self._session.request(method, url, json=body, proxy=self._proxy) as response:
                return _Answer(response.status, await response.text(errors="replace"))
        except aiohttp.InvalidURL as err:
            raise UserError(f"not an address: {url}") from err
        except TimeoutError:
            return _Answer(0, f"no answer within {_REQUEST_TIMEOUT_S:g} s")
        except (aiohttp.ClientError, OSError) as err:
            return _Answer(0, str(err) or type(err).__name__)


class _Patience:
    """A deadline that says now and then what is being waited for."""

    def __init__(self, what: str, seconds: float) -> None:
        self._what = what
        self._seconds = seconds
        self._start = self._reported = time.monotonic()

    def restart(self) -> None:
        """Count from now."""
        self._start = time.monotonic()

    @property
    def over(self) -> bool:
        return time.monotonic() - self._start >= self._seconds

    async def pause(self, last: object) -> None:
        """Wait a moment."""
        now = time.monotonic()
        if now - self._reported >= _REPORT_EVERY_S:
            self._reported = now
            LOG.info("still waiting for %s after %.0f s (%s)", self._what, now - self._start, last)
        await asyncio.sleep(_POLL_S)


async def wait_until_ready(server: ServerTarget, *, run_dir: Path | None) -> list[Endpoint]:
    """Wait until every server answers and has the model; of the job's own servers one is enough.

    Raises:
        UserError: no address, a server that ended, refuses connections or stays unready, an unknown model.
    """
    import aiohttp

    bases = [base_url(address) for address in server.addresses]
    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        if bases:
            return await _all([_given(session, server, base) for base in bases])
        if run_dir is None:
            raise UserError("no server to talk to: give server.address, or run inside a job that hosts one")
        count = await _count_published(server, run_dir)
        probe = _Probe(session)
        return await _replicas([_own(probe, server, run_dir, index) for index in range(count)])


def base_url(address: str) -> str:
    """Return the URL that requests are relative to: `host:8000` becomes `http://host:8000/v1`.

    Raises:
        UserError: that is no address.
    """
    url = address.strip()
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or any(map(str.isspace, url)):
        raise UserError(f"server.address: '{address}' is not an address such as http://localhost:8000/v1")
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


def environment_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for a server; none for this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(parts.scheme)


async def _replicas(waits: Sequence[Coroutine[Any, Any, Endpoint]]) -> list[Endpoint]:
    """Wait for all; the work of those that fail is left to the others, if there are any."""
    outcomes = await _all([_outcome(wait) for wait in waits])
    failed = [outcome for outcome in outcomes if isinstance(outcome, UserError)]
    if len(failed) == len(outcomes):
        raise failed[0]
    for error in failed:
        LOG.warning("one of %d servers is missing: %s", len(outcomes), error)
    return [outcome for outcome in outcomes if isinstance(outcome, Endpoint)]


async def _outcome(wait: Coroutine[Any, Any, Endpoint]) -> Endpoint | UserError:
    try:
        return await wait
    except UserError as error:
        return error


async def _all(waits: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Wait for all; the first failure ends the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _count_published(server: ServerTarget, run_dir: Path) -> int:
    patience = _Patience("the server's launcher", server.ready_timeout_s)
    while not (published := read_published(run_dir)):
        if patience.over:
            raise UserError(f"no server was started: nothing is published in {run_dir}", exit_code=1)
        await patience.pause("nothing is published yet")
    return max(entry.count for entry in published)


async def _own(probe: _Probe, server: ServerTarget, run_dir: Path, index: int) -> Endpoint:
    """Wait for a server of this job."""
    patience = _Patience(f"the {server.server_type} server", server.ready_timeout_s)
    last: object = "not started yet"
    while not patience.over:
        # read again every time: the launcher moves to another port when it loses the first one
        entry = next((e for e in read_published(run_dir) if e.index == index), None)
        if entry is not None and entry.exited:
            raise UserError(entry.obituary(), exit_code=1)
        if entry is not None and entry.port is not None:
            answer = last = await probe.get(entry.root + entry.ready_path)
            if answer.is_ready and (endpoint := await _own_endpoint(probe, server, entry)) is not None:
                return endpoint
        await patience.pause(last)
    raise UserError(
        f"the {server.server_type} server was not ready after {server.ready_timeout_s:g} s ({last});"
        " server.ready_timeout_s gives it longer",
        exit_code=1,
    )


async def _own_endpoint(probe: _Probe, server: ServerTarget, entry: Published) -> Endpoint | None:
    base = f"{entry.root}/v1"
    wanted = entry.model or server.model
    if server.server_type == "hf" and wanted:
        # it lists the models of the cache folder, and serves the one it was started with
        return Endpoint(base_url=base, model=wanted)
    answer = await probe.get(f"{base}/models")
    _check_key(answer, base)
    served = parse_models(answer.json) if answer.status == 200 else None
    if served is None:
        return None
    wanted = server.model or entry.model
    return Endpoint(base_url=base, model=choose_model(wanted, served, f"the server {base}", our_own=True))


async def _given(session: "aiohttp.ClientSession", server: ServerTarget, base: str) -> Endpoint:
    """Wait for a server that somebody else runs."""
    proxy = environment_proxy(base)
    probe = _Probe(session, proxy)
    connecting = _Patience(base, server.connect_timeout_s)
    loading = _Patience(base, server.ready_timeout_s)
    while True:
        answer = await probe.get(f"{base}/models")
        _check_key(answer, base)
        served = parse_models(answer.json) if answer.status == 200 else None
        if served is not None:
            return Endpoint(base_url=base, model=_choose_given(server, served, base), proxy=proxy)
        if answer.status in (404, 405):
            return Endpoint(base_url=base, model=await _without_list(probe, server, base), proxy=proxy)
        if answer.status == 0 and connecting.over:
            raise UserError(
                f"{base} cannot be reached ({answer}); tried for {server.connect_timeout_s:g} s"
                " (server.connect_timeout_s). Is the server running, and is the address right?",
                exit_code=1,
            )
        if answer.status != 0:
            connecting.restart()
        if loading.over:
            limit = f"{server.ready_timeout_s:g} s (server.ready_timeout_s)"
            raise UserError(f"{base}/models gave no list of models within {limit}: {answer}", exit_code=1)
        await loading.pause(answer)


def _choose_given(server: ServerTarget, served: list[ServedModel], base: str) -> str:
    if server.server_type == "hf" and server.model:
        return server.model
    return choose_model(server.model, served, f"the server {base}", our_own=False)


async def _without_list(probe: _Probe, server: ServerTarget, base: str) -> str:
    if not await probe.has_generation(base):
        raise UserError(
            f"{base} answers, but has neither /models nor /chat/completions; is the address complete?"
            " It usually ends in /v1."
        )
    if server.model is None:
        raise UserError(f"server.model is missing; {base} does not list its models")
    LOG.warning("%s does not list its models; '%s' is taken as it is", base, server.model)
    return server.model


def _check_key(answer: _Answer, base: str) -> None:
    if answer.status in (401, 403):
        raise UserError(
            f"{base} refuses the API key, or needs one (HTTP {answer.status});"
            " server.api_key_env names the variable that holds it"
        )
