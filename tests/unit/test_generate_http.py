"""The lean HTTP client: answers in all forms and pieces, connections that end, TLS, proxies."""

import asyncio
import gzip
import itertools
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.inference.http import BrokenConnectionError, NoConnectionError, Poster, Target
from nemo_skills.inference.http.answer import AnswerReader, BadAnswerError, Response

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def encode(body: bytes, form: str, chunks: list[int]) -> bytes:
    head = b"HTTP/1.1 207 Fine\r\nServer: content-length: 3\r\nRETRY-AFTER:  7 \r\n"
    if form == "length":
        return head + b"content-LENGTH: %d\r\n\r\n" % len(body) + body
    if form == "gzip":
        packed = gzip.compress(body)
        return head + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
    if form == "close":
        return head + b"\r\n" + body
    parts = [part for part in pieces(body, chunks) if part]
    coded = b"".join(b"%X;ext=1\r\n%b\r\n" % (len(part), part) for part in parts)
    trailer = b"X-Sum: 1\r\n" if form == "trailer" else b""
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\n" + trailer + b"\r\n"


@given(
    body=st.binary(max_size=300),
    form=st.sampled_from(["length", "gzip", "close", "chunked", "trailer"]),
    chunks=st.lists(st.integers(0, 400), max_size=6),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
    interim=st.booleans(),
)
def test_answers_in_any_form_and_any_pieces(
    body: bytes, form: str, chunks: list[int], cuts: list[int], interim: bool
) -> None:
    data = (b"HTTP/1.1 100 Continue\r\n\r\n" if interim else b"") + encode(body, form, chunks)
    reader = AnswerReader()
    results = [reader.feed(piece) for piece in pieces(data, cuts) if piece]
    assert all(result is None for result in results[:-1])
    response = reader.end() if form == "close" else results[-1]
    assert response is not None
    assert (response.status, response.body, response.headers["retry-after"]) == (207, body, "7")
    assert response.keep == (form != "close")


@given(st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=5))
def test_nonsense_is_noticed(data: bytes, cuts: list[int]) -> None:
    reader = AnswerReader()
    try:
        for piece in pieces(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data, cuts):
            reader.feed(piece)
    except BadAnswerError:
        return
    with pytest.raises(BadAnswerError):
        AnswerReader().feed(b"SSH-2.0 " + data)


def test_when_a_connection_can_be_used_again() -> None:
    def keep(head: bytes, body: bytes = b"") -> bool:
        response = AnswerReader().feed(head + b"\r\nContent-Length: 0\r\n\r\n" + body)
        assert response is not None
        return response.keep

    assert keep(b"HTTP/1.1 200 OK")
    assert not keep(b"HTTP/1.1 200 OK\r\nConnection: Close")
    assert not keep(b"HTTP/1.0 200 OK")
    assert keep(b"HTTP/1.0 200 OK\r\nConnection: keep-alive")
    assert not keep(b"HTTP/1.1 200 OK", b"more than was asked for")


def scenario(
    handle: Handler,
    act: Callable[[str], Coroutine[Any, Any, Any]],
    context: ssl.SSLContext | None = None,
) -> Any:
    """Run a server that speaks bytes, and something against its URL."""

    async def run() -> Any:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        async with server:
            return await asyncio.wait_for(act(f"{'https' if context else 'http'}://127.0.0.1:{port}"), 20)

    return asyncio.run(run())


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    size = next(int(line.split(b":")[1]) for line in head.splitlines() if line.startswith(b"Content-Length"))
    return head, await reader.readexactly(size)


async def post(url: str, body: bytes = b"{}", **target: Any) -> Response:
    poster = Poster(Target(url=f"{url}/v1/x?a=b", **target))
    try:
        return await poster.post(body)
    finally:
        poster.close()


def test_a_request_is_sent_as_it_should_be() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(HELLO)

    body = b"x" * 3_000_000

    async def act(url: str) -> Response:
        return await post(url.replace("//", "//me:p%40ss@"), body, headers={"X-Key": "v"})

    assert scenario(handle, act).body == b"hello"
    head, received = seen[0]
    lines = head.decode().splitlines()
    assert lines[0] == "POST /v1/x?a=b HTTP/1.1"
    assert {"X-Key: v", "Authorization: Basic bWU6cEBzcw==", "Content-Length: 3000000"} <= set(lines)
    assert [line for line in lines if line.startswith("Host: 127.0.0.1:")]
    assert received == body


def test_connections_are_kept_and_replaced_when_the_server_dropped_them() -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(3):
            await read_request(reader)
            writer.write(HELLO)
        writer.close()

    async def act(url: str) -> None:
        poster = Poster(Target(url=url))
        for i in range(9):
            assert (await poster.post(b"{}")).body == b"hello"
            if i % 2:
                await asyncio.sleep(0.02)  # else the request meets a connection that is just being closed
        poster.close()

    scenario(handle, act)
    assert connections == 3


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "in the middle"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", "in the middle"),
        (b"220 mail server ready\r\n", "no valid HTTP"),
    ],
)
def test_broken_answers(said: bytes, message: str) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(said)
        writer.close()

    with pytest.raises(BrokenConnectionError, match=message):
        scenario(handle, post)


def test_a_server_that_hangs_up_at_once_is_no_endless_loop() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    with pytest.raises(BrokenConnectionError):
        scenario(handle, post)


def test_waiting_has_an_end() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    start = time.monotonic()
    with pytest.raises(TimeoutError):
        scenario(handle, lambda url: post(url, total_s=0.3))
    assert 0.3 <= time.monotonic() - start < 2


def test_nobody_listens() -> None:
    async def act(url: str) -> None:
        for address in ("http://127.0.0.1:9", "http://no-such-host.invalid"):
            with pytest.raises(NoConnectionError):
                await post(address)

    asyncio.run(act(""))


def test_a_cancelled_request_frees_its_connection() -> None:
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        assert await reader.read() == b""
        gone.set()

    async def act(url: str) -> None:
        poster = Poster(Target(url=url))
        task = asyncio.create_task(poster.post(b"{}"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 5)
        poster.close()

    scenario(handle, act)


def test_against_a_real_server_with_many_at_once() -> None:
    async def act() -> None:
        async def echo(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            if len(body) % 2:
                return web.Response(body=body)
            stream = web.StreamResponse()
            stream.enable_chunked_encoding()
            await stream.prepare(request)
            for i in range(0, len(body), 7):
                await stream.write(body[i : i + 7])
            return stream

        app = web.Application()
        app.router.add_post("/", echo)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        poster = Poster(Target(url=f"http://127.0.0.1:{runner.addresses[0][1]}/"))

        async def work(seed: int) -> None:
            for i in range(20):
                body = b"%d-" % seed * (i + 1)
                assert (await poster.post(body)).body == body

        await asyncio.gather(*(work(seed) for seed in range(40)))
        poster.close()
        await runner.cleanup()

    asyncio.run(act())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout key.pem -out cert.pem"
    words = [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    made = subprocess.run(words, capture_output=True, cwd=folder)
    if made.returncode != 0:
        pytest.skip("openssl is not installed")
    return folder


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


async def say_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        try:
            await read_request(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            break
        writer.write(HELLO)
    writer.close()


def test_tls_with_a_trusted_certificate_only(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoConnectionError, match=r"(?i)certificate"):
        scenario(say_hello, post, server_context(certificate))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    assert scenario(say_hello, post, server_context(certificate)).body == b"hello"


class Proxy:
    """Forwards, and remembers what it saw of the requests."""

    def __init__(self) -> None:
        self.heads: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.decode())
        method, target, _ = head.decode().split(" ", 2)
        place = target if method == "CONNECT" else target.split("/")[2]
        host, _, port = place.partition(":")
        to_reader, to_writer = await asyncio.open_connection(host, int(port))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            to_writer.write(head)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
            target.close()

        await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer), return_exceptions=True)


@pytest.mark.parametrize("secure", [False, True])
def test_proxies(secure: bool, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    proxy = Proxy()

    async def act(url: str) -> None:
        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            poster = Poster(Target(url=f"{url}/v1/x", proxy=f"http://user:secret@127.0.0.1:{port}"))
            for _ in range(2):
                assert (await poster.post(b"{}")).body == b"hello"
            poster.close()

    scenario(say_hello, act, server_context(certificate) if secure else None)
    assert len(proxy.heads) == 1
    assert proxy.heads[0].startswith("CONNECT 127.0.0.1:" if secure else "POST http://127.0.0.1:")
    assert "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in proxy.heads[0]


def test_a_proxy_that_refuses() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n\r\nno!")

    with pytest.raises(NoConnectionError, match="407"):
        scenario(handle, lambda url: post("https://example.invalid", proxy=url))


def test_headers_cannot_be_smuggled_in() -> None:
    with pytest.raises(ValueError, match="line break"):
        Poster(Target(url="http://h/", headers={"Authorization": "Bearer x\r\nEvil: 1"}))
