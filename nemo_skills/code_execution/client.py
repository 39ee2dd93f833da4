"""Client of the sandbox server, for programs with and without an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from nemo_skills.code_execution.result import (
    DEFAULT_OUTPUT_BYTES,
    DEFAULT_TIMEOUT_S,
    ExecutionRequest,
    ExecutionResult,
)

_RETRY_S = 0.2
_HEALTH_S = 10.0
_REPLY_LIMIT = 1 << 20
_OK = 200


class SandboxUnavailableError(Exception):
    """The sandbox gives no usable answer."""


class Sandbox:
    """A sandbox server.

    Args:
        address: `http://host:port`, or `host:port`.
        connect_timeout_s: how long a refused connection is tried again.
        queue_timeout_s: how long a request may wait for its turn, on top of its own time.
    """

    def __init__(
        self, address: str, *, connect_timeout_s: float = 10.0, queue_timeout_s: float = 900.0
    ) -> None:
        parts = urlsplit(address if "//" in address else f"http://{address}")
        if not parts.hostname or not parts.port:
            raise ValueError(f"'{address}' is no address of a sandbox: http://host:port is wanted")
        self.address = f"http://{parts.hostname}:{parts.port}"
        self._host, self._port = parts.hostname, parts.port
        self._connect_timeout_s = connect_timeout_s
        self._queue_timeout_s = queue_timeout_s

    def execute(
        self,
        code: str,
        session_id: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        stdin: str = "",
        max_output_bytes: int = DEFAULT_OUTPUT_BYTES,
    ) -> ExecutionResult:
        """Run a program, or the next cell of a session; a sandbox that fails is a result too."""
        return self.run(_request(code, session_id, timeout_s, stdin, max_output_bytes))[0]

    async def execute_async(
        self,
        code: str,
        session_id: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        stdin: str = "",
        max_output_bytes: int = DEFAULT_OUTPUT_BYTES,
    ) -> ExecutionResult:
        """Do as `execute`, in an event loop."""
        return (await self.run_async(_request(code, session_id, timeout_s, stdin, max_output_bytes)))[0]

    def run(self, request: ExecutionRequest) -> Sequence[ExecutionResult]:
        """Run a program on several inputs; as many results, or fewer where it stopped at a failure."""
        try:
            return _results(self._post("/execute", request.to_json(), self._patience(request)))
        except SandboxUnavailableError as error:
            return [ExecutionResult.failure(str(error))]

    async def run_async(self, request: ExecutionRequest) -> Sequence[ExecutionResult]:
        """Do as `run`, in an event loop."""
        try:
            answer = await self._post_async("/execute", request.to_json(), self._patience(request))
            return _results(answer)
        except SandboxUnavailableError as error:
            return [ExecutionResult.failure(str(error))]

    def close_session(self, session_id: str) -> None:
        """End a session; one that is gone already, with the sandbox perhaps, is fine."""
        with contextlib.suppress(SandboxUnavailableError):
            self._post("/close", {"session_id": session_id}, self._queue_timeout_s)

    async def close_session_async(self, session_id: str) -> None:
        """Do as `close_session`, in an event loop."""
        with contextlib.suppress(SandboxUnavailableError):
            await self._post_async("/close", {"session_id": session_id}, self._queue_timeout_s)

    def health(self, connect_timeout_s: float | None = None) -> dict[str, Any]:
        """Return what the server says of itself.

        Args:
            connect_timeout_s: how long a refused connection is tried again, if not as usual.

        Raises:
            SandboxUnavailableError: it says nothing.
        """
        return self._post("/health", None, _HEALTH_S, connect_timeout_s)

    def _patience(self, request: ExecutionRequest) -> float:
        return request.timeout_s * len(request.stdins) + self._queue_timeout_s

    def _post(
        self, path: str, fields: dict[str, Any] | None, seconds: float, connect_s: float | None = None
    ) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        try:
            self._connect(connection, self._connect_timeout_s if connect_s is None else connect_s)
            body = None if fields is None else json.dumps(fields)
            connection.request("GET" if body is None else "POST", path, body, {"Connection": "close"})
            reply = connection.getresponse()
            return _answer(reply.status, reply.read())
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(error) from None
        finally:
            connection.close()

    def _connect(self, connection: http.client.HTTPConnection, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return connection.connect()
            except OSError:  # nothing was sent, so nothing can run twice
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_S)

    async def _post_async(self, path: str, fields: dict[str, Any], seconds: float) -> dict[str, Any]:
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            reader, writer = await self._connect_async()
            try:
                writer.write(head.encode() + body)
                reply = await asyncio.wait_for(reader.read(), seconds)
            finally:
                writer.close()
            found, _, content = reply.partition(b"\r\n\r\n")
            return _answer(int(found.split(b" ", 2)[1]), content)
        except (OSError, TimeoutError, ValueError, IndexError) as error:
            raise self._unavailable(error) from None

    async def _connect_async(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        deadline = time.monotonic() + self._connect_timeout_s
        while True:
            try:
                return await asyncio.open_connection(self._host, self._port, limit=_REPLY_LIMIT)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_RETRY_S)

    def _unavailable(self, error: Exception) -> SandboxUnavailableError:
        why = str(error) or type(error).__name__
        return SandboxUnavailableError(f"the sandbox at {self.address} gives no answer: {why}")


def _request(
    code: str, session_id: str | None, timeout_s: float, stdin: str, max_output_bytes: int
) -> ExecutionRequest:
    return ExecutionRequest(
        code, session_id=session_id, timeout_s=timeout_s, stdins=(stdin,), max_output_bytes=max_output_bytes
    )


def _answer(status: int, body: bytes) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(body)
    except ValueError:
        raise SandboxUnavailableError(f"the sandbox's answer was cut: {body[:200]!r}") from None
    if status != _OK:
        raise SandboxUnavailableError(f"the sandbox refuses: {answer.get('error')}")
    return answer


def _results(answer: dict[str, Any]) -> list[ExecutionResult]:
    return [ExecutionResult.from_json(fields) for fields in answer["results"]]
