"""Reads HTTP/1.1 answers out of the pieces in which they arrive."""

import re
import zlib
from typing import NamedTuple

_HEADERS = re.compile(
    rb"\r\n(content-length|transfer-encoding|content-encoding|connection|retry-after(?:-ms)?)[ \t]*:"
    rb"[ \t]*([^\r\n]*)",
    re.IGNORECASE,
)
_START = b"HTTP/1."
_LONGEST_HEAD = 1 << 18
_SHOWN = 40


class BadAnswerError(ValueError):
    """What came is not an answer of HTTP/1."""


class Response(NamedTuple):
    """A complete answer."""

    status: int
    headers: dict[str, str]
    """Those that matter to a client of this kind, with names in lower case."""
    body: bytes
    keep: bool
    """Whether the connection can take another request."""


class AnswerReader:
    """Reads one answer."""

    __slots__ = ("_body_at", "_buffer", "_chunked", "_chunks", "_headers", "_size", "_status", "_tunnel")

    def __init__(self, *, tunnel: bool = False) -> None:
        """Start before the first byte; `tunnel`: of the answer to CONNECT, which has no body."""
        self._buffer = bytearray()
        self._tunnel = tunnel
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body_at = 0
        """Where the unread part of the body begins; 0 before the head is complete."""
        self._size: int | None = None
        self._chunked = False
        self._chunks: list[bytes] = []

    @property
    def untouched(self) -> bool:
        """Whether nothing has arrived yet."""
        return not self._buffer and not self._status

    def feed(self, data: bytes) -> Response | None:
        """Take in a piece; return the answer when it is complete.

        Raises:
            BadAnswerError: this is not HTTP/1.
        """
        self._buffer += data
        try:
            while not self._body_at:
                if not self._read_head():
                    return None
            if self._chunked:
                return self._read_chunks()
        except (ValueError, IndexError) as error:
            raise BadAnswerError(f"no valid HTTP ({error}): {bytes(self._buffer[:_SHOWN])!r}") from None
        if self._size is None or len(self._buffer) < self._body_at + self._size:
            return None
        end = self._body_at + self._size
        return self._response(bytes(self._buffer[self._body_at : end]), end)

    def end(self) -> Response | None:
        """Note that the server has closed the connection; return the answer if that is how it ends."""
        if not self._body_at or self._chunked or self._size is not None:
            return None
        response = self._response(bytes(self._buffer[self._body_at :]), len(self._buffer))
        return response._replace(keep=False)

    def _read_head(self) -> bool:
        """Read the head; False until it is complete, True for an interim answer too."""
        buffer = self._buffer
        if not buffer.startswith(_START) and not _START.startswith(buffer):
            raise ValueError("unknown protocol")
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > _LONGEST_HEAD:
                raise ValueError("endless head")
            return False
        head = bytes(buffer[: end + 2])
        status = int(head[9:12])
        if 100 <= status < 200:
            del buffer[: end + 4]
            return bool(buffer)
        self._status = status
        found = _HEADERS.findall(head)
        headers = {name.lower().decode(): value.decode("latin-1").strip() for name, value in found}
        self._headers = headers
        if status in (204, 304) or (self._tunnel and 200 <= status < 300):
            self._size = 0
        elif "chunked" in headers.get("transfer-encoding", "").lower():
            self._chunked = True
        elif "content-length" in headers:
            self._size = int(headers["content-length"])
            if self._size < 0:
                raise ValueError("negative length")
        if "connection" not in headers and head[7:8] == b"0":
            headers["connection"] = "close"
        self._body_at = end + 4
        return True

    def _read_chunks(self) -> Response | None:
        buffer = self._buffer
        while (line_end := buffer.find(b"\r\n", self._body_at)) >= 0:
            size = int(buffer[self._body_at : line_end].partition(b";")[0], 16)
            start = line_end + 2
            if size == 0:
                return self._read_trailers(line_end)
            if len(buffer) < start + size + 2:
                return None
            self._chunks.append(bytes(buffer[start : start + size]))
            self._body_at = start + size + 2
        return None

    def _read_trailers(self, line_end: int) -> Response | None:
        """Pass over what follows the last chunk: lines up to an empty one."""
        end = self._buffer.find(b"\r\n\r\n", line_end)
        return None if end < 0 else self._response(b"".join(self._chunks), end + 4)

    def _response(self, body: bytes, end: int) -> Response:
        if self._headers.get("content-encoding", "identity").lower() in ("gzip", "deflate"):
            try:
                body = zlib.decompress(body, 32 + zlib.MAX_WBITS)
            except zlib.error as error:
                raise BadAnswerError(f"damaged compression: {error}") from None
        # bytes beyond the end of the answer belong to nothing that was asked
        keep = "close" not in self._headers.get("connection", "").lower() and end == len(self._buffer)
        return Response(self._status, self._headers, body, keep)
