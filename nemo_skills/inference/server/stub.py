"""A server that speaks OpenAI's API and invents its answers, with every fault a real one has, on demand.

For tests, benchmarks and dry rehearsals: `python -m nemo_skills.inference.server.stub --port 8000`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import orjson
from aiohttp import web

from nemo_skills.inference.server.stub_answers import (
    BadRequest,
    Oracle,
    Request,
    chunks,
    count_tokens,
    response,
)

_JSON = "application/json"


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class StubOptions:
    """How the stub behaves; each field is a command line option too."""

    host: str = _option("127.0.0.1", "address to listen on")
    port: int = _option(0, "port to listen on; 0 takes a free one and prints it")
    model: str = _option("", "name of its model; any name is accepted when empty")
    answer: str | None = _option(None, "say this to everything")
    script: str = _option(
        "", "JSON list of [regular expression, answer]; the first found in a prompt decides"
    )
    seed: int = _option(0, "changes the answers and which requests fail")
    latency: float = _option(0.0, "seconds per request")
    token_latency: float = _option(0.0, "seconds per generated token, on top")
    slots: int = _option(0, "requests worked on at the same time, others wait; 0: all")
    max_concurrent: int = _option(0, "429 to requests beyond so many at the same time; 0: none")
    per_second: int = _option(0, "429 to requests beyond so many in a second; 0: none")
    error_rate: float = _option(0.0, "share of requests answered with 500")
    rate_limit_rate: float = _option(0.0, "share of requests answered with 429")
    retry_after: float = _option(1.0, "seconds named in the Retry-After header of a 429")
    hang_rate: float = _option(0.0, "share of requests never answered")
    truncate_rate: float = _option(
        0.0, "share of responses whose connection breaks in the middle of the body"
    )
    context_limit: int = _option(0, "400 when prompt and wanted answer exceed so many tokens; 0: no limit")
    fail_rows: str = _option("", "400 to prompts in which this regular expression is found")
    api_key: str = _option("", "401 to requests without this bearer token")
    die_after: int = _option(0, "end abruptly when so many requests have been served; 0: never")

    def __post_init__(self) -> None:
        re.compile(self.fail_rows)
        for pattern, _ in json.loads(self.script or "[]"):
            re.compile(pattern)
        rates = ("error_rate", "rate_limit_rate", "hang_rate", "truncate_rate")
        if wrong := [name for name in rates if not 0 <= getattr(self, name) <= 1]:
            raise ValueError(f"{', '.join(wrong)}: a share lies between 0 and 1")


class StubServer:
    """A running stub. `await start()` gives its base URL, `await close()` ends it."""

    def __init__(self, options: StubOptions) -> None:
        self.options = options
        self.base_url = ""
        self.requests = 0
        """Generation requests received, failed ones included."""
        self.peak = 0
        """Largest number of requests at the same time."""
        self._open = 0
        self._running = 0
        self._this_second = (0, 0)
        self._slots = asyncio.Semaphore(options.slots) if options.slots else contextlib.nullcontext()
        self._faults = random.Random(options.seed)
        self._oracle = Oracle(options.seed, options.answer, json.loads(options.script or "[]"))
        self._failing = re.compile(options.fail_rows) if options.fail_rows else None
        self._runner: web.ServerRunner | None = None

    async def start(self) -> str:
        """Listen; return the base URL, which ends in /v1."""
        # a client that gives up frees its place at once
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.options.host, self.options.port, backlog=4096)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}/v1"
        return self.base_url

    async def close(self) -> None:
        """Stop listening and drop all connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.path == "/v1/chat/completions":
                return await self._generate(request, chat=True)
            if request.path == "/v1/completions":
                return await self._generate(request, chat=False)
            return self._information(request)
        except BadRequest as err:
            return _error(err.status, str(err), err.kind)

    def _information(self, request: web.BaseRequest) -> web.Response:
        if request.path == "/health":
            return web.Response()
        if request.path == "/v1/models":
            self._authorise(request)
            entry = {"id": self.options.model or "stub", "object": "model", "owned_by": "nemo_skills"}
            return _json({"object": "list", "data": [entry]})
        if request.path == "/metrics":
            return web.Response(text=self._metrics())
        raise BadRequest("Not Found", status=404, kind="NotFoundError")

    def _metrics(self) -> str:
        label = f'{{model_name="{self.options.model or "stub"}"}}'
        gauges = {"running": self._running, "waiting": self._open - self._running}
        lines = []
        for name, value in gauges.items():
            lines.append(f"# TYPE vllm:num_requests_{name} gauge")
            lines.append(f"vllm:num_requests_{name}{label} {value:.1f}")
        lines.append("# TYPE vllm:request_total counter")
        lines.append(f"vllm:request_total{label} {self.requests}")
        return "\n".join(lines) + "\n"

    def _authorise(self, request: web.BaseRequest) -> None:
        key = self.options.api_key
        if key and request.headers.get("Authorization") != f"Bearer {key}":
            raise BadRequest("Unauthorized", status=401, kind="AuthenticationError")

    async def _generate(self, http: web.BaseRequest, *, chat: bool) -> web.StreamResponse:
        self._authorise(http)
        if http.method != "POST":
            raise BadRequest("Method Not Allowed", status=405)
        self.requests += 1
        number = self.requests
        if self.options.die_after and number > self.options.die_after:
            os._exit(1)
        self._open += 1
        self.peak = max(self.peak, self._open)
        try:
            fault = self._fault()
            if isinstance(fault, web.Response):
                return fault
            request, model = self._parse(await http.read(), chat=chat)
            if fault == "hang":
                await asyncio.Event().wait()
            return await self._answer(http, request, (model, number, fault == "truncate"))
        finally:
            self._open -= 1

    def _fault(self) -> web.Response | str | None:
        """Draw this request's fate; each fault has its own draw, so that rates do not disturb each other."""
        options = self.options
        hang, truncate, limited, error = (self._faults.random() for _ in range(4))
        if options.max_concurrent and self._open > options.max_concurrent:
            return self._rate_limit()
        if limited < options.rate_limit_rate or (options.per_second and self._is_over_rate()):
            return self._rate_limit()
        if error < options.error_rate:
            return _error(500, "the stub fails on purpose", "InternalServerError")
        if hang < options.hang_rate:
            return "hang"
        return "truncate" if truncate < options.truncate_rate else None

    def _is_over_rate(self) -> bool:
        """Count a request, and tell whether its second has had too many."""
        second, count = self._this_second
        now = int(time.monotonic())
        self._this_second = (now, count + 1 if second == now else 1)
        return self._this_second[1] > self.options.per_second

    def _rate_limit(self) -> web.Response:
        refusal = _error(429, "Too many requests", "RateLimitError")
        refusal.headers["Retry-After"] = f"{self.options.retry_after:g}"
        return refusal

    def _parse(self, raw: bytes, *, chat: bool) -> tuple[Request, str]:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as err:
            raise BadRequest(f"body is not JSON: {err}") from err
        if not isinstance(body, dict):
            raise BadRequest("body must be an object")
        model = str(body.get("model") or "")
        if self.options.model and model != self.options.model:
            raise BadRequest(f"The model `{model}` does not exist.", status=404, kind="NotFoundError")
        request = Request.parse(body, chat=chat)
        if self._failing and any(map(self._failing.search, request.prompts)):
            raise BadRequest("the prompt is one of those that fail on purpose")
        if self.options.context_limit:
            self._check_context(request)
        return request, model or "stub"

    def _check_context(self, request: Request) -> None:
        limit = self.options.context_limit
        wanted = request.max_tokens or 0
        longest = max(map(count_tokens, request.prompts))
        if longest + wanted > limit:
            raise BadRequest(
                f"This model's maximum context length is {limit} tokens. However, you requested {wanted}"
                f" output tokens and your prompt contains at least {longest} input tokens, for a total of"
                f" at least {longest + wanted} tokens. Please reduce the length of the input prompt or the"
                " number of requested output tokens."
            )

    async def _answer(
        self, http: web.BaseRequest, request: Request, fate: tuple[str, int, bool]
    ) -> web.StreamResponse:
        model, number, truncate = fate
        async with self._slots:
            self._running += 1
            try:
                answers = self._oracle.answers(request)
                if request.stream:
                    events = chunks(request, answers, model, number)
                    return await self._stream(http, events, truncate=truncate)
                longest = max(len(answer.tokens) for answer in answers)
                pause = self.options.latency + longest * self.options.token_latency
                if pause:
                    await asyncio.sleep(pause)
            finally:
                self._running -= 1
        body = orjson.dumps(response(request, answers, model, number))
        return await _half(http, body) if truncate else web.Response(body=body, content_type=_JSON)

    async def _stream(
        self, http: web.BaseRequest, events: Sequence[dict[str, Any]], *, truncate: bool
    ) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(http)
        await asyncio.sleep(self.options.latency)
        for event in events[: len(events) // 2] if truncate else events:
            if self.options.token_latency:
                await asyncio.sleep(self.options.token_latency)
            await stream.write(b"data: " + orjson.dumps(event) + b"\n\n")
        if truncate:
            _hang_up(http)
            return stream
        await stream.write(b"data: [DONE]\n\n")
        return stream


async def _half(http: web.BaseRequest, body: bytes) -> web.StreamResponse:
    stream = web.StreamResponse(headers={"Content-Type": _JSON})
    stream.content_length = len(body)
    await stream.prepare(http)
    await stream.write(body[: len(body) // 2])
    _hang_up(http)
    return stream


def _hang_up(http: web.BaseRequest) -> None:
    if http.transport is not None:
        http.transport.close()


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type=_JSON)


def _error(status: int, message: str, kind: str) -> web.Response:
    return _json({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


def parse_options(args: Sequence[str] | None = None) -> StubOptions:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_skills.inference.server.stub",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option in fields(StubOptions):
        kind = option.type if isinstance(option.type, type) else str
        name = f"--{option.name.replace('_', '-')}"
        parser.add_argument(name, type=kind, default=option.default, help=option.metadata["help"])
    given = vars(parser.parse_args(args))
    try:
        return StubOptions(**given)
    except (ValueError, re.error) as err:
        parser.error(str(err))


async def serve(options: StubOptions) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = StubServer(options)
    print(f"stub listens on {await server.start()}", flush=True)
    ended = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, ended.set)
    await ended.wait()
    await server.close()


if __name__ == "__main__":
    asyncio.run(serve(parse_options()))
