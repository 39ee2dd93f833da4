"""The tests of a task, as they travel in its row: packed, for they may have megabytes."""

import base64
import io
import json
import pickle
import zlib
from collections.abc import Sequence
from typing import Any, TypedDict


class Test(TypedDict):
    """What a program reads and has to write, or a function's arguments (one JSON value a line) and result."""

    input: str
    output: str


def pack(tests: Sequence[Test]) -> str:
    """Return tests as the value of a row's key `tests`."""
    return base64.b64encode(zlib.compress(json.dumps(tests).encode())).decode()


def unpack(text: str) -> list[Test]:
    """Return the tests of a row."""
    tests: list[Test] = json.loads(zlib.decompress(base64.b64decode(text)))
    return tests


def unpack_origin(text: str) -> list[Any]:
    """Return tests as the authors pack them: JSON, or a pickled text of JSON, compressed.

    Raises:
        ValueError: it is neither.
    """
    try:
        data = text if text.lstrip().startswith("[") else _unpickle(zlib.decompress(base64.b64decode(text)))
    except (zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(str(error)) from error
    tests = json.loads(data)
    if not isinstance(tests, list):
        raise ValueError("not a list")
    return tests


class _TextOnly(pickle.Unpickler):
    """A pickle could run any code; the texts that are meant need no class and no function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, not only text")


def _unpickle(data: bytes) -> str:
    text = _TextOnly(io.BytesIO(data)).load()
    if not isinstance(text, str):
        raise ValueError("it holds no text")
    return text
