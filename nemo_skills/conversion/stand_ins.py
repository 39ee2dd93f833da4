"""Pickles of checkpoints, read without running anything: every class in them becomes an inert record."""

import io
import pickle
from collections.abc import Callable
from typing import Any

from nemo_skills.core.errors import UserError

_BUILTINS = {"set": set, "frozenset": frozenset, "list": list, "dict": dict, "tuple": tuple, "slice": slice,
             "int": int, "float": float, "bool": bool, "str": str, "bytes": bytes, "bytearray": bytearray,
             "complex": complex}  # fmt: skip
_RECORD_PACKAGES = {"torch", "megatron", "nemo"}


class Record:
    """Stands for an instance of a class that is not loaded: only what was stored in it."""

    def __init__(self, *args: object) -> None:
        self.args = args

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self._key() == other._key()

    def _key(self) -> tuple[object, object]:
        # records are keys of a dictionary in one place only: index entries, by name and offset
        return self.__dict__.get("fqn", id(self)), self.__dict__.get("offset")


class TensorRecord(Record):
    """Stands for a tensor: the storage, offset, size and strides that it was rebuilt from."""


class StandInUnpickler(pickle.Unpickler):
    """Loads metadata and tensor headers; nothing of torch, Megatron or NeMo is imported or called.

    Raises:
        UserError: the pickle names something that has no place in a checkpoint.
    """

    def __init__(self, data: bytes, where: str) -> None:
        super().__init__(io.BytesIO(data))
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global name."""
        package = module.partition(".")[0]
        if module == "torch" and name == "Size":
            return tuple
        if module == "torch._utils":
            return TensorRecord
        if package in _RECORD_PACKAGES:
            return _constant(name) if name.islower() or name.startswith("_get_") else _record(name)
        if module == "builtins" and name in _BUILTINS:
            return _BUILTINS[name]
        if module == "collections" and name in ("OrderedDict", "defaultdict"):
            return _ordered
        if package == "pathlib":
            return lambda *parts: "/".join(parts)
        if (module, name) in (("io", "BytesIO"), ("_io", "BytesIO")):
            return _record(name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _encoding: text.encode("latin1")
        raise UserError(f"{self._where} refers to {module}.{name}: that is no checkpoint, it was not loaded")

    def persistent_load(self, pid: Any) -> Any:
        """Return what names a storage."""
        return pid

    def read(self) -> Any:
        """Return the contents.

        Raises:
            UserError: they are damaged.
        """
        try:
            return self.load()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self._where} is damaged: {error or type(error).__name__}") from error


def _record(name: str) -> type[Record]:
    return type(name, (Record,), {})


def _ordered(*args: Any) -> dict[Any, Any]:
    return dict(*args) if args and not callable(args[0]) else {}


class _Constant(str):
    """A name such as `bfloat16`, or a function that turns such a name into a constant."""

    def __call__(self, *args: object) -> object:
        return args[0] if args else self


def _constant(name: str) -> Callable[..., object]:
    return _Constant(name)
