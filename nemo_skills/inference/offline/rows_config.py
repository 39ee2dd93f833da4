"""Settings of the main `generate_offline`: those of the generation main, and how the model is run."""

from dataclasses import dataclass
from typing import Any

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import opt
from nemo_skills.inference.config import GenerateConfig, InferenceConfig
from nemo_skills.inference.offline.spec import DtypeName, EngineName, EngineSpec, LongPrompts, Sampling
from nemo_skills.inference.overflow import CutStrategy

_NAMES: tuple[EngineName, ...] = ("hf", "vllm", "trtllm")
_LONG_PROMPTS: dict[CutStrategy | None, LongPrompts] = {
    None: "skip",
    CutStrategy.reduce_generation: "shorten_response",
    CutStrategy.reduce_prompt_from_start: "truncate_left",
    CutStrategy.reduce_prompt_from_end: "truncate_right",
}
_BATCH = {"hf": 8, "vllm": 256, "trtllm": 256}


@dataclass(frozen=True, kw_only=True)
class OfflineConfig(GenerateConfig):
    """Answers every row of a JSONL file with a model that this process loads itself."""

    devices: int | None = opt(
        None, "processes per node; null: those that torchrun or srun has started, or one"
    )
    nodes: int = opt(1, "nodes")
    tensor_parallel_size: int = opt(1, "processes, that is GPUs, that share one copy of the model")
    batch_size: int | None = opt(None, "rows that the engine gets together; null is 8 for hf, 256 for others")
    context_length: int | None = opt(None, "tokens of prompt and answer together; null: the model's own")
    dtype: DtypeName = opt("auto", "auto is as the checkpoint was saved")
    engine_python: str | None = opt(None, "interpreter of an environment with the engine; null: this one")
    engine_args: dict[str, Any] = opt(dict, "more arguments for the engine, as ++engine_args.max_num_seqs=64")
    cpu_threads: int = opt(1, "threads of a process on a CPU; more processes are faster than more threads")

    def __post_init__(self) -> None:
        """Refuse what only a server can do."""
        super().__post_init__()
        problems = [text for wrong, text in self._problems() if wrong]
        if problems:
            raise UserError("\n".join(problems))

    def _problems(self) -> list[tuple[bool, str]]:
        kind, inference = self.server.server_type, self.inference
        counts = {
            "devices": self.devices, "nodes": self.nodes, "tensor_parallel_size": self.tensor_parallel_size,
            "batch_size": self.batch_size, "context_length": self.context_length,
            "cpu_threads": self.cpu_threads,
        }  # fmt: skip
        return [
            *((n is not None and n < 1, f"{key} must be positive.") for key, n in counts.items()),
            (
                kind not in _BATCH,
                f"server.server_type={kind}: without a server it is one of {', '.join(_BATCH)}.",
            ),
            (not self.server.model, "server.model is missing: the folder of the model."),
            (bool(self.server.addresses), "server.address: there is no server without a server."),
            (
                self.num_chunks is not None,
                "num_chunks needs a server; processes share the rows by themselves.",
            ),
            (self.multi_turn_key is not None, "multi_turn_key needs a server."),
            (self.code_execution, "code_execution needs a server."),
            (inference.top_logprobs is not None, "inference.top_logprobs needs a server."),
            (
                bool(inference.extra_body),
                "inference.extra_body needs a server; engine_args go to the engine.",
            ),
        ]

    @property
    def batch(self) -> int:
        """Rows that the engine gets together."""
        return self.batch_size or _BATCH[self.server.server_type]

    @property
    def seed(self) -> int:
        """The base seed."""
        return self.inference.random_seed or 0

    def engine_spec(self, end_strings: tuple[str, ...]) -> EngineSpec:
        """Return what the engine needs to know, given the texts that end an answer."""
        engine: EngineName = next(name for name in _NAMES if name == self.server.server_type)
        assert self.server.model is not None
        return EngineSpec(
            engine=engine,
            model=self.server.model,
            sampling=_sampling(self.inference, end_strings),
            dtype=self.dtype,
            context=self.context_length,
            max_tokens=self.inference.tokens_to_generate,
            long_prompts=_LONG_PROMPTS[self.server.context_limit_retry_strategy],
            clean=True,
            batch=self.batch,
            tensor_parallel=self.tensor_parallel_size,
            threads=self.cpu_threads,
            args=self.engine_args,
        )


def _sampling(inference: InferenceConfig, end_strings: tuple[str, ...]) -> Sampling:
    return Sampling(
        greedy=inference.temperature == 0,
        temperature=inference.temperature,
        top_k=max(inference.top_k, 0),
        top_p=inference.top_p,
        min_p=inference.min_p,
        repetition_penalty=inference.repetition_penalty,
        end_strings=end_strings,
    )
