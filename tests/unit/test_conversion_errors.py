"""What cannot be converted is one clear error, and nothing is left under the result's name."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy
import torch
import yaml
from safetensors.torch import save_file

from nemo_skills.conversion import hf_copy, inspect, result
from nemo_skills.conversion.families import find_families
from nemo_skills.conversion.mapping import hf_shapes
from nemo_skills.conversion.model_config import parse_config
from nemo_skills.core.errors import UserError
from nemo_skills.core.safetensors import SafetensorsFolder, TensorKind, write_tensors
from tests.unit.conversion_models import load, make_model, set_config, to_hf, to_nemo

Tensors = dict[str, torch.Tensor]
_DISTCP = "model_weights/__0_0.distcp"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", "llama", "bfloat16")


@pytest.fixture
def nemo(model: Path, tmp_path: Path) -> Path:
    return to_nemo(model, tmp_path / "nemo")


def _change(change: Callable[[Tensors], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        tensors = load(folder)
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def _rename(old: str, new: str) -> Callable[[Path], object]:
    return _change(lambda tensors: tensors.update({new: tensors.pop(old)}))


def _cut(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 100)


def _overwrite(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _index(data: bytes) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_bytes(data)

    return apply


def _set(where: str, **keys: object) -> Callable[[Path], object]:
    return lambda folder: set_config(folder / where, **keys)


def _replace(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], object]:
    return _change(lambda tensors: tensors.update({name: change(tensors[name])}))


_DOWN = "model.layers.1.mlp.down_proj.weight"
_HF_FAULTS = {
    "truncated": (_cut("model.safetensors"), r"model\.safetensors is damaged or was not written to its end"),
    "corrupted": (_overwrite("model.safetensors", b"\x09" * 999), r"model\.safetensors is damaged"),
    "a file is missing": (
        _index(b'{"weight_map": {"x": "gone.safetensors"}}'),
        r"cannot read .*gone\.safetensors: No such file",
    ),
    "no index": (
        _index(b'{"weight_map": {"x": 3}}'),
        "is no index of safetensors files",
    ),
    "other weights": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        r"holds no \*\.safetensors files, only pytorch_model\.bin: load and save it",
    ),
    "no config": (_remove("config.json"), r"is no Hugging Face model: .*config\.json"),
    "no json": (_overwrite("config.json", b"{"), r"config\.json is no JSON"),
    "missing": (_change(lambda t: t.pop(_DOWN)), rf"tensor {_DOWN} is missing"),
    "misspelt": (_rename(_DOWN, f"{_DOWN}s"), rf"tensor {_DOWN} is missing\. Did you mean '{_DOWN}s'\?"),
    "unknown": (
        _change(lambda t: t.update({"model.layers.2.mlp.down_proj.weight": t[_DOWN].clone()})),
        r"tensor model\.layers\.2\.mlp\.down_proj\.weight is not known of a llama model",
    ),
    "shape": (_replace(_DOWN, lambda t: t[:, 1:].contiguous()), r"is \[16, 23\], by .* \[16, 24\]"),
    "quantised": (_replace(_DOWN, lambda t: t.to(torch.int8)), "type I8: quantised"),
    "types": (_replace(_DOWN, lambda t: t.float()), "is float32, in other layers bfloat16; give"),
    "gemma": (_set("", model_type="gemma2"), "of type gemma2 cannot be converted, only"),
    "typo": (_set("", model_type="qwen33"), r"Did you mean 'qwen3'\?"),
    "bias": (_set("", mlp_bias=True), "biases of linear layers"),
    "zero": (_set("", hidden_size=0), "hidden_size is 0; a positive number is needed"),
}  # fmt: skip


@pytest.mark.parametrize("fault", _HF_FAULTS)
def test_a_bad_hugging_face_model_is_one_error(model: Path, tmp_path: Path, fault: str) -> None:
    damage, message = _HF_FAULTS[fault]
    damage(model)
    with pytest.raises(UserError, match=message) as caught:
        to_nemo(model, tmp_path / "nemo")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


class _Evil:
    def __reduce__(self) -> object:
        return os.system, ("touch /tmp/should-not-be-there",)


_NEMO_FAULTS = {
    "truncated": (_cut(_DISTCP), r"__0_0\.distcp was cut off: it has [\d,]+ bytes, [\d,]+ are needed"),
    "missing file": (_remove(_DISTCP), r"__0_0\.distcp is missing"),
    "zeros": (
        lambda folder: (folder / _DISTCP).write_bytes(bytes((folder / _DISTCP).stat().st_size)),
        r"the data of model\.\S+ is damaged",
    ),
    "metadata": (_cut("model_weights/.metadata"), r"\.metadata is damaged"),
    "code": (_overwrite("model_weights/.metadata", pickle.dumps(_Evil())), r"refers to posix\.system"),
    "not ours": (_overwrite("model_weights/.metadata", pickle.dumps({})), "not as Megatron-Core writes it"),
    "incomplete": (_remove("model_weights/.metadata"), "no complete NeMo checkpoint"),
    "fewer layers": (_set("hf", num_hidden_layers=1), r"is 2 layers of \[16\]"),
    "other sizes": (_set("hf", vocab_size=99), r"is \[61, 16\], by .* \[99, 16\]"),
    "tied": (_set("hf", tie_word_embeddings=True), r"output_layer\.weight is not known"),
    "other family": (_set("hf", model_type="qwen2"), r"qkv\.bias of layer 0 is missing"),
}  # fmt: skip


_OTHER_MODELS = {
    "activation": "fast-geglu", "normalization": "layernorm1p", "rotary_interleaved": True,
    "rotary_percentage": 0.5, "apply_embedding_scaling": True, "window_size": [8, 0],
}  # fmt: skip


@pytest.mark.parametrize("key", _OTHER_MODELS)
def test_a_model_that_only_looks_like_one_of_ours_is_refused(nemo: Path, tmp_path: Path, key: str) -> None:
    shutil.rmtree(nemo / "hf")
    path = nemo / "model_config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: _OTHER_MODELS[key]}))
    with pytest.raises(UserError, match=key):
        to_hf(nemo, tmp_path / "hf", model_type="llama")


@pytest.mark.parametrize("fault", _NEMO_FAULTS)
def test_a_bad_nemo_checkpoint_is_one_error(nemo: Path, tmp_path: Path, fault: str) -> None:
    damage, message = _NEMO_FAULTS[fault]
    damage(nemo)
    with pytest.raises(UserError, match=message) as caught:
        to_hf(nemo, tmp_path / "back")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "nemo"}
    assert not Path("/tmp/should-not-be-there").exists()


def test_a_wrong_model_type_names_the_right_one(model: Path, nemo: Path, tmp_path: Path) -> None:
    for convert, source in ((to_nemo, model), (to_hf, nemo)):
        with pytest.raises(UserError, match=r"model_type=qwen was given, but .*config\.json says llama"):
            convert(source, tmp_path / "out", model_type="qwen")
        with pytest.raises(UserError, match=r"model_type=lama is not known here.* Did you mean 'llama'\?"):
            convert(source, tmp_path / "out", model_type="lama")
    to_nemo(model, tmp_path / "out", model_type="llama3.1")


def test_a_result_is_not_written_over_something_else_but_found_again(model: Path, tmp_path: Path) -> None:
    first = to_nemo(model, tmp_path / "nemo")
    before = (first / _DISTCP).stat().st_mtime_ns
    to_nemo(model, tmp_path / "nemo")
    assert (first / _DISTCP).stat().st_mtime_ns == before
    with pytest.raises(UserError, match="exists and was not converted from this"):
        to_nemo(model, tmp_path / "nemo", dtype="fp32")
    packed = to_nemo(model, tmp_path / "file.nemo")
    before = packed.stat().st_mtime_ns
    assert to_nemo(model, tmp_path / "file.nemo").stat().st_mtime_ns == before
    (tmp_path / "empty").mkdir()
    to_nemo(model, tmp_path / "empty")
    (model / "tokenizer.json").write_text('{"version": "2.0"}')
    with pytest.raises(UserError, match="exists and was not converted from this"):
        to_nemo(model, tmp_path / "nemo")


def test_files_of_the_given_model_count_too(model: Path, nemo: Path, tmp_path: Path) -> None:
    shutil.rmtree(nemo / "hf")
    for _ in range(2):
        to_hf(nemo, tmp_path / "hf", hf_model_name=str(model))
    names = {hf_copy.fingerprint(nemo, str(model)), hf_copy.fingerprint(nemo)}
    (model / "tokenizer.json").write_text('{"version": "2.0"}')
    assert len(names | {hf_copy.fingerprint(nemo, str(model)), hf_copy.fingerprint(nemo)}) == 3
    with pytest.raises(UserError, match="exists and was not converted from this"):
        to_hf(nemo, tmp_path / "hf", hf_model_name=str(model))


@pytest.mark.parametrize("output", ["nemo", "file.nemo"])
def test_an_earlier_result_is_verified_too(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, output: str
) -> None:
    place = to_nemo(model, tmp_path / output)
    with caplog.at_level("INFO"):
        to_nemo(model, place, verify=True)
    assert "was converted from this already" in caplog.text and "verified: logits" in caplog.text
    weights = place / _DISTCP if place.is_dir() else place
    data = weights.read_bytes()
    norm = load(model)["model.norm.weight"].view(torch.uint8).numpy().tobytes()
    weights.write_bytes(data.replace(norm, bytes(len(norm))))
    with pytest.raises(UserError, match=r"verification failed: tensor model\.norm\.weight"):
        to_nemo(model, place, verify=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model", output])


@pytest.mark.parametrize("output", ["nemo", "file.nemo"])
@pytest.mark.parametrize("noticed", ["before", "while writing"])
def test_a_full_disk_is_named_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed: str, output: str
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    if noticed == "while writing":  # somebody else fills it
        monkeypatch.setattr(result, "check_space", lambda *_: None)
    try:
        with pytest.raises(UserError, match="the disk is full"):
            to_nemo(model, folder / output)
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _large_model(folder: Path) -> Path:
    """Write a model whose conversion takes a while, in files of 10 MB."""
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6,
              "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 1000}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shape = parse_config((folder / "config.json").read_bytes(), "").shape
    kinds = {n: TensorKind("BF16", s) for n, s in hf_shapes(find_families("llama")[0], shape).items()}
    random = numpy.random.default_rng(0)
    write_tensors(folder, kinds, lambda name: iter([memoryview(random.bytes(kinds[name].nbytes))]), 10**9)
    return folder


def _digests(folder: Path) -> dict[str, bytes]:
    weights = SafetensorsFolder(folder)
    read = {}
    for name, kind in weights.kinds.items():
        buffer = bytearray(kind.nbytes)
        weights.read_into(name, 0, memoryview(buffer))
        read[name] = bytes(buffer)
    weights.close()
    return read


@pytest.mark.parametrize("output", ["nemo", "file.nemo"])
def test_a_killed_conversion_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture, output: str) -> None:
    model = _large_model(tmp_path / "model")
    settings = {"max_shard_size": 0.01, "processes": 2}
    command = [sys.executable, "-m", "nemo_skills.conversion.hf_to_nemo", f"++input_model={model}",
               f"++output_model={tmp_path / output}"]  # fmt: skip
    command += [f"++{key}={value}" for key, value in settings.items()]
    unfinished = tmp_path / f"{output}.unfinished" / "result"
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    written = unfinished / _DISTCP if output == "nemo" else unfinished
    while not written.exists() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (tmp_path / output).exists() and unfinished.exists()
    with caplog.at_level("INFO"):
        for _ in range(100):  # its processes have just been killed, too
            try:
                to_nemo(model, tmp_path / output, **settings)
                break
            except UserError as error:
                assert "Another process is writing" in str(error)
                time.sleep(0.1)
    assert ("going on with" in caplog.text) == (output == "nemo")
    assert {path.name for path in tmp_path.iterdir()} == {"model", output}
    assert _digests(to_hf(tmp_path / output, tmp_path / "back")) == _digests(model)


@pytest.mark.parametrize("by", [["-m", "nemo_skills.conversion.inspect"], [str(Path(inspect.__file__))]])
def test_a_model_is_described(model: Path, nemo: Path, by: list[str]) -> None:
    def describe(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *by, str(path)], capture_output=True, text=True)

    for path, kind, to in ((model, "hf", "nemo, trtllm"), (nemo, "nemo", "hf")):
        lines = describe(path).stdout.splitlines()
        facts = dict(line.split(maxsplit=1) for line in lines[:5])
        assert (facts["format"], facts["family"], facts["dtype"]) == (kind, "llama", "BF16 × 5,872"), lines
        assert any(line.split() == ["converts", "to", *to.split()] for line in lines)
        assert any("2 × [16, 24]" in line or "[2, 16, 24]" in line for line in lines)
    nothing = describe(model / "nothing")
    assert nothing.returncode == 2 and nothing.stderr.startswith("Error: there is no model")


def test_formats_are_told_by_names_of_files(model: Path, nemo: Path, tmp_path: Path) -> None:
    packed, engine = to_nemo(model, tmp_path / "file.nemo"), tmp_path / "engine"
    engine.mkdir()
    (engine / "config.json").write_text("{}")
    (engine / "rank0.engine").write_bytes(b"")
    found = [inspect.detect_format(path) for path in (model, nemo, packed, engine)]
    assert found == ["hf", "nemo", "nemo", "trtllm"]
    with pytest.raises(UserError, match="no model that is known"):
        inspect.detect_format(tmp_path)
