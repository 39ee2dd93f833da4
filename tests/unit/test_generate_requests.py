"""What goes to a server, and what is made of its answers and failures."""

import time
from email.utils import formatdate
from typing import Any

import orjson
import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.inference.config import GenerateConfig, InferenceConfig, ServerConfig
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
    return orjson.loads(requests.body('mo"del', requests.encode(prompt), (position, turn)))


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
        message = b'{"content":null,"reasoning_content":"hm"}'
        reply = requests_for().parse(b'{"choices":[{"message":%s,"finish_reason":"length"}]}' % message)
        [answer] = reply.answers
        assert (answer.text, answer.finish_reason, answer.reasoning) == ("", "length", "hm")
        assert (reply.num_tokens, reply.prompt_tokens) == (None, 0)

    def test_as_many_answers_as_asked_for(self) -> None:
        sampled = requests_for(inference={"temperature": 1.0, "n": 2})
        assert body(sampled)["n"] == 2
        two = b'{"choices":[{"message":{"content":"a"}},{"message":{"content":"b"}}]}'
        assert [answer.text for answer in sampled.parse(two).answers] == ["a", "b"]
        with pytest.raises(RequestError, match=r"2 answers where inference\.n=1") as caught:
            requests_for().parse(two)
        assert caught.value.kind is Kind.bad_request
        for server_type in ("hf", "nemo"):
            with pytest.raises(UserError, match=r"inference\.n"):
                requests_for(server_type, inference={"temperature": 1.0, "n": 2})
        with pytest.raises(UserError, match=r"inference\.temperature"):
            requests_for(inference={"n": 2})

    def test_a_shorter_answer_can_be_asked_for(self) -> None:
        for extra, key in (({}, "max_tokens"), ({"max_completion_tokens": 9}, "max_completion_tokens")):
            requests = requests_for(inference={"extra_body": extra})
            assert orjson.loads(requests.body("m", b"[]", (0, 0), 5))[key] == 5
            assert orjson.loads(requests.body("m", b"[]", (0, 0)))[key] != 5

    def test_log_probabilities_of_both_endpoints(self) -> None:
        top = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -2.0}]
        content = [{"token": "a", "logprob": -0.1, "top_logprobs": top}]
        chat = {"choices": [{"message": {"content": "a"}, "logprobs": {"content": content}}]}
        old = {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1, "b": -2.0}]}
        text = {"choices": [{"text": "a", "logprobs": old}]}
        replies = [
            requests_for(inference={"top_logprobs": 2}).parse(orjson.dumps(chat)),
            requests_for(inference={"top_logprobs": 2}, template="llama3-instruct").parse(orjson.dumps(text)),
        ]
        assert replies[0].answers[0].tokens == replies[1].answers[0].tokens
        assert [reply.num_tokens for reply in replies] == [1, 1]

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
            (503, "", Kind.busy),
            (429, '{"error": {"message": "slow down"}}', Kind.busy),
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
        assert retry_after_seconds({"retry-after": "2.5"}) == 2.5
        assert retry_after_seconds({"retry-after": "soon"}) is None
        in_a_minute = retry_after_seconds({"retry-after": formatdate(time.time() + 60, usegmt=True)})
        assert retry_after_seconds({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
        assert in_a_minute == pytest.approx(60, abs=2)

    def test_pauses_grow_up_to_a_limit_and_respect_the_server(self) -> None:
        attempts = Attempts(policy=RetryPolicy(budget_s=1000, max_wait_s=8))
        waits = [attempts.next_wait(RequestError(Kind.retryable, "x")) for _ in range(12)]
        assert all(0.05 * 2**i <= wait <= 0.5 * 2**i for i, wait in enumerate(waits[:4]))
        assert max(waits) <= 8

    def test_the_budget_ends_the_attempts(self) -> None:
        attempts = Attempts(policy=RetryPolicy(budget_s=0.3, first_wait_s=0.1))
        started = time.monotonic()
        with pytest.raises(RowFailedError) as caught:
            while True:
                wait = attempts.next_wait(RequestError(Kind.retryable, "x"))
                assert time.monotonic() - started + wait < 10, "no attempt after the budget"
                time.sleep(wait)
        assert caught.value.kind is Kind.retryable
        assert attempts.count > 1
        with pytest.raises(RowFailedError):
            Attempts(policy=RetryPolicy(budget_s=20)).next_wait(RequestError(Kind.bad_request, "x"))

    def test_waiting_for_its_turn_costs_a_row_nothing(self) -> None:
        attempts = Attempts(policy=RetryPolicy(budget_s=0.2, first_wait_s=0.01))
        for _ in range(3):
            attempts.next_wait(RequestError(Kind.busy, "x"))
            time.sleep(0.15)
            attempts.excuse(0.15)
        assert attempts.trying_for() < 0.1


class TestFailedRows:
    def allowed(self, given: Any, total: int = 1000, soft: bool = False) -> int:
        server = ServerConfig(server_type="vllm", enable_soft_fail=soft)
        config = GenerateConfig(input_file="i", output_file="o", server=server, max_failed_rows=given)
        return config.allowed_failures(total)

    def test_numbers_and_shares(self) -> None:
        for given, rows in (
            (None, 0),
            (0, 0),
            (7, 7),
            ("7", 7),
            (0.01, 10),
            ("1%", 10),
            ("0.5", 500),
            (1.0, 1000),
        ):
            assert self.allowed(given) == rows, given
        assert self.allowed("29%", 100) == 29

    def test_soft_failure_accepts_all_but_a_run_without_answers(self) -> None:
        assert self.allowed(None, soft=True) == 999
        assert self.allowed(3, soft=True) == 3

    @pytest.mark.parametrize("given", [-1, -0.5, 1.5, "many", "101%", ""])
    def test_nonsense(self, given: Any) -> None:
        with pytest.raises(UserError, match="max_failed_rows"):
            self.allowed(given)


class TestKeys:
    def key(self, address: str | None, server_type: Any = "openai") -> str | None:
        return ServerConfig(server_type=server_type, address=address).api_key()

    def test_no_password_in_an_address(self) -> None:
        with pytest.raises(UserError, match="must not hold") as caught:
            self.key("http://localhost:1/v1,http://me:canary@localhost/v1")
        assert "canary" not in str(caught.value)

    def test_keys_go_only_where_they_belong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "open")
        monkeypatch.setenv("NVIDIA_API_KEY", "nv")
        assert self.key("https://integrate.api.nvidia.com/v1") == "nv"
        assert self.key("https://nvidia.com.evil.example/v1") == "open"
        assert self.key("https://api.openai.com/v1") == "open"
        assert self.key("http://node1:8000", "vllm") is None
        assert self.key(None) is None
