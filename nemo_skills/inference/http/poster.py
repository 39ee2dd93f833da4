"""Sends requests to one server over connections that are kept open."""

import asyncio
import base64
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit

from nemo_skills.inference.http.answer import Response
from nemo_skills.inference.http.connection import BrokenConnectionError, Connection, StaleConnectionError

_SWEEP_S = 0.25
_SECURE_PORT, _PLAIN_PORT = 443, 80
_FOR_PROXY = "Proxy-Authorization"


class NoConnectionError(Exception):
    """No connection came about; nothing was sent."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go, and how long they may take."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str | None = field(default=None, repr=False)
    connect_s: float = 30.0
    total_s: float = 3600.0


class Poster:
    """Posts bodies to one URL; use it as an async context manager or call `close`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._url = urlsplit(target.url)
        self._proxy = urlsplit(target.proxy) if target.proxy else None
        self._secure = self._url.scheme == "https"
        self._head = self._request_head()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._context: ssl.SSLContext | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def post(self, body: bytes) -> Response:
        """Send a body and return the answer, whatever its status.

        Raises:
            NoConnectionError: nothing was sent.
            BrokenConnectionError: no complete answer came.
            TimeoutError: it did not come in time.
        """
        request = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        while True:
            connection = self._idle.pop() if self._idle else await self._connect()
            connection.deadline = time.monotonic() + self._target.total_s
            if self._sweeper is None:
                self._sweep()
            self._busy.add(connection)
            try:
                response = await connection.exchange(request)
            except StaleConnectionError:
                continue  # closed while it was idle, so the request was not looked at
            finally:
                self._busy.discard(connection)
            if response.keep and connection.usable:
                self._idle.append(connection)
            return response

    def close(self) -> None:
        """Drop all connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [*self._idle, *self._busy]:
            if connection.transport is not None:
                connection.transport.abort()
        self._idle.clear()

    def forget(self, connection: Connection) -> None:
        """Take a connection that is gone out of those that can be used."""
        if connection in self._idle:
            self._idle.remove(connection)

    def _sweep(self) -> None:
        """End requests that take too long; one timer for all costs less than one for each."""
        now = time.monotonic()
        for connection in self._busy:
            if connection.deadline < now:
                connection.expire()
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)

    def _request_head(self) -> bytes:
        url, target = self._url, self._target
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        own = {"Host": _host(url), **_credentials(url, "Authorization")}
        headers = {**own, **target.headers, "Accept-Encoding": "identity"}
        if self._proxy is not None and not self._secure:
            path = f"{url.scheme}://{_host(url)}{path}"
            headers |= _credentials(self._proxy, _FOR_PROXY)
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a header must not hold a line break")
        return "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(self._target.connect_s):
                return await self._open()
        except TimeoutError:
            raise NoConnectionError(f"no connection within {self._target.connect_s:g} s") from None
        except (OSError, BrokenConnectionError) as error:
            raise NoConnectionError(str(error) or type(error).__name__) from None

    async def _open(self) -> Connection:
        """Connect to the server, through the proxy if there is one."""
        first = self._proxy or self._url
        secure = first.scheme == "https"
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self),
            first.hostname or "",
            _port(first),
            ssl=self._tls() if secure else None,
            happy_eyeballs_delay=0.25,
        )
        if self._proxy is not None and self._secure:
            await self._open_tunnel(connection, self._proxy)
        return connection

    async def _open_tunnel(self, connection: Connection, proxy: SplitResult) -> None:
        """Have a proxy connect to the server, so that it sees nothing of what is said."""
        place = f"{_bracketed(self._url)}:{_port(self._url)}"
        headers = {"Host": place, **_credentials(proxy, _FOR_PROXY)}
        lines = [f"CONNECT {place} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        answer = await connection.exchange("\r\n".join([*lines, "", ""]).encode("latin-1"), tunnel=True)
        if not 200 <= answer.status < 300:
            raise OSError(f"the proxy {_host(proxy)} answers HTTP {answer.status}")
        assert connection.transport is not None
        transport = await asyncio.get_running_loop().start_tls(
            connection.transport, connection, self._tls(), server_hostname=self._url.hostname
        )
        connection.transport = cast(asyncio.Transport, transport)

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context()
        return self._context


def _port(url: SplitResult) -> int:
    return url.port or (_SECURE_PORT if url.scheme == "https" else _PLAIN_PORT)


def _bracketed(url: SplitResult) -> str:
    host = url.hostname or ""
    return f"[{host}]" if ":" in host else host


def _host(url: SplitResult) -> str:
    """Return host and port as they stand in a Host header, without user and password."""
    return _bracketed(url) + (f":{url.port}" if url.port else "")


def _credentials(url: SplitResult, header: str) -> dict[str, str]:
    """Return user and password of an address as the header that carries them."""
    if url.username is None:
        return {}
    pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {header: f"Basic {base64.b64encode(pair.encode()).decode()}"}
