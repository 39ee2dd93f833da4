"""Conversion main: an engine of TensorRT-LLM from a Hugging Face folder, through TensorRT-LLM's own LLM API.

`python -m nemo_skills.conversion.hf_to_trtllm --help` lists the settings. Written against the published
reference of that API; it runs only where TensorRT-LLM and NVIDIA GPUs are.
"""

import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from nemo_skills.conversion.dtypes import parse_dtype, torch_name
from nemo_skills.core.errors import UserError, require
from nemo_skills.core.hydra import MISSING, main, opt
from nemo_skills.core.jsonl import disk_errors, open_locked
from nemo_skills.core.log import get_logger

LOG = get_logger(__name__)

_ALGORITHMS = {
    "fp8": "FP8",
    "nvfp4": "NVFP4",
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int8_wo": "W8A16",
    "int4_wo": "W4A16",
    "int4_awq": "W4A16_AWQ",
    "w4a8_awq": "W4A8_AWQ",
}
"""Our names of quantisations, which are those of TensorRT-LLM's own scripts, to those of its API."""
_LIMITS = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
_CALIBRATED = frozenset({"fp8", "nvfp4", "int8_sq", "int4_awq", "w4a8_awq"})
_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
    "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrtllmConfig:
    """What is built for which GPUs."""

    input_model: str = opt(MISSING, "Hugging Face folder of the model")
    output_model: str = opt(MISSING, "folder for the engine, with the tokenizer beside it")
    model_type: str | None = opt(None, "llama, mistral, qwen2, …; null takes what the model's config says")
    dtype: str | None = opt(None, "type of weights and activations: bf16 or fp16; null keeps the model's")
    tensor_parallel_size: int = opt(1, "GPUs of a node that share every matrix")
    pipeline_parallel_size: int = opt(1, "groups of GPUs that share the layers")
    quantization: Literal["fp8", "nvfp4", "int8_sq", "int8_wo", "int4_wo", "int4_awq", "w4a8_awq"] | None = (
        opt(None, "null keeps the type; wo is weights only, sq and awq are smooth and activation-aware")
    )
    kv_cache_quantization: Literal["fp8", "int8"] | None = opt(None, "type of the key-value cache")
    calib_dataset: str | None = opt(None, "folder or hub name of texts to calibrate on; null: the API's own")
    calib_batches: int = opt(512, "how many of its texts are used")
    max_batch_size: int = opt(256, "requests that the engine handles at once")
    max_input_len: int = opt(4096, "longest prompt, in tokens")
    max_seq_len: int = opt(8192, "longest prompt and answer together, in tokens")
    max_num_tokens: int = opt(8192, "tokens of all requests that are handled in one step")
    llm_args: dict[str, Any] = opt(dict, "further arguments of tensorrt_llm's LLM, as they are")

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        sizes = ("tensor_parallel_size", "pipeline_parallel_size", "calib_batches", "max_batch_size")
        for name in (*sizes, "max_input_len", "max_num_tokens"):
            require(getattr(self, name) > 0, f"{name} must be positive")
        require(self.max_seq_len > self.max_input_len, "max_seq_len must be above max_input_len")
        if self.dtype is not None:
            require(parse_dtype(self.dtype) != "F32", "dtype: engines are bf16 or fp16")
        calibrates = self.quantization in _CALIBRATED
        require(calibrates or not self.calib_dataset, "calib_dataset is for quantisations that calibrate")


@main(TrtllmConfig)
def hf_to_trtllm(config: TrtllmConfig) -> None:
    """Build an engine of TensorRT-LLM."""
    llm = _library()
    source, output = Path(config.input_model), Path(config.output_model)
    _check(config, source, output)
    with disk_errors(output):
        temporary = output.with_name(f"{output.name}.unfinished")
        temporary.mkdir(parents=True, exist_ok=True)
        lock = temporary / "lock"
        with open(open_locked(lock), "rb"):  # noqa: PTH123  # another process may be at it
            for left in temporary.iterdir():
                if left != lock:
                    left.unlink()
            with llm(**llm_arguments(config)) as built:
                built.save(str(temporary))
            for file in {file for pattern in _TOKENIZER_FILES for file in source.glob(pattern)}:
                shutil.copyfile(file, temporary / file.name)
            lock.unlink()
            temporary.rename(output)
    LOG.info("wrote %s", output)


def llm_arguments(config: TrtllmConfig) -> dict[str, Any]:
    """Return the arguments of TensorRT-LLM's LLM."""
    api = importlib.import_module("tensorrt_llm.llmapi")
    limits = {name: getattr(config, name) for name in _LIMITS}
    arguments: dict[str, Any] = {
        "model": config.input_model,
        "tensor_parallel_size": config.tensor_parallel_size,
        "pipeline_parallel_size": config.pipeline_parallel_size,
        "build_config": api.BuildConfig(**limits),
    }
    if config.dtype is not None:
        arguments["dtype"] = torch_name(parse_dtype(config.dtype))
    kinds = {
        "quant_algo": _ALGORITHMS.get(config.quantization or ""),
        "kv_cache_quant_algo": (config.kv_cache_quantization or "").upper(),
    }
    if given := {name: getattr(api.QuantAlgo, kind) for name, kind in kinds.items() if kind}:
        arguments["quant_config"] = api.QuantConfig(**given)
    if config.quantization in _CALIBRATED:
        texts = {"calib_dataset": config.calib_dataset} if config.calib_dataset else {}
        arguments["calib_config"] = api.CalibConfig(calib_batches=config.calib_batches, **texts)
    return arguments | config.llm_args


def _library() -> Any:
    """Return the LLM class that builds engines; from version 1.0 on that is no longer the default one."""
    try:
        library = importlib.import_module("tensorrt_llm")
    except ImportError as error:
        raise UserError(
            f"{error.name} is missing here. TensorRT-LLM is in the container of role trtllm;"
            " elsewhere: pip install tensorrt-llm. --server_type=vllm serves the Hugging Face"
            " folder without it."
        ) from None
    try:
        return importlib.import_module("tensorrt_llm._tensorrt_engine").LLM
    except ImportError:
        version = str(getattr(library, "__version__", "0"))
        if version.startswith("0."):
            return library.LLM
        raise UserError(
            f"TensorRT-LLM {version} builds no engines any more. Serve the Hugging Face folder itself:"
            " --server_type=trtllm takes it."
        ) from None


def _check(config: TrtllmConfig, source: Path, output: Path) -> None:
    """Refuse what would fail after hours.

    Raises:
        UserError: the model is not there or of another kind, or the result is there already.
    """
    file = source / "config.json"
    try:
        model = orjson.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}. Is {source} a Hugging Face folder?") from None
    except orjson.JSONDecodeError as error:
        raise UserError(f"{file}: {error}") from None
    found, wanted = str(model.get("model_type")), config.model_type
    if wanted and not found.startswith(wanted):
        raise UserError(f"model_type={wanted}, but {file} says {found}")
    if output.exists():
        raise UserError(f"{output} exists already; move it away")
    heads = model.get("num_attention_heads", config.tensor_parallel_size)
    if heads % config.tensor_parallel_size:
        raise UserError(
            f"the model's {heads} attention heads cannot be shared by {config.tensor_parallel_size} GPUs"
            " (tensor_parallel_size)"
        )


if __name__ == "__main__":
    hf_to_trtllm()
