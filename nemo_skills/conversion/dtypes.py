"""Names of number types: those of safetensors are used everywhere, others are translated here."""

from nemo_skills.core.errors import UserError, did_you_mean

_TORCH = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The types that weights may have, as safetensors and as torch name them."""
_PRECISION = {"F64": "32", "F32": "32", "BF16": "bf16", "F16": "16"}
_GIVEN = {
    "fp32": "F32", "float32": "F32", "float": "F32", "32": "F32",
    "bf16": "BF16", "bfloat16": "BF16",
    "fp16": "F16", "float16": "F16", "half": "F16", "16": "F16",
}  # fmt: skip


def parse_dtype(name: str) -> str:
    """Return the type that a user names, such as `bf16`.

    Raises:
        UserError: there is no such type.
    """
    key = name.lower().removeprefix("torch.")
    if key not in _GIVEN:
        raise UserError(f"dtype={name} is unknown; use fp32, bf16 or fp16.{did_you_mean(key, _GIVEN)}")
    return _GIVEN[key]


def torch_name(dtype: str) -> str:
    """Return torch's name of a type of safetensors."""
    return _TORCH[dtype]


def from_torch(name: str) -> str | None:
    """Return the name in safetensors of a type that torch calls `name`; None if weights cannot have it."""
    return next((key for key, value in _TORCH.items() if value == name), None)


def is_weight_dtype(dtype: str) -> bool:
    """Whether weights of this type can be converted."""
    return dtype in _TORCH


def nemo_precision(dtype: str) -> str:
    """Return how NeMo's trainer calls a type."""
    return _PRECISION[dtype]
