"""What goes to a server, and what is made of its answers and failures."""

import time
from email.utils import formatdate
from typing import Any

import orjson
import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.inference.config import GenerateConfig, InferenceConfig, ServerConfig
from nemo_skills.inference.endpoints import EndpointPool
from nemo_skills.inference.request import RequestFormat
from nemo_skills.inference.retry import (
    Attempts,
    Kind,
    RequestError,
    RetryPolicy,
    RowFailedError,
    classify,
    retry_after_seconds,
)
from nemo_skills.inference.server.ready import Endpoint
from nemo_skills.prompt.utils import get_prompt


def requests_for(
    server_type: Any = "vllm",
    template: str | None = None,
    inference: dict[str, Any] | None = None,
    **config: Any,
) -> RequestFormat:
    settings = GenerateConfig(
        input_file="in", output_file="out", prompt_config="generic/default", prompt_template=template,
        server=ServerConfig(server_type=server_type), inference=InferenceConfig(**(inference or {})),
        **config,
    )  # fmt: skip
    prompt = get_prompt("generic/default", prompt_template=template)
    return RequestFormat(settings, prompt)


def body(requests: RequestFormat, position: int = 0, turn: int = 0) -> dict[str, Any]:
    prompt = [{"role": "user", "content": "q"}] if requests.chat else "q"
    return orjson.loads(requests.body('mo"del', requests.encode(prompt), position, turn))


class TestBodies:
    def test_a_plain_chat_request(self) -> None:
        requests = requests_for()
        assert requests.path == "/chat/completions"
        assert body(requests) == {
            "model": 'mo"del',
            "messages": [{"role": "user", "content": "q"}],
            "seed": 0,
            "max_tokens": 2048,
            "temperature": 0.0,
        }

    def test_a_text_request_with_everything(self) -> None:
        inference = {
            "temperature": 0.6, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2,
            "top_logprobs": 3, "random_seed": None, "extra_body": {"ignore_eos": True, "max_tokens": None},
        }  # fmt: skip
        requests = requests_for(template="llama3-instruct", inference=inference, stop_phrase="END")
        assert requests.path == "/completions"
        sent = body(requests)
        stop = sent.pop("stop")
        assert stop[0] == "END"
        assert len(stop) > 1
        assert sent == {
            "model": 'mo"del', "prompt": "q", "temperature": 0.6, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
            "repetition_penalty": 1.2, "logprobs": 3, "ignore_eos": True,
        }  # fmt: skip

    def test_seeds_differ_between_rows_only_when_sampling(self) -> None:
        sampled = requests_for(inference={"temperature": 1.0, "random_seed": 3})
        seeds = {body(sampled, position, turn)["seed"] for position in range(50) for turn in range(2)}
        assert len(seeds) == 100
        assert all(0 <= seed < 2**31 for seed in seeds)
        other = requests_for(inference={"temperature": 1.0, "random_seed": 4})
        assert body(other, 0)["seed"] != body(sampled, 0)["seed"]
        greedy = requests_for(inference={"random_seed": 3})
        assert {body(greedy, position)["seed"] for position in range(5)} == {3}

    def test_each_server_gets_the_fields_it_takes(self) -> None:
        assert body(requests_for("hf", inference={"repetition_penalty": 1.5}))["frequency_penalty"] == 0.5
        for server_type, field in (
            ("hf", "top_k"),
            ("openai", "top_k"),
            ("openai", "min_p"),
            ("nemo", "min_p"),
        ):
            with pytest.raises(UserError, match=f"inference.{field}"):
                requests_for(server_type, inference={field: 1})

    @pytest.mark.parametrize("field", ["messages", "model", "n", "stream"])
    def test_extra_body_cannot_break_the_client(self, field: str) -> None:
        with pytest.raises(UserError, match=field):
            requests_for(inference={"extra_body": {field: 1}})


class TestAnswers:
    def test_missing_parts_are_not_invented(self) -> None:
        answer = requests_for().parse(b'{"choices":[{"message":{"content":null,"reasoning_content":"hm"}}]}')
        assert (answer.text, answer.finish_reason, answer.num_tokens, answer.reasoning) == (
            "",
            None,
            None,
            "hm",
        )

    @pytest.mark.parametrize(
        "text", [b"", b"{", b"[]", b"null", b"{}", b'{"choices":[]}', b'{"choices":[{}]}', b'{"error":"x"}']
    )
    def test_anything_else_is_tried_again(self, text: bytes) -> None:
        with pytest.raises(RequestError) as caught:
            requests_for().parse(text)
        assert caught.value.kind is Kind.retryable


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "text", "kind"),
        [
            (500, "boom", Kind.retryable),
            (503, "", Kind.retryable),
            (429, '{"error": {"message": "slow down"}}', Kind.retryable),
            (429, '{"error": {"code": "insufficient_quota"}}', Kind.auth),
            (408, "", Kind.retryable),
            (401, "", Kind.auth),
            (403, "", Kind.auth),
            (404, '{"detail": "Not Found"}', Kind.gone),
            (
                400,
                '{"error": {"message": "This model\'s maximum context length is 8 tokens"}}',
                Kind.context_length,
            ),
            (400, '{"message": "The decoder prompt is too long", "object": "error"}', Kind.context_length),
            (400, '{"error": {"message": "bad temperature"}}', Kind.bad_request),
            (422, '{"detail": [{"msg": "field required"}]}', Kind.bad_request),
        ],
    )
    def test_classes(self, status: int, text: str, kind: Kind) -> None:
        error = classify(status, {}, text.encode())
        assert error.kind is kind
        assert f"HTTP {status}" in str(error)

    def test_retry_after_in_seconds_and_as_a_date(self) -> None:
        assert retry_after_seconds({}) is None
        assert retry_after_seconds({"Retry-After": "2.5"}) == 2.5
        assert retry_after_seconds({"Retry-After": "soon"}) is None
        in_a_minute = retry_after_seconds({"Retry-After": formatdate(time.time() + 60, usegmt=True)})
        assert in_a_minute == pytest.approx(60, abs=2)

    def test_pauses_grow_up_to_a_limit_and_respect_the_server(self) -> None:
        attempts = Attempts(policy=RetryPolicy(budget_s=1000, max_wait_s=8))
        waits = [attempts.next_wait(RequestError(Kind.retryable, "x")) for _ in range(12)]
        assert all(0.05 * 2**i <= wait <= 0.5 * 2**i for i, wait in enumerate(waits[:4]))
        assert max(waits) <= 8
        assert attempts.next_wait(RequestError(Kind.retryable, "x", retry_after=30)) == 30

    def test_the_budget_ends_the_attempts(self) -> None:
        attempts = Attempts(policy=RetryPolicy(budget_s=20))
        attempts.next_wait(RequestError(Kind.retryable, "x"))
        with pytest.raises(RowFailedError) as caught:
            attempts.next_wait(RequestError(Kind.retryable, "slow down", retry_after=30))
        assert (caught.value.kind, caught.value.attempts) == (Kind.retryable, 2)
        with pytest.raises(RowFailedError):
            Attempts(policy=RetryPolicy(budget_s=20)).next_wait(RequestError(Kind.bad_request, "x"))


def test_pool_prefers_the_least_loaded_and_rests_the_silent() -> None:
    pool = EndpointPool([Endpoint(base_url=f"http://h{i}/v1", model="m") for i in range(3)])
    first, second, third = pool.states
    first.in_flight, second.in_flight, third.in_flight = 2, 1, 3
    assert pool.pick() is second
    pool.silent(second)
    assert pool.pick() is first
    pool.answered(second)
    assert pool.pick() is second
    for state in pool.states:
        pool.silent(state)
    assert pool.pick() in pool.states


class TestKeys:
    def key(self, address: str | None, server_type: Any = "openai") -> str | None:
        return ServerConfig(server_type=server_type, address=address).api_key()

    def test_keys_go_only_where_they_belong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "open")
        monkeypatch.setenv("NVIDIA_API_KEY", "nv")
        assert self.key("https://integrate.api.nvidia.com/v1") == "nv"
        assert self.key("https://nvidia.com.evil.example/v1") == "open"
        assert self.key("https://api.openai.com/v1") == "open"
        assert self.key("http://node1:8000", "vllm") is None
        assert self.key(None) is None
