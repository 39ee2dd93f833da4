"""One connection to a server: a request, its answer, then the next request."""

import asyncio
import socket
from contextlib import suppress
from typing import Protocol, cast

from nemo_skills.inference.http.answer import AnswerReader, BadAnswerError, Response

# a peer that vanished without a word is noticed after a minute and a half
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 90_000}


class BrokenConnectionError(Exception):
    """The connection ended, or what came was not HTTP, before the answer was complete."""


class StaleConnectionError(BrokenConnectionError):
    """The server had closed a connection that was kept open for the next request."""


class Owner(Protocol):
    """Who keeps connections."""

    def forget(self, connection: "Connection") -> None:
        """Called when a connection is gone."""


class Connection(asyncio.Protocol):
    """Sends requests one after the other."""

    def __init__(self, owner: Owner) -> None:
        self.transport: asyncio.Transport | None = None
        self.deadline = 0.0
        """When the request under way has taken too long; kept here for the owner."""
        self._owner = owner
        self._reader = AnswerReader()
        self._answer: asyncio.Future[Response] | None = None
        self._used = False

    async def exchange(self, request: bytes, *, tunnel: bool = False) -> Response:
        """Send a request and return its answer.

        Raises:
            BrokenConnectionError: there is no complete answer.
            TimeoutError: somebody called `expire`.
        """
        assert self.transport is not None
        if self.transport.is_closing():
            raise self._closed("the server closed the connection")
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._reader = AnswerReader(tunnel=tunnel)
        self.transport.write(request)
        try:
            response = await answer
        except BaseException:
            self._answer = None
            self.transport.abort()
            raise
        self._used = not tunnel
        # an answer that came before the whole request was sent leaves the connection in doubt
        if not (response.keep or tunnel) or self.transport.get_write_buffer_size():
            self.transport.abort()
        return response

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return self.transport is not None and not self.transport.is_closing()

    def expire(self) -> None:
        """End the request under way because it takes too long."""
        self._fail(TimeoutError())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)
        _keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Take in a piece of an answer."""
        answer = self._answer
        if answer is None:
            if self.transport is not None:
                self.transport.abort()  # nothing was asked
            return
        try:
            response = self._reader.feed(data)
        except BadAnswerError as error:
            self._fail(BrokenConnectionError(str(error)))
            return
        if response is not None and not answer.done():
            self._answer = None
            answer.set_result(response)

    def connection_lost(self, error: Exception | None) -> None:
        """End the request under way."""
        response = self._reader.end() if error is None and self._answer is not None else None
        if response is not None and self._answer is not None and not self._answer.done():
            self._answer.set_result(response)
        elif self._reader.untouched:
            why = f" ({error})" if error else ""
            self._fail(self._closed(f"the server closed the connection without an answer{why}"))
        else:
            self._fail(BrokenConnectionError("the connection ended in the middle of the answer"))
        self._answer = None
        self._owner.forget(self)

    def _closed(self, message: str) -> BrokenConnectionError:
        return (StaleConnectionError if self._used else BrokenConnectionError)(message)

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


def _keep_alive(connected: socket.socket | None) -> None:
    if connected is None:
        return
    with suppress(OSError):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        with suppress(OSError, AttributeError):  # not on every system
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
