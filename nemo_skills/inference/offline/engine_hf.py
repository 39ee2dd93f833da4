"""Engine `hf`: transformers and torch, on a GPU or a CPU.

Every sequence has a random number generator of its own, so what is drawn for it depends neither on its batch
nor on the device.
"""

import random
from collections.abc import Sequence
from typing import Any

from nemo_skills.core.errors import UserError
from nemo_skills.inference.offline.spec import EngineSpec
from nemo_skills.inference.offline.text import Ending, TokenAnswer, TokenRequest


class HfBackend:
    """A model of transformers."""

    def __init__(self, spec: EngineSpec, ending: Ending) -> None:
        """Load the model onto the first visible GPUs, or into memory where there is none."""
        try:
            import torch
            from transformers import AutoModelForCausalLM, GenerationConfig
            from transformers.utils import logging
        except ImportError as error:
            raise UserError(f"{error.name} is missing: pip install 'nemo-skills[serve]'") from None
        logging.disable_progress_bar()
        self._spec, self._ending = spec, ending
        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            torch.set_num_threads(spec.threads)
        dtype = spec.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
        where: dict[str, Any] = {"device_map": "auto"} if on_gpu and spec.tensor_parallel > 1 else {}
        try:
            model = AutoModelForCausalLM.from_pretrained(spec.model, dtype=dtype, **where, **spec.args)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"Cannot load {spec.model}: {str(error).strip().splitlines()[0]}") from None
        self._model = model.eval() if where or not on_gpu else model.to("cuda").eval()
        # sampling settings that come with a model must not mix with ours
        self._model.generation_config = GenerationConfig()

    def complete(self, requests: Sequence[TokenRequest]) -> list[TokenAnswer]:
        """Answer all requests, `spec.batch` at a time."""
        import torch

        size = self._spec.batch
        answers: list[TokenAnswer] = []
        try:
            for start in range(0, len(requests), size):
                answers += self._batch(requests[start : start + size])
        except torch.OutOfMemoryError:
            raise UserError(
                f"The GPU has not enough memory for {size} sequences at a time; make batches smaller.",
                exit_code=1,
            ) from None
        return answers

    def _batch(self, requests: Sequence[TokenRequest]) -> list[TokenAnswer]:
        import torch
        from transformers import GenerationConfig

        width = max(len(request.ids) for request in requests)
        pads = [width - len(request.ids) for request in requests]
        device = self._model.device
        # what stands in the padding is masked: any token will do
        ids = torch.tensor([[0] * pad + r.ids for pad, r in zip(pads, requests, strict=True)], device=device)
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads], device=device)
        sampler = _Sampler(self._spec, self._ending.eos, mask, [request.seed for request in requests])
        stopper = _Stopper(self._ending, [request.limit for request in requests])
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=mask,
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max(request.limit for request in requests),
                    pad_token_id=0,
                    use_cache=True,
                ),
                logits_processor=[sampler],
                stopping_criteria=[stopper],
            )
        return [self._answer(stopper, sampler, row) for row in range(len(requests))]

    def _answer(self, stopper: "_Stopper", sampler: "_Sampler", row: int) -> TokenAnswer:
        ids = stopper.ids[row]
        logprobs = None
        if self._spec.sampling.logprobs:
            logprobs = tuple(round(step[row], 6) for step in sampler.logprobs[: len(ids)])
        return TokenAnswer(ids, "stop" if stopper.ended[row] else "length", logprobs)


class _Sampler:
    """Chooses the next token of every sequence; leaves it as the only one possible."""

    def __init__(self, spec: EngineSpec, eos: frozenset[int], mask: Any, seeds: Sequence[int]) -> None:
        self._sampling = spec.sampling
        self._eos = sorted(eos)
        self._mask = mask
        self._dice = [random.Random(seed) for seed in seeds]
        self._step = 0
        self._seen: Any = None
        self.logprobs: list[list[float]] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        own = scores
        scores = scores.clone()
        if self._sampling.repetition_penalty != 1.0:
            scores = self._penalised(input_ids, scores)
        if self._step < self._sampling.min_tokens and self._eos:
            scores[:, self._eos] = -torch.inf
        chosen = scores.argmax(-1) if self._sampling.greedy else self._draw(scores)
        if self._sampling.logprobs:
            self.logprobs.append(own.log_softmax(-1).gather(1, chosen[:, None])[:, 0].tolist())
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    def _penalised(self, input_ids: Any, scores: Any) -> Any:
        """Make tokens less likely that stand in the prompt or the response; padding does not count."""
        import torch

        if self._seen is None:
            self._seen = torch.zeros_like(scores, dtype=torch.int32)
            self._seen.scatter_add_(1, input_ids, self._mask.to(torch.int32))
        else:
            self._seen.scatter_(1, input_ids[:, -1:], 1)
        penalty = self._sampling.repetition_penalty
        return torch.where(
            self._seen.bool(), torch.where(scores > 0, scores / penalty, scores * penalty), scores
        )

    def _draw(self, scores: Any) -> Any:
        """Draw by inverting the distribution function at one random number per sequence."""
        import torch

        s = self._sampling
        scores = scores / s.temperature
        if 0 < s.top_k < scores.shape[-1]:
            scores, order = scores.topk(s.top_k, dim=-1)
        else:
            scores, order = scores.sort(dim=-1, descending=True, stable=True)
        shares = scores.double().softmax(-1)
        if s.top_p < 1.0:
            before = shares.cumsum(-1) - shares
            shares = shares.masked_fill(before >= s.top_p, 0.0)
        if s.min_p > 0.0:
            shares = shares.masked_fill(shares < s.min_p * shares[:, :1], 0.0)
        reached = shares.cumsum(-1)
        thrown = torch.tensor([[dice.random()] for dice in self._dice], dtype=torch.double).to(scores.device)
        places = (reached <= thrown * reached[:, -1:]).sum(-1, keepdim=True)
        last = (shares > 0).sum(-1, keepdim=True) - 1
        return order.gather(1, torch.minimum(places, last))[:, 0]


class _Stopper:
    """Collects the responses and ends each where it is complete."""

    def __init__(self, ending: Ending, limits: Sequence[int]) -> None:
        self._ending = ending
        self._limits = limits
        self.ids: list[list[int]] = [[] for _ in limits]
        self.ended = [False] * len(limits)
        self._closed = [False] * len(limits)

    def __call__(self, input_ids: Any, _scores: Any, **_kwargs: Any) -> Any:
        import torch

        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self._closed[row]:
                self.ids[row].append(token)
                self.ended[row] = self._ending.at(self.ids[row])
                self._closed[row] = self.ended[row] or len(self.ids[row]) >= self._limits[row]
        return torch.tensor(self._closed, device=input_ids.device)
