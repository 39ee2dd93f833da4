"""Settings of the main `run_generation`: the keys that NeMo-Aligner's users know, and a few of our own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import MISSING, opt
from nemo_skills.inference.offline.spec import DtypeName, EngineName, EngineSpec, LongPrompts, Sampling

_DTYPES: dict[str, DtypeName] = {
    "32": "float32", "32-true": "float32", "fp32": "float32", "float32": "float32",
    "bf16": "bfloat16", "bf16-mixed": "bfloat16", "bf16-true": "bfloat16", "bfloat16": "bfloat16",
    "16": "float16", "16-mixed": "float16", "16-true": "float16", "fp16": "float16", "float16": "float16",
}  # fmt: skip
_HF_BATCH, _ENGINE_BATCH = 8, 256


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen."""

    use_greedy: bool = opt(False, "always take the likeliest token")
    temperature: float = opt(1.0, "sampling temperature; 0 is greedy")
    top_k: int = opt(0, "sample among the k likeliest tokens; 0 is all")
    top_p: float = opt(1.0, "sample among the likeliest tokens that reach this probability; 1.0 or 0 is all")
    repetition_penalty: float = opt(1.0, "1.0 is none")
    add_BOS: bool = opt(False, "put the token for the beginning before every prompt")
    all_probs: bool = opt(False, "not supported: the probabilities of the whole vocabulary")
    compute_logprob: bool = opt(False, "write the log probability of every token, as `logprobs`")
    end_strings: list[str] = opt(["<|endoftext|>", "<extra_id_1>"], "texts that end a response")


@dataclass(frozen=True, kw_only=True)
class LengthParams:
    """How long responses are, in tokens."""

    max_length: int | None = opt(None, "longest response; null is half of the context")
    min_length: int = opt(1, "tokens before which a response does not end")


@dataclass(frozen=True, kw_only=True)
class TrtLlm:
    """TensorRT-LLM."""

    enable: bool = opt(False, "use TensorRT-LLM, unless engine says otherwise")
    reshard: bool = opt(False, "not supported in generation")
    max_input_len: int | None = opt(None, "longest prompt, in tokens")
    model_type: str | None = opt(None, "taken for compatibility: the model says itself what it is")
    unload_engine_train: bool = opt(False, "taken for compatibility: there is no training to make room for")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What is generated."""

    num_responses_to_gen: int = opt(1, "responses for each prompt")
    sampling_params: SamplingParams = opt(SamplingParams, "sampling")
    length_params: LengthParams = opt(LengthParams, "length")
    trt_llm: TrtLlm = opt(TrtLlm, "TensorRT-LLM")


@dataclass(frozen=True, kw_only=True)
class TrainDs:
    """The input."""

    file_path: str = opt(MISSING, "JSONL with `input`, `prompt`, `messages` or `conversations` in every row")
    max_seq_length: int | None = opt(None, "longest prompt, in tokens; null is what the context leaves")
    long_prompts: LongPrompts = opt(
        "skip", "what to do with a longer one; truncate_left drops its beginning, truncate_right its end"
    )


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data."""

    train_ds: TrainDs = opt(TrainDs, "the input")
    chat: bool = opt(False, "take the text of a row for a user's message, in the model's chat template")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model and what it does."""

    global_batch_size: int = opt(32, "rows of one step, which is what `step` counts")
    micro_batch_size: int | None = opt(
        None, "rows that the engine gets together; null is 8 for hf and 256 for the others"
    )
    encoder_seq_length: int | None = opt(
        None, "tokens of prompt and response together; null: the model's own"
    )
    tensor_model_parallel_size: int = opt(1, "processes, that is GPUs, that share one copy of the model")
    pipeline_model_parallel_size: int = opt(1, "must be 1")
    sequence_parallel: bool = opt(False, "taken for compatibility: changes nothing here")
    apply_rope_fusion: bool = opt(False, "taken for compatibility: changes nothing here")
    generation: Generation = opt(Generation, "what is generated")
    data: Data = opt(Data, "data")


@dataclass(frozen=True, kw_only=True)
class TrainerTrt:
    """TensorRT-LLM, where some command lines put it."""

    enable: bool = opt(False, "the same as model.generation.trt_llm.enable")


@dataclass(frozen=True, kw_only=True)
class TrainerGeneration:
    """Generation loop."""

    max_epochs: int = opt(1, "how many times the whole input is answered, each time sampled anew")
    trt_llm: TrainerTrt = opt(TrainerTrt, "TensorRT-LLM")


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Processes."""

    num_nodes: int = opt(1, "nodes")
    devices: int | None = opt(
        None, "processes per node; null: those that torchrun or srun has started, or one"
    )
    precision: str | None = opt(None, "bf16, 16 or 32; null: as the checkpoint was saved")
    generation: TrainerGeneration = opt(TrainerGeneration, "generation loop")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The model's weights."""

    restore_from_path: str = opt(MISSING, "folder of a model in Hugging Face's format")


@dataclass(frozen=True, kw_only=True)
class WandbKwargs:
    """Weights & Biases."""

    project: str | None = opt(None, "unused")
    name: str | None = opt(None, "unused")


@dataclass(frozen=True, kw_only=True)
class ExpManager:
    """Where results go."""

    explicit_log_dir: str = opt(MISSING, "responses go to generations/generations.jsonl in this folder")
    create_wandb_logger: bool = opt(False, "must be false: generation has no metrics to log")
    wandb_logger_kwargs: WandbKwargs = opt(WandbKwargs, "Weights & Biases")


@dataclass(frozen=True, kw_only=True)
class RunGenerationConfig:
    """Generates responses to the rows of a JSONL file without a server, in as many processes as there are."""

    pretrained_checkpoint: Checkpoint = opt(Checkpoint, "the model's weights")
    model: Model = opt(Model, "the model and what it does")
    trainer: Trainer = opt(Trainer, "processes")
    exp_manager: ExpManager = opt(ExpManager, "where results go")
    engine: EngineName | None = opt(None, "what runs the model; null: trtllm where that is enabled, else hf")
    engine_python: str | None = opt(None, "interpreter of an environment with the engine; null: this one")
    engine_args: dict[str, Any] = opt(dict, "more arguments for the engine, as ++engine_args.max_num_seqs=64")
    cpu_threads: int = opt(1, "threads of a process on a CPU; more processes are faster than more threads")
    clean_responses: bool = opt(False, "take special tokens and end strings out of responses")
    seed: int = opt(1234, "base seed; every response has a seed made from it and its place")
    resume: bool = opt(True, "go on where an earlier job stopped; false starts over")

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        problems = [text for wrong, text in self._problems() if wrong]
        if problems:
            raise UserError("\n".join(problems))

    def _problems(self) -> list[tuple[bool, str]]:
        model, trainer, sampling = self.model, self.trainer, self.model.generation.sampling_params
        positive = {
            "model.global_batch_size": model.global_batch_size,
            "model.micro_batch_size": model.micro_batch_size,
            "model.encoder_seq_length": model.encoder_seq_length,
            "model.tensor_model_parallel_size": model.tensor_model_parallel_size,
            "model.generation.num_responses_to_gen": model.generation.num_responses_to_gen,
            "model.generation.length_params.max_length": model.generation.length_params.max_length,
            "model.data.train_ds.max_seq_length": model.data.train_ds.max_seq_length,
            "trainer.num_nodes": trainer.num_nodes,
            "trainer.devices": trainer.devices,
            "trainer.generation.max_epochs": trainer.generation.max_epochs,
            "cpu_threads": self.cpu_threads,
        }
        prefix = "model.generation.sampling_params"
        return [
            *(
                (value is not None and value < 1, f"{key} must be positive.")
                for key, value in positive.items()
            ),
            (sampling.temperature < 0, f"{prefix}.temperature must be 0 or more."),
            (sampling.top_k < 0, f"{prefix}.top_k must be 0, which is all tokens, or more."),
            (not 0 <= sampling.top_p <= 1, f"{prefix}.top_p must be between 0 and 1."),
            (sampling.repetition_penalty <= 0, f"{prefix}.repetition_penalty must be positive."),
            ("" in sampling.end_strings, f"{prefix}.end_strings must not hold an empty text."),
            (sampling.all_probs, f"{prefix}.all_probs is not supported; compute_logprob is."),
            (
                model.generation.length_params.min_length < 0,
                "model.generation.length_params.min_length must be 0 or more.",
            ),
            (
                model.pipeline_model_parallel_size != 1,
                "model.pipeline_model_parallel_size must be 1; use tensor_model_parallel_size.",
            ),
            (model.generation.trt_llm.reshard, "model.generation.trt_llm.reshard is not supported."),
            (
                self.exp_manager.create_wandb_logger,
                "exp_manager.create_wandb_logger must be false: generation has no metrics to log.",
            ),
            (
                trainer.precision is not None and trainer.precision not in _DTYPES,
                f"trainer.precision is one of {', '.join(_DTYPES)}, not {trainer.precision}.",
            ),
        ]

    @property
    def output(self) -> Path:
        """The output."""
        return Path(self.exp_manager.explicit_log_dir).expanduser() / "generations" / "generations.jsonl"

    @property
    def engine_name(self) -> EngineName:
        """What runs the model."""
        if self.engine is not None:
            return self.engine
        trt = self.model.generation.trt_llm.enable or self.trainer.generation.trt_llm.enable
        return "trtllm" if trt else "hf"

    @property
    def batch(self) -> int:
        """Rows that the engine gets together."""
        return self.model.micro_batch_size or (_HF_BATCH if self.engine_name == "hf" else _ENGINE_BATCH)

    def engine_spec(self) -> EngineSpec:
        """Return what the engine needs to know."""
        generation, train_ds = self.model.generation, self.model.data.train_ds
        params = generation.sampling_params
        bounds = [train_ds.max_seq_length, generation.trt_llm.max_input_len]
        return EngineSpec(
            engine=self.engine_name,
            model=self.pretrained_checkpoint.restore_from_path,
            sampling=Sampling(
                greedy=params.use_greedy or params.temperature == 0,
                temperature=params.temperature,
                top_k=params.top_k,
                top_p=params.top_p or 1.0,
                repetition_penalty=params.repetition_penalty,
                min_tokens=generation.length_params.min_length,
                end_strings=tuple(params.end_strings),
                logprobs=params.compute_logprob,
            ),
            dtype=_DTYPES[self.trainer.precision] if self.trainer.precision else "auto",
            context=self.model.encoder_seq_length,
            max_tokens=generation.length_params.max_length,
            max_prompt=min((bound for bound in bounds if bound), default=None),
            long_prompts=train_ds.long_prompts,
            clean=self.clean_responses,
            batch=self.batch,
            tensor_parallel=self.model.tensor_model_parallel_size,
            threads=self.cpu_threads,
            args=self.engine_args,
        )
