"""The container of a recipe: one set of declarations, checked assignments, and forms that lead back to it."""

import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemo_skills.core._schema import default_tree, leaf_paths, members
from nemo_skills.core.errors import UserError
from nemo_skills.training.config import SftConfig
from nemo_skills.training.dpo_config import DpoConfig
from nemo_skills.training.recipes import ConfigContainer, get_recipe, names
from nemo_skills.training.recipes import config as groups
from nemo_skills.training.recipes.main_keys import main_names
from nemo_skills.training.recipes.overrides import (
    apply_overrides,
    override,
    parse_hydra_overrides,
    to_omegaconf,
    to_overrides,
    to_yaml,
)
from nemo_skills.training.recipes.settings import Leaf, Settings, check_types, of


def tiny(**changes: str) -> ConfigContainer:
    """Return a recipe with all that it needs to be started."""
    config = get_recipe("tiny")()
    config.data.train.file_path = "rows.jsonl"
    override(config, [f"{key.replace('__', '.')}={value}" for key, value in changes.items()])
    return config


@pytest.mark.parametrize(("schema", "dpo"), [(SftConfig, None), (DpoConfig, groups.DpoConfig())])
def test_every_key_of_a_main_has_one_place(schema: type, dpo: groups.DpoConfig | None) -> None:
    container = ConfigContainer(dpo=dpo, model=groups.ModelConfig(architecture=groups.Architecture()))
    keys = main_names(container)
    assert sorted(keys) == sorted(".".join(path) for path in leaf_paths(schema))
    assert len(set(keys.values())) == len(keys)


def test_defaults_types_and_help_are_those_of_the_mains() -> None:
    container = ConfigContainer()
    tree: Any = default_tree(SftConfig)
    for main_path, path in main_names(container).items():
        value: Any = tree
        for part in main_path.split("."):
            value = value[part]
        leaf = next(leaf for leaf in container.leaves() if leaf.path == path)
        assert leaf.value == value, path
        assert leaf.key.help_line, path


def test_a_type_beside_a_setting_cannot_differ_from_the_declared_one() -> None:
    from dataclasses import dataclass

    @dataclass(kw_only=True)
    class Wrong(Settings):
        lr: int = of("model.optim.lr")

    with pytest.raises(TypeError, match=r"Wrong\.lr is declared as float"):
        check_types(Wrong)
    with pytest.raises(TypeError, match=r"key model\.optim\.rate"):
        of("model.optim.rate")


def test_a_recipe_can_be_changed_and_a_container_is_frozen() -> None:
    config = tiny()
    config.train.train_iters = 20
    config.optimizer.lr = 1
    assert (config.train.train_iters, config.optimizer.lr) == (20, 1.0)
    frozen = config.frozen()
    with pytest.raises(UserError, match="frozen"):
        frozen.train.train_iters = 3
    with pytest.raises(UserError, match="frozen"):
        override(frozen, ["train.train_iters=3"])
    assert frozen.editable() == frozen == config
    with pytest.raises(UserError, match="frozen"):
        ConfigContainer().train.train_iters = 3


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "config.train.train_itres = 20",
            "TrainConfig has no setting 'train_itres'. Did you mean 'train_iters'?",
        ),
        ("config.train.train_iters = '20'", "TrainConfig.train_iters: expected int, got '20'"),
        ("config.train.train_iters = True", "expected int, got true"),
        ("config.model.sequence_parallel = 1", "expected bool, got 1"),
        ("config.optimizer.betas = 0.9", "expected list[float], got 0.9"),
        ("config.scheduler.lr_decay_style = 'cosin'", "'cosin'"),
        ("config.model = config.train", "expected ModelConfig(...)"),
        ("config.model = None", "expected ModelConfig(...)"),
        ("config.modle = 1", "Did you mean 'model'?"),
        ("groups.TrainConfig(train_iters='x')", "TrainConfig.train_iters: expected int, got 'x'"),
    ],
)
def test_a_wrong_assignment_is_an_error_at_once(code: str, message: str) -> None:
    config = tiny()
    before = config.frozen()
    with pytest.raises(UserError) as caught:
        exec(code, {"config": config, "groups": groups})
    assert message in str(caught.value)
    assert config == before


def test_a_whole_group_is_replaced_by_a_copy() -> None:
    config, other = tiny(), tiny()
    small = groups.ModelConfig(restore_from_path="small", architecture=groups.Architecture(hidden_size=768))
    config.model = other.model = small
    config.model.architecture.hidden_size = 64  # type: ignore[union-attr]
    assert other.model == small
    assert small.architecture is not None
    assert small.architecture.hidden_size == 768


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__lr": "-1"}, "optimizer.lr must be positive"),
        ({"data__train__file_path": "null"}, "data.train.file_path is missing"),
        ({"model__restore_from_path": "'???'"}, "restore_from_path"),
        (
            {"train__micro_batch_size": "3", "dist__devices": "1", "dist__num_nodes": "1"},
            "train.global_batch_size=8",
        ),
        ({"model__pipeline_model_parallel_size": "2"}, "model.pipeline_model_parallel_size must be 1"),
        ({"train__max_time_per_run": "4h"}, "train.max_time_per_run=4h"),
        ({"dpo__beta": "-1"}, "dpo.beta must be positive"),
        ({"checkpoint__keep_resumable": "0"}, "keep_resumable must not be 0"),
    ],
)
def test_the_whole_is_checked_as_the_main_does_in_names_of_the_container(
    changes: dict[str, str], message: str
) -> None:
    config = tiny(**changes)
    with pytest.raises(UserError) as caught:
        config.check()
    assert message in str(caught.value)
    assert "model.data" not in str(caught.value)


def test_every_recipe_can_be_started_with_data() -> None:
    for name in names():
        config = get_recipe(name)()
        config.data.train.file_path = "rows.jsonl"
        config.logger.log_dir = "out"
        config.check()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train.train_itres=20"], "train.train_itres: unknown key. Did you mean 'train.train_iters'?"),
        (["++trainer.sft.max_steps=2"], "In recipes it is called 'train.train_iters'"),
        (["++model.dpo.ref_policy_kl_penalty=2"], "In recipes it is called 'dpo.beta'"),
        (["train.train_iters=x", "model.foo=1"], "train.train_iters: expected int, got 'x'"),
        (["--train.train_iters=3"], "++train.train_iters=3"),
    ],
)
def test_wrong_overrides(args: list[str], message: str) -> None:
    config = tiny()
    before = config.frozen()
    with pytest.raises(UserError) as caught:
        override(config, args)
    assert message in str(caught.value)
    assert config == before


def test_a_file_and_overrides_and_where_values_come_from(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(
        "train:\n  train_iters: 7\n  global_batch_size: 4\noptimizer: {lr: 1e-4}\n"
    )
    config = get_recipe("tiny")()
    override(config, [f"--config-path={tmp_path}", "--config-name=more", "++train.train_iters=9"])
    config.dist.fsdp = False
    assert (config.train.train_iters, config.train.global_batch_size, config.optimizer.lr) == (9, 4, 1e-4)
    origins = {leaf.path: leaf.origin for leaf in config.leaves()}
    assert origins["train.train_iters"] == "++train.train_iters"
    assert origins["train.global_batch_size"] == f"{tmp_path}/more.yaml:3: train.global_batch_size"
    assert origins["optimizer.lr"] == f"{tmp_path}/more.yaml:4: optimizer.lr"
    assert (origins["dist.fsdp"] or "").startswith(__file__)
    assert "recipes/tiny.py:" in (origins["train.micro_batch_size"] or "")
    assert origins["optimizer.eps"] is None
    override(config, ["~train.train_iters"])
    assert config.train.train_iters == 9, "as it was before these overrides"
    (tmp_path / "bad.yaml").write_text("train:\n  train_itres: 7\n")
    with pytest.raises(UserError, match=r"bad.yaml:2: train.train_itres: unknown key. Did you mean"):
        override(config, [f"--config-path={tmp_path}", "--config-name=bad"])


def test_an_unknown_recipe() -> None:
    with pytest.raises(UserError, match=r"no recipe 'lama3_8b'\. Did you mean 'llama3_8b'"):
        get_recipe("lama3_8b")


def test_recipes_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nimport dataclasses\n"
        "from nemo_skills.training.recipes import ConfigContainer, tiny\n"
        "def short():\n    config = tiny.sft_config()\n    config.train.train_iters = 3\n    return config\n"
        "def frozen():\n    return ConfigContainer()\n"
        "def none():\n    pass\n"
        "@dataclasses.dataclass\nclass Sizes:\n    rows: int = 1\n"
    )
    config = get_recipe(f"{file}:short")()
    assert config.train.train_iters == 3
    assert {leaf.path: leaf.origin for leaf in config.leaves()}["train.train_iters"] == f"{file}:6"
    get_recipe(f"{file}:frozen")().train.train_iters = 4
    assert get_recipe("nemo_skills.training.recipes.tiny:lora_config")().peft.scheme == "lora"
    for name, message in (
        (f"{file}:shrot", "Did you mean 'short'"),
        (f"{file}:none", "returned NoneType"),
        (f"{tmp_path}/other.py:short", "no such file"),
        ("no.such.module:short", "cannot be imported"),
    ):
        with pytest.raises(UserError, match=message):
            get_recipe(name)()


def test_modules_beside_a_recipe_and_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe_steps_here.py").write_text("STEPS = 7\n")
    (tmp_path / "recipe_here.py").write_text(
        "from recipe_steps_here import STEPS\nfrom nemo_skills.training.recipes import tiny\n"
        "def short():\n"
        "    config = tiny.sft_config()\n    config.train.train_iters = STEPS\n    return config\n"
    )
    before = list(sys.path)
    assert get_recipe(f"{tmp_path}/recipe_here.py:short")().train.train_iters == 7
    monkeypatch.chdir(tmp_path)
    assert get_recipe("recipe_here:short")().train.train_iters == 7
    assert sys.path == before


def test_importing_recipes_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "numpy", "nemo_run", "hydra", "omegaconf"}
    code = "import sys; from nemo_skills.training.recipes import get_recipe; get_recipe('tiny')(); "
    code += f"print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


# ---- identities


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Return values of a type."""
    plain: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(-1, 10**12),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=12)
        | st.sampled_from(["null", "true", "1e5", "${a.b}", "a,b", "[x]", "it's", "\\"]),
        type(None): st.none(),
        list[str]: st.lists(st.text(max_size=5), max_size=3),
        list[float]: st.lists(st.floats(0, 1), max_size=3),
        dict[str, Any]: st.dictionaries(
            st.text("abz_", min_size=1, max_size=5),
            st.floats(0, 9) | st.integers() | st.text(max_size=5),
            max_size=3,
        ),
    }
    choices = (
        st.sampled_from(typing.get_args(member)) if typing.get_origin(member) is Literal else plain[member]
        for member in members(annotation)
    )
    return st.one_of(list(choices))


def changeable(config: ConfigContainer) -> Iterator[Leaf]:
    """Yield what can be changed to any value of its type."""
    return (leaf for leaf in config.leaves() if leaf.main_path and leaf.key.annotation is not Any)


@st.composite
def changed_recipe(draw: st.DrawFn, name: str) -> ConfigContainer:
    """Return a recipe with random changes."""
    config = get_recipe(name)()
    if draw(st.booleans()):
        config.model.architecture = draw(st.sampled_from([None, groups.Architecture()]))
    if draw(st.booleans()):
        config.dpo = draw(st.sampled_from([None, groups.DpoConfig()]))
    for leaf in draw(st.lists(st.sampled_from(list(changeable(config))), max_size=12)):
        *above, last = leaf.path.split(".")
        holder: Any = config
        for part in above:
            holder = getattr(holder, part)
        setattr(holder, last, draw(values_of(leaf.key.annotation)))
    return config


def test_norms_of_large_qwen_2_5_models_are_as_published() -> None:
    found = {name: get_recipe(f"qwen2_5_{name}")().model.architecture for name in ("7b", "14b", "32b")}
    assert [shape and shape.rms_norm_eps for shape in found.values()] == [1e-6, 1e-5, 1e-5]


@pytest.mark.parametrize("name", names())
def test_all_forms_lead_back(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("yaml")

    @settings(
        max_examples=12 if name.startswith("tiny") else 2,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(changed_recipe(name))
    def check(config: ConfigContainer) -> None:
        assert ConfigContainer.from_main_overrides(config.main_overrides()) == config
        (folder / "config.yaml").write_text(to_yaml(config))
        from_file = ConfigContainer().editable()
        override(from_file, [f"--config-path={folder}", "--config-name=config"])
        assert from_file == config
        from_overrides = get_recipe("llama3_1b_dpo")()
        override(from_overrides, to_overrides(config))
        assert from_overrides == config
        held, excluded = to_omegaconf(config)
        through_omegaconf = ConfigContainer().editable()
        values: Any = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(held)), resolve=True)
        apply_overrides(through_omegaconf, values, excluded)
        assert through_omegaconf == config

    check()


def test_omegaconf_merges_and_overrides_as_in_other_toolkits() -> None:
    config = tiny()
    held, excluded = to_omegaconf(config)
    merged: Any = OmegaConf.merge(held, OmegaConf.create({"train": {"train_iters": 5}}))
    merged = parse_hydra_overrides(merged, ["model.tensor_model_parallel_size=4", "++train.train_epochs=3"])
    values: Any = OmegaConf.to_container(merged, resolve=True)
    apply_overrides(config, values, excluded)
    expected = tiny(train__train_iters="5", train__train_epochs="3", model__tensor_model_parallel_size="4")
    assert config == expected
    with pytest.raises(UserError, match=r"train\.train_itres: unknown key"):
        apply_overrides(config, {"train": {"train_itres": 5}})
    with pytest.raises(UserError, match=r"unknown key\. Did you mean 'train\.train_iters'"):
        parse_hydra_overrides(held, ["train.train_itres=5"])


def test_one_batch_to_validate_on_is_not_all_of_them() -> None:
    config = tiny()
    assert config.validation.eval_iters == 1.0
    apply_overrides(config, {"validation": {"eval_iters": 1}})
    assert type(config.validation.eval_iters) is int
    assert "++trainer.sft.limit_val_batches=1" in config.main_overrides()
    again = ConfigContainer.from_main_overrides(config.main_overrides())
    assert type(again.validation.eval_iters) is int


def note(step: int, values: typing.Mapping[str, float]) -> None:
    """Stand for a function of a user."""


def test_functions_survive_files_and_overrides_and_are_not_written() -> None:
    config = tiny()
    config.logger.on_metrics = note
    held, excluded = to_omegaconf(config)
    assert excluded == {"logger.on_metrics": note}
    values: Any = OmegaConf.to_container(parse_hydra_overrides(held, ["logger.name=x"]), resolve=True)
    apply_overrides(config, values, excluded)
    override(config, ["logger.log_interval=5"])
    assert (config.logger.name, config.logger.log_interval, config.logger.on_metrics) == ("x", 5, note)
    other = tiny()
    apply_overrides(other, values, excluded)
    assert other.logger.on_metrics is note
    assert "on_metrics" not in to_yaml(config)
    assert not [word for word in to_overrides(config) if "on_metrics" in word]
    override(config, to_overrides(tiny()))
    assert config.logger.on_metrics is note
    with pytest.raises(UserError, match=r"logger\.on_metrics: a function cannot be passed on"):
        config.main_overrides()
    with pytest.raises(UserError, match="expected a function or None, got 3"):
        config.logger.on_metrics = 3  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"logger\.on_metrics"):
        override(config, ["logger.on_metrics=print"])
