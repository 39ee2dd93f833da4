"""What recipes are said to need, against tensors that exist in real steps of the engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.training.architecture import Architecture
from nemo_skills.training.engine.settings import check_settings, run_settings
from nemo_skills.training.recipes import ConfigContainer, get_recipe, names
from nemo_skills.training.recipes.config import DpoConfig
from nemo_skills.training.recipes.memory import GIB, MARGIN, Gpus, estimate, verdict
from nemo_skills.training.recipes.overrides import override
from tests.conftest import REPO

PUBLISHED = {
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_32b": 32_763_876_352,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
}
"""Numbers of weights, as the hub shows them."""
WIDE = "{hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 4, num_key_value_heads: 2}"
LAUNCH = [sys.executable, "-m", "nemo_skills.training.launch", "--processes=2", "--"]
CASES = {
    "as it is": [],
    "several micro-batches, logits in pieces": [
        "train.global_batch_size=8",
        "model.loss_chunk_size=128",
        "model.architecture.vocab_size=4096",
    ],
    "mostly weights": ["data.train.seq_length=65", f"model.architecture={WIDE}"],
    "layers computed twice": ["model.recompute_granularity=full"],
    "qwen 3, heads of another size": [
        "model.architecture.model_type=qwen3",
        "model.architecture.num_key_value_heads=2",
        "model.architecture.head_dim=48",
    ],
    "qwen 3": ["model.architecture.model_type=qwen3"],
    "qwen 2, own head": [
        "model.architecture.model_type=qwen2",
        "model.architecture.tie_word_embeddings=false",
    ],
    "adapters": ["peft.scheme=lora", "peft.dim=8"],
    "bf16, layers computed twice": ["train.precision=bf16", "model.recompute_granularity=full"],
    "bf16, adapters, mostly weights": [
        "train.precision=bf16",
        "peft.scheme=lora",
        "peft.dim=4",
        "model.recompute_granularity=full",
        "train.micro_batch_size=1",
        "data.train.seq_length=65",
        f"model.architecture={WIDE}",
        "model.architecture.num_hidden_layers=12",
    ],
}


def shape(config: ConfigContainer) -> Architecture:
    assert config.model.architecture is not None
    return Architecture(**config.model.architecture.tree())


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_as_many_weights_as_the_models(name: str) -> None:
    assert shape(get_recipe(name)()).weights == PUBLISHED[name]


def test_every_recipe_fits_the_gpus_it_asks_for() -> None:
    checked = 0
    for name in names():
        config = get_recipe(name)()
        if name.startswith("tiny"):
            continue
        assert config.dist.devices
        assert config.dist.num_nodes
        gpus = Gpus.parse(f"{config.dist.devices * config.dist.num_nodes}xH100")
        found = estimate(config, gpus)
        assert gpus.memory is not None
        assert found.peak <= 0.85 * gpus.memory, (name, found.lines())
        assert verdict(found, gpus).startswith("fits")
        checked += 1
    assert checked == 4 * len(PUBLISHED)


def test_parallelism_spreads_what_it_should() -> None:
    config = get_recipe("llama3_8b")()
    config.model.recompute_granularity = None
    eight = estimate(config, Gpus.parse("8xH100"))
    sixteen = estimate(config, Gpus.parse("16xH100"))
    assert sixteen.weights == pytest.approx(eight.weights / 2)
    assert sixteen.moments == pytest.approx(eight.moments / 2)
    assert sixteen.activations == pytest.approx(eight.activations)
    config.model.tensor_model_parallel_size = 4
    split = estimate(config, Gpus.parse("8xH100"))
    assert split.weights == pytest.approx(eight.weights)
    assert eight.activations / 4 < split.activations < eight.activations
    config.model.tensor_model_parallel_size = 1
    config.dist.fsdp = False
    copies = estimate(config, Gpus.parse("8xH100"))
    assert copies.weights == pytest.approx(8 * eight.weights)
    assert copies.gradients == pytest.approx(4 * PUBLISHED["llama3_8b"])


@pytest.mark.parametrize(
    ("name", "size", "gpus", "message"),
    [
        ("llama3_1b", 2, "8xH100", "tied embeddings"),
        ("llama3_8b", 3, "3xH100", "does not divide the 8 key-value heads"),
        ("llama3_8b_lora", 2, "2xH100", "does not go with adapters"),
    ],
)
def test_tensor_parallelism_that_the_engine_refuses(name: str, size: int, gpus: str, message: str) -> None:
    config = get_recipe(name)()
    config.model.tensor_model_parallel_size = size
    with pytest.raises(UserError, match=message):
        estimate(config, Gpus.parse(gpus))


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ("8", "such as 8xH100"),
        ("0xH100", "such as 8xH100"),
        ("8xH10", "Did you mean 'H100'"),
        ("3xH100", "groups of"),
    ],
)
def test_impossible_gpus(gpus: str, message: str) -> None:
    config = get_recipe("llama3_8b")()
    config.model.tensor_model_parallel_size = 2
    with pytest.raises(UserError, match=message):
        estimate(config, Gpus.parse(gpus))


def test_what_does_not_fit_is_told_with_what_would_help() -> None:
    gpus = Gpus.parse("8xH100")
    found = estimate(get_recipe("llama3_70b")(), gpus)
    assert found.peak > MARGIN * 79.2 * GIB
    assert "does not fit" in verdict(found, gpus)
    config = get_recipe("tiny")()
    config.model.architecture = None
    with pytest.raises(UserError, match="architecture is not given"):
        estimate(config, gpus)


# ---- measured: tensors that PyTorch allocates in two steps of the engine


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nemo_skills.examples.tiny_model import build

    folder = tmp_path_factory.mktemp("memory")
    build(folder / "model", for_training=True)
    text = " ".join(map(str, range(400)))
    (folder / "texts.jsonl").write_text((json.dumps({"text": text}) + "\n") * 16)
    pair = {"prompt": "a", "chosen": text, "rejected": text + " 1"}
    (folder / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 16)
    return folder


def measured_peak(config: ConfigContainer) -> int:
    """Return the most bytes of tensors at any time in the training of a container."""
    from tests.unit.recipe_memory import measure

    return measure(config)["peak"]


def small(source: Path, out: Path, changes: list[str]) -> ConfigContainer:
    config = get_recipe("tiny_pretrain")()
    config.model.restore_from_path = str(source / "model")
    config.data.train.file_path = str(source / "texts.jsonl")
    config.data.train.seq_length = 257
    config.train.train_iters = 2
    config.train.global_batch_size = 4
    config.logger.log_dir = str(out)
    override(config, changes)
    return config


@pytest.mark.service("train")
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_estimates_agree_with_tensors_of_real_steps(changes: list[str], source: Path, tmp_path: Path) -> None:
    config = small(source, tmp_path, changes)
    found = estimate(config, Gpus.parse("1xCPU"))
    assert found.peak == pytest.approx(measured_peak(config), rel=0.15), found.lines()


@pytest.mark.service("train")
def test_estimates_agree_where_two_processes_share_a_model(source: Path, tmp_path: Path) -> None:
    wide = [f"model.architecture={WIDE}", "data.train.seq_length=65", "train.global_batch_size=8"]
    half = ["train.precision=bf16", "model.recompute_granularity=full", "train.global_batch_size=8"]
    half.append("model.architecture.num_hidden_layers=8")
    configs = {
        "fsdp": small(source, tmp_path / "fsdp", [*wide, "model.architecture.vocab_size=2048"]),
        "tensor": small(source, tmp_path / "tensor", [*wide, "model.tensor_model_parallel_size=2"]),
        "bf16": small(source, tmp_path / "bf16", half),
        "adapters": small(source, tmp_path / "adapters", [*half, "peft.scheme=lora", "peft.dim=8"]),
    }
    for name, config in configs.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(config.main_overrides()))
    arguments = [tmp_path / "measured.json", *(tmp_path / f"{name}.txt" for name in configs)]
    subprocess.run(
        [*LAUNCH, "-m", "tests.unit.recipe_memory", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=REPO,
        check=True,
    )
    measured = json.loads((tmp_path / "measured.json").read_text())
    for config, found in zip(configs.values(), measured, strict=True):
        expected = estimate(config, Gpus.parse("2xCPU"))
        assert expected.weights == pytest.approx(found["weights"], rel=0.01)
        assert expected.moments == pytest.approx(found["moments"], rel=0.01)
        assert expected.peak == pytest.approx(found["peak"], rel=0.15), expected.lines()


@pytest.mark.service("train")
def test_the_estimate_of_pairs_counts_the_reference(source: Path, tmp_path: Path) -> None:
    config = small(
        source, tmp_path, [f"data.train.file_path={source}/pairs.jsonl", "model.from_scratch=false"]
    )
    config.dpo = DpoConfig()
    config.train.global_batch_size = config.train.micro_batch_size = 2
    found = estimate(config, Gpus.parse("1xCPU"))
    # the model as it was is not among the weights of the run: it is added here
    assert found.peak == pytest.approx(measured_peak(config) + found.reference, rel=0.15), found.lines()
    assert found.reference > 0


@pytest.mark.service("train")
def test_new_weights_have_the_shape_of_the_recipe_and_depend_on_the_seed_alone(
    source: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    from nemo_skills.training.engine.fresh import fresh_model
    from nemo_skills.training.engine.parallel import Topology

    topology = Topology(device=torch.device("cpu"))
    made = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = small(source, tmp_path, [f"train.seed={seed}", f"model.architecture={WIDE}"])
        folder = fresh_model(source / "model", config.main_config().model, tmp_path / name, topology)
        made[name] = load_file(folder / "model.safetensors")
        assert json.loads((folder / "config.json").read_text())["hidden_size"] == 256
        assert (folder / "tokenizer.json").is_file()
        assert sum(tensor.numel() for tensor in made[name].values()) == shape(config).weights
    key = "model.layers.3.mlp.up_proj.weight"
    assert torch.equal(made["a"][key], made["b"][key])
    assert not torch.equal(made["a"][key], made["c"][key])
    config = small(source, tmp_path, ["train.seed=2", f"model.architecture={WIDE}"])
    before = (tmp_path / "c/model.safetensors").stat().st_mtime_ns
    fresh_model(source / "model", config.main_config().model, tmp_path / "c", topology)
    assert (tmp_path / "c/model.safetensors").stat().st_mtime_ns == before, "made once"
    fresh_model(source / "model", config.main_config().model, tmp_path / "a", topology)
    assert torch.equal(load_file(tmp_path / "a/model.safetensors")[key], made["c"][key]), "of another seed"
    too_few = small(source, tmp_path, ["model.architecture.vocab_size=100"]).main_config().model
    with pytest.raises(UserError, match=r"the tokenizer has .* tokens, the model 100"):
        fresh_model(source / "model", too_few, tmp_path / "d", topology)


SCRIPT = """
import sys
from pathlib import Path
from nemo_skills.core.script import run_script
from nemo_skills.training.recipes import ConfigContainer
from nemo_skills.training.recipes.run import train

def note(step, values):
    if "loss" in values:
        with Path(sys.argv[1]).with_name("told.txt").open("a") as file:
            print(step, values["loss"], file=file)

if __name__ == "__main__":
    config = ConfigContainer.from_main_overrides(Path(sys.argv[1]).read_text().splitlines())
    config.logger.on_metrics = note
    run_script(lambda: train(config))
"""


@pytest.mark.service("train")
def test_a_pretraining_runs_and_learns_and_is_not_mixed_with_other_runs(source: Path, tmp_path: Path) -> None:
    config = small(source, tmp_path / "run", ["train.train_iters=12", "optimizer.lr=0.01"])
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    arguments = tmp_path / "arguments.txt"
    arguments.write_text("\n".join(config.main_overrides()))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script), str(arguments)]
    subprocess.run(command, env=env, check=True, capture_output=True)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(6.24, abs=0.1), "log(512): nothing is known yet"
    assert losses[-1] < 4
    told = [line.split() for line in (tmp_path / "told.txt").read_text().splitlines()]
    assert [(int(step), float(loss)) for step, loss in told] == list(enumerate(losses, 1))
    for change, message in (
        ("model.from_scratch=false", "model.from_scratch=True, which is now False"),
        ("model.architecture.hidden_size=64", "of a run with model.architecture="),
    ):
        override(config, [change])
        with pytest.raises(UserError, match=message):
            check_settings(tmp_path / "run/finished.json", run_settings(config.main_config()))
        override(config, ["model.from_scratch=true"])
