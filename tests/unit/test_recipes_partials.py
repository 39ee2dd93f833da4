"""Recipes as NeMo-Run's configurations, and the examples of guides to recipes in our form."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo_run as run
import pytest
import yaml
from hydra.utils import instantiate
from hypothesis import HealthCheck, given, settings
from nemo_run.core.serialization.yaml import YamlSerializer
from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer
from omegaconf import OmegaConf

from nemo_skills.core.errors import UserError
from nemo_skills.training.recipes import ConfigContainer, get_recipe, names
from nemo_skills.training.recipes.config import Architecture, ModelConfig, OptimizerConfig, TrainConfig
from nemo_skills.training.recipes.interop import (
    as_partial,
    by_value,
    configured,
    from_yaml,
    to_hydra,
    to_yaml,
)
from nemo_skills.training.recipes.launching import recipe_script
from nemo_skills.training.recipes.overrides import apply_overrides, parse_hydra_overrides, to_omegaconf
from nemo_skills.training.recipes.run import recipe, train
from tests.unit.test_recipes_config import changed_recipe


@pytest.mark.parametrize("name", names())
def test_every_form_of_a_recipe_leads_back(name: str) -> None:
    config = get_recipe(name)()
    config.logger.log_dir = "out"
    partial = as_partial(name, ["logger.log_dir=out"])
    text = to_yaml(partial)
    assert from_yaml(text) == partial
    assert text == to_yaml(from_yaml(text))
    assert yaml.safe_load(text) == yaml.safe_load(YamlSerializer().serialize(partial))
    assert from_yaml(YamlSerializer().serialize(partial)) == partial
    serialiser = ZlibJSONSerializer()
    assert serialiser.deserialize(serialiser.serialize(partial)) == partial
    for built in (
        fdl.build(from_yaml(text)),
        instantiate(to_hydra(partial)),
        instantiate(OmegaConf.create(text), _convert_="all"),
    ):
        assert built.func is train
        assert built.keywords["config"] == config


@given(changed_recipe("tiny"))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_changed_recipes_lead_back(config: ConfigContainer) -> None:
    partial = as_partial(config)
    assert fdl.build(from_yaml(to_yaml(partial))).keywords["config"] == config
    assert instantiate(to_hydra(partial)).keywords["config"] == config
    assert yaml.safe_load(to_yaml(partial)) == yaml.safe_load(YamlSerializer().serialize(partial))


def test_broadcast_walk_and_autoconvert_work_on_recipes() -> None:
    partial = as_partial("tiny")
    # every data set and both batch sizes
    partial.broadcast(seq_length=64, global_batch_size=6)
    # NeMo-Run applies several functions of one call more than once
    partial.walk(micro_batch_size=lambda group: group.micro_batch_size // 2)
    partial.walk(lr=lambda group: group.lr * 10)
    config = fdl.build(partial).keywords["config"]
    before = get_recipe("tiny")()
    assert config.data.train.seq_length == config.data.validation.seq_length == 64
    assert config.train.global_batch_size == config.validation.global_batch_size == 6
    assert config.train.micro_batch_size == before.train.micro_batch_size // 2
    assert config.optimizer.lr == pytest.approx(before.optimizer.lr * 10)

    converted = run.autoconvert(get_recipe("tiny_dpo"), to_buildable_fn=by_value)()
    assert converted == configured(get_recipe("tiny_dpo")())
    assert run.Partial(train, config=converted) == as_partial("tiny_dpo")


@run.autoconvert
def shorter() -> ConfigContainer:
    """A recipe that NeMo-Run itself converts: it reads this text."""
    return ConfigContainer(train=TrainConfig(train_iters=3), optimizer=OptimizerConfig(lr=1e-3))


def test_recipes_are_written_with_autoconvert() -> None:
    config = shorter()
    assert isinstance(config, run.Config)
    config.train.train_iters *= 2
    expected = ConfigContainer(train=TrainConfig(train_iters=6), optimizer=OptimizerConfig(lr=1e-3))
    assert fdl.build(config) == expected
    assert fdl.build(from_yaml(to_yaml(config))) == expected


def test_wrong_values_are_refused_when_it_is_built() -> None:
    partial = as_partial("tiny")
    partial.config.train.train_iters = "many"
    with pytest.raises(UserError, match=r"TrainConfig\.train_iters"):
        fdl.build(partial)
    with pytest.raises(AttributeError, match="train_itres"):
        partial.config.train.train_itres = 3


def test_a_job_of_nemo_run_says_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(ZlibJSONSerializer().serialize(as_partial("llama3_8b")))
    argv = [sys.executable, "-m", "nemo_run.core.runners.fdl_runner", "--name=x", str(file)]
    ended = subprocess.run(argv, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Error: logger.log_dir: is missing" in ended.stderr
    assert "Traceback" not in ended.stderr


def notice(step: int, values: Mapping[str, float]) -> None:
    """Stand for a function of a user."""


def test_functions_travel_by_their_import_paths() -> None:
    partial = as_partial("tiny")
    partial.config.logger.on_metrics = notice
    assert fdl.build(from_yaml(to_yaml(partial))).keywords["config"].logger.on_metrics is notice
    assert instantiate(to_hydra(partial)).keywords["config"].logger.on_metrics is notice


# The examples of Megatron Bridge's guide to its recipes


def changed() -> ConfigContainer:
    config = get_recipe("llama3_8b_pretrain")()
    config.train.train_iters = 20
    config.train.global_batch_size = 8
    config.train.micro_batch_size = 1
    config.logger.log_interval = 1
    return config


def test_attributes_are_assigned() -> None:
    config = changed()
    assert (config.train.train_iters, config.train.global_batch_size, config.logger.log_interval) == (
        20,
        8,
        1,
    )


def test_a_whole_group_is_replaced() -> None:
    config = get_recipe("llama3_8b_pretrain")()
    small = Architecture(num_hidden_layers=2, hidden_size=768, intermediate_size=2688, num_attention_heads=16)
    config.model = ModelConfig(from_scratch=True, architecture=small)
    assert config.model.architecture == small
    config.optimizer = OptimizerConfig(lr=1e-4)
    assert config.optimizer.lr == 1e-4


def test_a_yaml_file_is_merged(tmp_path: Path) -> None:
    config = get_recipe("llama3_8b_pretrain")()
    config.logger.on_metrics = notice
    file = tmp_path / "llama3-8b-benchmark-cfg.yaml"
    train = {"train_iters": 20, "global_batch_size": 8, "micro_batch_size": 1}
    file.write_text(yaml.safe_dump({"train": train, "logger": {"log_interval": 1}}))
    merged, excluded = to_omegaconf(config)
    final: Any = OmegaConf.to_container(OmegaConf.merge(merged, OmegaConf.load(file)), resolve=True)
    apply_overrides(config, final, excluded)
    assert config.logger.on_metrics is notice
    config.logger.on_metrics = None
    assert config == changed()


def test_arguments_change_a_recipe_as_with_hydra() -> None:
    config = get_recipe("llama3_8b_pretrain")()
    arguments = ["train.train_iters=20", "train.global_batch_size=8", "++train.micro_batch_size=1"]
    merged, excluded = to_omegaconf(config)
    merged = parse_hydra_overrides(merged, [*arguments, "logger.log_interval=1"])
    final: Any = OmegaConf.to_container(merged, resolve=True)
    apply_overrides(config, final, excluded)
    assert config == changed()
    # as a script of ours does, see recipe_script
    assert recipe(["llama3_8b_pretrain", *arguments, "logger.log_interval=1"]) == changed()


def test_scripts_by_path_and_inline(tmp_path: Path) -> None:
    """NeMo-Run's scripts run here; arguments reach them as they are."""
    script = tmp_path / "train.py"
    script.write_text("import sys; print(*sys.argv[1:], sep='|')\n")
    by_path = run.Script(path=str(script), entrypoint="python", args=["a b", "model.x=4"])
    assert output(by_path.to_command(with_entrypoint=True)) == "a b|model.x=4\n"
    inline = run.Script(inline="export DATA_PATH=/some/tmp/path\necho $DATA_PATH\n")
    command = inline.to_command(with_entrypoint=True, filename=str(tmp_path / "scripts/x.sh"), is_local=True)
    assert output(command) == "/some/tmp/path\n"
    ours = recipe_script("tiny", ["logger.name=x"], env={"A": "1"})
    assert ours.to_command(with_entrypoint=True)[:3] == ["python", "-m", "nemo_skills.training.recipes.run"]
    text = output([*ours.to_command(with_entrypoint=True), "--print_config"])
    expected = get_recipe("tiny")()
    expected.logger.name = "x"
    assert OmegaConf.create(text) == to_omegaconf(expected)[0]


def output(argv: list[str]) -> str:
    argv = [sys.executable if word == "python" else word for word in argv]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
