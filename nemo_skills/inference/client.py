"""One pooled HTTP session for all requests, with retries."""

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from nemo_skills.core.log import get_logger
from nemo_skills.inference.endpoints import EndpointPool, EndpointState
from nemo_skills.inference.request import Answer, RequestFormat
from nemo_skills.inference.retry import (
    FATAL,
    Attempts,
    Kind,
    RequestError,
    RetryPolicy,
    RowFailedError,
    RunStoppedError,
    classify,
)

_CONNECT_S = 30.0
_SILENCE_S = 5.0
_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """How requests are made."""

    concurrency: int
    request_timeout_s: float
    retry: RetryPolicy
    api_key: str | None = field(default=None, repr=False)
    api_key_hint: str = ""
    """Where the key comes from, for error messages."""


class Client:
    """Asks a pool of servers; use it as an async context manager."""

    def __init__(self, pool: EndpointPool, requests: RequestFormat, settings: ClientSettings) -> None:
        self._pool = pool
        self._requests = requests
        self._settings = settings
        self._urls = {id(s): URL(s.endpoint.base_url + requests.path) for s in pool.states}
        self._session: aiohttp.ClientSession | None = None
        self.retries = 0
        self.last_error = ""
        self.in_flight = 0

    async def __aenter__(self) -> Self:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._settings.api_key:
            headers["Authorization"] = f"Bearer {self._settings.api_key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._settings.concurrency, ttl_dns_cache=300, keepalive_timeout=30.0
            ),
            timeout=aiohttp.ClientTimeout(
                total=self._settings.request_timeout_s,
                sock_connect=min(_CONNECT_S, self._settings.request_timeout_s),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, prompt: bytes, position: int, turn: int = 0) -> Answer:
        """Return the answer to an encoded prompt, trying again where that can help.

        Raises:
            RowFailedError: this row gets no answer.
            RunStoppedError: no row can get an answer.
        """
        attempts = Attempts(policy=self._settings.retry)
        while True:
            state = self._pool.pick()
            body = self._requests.body(state.endpoint.model, prompt, position, turn)
            state.in_flight += 1
            self.in_flight += 1
            try:
                return await self._attempt(state, body)
            except RequestError as error:
                self._stop_if_hopeless(error, state)
                wait = self._next_wait(attempts, error)
                self.retries += 1
                self.last_error = str(error)
            finally:
                state.in_flight -= 1
                self.in_flight -= 1
            await asyncio.sleep(wait)

    async def _attempt(self, state: EndpointState, body: bytes) -> Answer:
        assert self._session is not None
        try:
            async with self._session.post(
                self._urls[id(state)], data=body, proxy=state.endpoint.proxy, allow_redirects=False
            ) as response:
                status, headers, content = response.status, response.headers, await response.read()
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            raise RequestError(Kind.retryable, f"broken answer: {error}") from None
        except aiohttp.ServerTimeoutError as error:
            self._pool.silent(state)
            raise RequestError(
                Kind.connection, f"no connection to {state.endpoint.base_url}: {error}"
            ) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            self._pool.silent(state)
            raise RequestError(Kind.connection, f"{type(error).__name__}: {error}") from None
        except TimeoutError:
            limit = self._settings.request_timeout_s
            raise RequestError(
                Kind.retryable, f"no answer within {limit:g} s (server.request_timeout_s)"
            ) from None
        self._pool.answered(state)
        if status != 200:
            raise classify(status, headers, content)
        return self._requests.parse(content)

    def _next_wait(self, attempts: Attempts, error: RequestError) -> float:
        try:
            return attempts.next_wait(error)
        except RowFailedError as failed:
            silent_for = self._pool.silent_for()
            # not only this row's requests went nowhere: nobody got an answer in all that time
            hopeless = silent_for >= max(_SILENCE_S, attempts.trying_for())
            if failed.kind is Kind.connection and hopeless:
                raise RunStoppedError(
                    f"No server has answered for {silent_for:.0f} s; last error: {error}"
                ) from None
            raise

    def _stop_if_hopeless(self, error: RequestError, state: EndpointState) -> None:
        if error.kind not in FATAL:
            return
        where = f"{state.endpoint.base_url}{self._requests.path}"
        hint = f" {self._settings.api_key_hint}" if error.kind is Kind.auth else ""
        raise RunStoppedError(f"{where} refuses every request: {error}.{hint}") from None
