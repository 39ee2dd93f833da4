"""Engines of TensorRT-LLM: what its LLM API is asked for; the library itself is a stand-in here."""

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nemo_skills.conversion import hf_to_trtllm
from nemo_skills.conversion.hf_to_trtllm import TrtllmConfig
from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import encode_override

main = hf_to_trtllm.hf_to_trtllm


class Settings(dict[str, Any]):
    """Stands for BuildConfig, QuantConfig and CalibConfig."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)


class Llm:
    """Stands for LLM: remembers its arguments, and saves an engine or fails."""

    given: ClassVar[dict[str, Any]] = {}
    fails: ClassVar[bool] = False

    def __init__(self, **arguments: Any) -> None:
        type(self).given = arguments

    def __enter__(self) -> "Llm":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def save(self, folder: str) -> None:
        (Path(folder) / "rank0.engine").write_text("engine")
        if self.fails:
            raise OSError(28, "No space left on device")
        (Path(folder) / "config.json").write_text("{}")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("tensorrt_llm")
    package.__version__ = "1.0.0"  # type: ignore[attr-defined]
    api = types.ModuleType("tensorrt_llm.llmapi")
    api.BuildConfig = api.QuantConfig = api.CalibConfig = Settings  # type: ignore[attr-defined]
    names = ("FP8", "INT8", "W4A16_AWQ", "W8A16")
    api.QuantAlgo = types.SimpleNamespace(**{name: f"<{name}>" for name in names})  # type: ignore[attr-defined]
    engine = types.ModuleType("tensorrt_llm._tensorrt_engine")
    engine.LLM = Llm  # type: ignore[attr-defined]
    for module in (package, api, engine):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def model(weird_tmp_path: Path) -> Path:
    folder = weird_tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "num_attention_heads": 8}))
    for name in ("tokenizer.json", "merges.txt", "model.safetensors", "README.md"):
        (folder / name).write_text(name)
    return folder


def convert(model: Path, *words: str) -> Path:
    output = model.with_name("engine")
    main([encode_override("input_model", str(model)), encode_override("output_model", str(output)), *words])
    return output


def test_the_engine_and_its_tokenizer_appear_together(library: None, model: Path) -> None:
    words = ("++tensor_parallel_size=4", "++pipeline_parallel_size=2", "++dtype=bf16", "++model_type=qwen")
    output = convert(
        model, *words, "++quantization=int4_awq", "++kv_cache_quantization=int8", "++max_seq_len=5000"
    )
    assert Llm.given == {
        "model": str(model),
        "tensor_parallel_size": 4,
        "pipeline_parallel_size": 2,
        "dtype": "bfloat16",
        "build_config": {
            "max_batch_size": 256, "max_input_len": 4096, "max_seq_len": 5000, "max_num_tokens": 8192
        },
        "quant_config": {"quant_algo": "<W4A16_AWQ>", "kv_cache_quant_algo": "<INT8>"},
        "calib_config": {"calib_batches": 512},
    }  # fmt: skip
    names = {"config.json", "rank0.engine", "tokenizer.json", "merges.txt"}
    assert {path.name for path in output.iterdir()} == names
    assert json.loads((output / "config.json").read_text()) == {}, "the engine's, not the model's"


def test_nothing_is_left_under_the_name_when_it_fails(
    library: None, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Llm, "fails", True)
    with pytest.raises(SystemExit):
        convert(model)
    assert "the disk is full" in capsys.readouterr().err
    assert not model.with_name("engine").exists()
    monkeypatch.setattr(Llm, "fails", False)
    assert (convert(model, "++llm_args.trust_remote_code=true") / "config.json").exists()
    assert Llm.given["trust_remote_code"] is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("++model_type=llama",), "model_type=llama, but"),
        (("++tensor_parallel_size=3",), "8 attention heads cannot be shared by 3 GPUs"),
        (("++dtype=fp32",), "engines are bf16 or fp16"),
        (("++calib_dataset=x",), "calibrate"),
        (("++quantization=int8",), "int8_sq"),
        (("++max_input_len=9000",), "max_seq_len must be above max_input_len"),
    ],
)
def test_what_is_refused(
    library: None, model: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        convert(model, *words)
    assert message in capsys.readouterr().err


def test_without_the_library_it_says_what_to_install() -> None:
    module = "nemo_skills.conversion.hf_to_trtllm"
    words = [sys.executable, "-m", module, "++input_model=/no/model", "++output_model=/no/engine"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "pip install tensorrt-llm" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_versions_that_build_no_engines(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm._tensorrt_engine", None)
    with pytest.raises(UserError, match=r"TensorRT-LLM 1\.0\.0 builds no engines .* --server_type=trtllm"):
        hf_to_trtllm._library()
    sys.modules["tensorrt_llm"].__version__ = "0.20.0"  # type: ignore[attr-defined]
    sys.modules["tensorrt_llm"].LLM = Llm  # type: ignore[attr-defined]
    assert hf_to_trtllm._library() is Llm
    assert hf_to_trtllm.llm_arguments(TrtllmConfig(input_model="m", output_model="e"))["model"] == "m"
