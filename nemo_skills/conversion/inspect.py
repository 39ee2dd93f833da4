"""Says what a model on disk is: `python -m nemo_skills.conversion.inspect MODEL`."""

import sys

if __name__ == "__main__" and not __package__:
    # started as a file: this very file would hide Python's module of the same name
    del sys.path[0]

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nemo_skills.core.errors import UserError
from nemo_skills.core.script import run_script

if TYPE_CHECKING:
    from nemo_skills.conversion.model_config import ModelConfig
    from nemo_skills.core.safetensors import TensorKind

Format = Literal["hf", "nemo", "trtllm"]

_NEMO_FILES = ("model_config.yaml", "model_weights/.metadata", "weights/.metadata", ".metadata")
_TO: dict[Format, str] = {"hf": "nemo, trtllm", "nemo": "hf", "trtllm": "nothing"}


def detect_format(path: str | Path) -> Format:
    """Return the format of a model; only names of files are looked at.

    Raises:
        UserError: there is no model, or it is none of the known formats.
    """
    path = Path(path)
    if path.is_file() and (path.suffix == ".nemo" or path.name.endswith((".tar", ".tar.gz"))):
        return "nemo"
    if not path.is_dir():
        raise UserError(
            f"there is no model {path}" if not path.exists() else f"{path} is no model that is known"
        )
    if any((path / name).is_file() for name in _NEMO_FILES):
        return "nemo"
    if any(path.glob("rank*.engine")):
        return "trtllm"
    if (path / "config.json").is_file():
        return "hf"
    raise UserError(f"{path} holds no config.json, model_config.yaml or *.engine: no model that is known")


def describe_model(path: Path) -> Iterator[str]:
    """Yield lines about a model.

    Raises:
        UserError: it is damaged, or none of the known formats.
    """
    kind = detect_format(path)
    yield _line("format", kind)
    if kind == "trtllm":
        yield _line("engines", len(list(path.glob("rank*.engine"))))
    elif kind == "hf":
        yield from _hf(path)
    else:
        yield from _nemo(path)


def _hf(path: Path) -> Iterator[str]:
    from nemo_skills.conversion.hf_source import open_hf
    from nemo_skills.conversion.model_config import parse_config
    from nemo_skills.core.safetensors import SafetensorsFolder

    config_file = path / "config.json"
    weights = SafetensorsFolder(path)
    config = parse_config(config_file.read_bytes(), str(config_file))
    yield from _about(config, weights.kinds)
    yield _line("tokenizer", _tokenizer([file.name for file in weights.other_files]))
    try:
        open_hf(path, None)
    except UserError as error:
        yield _line("converts to", f"trtllm perhaps; nemo not: {error}")
    else:
        yield _line("converts to", _TO["hf"])
    yield from _tensors(weights.kinds)


def _nemo(path: Path) -> Iterator[str]:
    from nemo_skills.conversion.nemo_source import open_nemo
    from nemo_skills.core.safetensors import TensorKind

    with open_nemo(path, None, None, path.absolute().parent) as source:
        kinds = {
            name: TensorKind(tensor.dtype, tensor.size) for name, tensor in source.tensors.stored.items()
        }
        yield from _about(source.config, kinds)
        yield _line("tokenizer", _tokenizer([plan.name for plan in source.others]))
        yield _line("converts to", _TO["nemo"])
        yield from _tensors(kinds)


def _about(config: "ModelConfig", kinds: "Mapping[str, TensorKind]") -> Iterator[str]:
    from nemo_skills.conversion.families import all_families

    shape = config.shape
    known = "" if config.model_type in all_families() else " (no table for it here)"
    total = sum(kind.nbytes for kind in kinds.values())
    by_type: dict[str, int] = {}
    for kind in kinds.values():
        by_type[kind.dtype] = by_type.get(kind.dtype, 0) + _count(kind)
    yield _line("family", config.model_type + known)
    yield _line("parameters", f"{sum(by_type.values()):,}")
    yield _line("dtype", ", ".join(f"{dtype} × {count:,}" for dtype, count in by_type.items()))
    yield _line("size", f"{total / 1e9:,.3f} GB")
    yield _line("layers", shape.layers)
    yield _line("hidden size", f"{shape.hidden}, feed-forward {shape.ffn}")
    yield _line("heads", f"{shape.heads} of {shape.head_size}, groups {shape.groups}")
    yield _line("vocabulary", f"{shape.vocab}, {'tied' if shape.tied else 'untied'} output layer")
    yield _line(
        "positions", f"{config.max_positions}, rope {config.rope_type} with base {config.rope_base:g}"
    )


def _count(kind: "TensorKind") -> int:
    from nemo_skills.core.safetensors import ITEM_SIZES

    return kind.nbytes // ITEM_SIZES[kind.dtype]


def _tokenizer(names: list[str]) -> str:
    from nemo_skills.conversion.hf_source import is_tokenizer_file

    return ", ".join(sorted(name for name in names if is_tokenizer_file(name))) or "none"


def _tensors(kinds: "Mapping[str, TensorKind]") -> Iterator[str]:
    """Yield a line for tensors that differ in nothing but their layer."""
    groups: dict[tuple[str, str, tuple[int, ...]], int] = {}
    for name, kind in kinds.items():
        group = (re.sub(r"\.\d+\.", ".*.", name), kind.dtype, kind.shape)
        groups[group] = groups.get(group, 0) + 1
    yield "tensors"
    width = max(len(name) for name, _, _ in groups)
    for (name, dtype, shape), count in groups.items():
        times = f"{count} × " if count > 1 else ""
        yield f"  {name:{width}}  {dtype:4}  {times}{list(shape)}"


def _line(label: str, value: object) -> str:
    return f"{label:<13}{value}"


def main() -> None:
    """Describe a model."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_skills.conversion.inspect",
        description="What a model is, and what it can become.",
    )
    parser.add_argument("model", type=Path, help="a folder, or a .nemo file")
    arguments = parser.parse_args()
    run_script(lambda: print("\n".join(describe_model(arguments.model))))


if __name__ == "__main__":
    main()
