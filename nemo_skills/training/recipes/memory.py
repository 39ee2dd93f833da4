"""How much memory a training needs on each GPU, from the shape of the model: no download, no GPU.

Counted are the tensors that exist at the two moments when most do: when the backward pass begins, with all
activations, and when it ends, with all gradients. What PyTorch's allocator and NCCL take besides is not
counted; hence `MARGIN`. docs/recipes.md has the arithmetic.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from nemo_skills.core.errors import UserError, did_you_mean, require
from nemo_skills.training.architecture import Architecture
from nemo_skills.training.recipes.config import ConfigContainer

GIB = 1 << 30
MARGIN = 0.9
"""Share of a GPU's memory that tensors should fill at most."""
DEVICES: Mapping[str, float] = {
    "A100-40": 39.4,
    "A100": 79.2,
    "H100": 79.2,
    "H200": 140.0,
    "B200": 178.0,
    "L40S": 44.5,
}
"""Memory in GiB that programs can use."""
_FLOAT, _HALF = 4, 2
_MOMENTS = 2
_GPUS = re.compile(r"(\d+)x(.+)")


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """So many of one kind."""

    count: int
    kind: str

    @classmethod
    def parse(cls, text: str) -> "Gpus":
        """Read `8xH100`.

        Raises:
            UserError: it is not of this form.
        """
        match = _GPUS.fullmatch(text)
        if match is None or int(match[1]) == 0:
            raise UserError(f"--gpus={text}: expected a number and a kind, such as 8xH100")
        if match[2] not in (*DEVICES, "CPU"):
            hint = did_you_mean(match[2], DEVICES)
            raise UserError(f"--gpus={text}: known are {', '.join(DEVICES)} and CPU.{hint}")
        return cls(count=int(match[1]), kind=match[2])

    @property
    def memory(self) -> float | None:
        """Memory of each in bytes; None on a CPU."""
        return DEVICES[self.kind] * GIB if self.kind in DEVICES else None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes in each process."""

    weights: float
    reference: float
    """The model as it was at the start, of DPO."""
    moments: float
    gradients: float
    gathered: float
    """What FSDP collects for the layers at work, or casts of weights."""
    activations: float
    loss: float
    forward_peak: float
    """When the backward pass begins."""
    backward_peak: float
    """When it reaches the first layer and the embeddings."""

    @property
    def peak(self) -> float:
        """The most at any time."""
        return max(self.forward_peak, self.backward_peak)

    def lines(self) -> list[str]:
        """Return the parts for people."""
        parts = [(field.name.replace("_", " "), getattr(self, field.name)) for field in fields(self)]
        return [
            f"{name:<14} {value / GIB:8.2f} GiB" for name, value in [*parts, ("peak", self.peak)] if value
        ]


def estimate(config: ConfigContainer, gpus: Gpus) -> Estimate:
    """Return what each process needs; the number of processes is that of the GPUs.

    Raises:
        UserError: the recipe does not say the shape of its model, or GPUs cannot be divided into its groups.
    """
    return _Counts(config, gpus).estimate()


def verdict(found: Estimate, gpus: Gpus) -> str:
    """Tell whether it fits."""
    if gpus.memory is None:
        return "(a CPU has what the machine has)"
    limit = MARGIN * gpus.memory
    room = f"{MARGIN:.0%} of the {gpus.memory / GIB:.1f} GiB of a {gpus.kind}"
    if found.peak <= limit:
        return f"fits: {room} are {limit / GIB:.1f} GiB"
    return (
        f"does not fit: {room} are {limit / GIB:.1f} GiB. More GPUs, a smaller train.micro_batch_size or "
        "data.train.seq_length, or model.recompute_granularity=full take less."
    )


class _Counts:
    """Numbers of weights and tokens in one process."""

    def __init__(self, config: ConfigContainer, gpus: Gpus) -> None:
        shape = config.model.architecture
        if shape is None:
            raise UserError("model.architecture is not given: there is nothing to count")
        model = config.model
        self.config = config
        self.shape = Architecture(**shape.tree())
        self.tp, self.cp = model.tensor_model_parallel_size, model.context_parallel_size
        if gpus.count % (self.tp * self.cp):
            raise UserError(
                f"{gpus.count} GPUs cannot be divided into groups of"
                f" model.tensor_model_parallel_size={self.tp} x model.context_parallel_size={self.cp}"
            )
        self.data = gpus.count // self.tp
        self._check_tensor_parallelism()
        self.dp = self.data // self.cp
        precision = config.train.precision or ("32" if gpus.kind == "CPU" else "bf16")
        self.half = precision != "32"
        self.number = _HALF if self.half else _FLOAT
        rows = config.train.micro_batch_size * (2 if config.dpo else 1)
        # the last token of a row is only a label
        self.tokens = rows * (config.data.train.seq_length - 1) / self.cp

    def _check_tensor_parallelism(self) -> None:
        """Refuse what the engine would refuse later."""
        name = f"model.tensor_model_parallel_size={self.tp}"
        heads = self.shape.num_key_value_heads
        require(heads % self.tp == 0, f"{name} does not divide the {heads} key-value heads")
        if self.tp > 1:
            require(not self._lora, f"{name} does not go with adapters")
            require(
                not self.shape.tie_word_embeddings or self.data == 1,
                f"{name}: with tied embeddings there can be no other processes than these {self.tp}",
            )

    def estimate(self) -> Estimate:
        shards = self.tp * (self.data if self.config.dist.fsdp else 1)
        weights = _FLOAT * (self.shape.weights + self._adapters) / shards
        trained = self._adapters if self._lora else self.shape.weights / shards
        gradients, moments = _FLOAT * trained, _MOMENTS * _FLOAT * trained
        if self._lora:
            weights = _FLOAT * (self.shape.weights / shards + self._adapters)
        reference = _FLOAT * self.shape.weights / shards if self.config.dpo else 0.0
        gathered, activations, loss = self._gathered, self._activations, self._loss
        always = weights + reference + moments + gathered
        earlier = gradients if self._accumulates else 0.0
        # when gradients reach the last layer, the memory of the loss is free again
        working = max(loss, self._layer_gradients)
        return Estimate(
            weights=weights,
            reference=reference,
            moments=moments,
            gradients=gradients,
            gathered=gathered,
            activations=activations,
            loss=loss,
            forward_peak=always + earlier + activations + working,
            backward_peak=always + gradients + max(self._last_gradient, self._layer_gradients),
        )

    @property
    def _lora(self) -> bool:
        return self.config.peft.scheme == "lora"

    @property
    def _adapters(self) -> float:
        """Weights of adapters; every process has them all."""
        if not self._lora:
            return 0.0
        shape, size = self.shape, self.shape.head_size
        hidden, inner = shape.hidden_size, shape.intermediate_size
        queries, keys = shape.num_attention_heads * size, shape.num_key_value_heads * size
        ends = {
            "q_proj": hidden + queries,
            "k_proj": hidden + keys,
            "v_proj": hidden + keys,
            "o_proj": queries + hidden,
            "gate_proj": hidden + inner,
            "up_proj": hidden + inner,
            "down_proj": inner + hidden,
        }
        chosen = self.config.peft.target_modules or list(ends)
        rows_and_columns = sum(ends.get(name, 0) for name in chosen)
        return float(shape.num_hidden_layers * self.config.peft.dim * rows_and_columns)

    @property
    def _accumulates(self) -> bool:
        size = self.config.train.global_batch_size or 32
        return size > self.config.train.micro_batch_size * self.dp

    @property
    def _shards(self) -> bool:
        return self.data > 1 and self.config.dist.fsdp

    @property
    def _gathered(self) -> float:
        """Weights that are whole while they are used, in the precision of computing."""
        shape = self.shape
        if self._shards:
            # embeddings and head, this layer and the next, and the gradient of one layer
            ends = shape.embedding_weights * (1 if shape.tie_word_embeddings else 2)
            return (ends * self.number + shape.layer_weights * (2 * self.number + _FLOAT)) / self.tp
        if not self.half:
            return 0.0
        # casts of weights that do not learn are free again after each layer
        cast = self._lora and self._recomputes
        return _HALF * (shape.layer_weights + shape.embedding_weights if cast else shape.weights) / self.tp

    @property
    def _layer_activations(self) -> float:
        """Bytes that a layer keeps of each token."""
        shape, size = self.shape, self.shape.head_size
        norm = self._norm_activations
        queries, keys = shape.num_attention_heads * size, shape.num_key_value_heads * size
        # attention keeps queries, its result, and the result in the order that the next matrix reads
        attention = self.number * (3 * queries + 2 * keys * self.cp)
        if shape.model_type == "qwen3":
            attention += (queries + keys) * (_FLOAT + self.number)
        # gate, up, the activation of gate, and their product
        feed_forward = self.number * 4 * shape.intermediate_size
        return 2 * norm + (attention + feed_forward) / self.tp

    @property
    def _norm_activations(self) -> float:
        """Bytes that a norm keeps of each token: its input, and what the matrices after it read.

        Where its own weights learn, the input divided by its size, too.
        """
        return self.shape.hidden_size * (_FLOAT + self.number * (1 if self._lora else 2))

    @property
    def _recomputes(self) -> bool:
        return self.config.model.recompute_granularity == "full"

    @property
    def _layer_gradients(self) -> float:
        """Gradients inside of a layer, and what is computed once more before."""
        inner = 2 * self.shape.intermediate_size / self.tp + self.shape.hidden_size
        again = self._layer_activations if self._recomputes else 0.0
        return self.tokens * (inner * self.number + again)

    @property
    def _activations(self) -> float:
        # FSDP computes with weights in half precision; else the embeddings, and so all sums, are in float32
        number = self.number if self._shards else _FLOAT
        kept = self.shape.hidden_size * number if self._recomputes else self._layer_activations
        return self.tokens * self.shape.num_hidden_layers * kept

    @property
    def _loss(self) -> float:
        """Logits of a piece in float32, their logarithms, and the gradient; the last norm of all tokens."""
        chunk = self.config.model.loss_chunk_size or self.tokens
        pieces = min(self.tokens, chunk) * self.shape.vocab_size * (3 * _FLOAT + (_HALF if self.half else 0))
        # the sum of the pieces' gradients of the head
        head = self._last_gradient if self.tokens > chunk else 0.0
        hidden = self._norm_activations + self.shape.hidden_size * self.number
        return pieces + head + self.tokens * hidden

    @property
    def _last_gradient(self) -> float:
        """That of embeddings or head, while it is added to what is there."""
        return 0.0 if self._lora else _FLOAT * self.shape.embedding_weights / self.tp
