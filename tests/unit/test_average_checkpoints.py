"""The mean of checkpoints: right to the last bit, refused where it makes no sense, complete or absent."""

import json
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.training import averaging
from nemo_skills.training.averaging import average
from nemo_skills.training.checkpoint_folders import Checkpoint, find_checkpoints

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
Tensors = dict[str, "torch.Tensor"]
GB = 10**9


def save(folder: Path, step: int, tensors: Tensors) -> None:
    """Write a checkpoint as the training main does."""
    model = folder / f"step={step}" / "hf"
    model.mkdir(parents=True)
    safetensors.save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (model / "config.json").write_text(json.dumps({"step": step}))
    (model.parent / "complete.json").write_text("{}")


def load(folder: Path) -> Tensors:
    return {k: v for file in folder.glob("*.safetensors") for k, v in safetensors.load_file(file).items()}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 4),
    dtype=st.sampled_from(["float32", "float64", "bfloat16", "float16", "float8_e4m3fn"]),
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    shard=st.sampled_from([1, 40, GB]),
    seed=st.integers(0, 99),
)
def test_it_is_the_mean(
    tmp_path_factory: pytest.TempPathFactory,
    count: int, dtype: str, shapes: list[list[int]], shard: int, seed: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("c")
    torch.manual_seed(seed)
    kind = getattr(torch, dtype)
    saved = [{f"t{i}": torch.randn(s).to(kind) for i, s in enumerate(shapes)} for _ in range(count)]
    for step, tensors in enumerate(saved):
        save(folder, step, tensors | {"buffer": torch.tensor([True, False])})
    average(find_checkpoints(folder), folder / "out", shard)
    result = load(folder / "out")
    assert result.pop("buffer").tolist() == [True, False]
    wide = torch.float64 if dtype == "float64" else torch.float32
    for name, value in result.items():
        total = saved[0][name].to(wide)
        for tensors in saved[1:]:
            total = total + tensors[name].to(wide)
        assert value.dtype == kind
        # one checkpoint comes back bit by bit
        assert torch.equal(value.to(wide), (total / count).to(kind).to(wide))
    if len(list((folder / "out").glob("*.safetensors"))) > 1:
        index = json.loads((folder / "out" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == result.keys() | {"buffer"}
    assert json.loads((folder / "out" / "config.json").read_text()) == {"step": count - 1}


def test_large_tensors_are_never_whole_in_memory(tmp_path: Path) -> None:
    # pieces end in the middle of rows, and the last one is shorter
    values = [torch.arange(3 * averaging._PIECE + 7, dtype=torch.float32) + step for step in (0, 1, 5)]
    for step, value in enumerate(values):
        save(tmp_path, step, {"w": value})
    tracemalloc.start()
    average(find_checkpoints(tmp_path), tmp_path / "out", GB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values[0].nbytes  # of Python's own buffers; torch has two pieces besides
    assert torch.equal(load(tmp_path / "out")["w"], (values[0] + values[1] + values[2]) / 3)


def test_transformers_loads_the_result(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=16
    )
    models = [transformers.LlamaForCausalLM(config) for _ in range(2)]
    for step, model in enumerate(models):
        model.save_pretrained(tmp_path / f"checkpoint-{step}", max_shard_size="1KB" if step else "1GB")
    average(find_checkpoints(tmp_path), tmp_path / "out", 2000)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, value in loaded.state_dict().items():
        expected = (models[0].state_dict()[name] + models[1].state_dict()[name]) / 2
        assert torch.equal(value, expected), name


def test_steps_are_chosen_and_half_written_ones_left_out(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step, {"w": torch.tensor([float(step)])})
    (tmp_path / "step=30" / "complete.json").unlink()
    assert [found.step for found in find_checkpoints(tmp_path)] == [10, 20]
    with pytest.raises(
        UserError, match=r"step 30 is half-written or damaged; .*step 40 is not there.*10, 20"
    ):
        find_checkpoints(tmp_path, [10, 30, 40])
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        find_checkpoints(tmp_path / "step=10")


def test_a_model_that_is_not_as_long_as_it_was_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        save(tmp_path, step, {"w": torch.ones(8)})
        file = tmp_path / f"step={step}/hf/model.safetensors"
        # the state is removed from older checkpoints
        sizes = {"hf/model.safetensors": file.stat().st_size, "dcp/.metadata": 5}
        (tmp_path / f"step={step}/complete.json").write_text(json.dumps({"files": sizes}))
    file.write_bytes(file.read_bytes()[:-4])
    assert [found.step for found in find_checkpoints(tmp_path)] == [10]
    assert "step=20 is half-written or damaged and is left out" in caplog.text
    with pytest.raises(UserError, match="step 20 is half-written or damaged"):
        find_checkpoints(tmp_path, [20])


def a_name_less(model: Path) -> None:
    safetensors.save_file({"w": torch.ones(2)}, model)


def another_shape(model: Path) -> None:
    safetensors.save_file({"w": torch.ones(3), "b": torch.ones(1)}, model)


def another_type(model: Path) -> None:
    safetensors.save_file({"w": torch.ones(2).half(), "b": torch.ones(1)}, model)


def a_nan(model: Path) -> None:
    safetensors.save_file({"w": torch.tensor([1.0, float("nan")]), "b": torch.ones(1)}, model)


def a_cut_file(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1])


def nonsense(model: Path) -> None:
    model.write_bytes(struct.pack("<Q", 9) + b"nonsense!")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (a_name_less, "tensor b is missing"),
        (another_shape, r"tensor w is F32 \[3\] instead of F32 \[2\]"),
        (another_type, r"tensor w is F16 \[2\] instead of F32 \[2\]"),
        (a_nan, "tensor w has values that are not finite"),
        (a_cut_file, "damaged or was not written to its end"),
        (nonsense, "damaged or was not written to its end"),
        (Path.unlink, "holds no"),
    ],
)
def test_what_is_refused(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    for step in (1, 2):
        save(tmp_path, step, {"w": torch.ones(2), "b": torch.ones(1)})
    checkpoints = [Checkpoint(step, tmp_path / f"step={step}" / "hf") for step in (1, 2)]
    harm(checkpoints[1].model / "model.safetensors")
    with pytest.raises(UserError, match=message):
        average(checkpoints, tmp_path / "out", GB)
    assert not (tmp_path / "out").exists()


def test_it_is_safe_to_run_again(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, {"w": torch.tensor([float(step)])})
    output = tmp_path / "out"
    # what a killed run has left
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished" / "model-00009-of-00009.safetensors").write_bytes(b"half")
    everything = find_checkpoints(tmp_path)
    assert average(everything, output, GB).nbytes == 4
    assert average(everything, output, GB).nbytes == 0
    assert average(everything[1:], output, GB).nbytes == 4
    assert load(output)["w"].tolist() == [2.5]
    assert not (tmp_path / "out.unfinished").exists()
    with pytest.raises(UserError, match="holds something else"):
        average(everything, everything[0].model, GB)


def test_the_main(tmp_path: Path) -> None:
    for step in (5, 10):
        save(tmp_path, step, {"w": torch.tensor([float(step)])})
    argv = [sys.executable, "-m", "nemo_skills.training.average_checkpoints"]
    argv += [f"++checkpoints_dir={tmp_path}", f"++output={tmp_path / 'mean'}"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "mean")["w"].numpy() == numpy.float32(7.5)
    done = subprocess.run([*argv, "++steps=[7]"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the checkpoint of step 7 is not there" in done.stderr
