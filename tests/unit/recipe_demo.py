"""Models and functions to configure, in place of a framework's."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class Dtype(enum.Enum):
    """Something with members."""

    FLOAT = "float"
    HALF = "half"


class Features(enum.Flag):
    """Members that can be combined."""

    PACKED = enum.auto()
    SHUFFLED = enum.auto()


@dataclass
class LlamaConfig:
    """The size of a model."""

    seq_length: int = 8192
    num_layers: int = 32
    dtype: Dtype = Dtype.FLOAT


@dataclass
class LlamaModel:
    """A model."""

    config: LlamaConfig = field(default_factory=LlamaConfig)
    initialise: Callable[..., Any] | None = None


@dataclass
class MockData:
    """Rows that are made up."""

    seq_length: int = 8192
    global_batch_size: int = 512
    micro_batch_size: int = 1


@dataclass
class SomeObject:
    """Something with something of its kind inside."""

    a: int = 0
    b: Any = None
    items: Any = ()


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Settings that are checked."""

    size: int = 1
    names: tuple[str, ...] = ("x",)
    inner: LlamaConfig = field(default_factory=LlamaConfig)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("size must be positive")


@dataclass
class Trainer:
    """A class with another way to make one."""

    devices: int = 1

    @classmethod
    def for_node(cls, gpus: int) -> "Trainer":
        """Return one for so many GPUs."""
        return cls(gpus)


def take(first: Any = None, *rest: Any, named: Any = None, **more: Any) -> tuple[Any, ...]:
    """Return everything given."""
    return (first, rest, named, more)


def in_order(first: Any, second: Any = 2, /, third: Any = 3) -> tuple[Any, ...]:
    """Have parameters without names."""
    return (first, second, third)


def pretrain(model: LlamaModel, data: MockData, max_lr: float = 3e-4) -> str:
    """Say what would be trained."""
    return f"{model.config.num_layers} layers on {data.global_batch_size} rows at {max_lr}"
