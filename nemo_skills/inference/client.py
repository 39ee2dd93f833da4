"""Asks servers, and tries again where that can help."""

import asyncio
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from nemo_skills.inference.endpoints import EndpointPool, EndpointState
from nemo_skills.inference.http import BrokenConnectionError, NoConnectionError, Poster, Target
from nemo_skills.inference.request import Reply, RequestFormat
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
_OK = 200


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """How requests are made."""

    request_timeout_s: float
    retry: RetryPolicy
    api_key: str | None = field(default=None, repr=False)


class Client:
    """Asks a pool of servers; use it as an async context manager."""

    def __init__(self, pool: EndpointPool, requests: RequestFormat, settings: ClientSettings) -> None:
        self.pool = pool
        self.retries = 0
        self.resting = 0
        """Requests that wait for their next attempt."""
        self.prompt_tokens = 0
        self.last_error = ""
        self._requests = requests
        self._settings = settings
        self._posters: dict[int, Poster] = {}

    async def __aenter__(self) -> Self:
        self._posters = {id(state): Poster(self._target(state)) for state in self.pool.states}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for poster in self._posters.values():
            poster.close()

    def _target(self, state: EndpointState) -> Target:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._settings.api_key:
            headers["Authorization"] = f"Bearer {self._settings.api_key}"
        return Target(
            url=state.endpoint.base_url + self._requests.path,
            headers=headers,
            proxy=state.endpoint.proxy,
            connect_s=min(_CONNECT_S, self._settings.request_timeout_s),
            total_s=self._settings.request_timeout_s,
        )

    async def ask(self, prompt: bytes, place: tuple[int, int], max_tokens: int | None = None) -> Reply:
        """Return the answers to an encoded prompt, trying again where that can help.

        Args:
            prompt: the prompt as `RequestFormat.encode` makes it.
            place: position of the row and number of its turn, for its seed.
            max_tokens: a shorter answer than configured.

        Raises:
            RowFailedError: this row gets no answer.
            RunStoppedError: no row can get an answer.
        """
        attempts: Attempts | None = None
        pool = self.pool
        while True:
            asked = time.monotonic()
            state = await pool.acquire(len(prompt), again=attempts is not None)
            started = time.monotonic()
            if attempts is not None:
                attempts.excuse(started - asked)
            try:
                body = self._requests.body(state.endpoint.model, prompt, place, max_tokens)
                reply = await self._attempt(state, body)
                pool.finished(state, started, len(prompt), (reply.prompt_tokens, reply.num_tokens or 0))
                self.prompt_tokens += reply.prompt_tokens
                return reply
            except RequestError as error:
                attempts = attempts or Attempts(policy=self._settings.retry)
                wait = self._after_failure(error, state, started, attempts)
            finally:
                pool.release(state)
            await self._rest(wait)

    async def _attempt(self, state: EndpointState, body: bytes) -> Reply:
        try:
            status, headers, content, _ = await self._posters[id(state)].post(body)
        except NoConnectionError as error:
            raise RequestError(
                Kind.connection, f"no connection to {state.endpoint.base_url}: {error}"
            ) from None
        except BrokenConnectionError as error:
            raise RequestError(Kind.retryable, f"broken answer: {error}") from None
        except TimeoutError:
            limit = self._settings.request_timeout_s
            raise RequestError(
                Kind.timeout, f"no answer within {limit:g} s (server.request_timeout_s)"
            ) from None
        self.pool.answered(state)
        if status != _OK:
            raise classify(status, headers, content)
        return self._requests.parse(content)

    def _after_failure(
        self, error: RequestError, state: EndpointState, started: float, attempts: Attempts
    ) -> float:
        """Tell the pool, and return how long this row waits for its next attempt."""
        if error.kind is Kind.busy:
            self.pool.refused(state, started, error.retry_after)
        elif error.kind is Kind.timeout:
            state.limit.overdue(started)
        elif error.kind is Kind.connection:
            self.pool.down(state, str(error))
        elif error.kind in FATAL:
            where = f"{state.endpoint.base_url}{self._requests.path}"
            raise RunStoppedError(f"{where} refuses every request: {error}.") from None
        try:
            wait = attempts.next_wait(error)
        except RowFailedError:
            silent_for = self.pool.silent_for()
            # not only this row's requests went nowhere: nobody got an answer in all that time
            hopeless = silent_for >= max(_SILENCE_S, attempts.trying_for())
            if error.kind is Kind.connection and hopeless:
                raise RunStoppedError(
                    f"No server has answered for {silent_for:.0f} s; last error: {error}"
                ) from None
            raise
        self.retries += 1
        self.last_error = str(error)
        return wait

    async def _rest(self, seconds: float) -> None:
        self.resting += 1
        try:
            if self.pool.room > 0:
                self.pool.on_room()
            await asyncio.sleep(seconds)
        finally:
            self.resting -= 1
