"""Engine `trtllm`: TensorRT-LLM's LLM API, which builds or loads its engine from a Hugging Face folder.

Written against the published reference of that API; it runs only on machines with NVIDIA GPUs.
"""

from collections.abc import Sequence
from typing import Any

from nemo_skills.core.errors import UserError
from nemo_skills.inference.offline.spec import EngineSpec
from nemo_skills.inference.offline.text import Ending, Limits, TokenAnswer, TokenRequest


class TrtllmBackend:
    """A model in TensorRT-LLM."""

    def __init__(self, spec: EngineSpec, limits: Limits, ending: Ending) -> None:
        """Load the model."""
        try:
            import tensorrt_llm
        except ImportError as error:
            raise UserError(
                f"{error.name} is missing here. TensorRT-LLM comes with NVIDIA's container"
                " nvcr.io/nvidia/tensorrt-llm/release, or: pip install tensorrt-llm. The engines vllm and hf"
                " need neither."
            ) from None
        self._params = tensorrt_llm.SamplingParams
        self._spec = spec
        self._shared = _shared_params(spec, ending)
        settings: dict[str, Any] = {
            "model": spec.model,
            "dtype": spec.dtype,
            "tensor_parallel_size": spec.tensor_parallel,
            **({"max_seq_len": limits.context} if limits.context else {}),
            **spec.args,
        }
        try:
            self._model = tensorrt_llm.LLM(**settings)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"TensorRT-LLM cannot load {spec.model}: {error}") from None

    def complete(self, requests: Sequence[TokenRequest]) -> list[TokenAnswer]:
        """Answer all requests; TensorRT-LLM makes its own batches of them."""
        least = self._spec.sampling.min_tokens
        params = [
            self._params(seed=r.seed, max_tokens=r.limit, min_tokens=min(least, r.limit), **self._shared)
            for r in requests
        ]
        outputs = self._model.generate([request.ids for request in requests], params, use_tqdm=False)
        return [_answer(output.outputs[0]) for output in outputs]


def _shared_params(spec: EngineSpec, ending: Ending) -> dict[str, Any]:
    s = spec.sampling
    return {
        **({"top_k": 1} if s.greedy else {"temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p}),
        **({"min_p": s.min_p} if s.min_p else {}),
        "repetition_penalty": s.repetition_penalty,
        "stop": list(ending.strings) or None,
        "stop_token_ids": sorted(ending.eos) or None,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "add_special_tokens": False,
        "logprobs": 1 if s.logprobs else None,
    }


def _answer(output: Any) -> TokenAnswer:
    ids = list(output.token_ids)
    logprobs = None
    if output.logprobs:
        logprobs = tuple(
            round(float(step[i].logprob), 6) for step, i in zip(output.logprobs, ids, strict=False)
        )
    return TokenAnswer(ids, "length" if output.finish_reason == "length" else "stop", logprobs)
