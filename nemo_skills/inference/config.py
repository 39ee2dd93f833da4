"""Settings of the generation main: typed, with a line of help for every key."""

import os
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from nemo_skills.core.errors import UserError, require
from nemo_skills.core.hydra import MISSING, opt
from nemo_skills.inference.overflow import CutStrategy

ServerType = Literal["vllm", "hf", "sglang", "trtllm", "nemo", "openai", "stub"]
_POSITIVE = (
    "ready_timeout_s", "connect_timeout_s", "request_timeout_s", "retry_max_wait_s", "outage_timeout_s",
    "requests_per_minute", "tokens_per_minute",
)  # fmt: skip
# so that 29 % of 100 rows are 29, whatever floating point makes of it
_ROUNDING = 1e-9


class EndpointType(StrEnum):
    """Which interface of the server answers a row."""

    auto = "auto"
    chat = "chat"
    text = "text"


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How answers are sampled."""

    temperature: float = opt(0.0, "0 is greedy decoding")
    top_k: int = opt(-1, "sample among the k likeliest tokens; -1 is all")
    top_p: float = opt(0.95, "sample among the likeliest tokens that reach this probability together")
    min_p: float = opt(0.0, "drop tokens less likely than this share of the likeliest one")
    random_seed: int | None = opt(0, "base seed; when sampling, every row has its own seed made from it")
    tokens_to_generate: int = opt(2048, "longest answer, in tokens")
    n: int = opt(1, "answers to each request; with more than one, `generation` is a list")
    repetition_penalty: float = opt(1.0, "1.0 is none")
    top_logprobs: int | None = opt(None, "keep log probabilities and that many alternatives of every token")
    endpoint_type: EndpointType = opt(
        EndpointType.auto, "auto takes text where a template or tokenizer is given"
    )
    extra_body: dict[str, Any] = opt(
        dict, "further fields of each request, as the server takes them; null removes"
    )

    def __post_init__(self) -> None:
        """Refuse values that no server takes."""
        require(self.temperature >= 0, "inference.temperature must be 0 or more")
        require(0 < self.top_p <= 1, "inference.top_p must be above 0 and at most 1")
        require(0 <= self.min_p <= 1, "inference.min_p must be between 0 and 1")
        require(self.top_k == -1 or self.top_k > 0, "inference.top_k must be positive, or -1 for all tokens")
        require(self.tokens_to_generate > 0, "inference.tokens_to_generate must be positive")
        require(self.n > 0, "inference.n must be positive")
        require(self.n == 1 or self.temperature > 0, "inference.n needs inference.temperature above 0")
        require(
            self.top_logprobs is None or self.top_logprobs >= 0, "inference.top_logprobs must be 0 or more"
        )


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Which server answers, and how patient the client is with it."""

    server_type: ServerType = opt(MISSING, "decides which sampling settings the server can take")
    model: str | None = opt(None, "name or path of the model; null takes the only one the server has")
    address: str | None = opt(
        None, "address, or several separated by commas; null takes this job's own servers"
    )
    api_key_env: str | None = opt(None, "environment variable with the API key; null picks one by address")
    ready_timeout_s: float = opt(1800.0, "how long this job's own server may take to load its model")
    connect_timeout_s: float = opt(30.0, "how long a given address may refuse connections at the start")
    request_timeout_s: float = opt(3600.0, "longest time for one answer")
    retry_budget_s: float = opt(
        600.0, "how long a row is tried again after its first failure, waiting for its turn not counted"
    )
    retry_max_wait_s: float = opt(60.0, "longest pause between two attempts, unless the server asks for more")
    outage_timeout_s: float = opt(120.0, "stop when no server could be reached for so long")
    requests_per_minute: float | None = opt(None, "most requests a minute, for hosted services")
    tokens_per_minute: float | None = opt(None, "most tokens a minute, prompts and answers together")
    context_limit_retry_strategy: CutStrategy | None = opt(
        None, "what to cut when a prompt exceeds the model's context; null fails the row"
    )
    enable_soft_fail: bool = opt(False, "end well however many rows failed, unless max_failed_rows is set")

    def __post_init__(self) -> None:
        """Check what needs no network."""
        for name in _POSITIVE:
            value = getattr(self, name)
            require(value is None or value > 0, f"server.{name} must be positive")
        require(self.retry_budget_s >= 0, "server.retry_budget_s must be 0 or more")
        # an address is shown in logs and stands in scripts
        require(
            not any("@" in address for address in self.addresses),
            "server.address (--server_address) must not hold a user name or password; a key belongs into a"
            " variable, which server.api_key_env names",
        )

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses given, none for the job's own servers."""
        return tuple(part.strip() for part in (self.address or "").split(",") if part.strip())

    def api_key(self) -> str | None:
        """Return the API key from the environment, if there is one.

        Raises:
            UserError: the variable named by `api_key_env` is not set.
        """
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env)
            require(bool(key), f"server.api_key_env={self.api_key_env}: this variable is not set")
            return key
        # a key goes only to an address that was named, and a vendor's own key to that vendor only
        hosts = [urlsplit(a if "//" in a else f"//{a}").hostname or "" for a in self.addresses]
        if hosts and all(host.endswith(".nvidia.com") for host in hosts):
            return os.environ.get("NVIDIA_API_KEY") or os.environ.get("OPENAI_API_KEY")
        return os.environ.get("OPENAI_API_KEY") if hosts and self.server_type == "openai" else None


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Asks a model about every row of a JSONL file."""

    input_file: str = opt(MISSING, "JSONL files (.gz, .zst too): a path, a pattern, or several with commas")
    output_file: str = opt(MISSING, "where the rows go, each with its answer, in the order of the input")
    server: ServerConfig = opt(ServerConfig, "the model server")
    inference: InferenceConfig = opt(InferenceConfig, "sampling")

    prompt_config: str | None = opt(None, "name of a shipped prompt, or path of a .yaml file")
    prompt_template: str | None = opt(None, "name or path of a chat template: send text with its tags")
    tokenizer: str | None = opt(None, "name or path of a tokenizer: send text made by its chat template")
    prompt_format: Literal["ns", "openai"] = opt("ns", "openai: rows carry ready-made `messages`")
    examples_type: str | None = opt(None, "few-shot examples instead of the prompt's own")
    system_message: str | None = opt(None, "system message instead of the prompt's own")
    stop_phrase: str | None = opt(None, "ends an answer, besides the stop phrases of prompt and template")

    max_samples: int | None = opt(None, "take only the first rows; null or -1 is all")
    num_chunks: int | None = opt(None, "cut the input into that many contiguous parts")
    chunk_id: int | None = opt(None, "the part to do, from 0; its output is named <output>_chunk_<id>")
    skip_filled: bool = opt(True, "go on where an earlier run stopped; false starts over")
    on_bad_row: Literal["error", "skip"] = opt(
        "error", "a line that is not JSON, or lacks what the prompt needs"
    )
    max_failed_rows: int | float | str | None = opt(
        None, "end well with up to that many unanswered rows, a number or a share (0.01, 1%)"
    )
    max_concurrent_requests: int = opt(512, "most requests in flight; the client finds out how many pay off")
    adaptive_concurrency: bool = opt(True, "false keeps max_concurrent_requests in flight at all times")
    dry_run: bool = opt(False, "show the first prompts and send nothing")

    generation_key: str = opt("generation", "key of the answer in the output")
    add_generation_stats: bool = opt(True, "add num_generated_tokens, finish_reason and times to the output")
    multi_turn_key: str | None = opt(None, "key of a list of turns, answered one after the other")
    prefix_generation_to_response: bool = opt(
        False, "the row's generation_key holds the answer's first words"
    )
    parse_reasoning: bool = opt(False, "split the answer at end_reasoning_string, keep the first part aside")
    end_reasoning_string: str = opt("</think>", "where the reasoning ends and the answer begins")
    code_execution: bool = opt(False, "run the code that the model writes and let it go on with the result")
    code_tags: str = opt("fenced", "how the model marks code: name of shipped tags, or path of a .yaml file")
    max_code_executions: int = opt(8, "most runs for one answer; then the model is told to do without")
    code_execution_timeout_s: float = opt(10.0, "longest time for a run")
    max_code_output_characters: int = opt(1000, "how much of a run's output the model gets to see")
    sandbox_address: str | None = opt(
        None, "http://host:port of a sandbox; null takes the one that --with_sandbox started"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = opt("INFO", "how much to log")

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        require(self.max_concurrent_requests > 0, "max_concurrent_requests must be positive")
        self.allowed_failures(1)
        require(
            self.max_samples is None or self.max_samples == -1 or self.max_samples > 0,
            "max_samples must be positive; null or -1 takes all rows",
        )
        require((self.num_chunks is None) == (self.chunk_id is None), "num_chunks and chunk_id go together")
        if self.num_chunks is not None and self.chunk_id is not None:
            require(self.num_chunks > 0, "num_chunks must be positive")
            require(
                0 <= self.chunk_id < self.num_chunks,
                f"chunk_id must be between 0 and {self.num_chunks - 1}, one less than num_chunks",
            )
        require(
            not (self.multi_turn_key and self.prefix_generation_to_response),
            "multi_turn_key and prefix_generation_to_response exclude each other",
        )
        require(
            self.inference.n == 1 or not (self.multi_turn_key or self.prefix_generation_to_response),
            "inference.n excludes multi_turn_key and prefix_generation_to_response",
        )
        require(
            not self.code_execution or (self.inference.n == 1 and self.inference.top_logprobs is None),
            "code_execution excludes inference.n and inference.top_logprobs",
        )
        for name in ("max_code_executions", "code_execution_timeout_s", "max_code_output_characters"):
            require(getattr(self, name) > 0, f"{name} must be positive")
        require(bool(self.end_reasoning_string), "end_reasoning_string must not be empty")
        require(self.generation_key != "", "generation_key must not be empty")

    @property
    def row_limit(self) -> int | None:
        """How many rows to take at most."""
        return None if self.max_samples == -1 else self.max_samples

    def allowed_failures(self, total: int) -> int:
        """Return how many of `total` rows may stay without an answer; whole numbers are rows, others shares.

        Raises:
            UserError: max_failed_rows is neither.
        """
        given = self.max_failed_rows
        if given is None:
            # a run without a single answer is a failure all the same
            return max(0, total - 1) if self.server.enable_soft_fail else 0
        text = str(given).strip()
        with suppress(ValueError):
            if not isinstance(given, float) and (rows := int(text)) >= 0:
                return rows
        with suppress(ValueError):
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
            if 0 <= share <= 1:
                return int(total * share + _ROUNDING)
        raise UserError(f"max_failed_rows={given}: a number of rows, or a share such as 0.01 or 1%.")

    @property
    def input_path(self) -> Path:
        """The input file."""
        return Path(self.input_file).expanduser()
