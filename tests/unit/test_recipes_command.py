"""`ns recipe`, and what `ns train --recipe` makes of a recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import compose
from nemo_skills.pipeline.cli import main, recipe, wrap_arguments
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.options import JobOptions, NodeOptions, TrainOptions
from nemo_skills.pipeline.train import Request, main_arguments, plan_train
from nemo_skills.pipeline.train_recipe import resolve_recipe
from nemo_skills.training.config import SftConfig
from nemo_skills.training.dpo_config import DpoConfig
from nemo_skills.training.recipes import get_recipe, names
from nemo_skills.training.recipes.overrides import override

OWN = TrainOptions(recipe="llama3_8b_dpo", output_dir="/out", training_data=("/d.jsonl",))


def request(own: TrainOptions, args: tuple[str, ...] = (), gpus: int = 0) -> Request:
    resolved = resolve_recipe(own, NodeOptions(num_gpus=gpus), args)
    return Request(
        cluster=ClusterConfig(name="here", executor="none"),
        log_dir="/out/logs",
        job=JobOptions(expname="t"),
        nodes=resolved.nodes,
        own=resolved.own,
        wandb={},
        args=resolved.args,
        recipe=resolved.recipe,
    )


def test_a_recipe_becomes_the_first_arguments_of_its_main() -> None:
    made = request(OWN, ("++train.global_batch_size=128", "dpo.beta=0.3"))
    plan = plan_train(made)
    assert "nemo_skills.training.start_dpo" in plan.jobs[0].main.commands[0]
    config = compose(DpoConfig, main_arguments(made))
    assert config.model.restore_from_path == "meta-llama/Llama-3.1-8B"
    assert config.model.data.train_ds.global_batch_size == 128
    assert config.model.dpo.ref_policy_kl_penalty == 0.3
    assert config.model.optim.lr == 1e-6
    assert config.exp_manager.explicit_log_dir == "/out/training"
    assert (made.nodes.num_gpus, config.trainer.devices, config.trainer.num_nodes) == (8, 8, 1)


def test_what_the_main_checks_is_told_in_names_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--recipe=llama3_8b", "--training_data=/d.jsonl", "--output_dir=/o", "--dry_run"]
    assert main([*words, "++train.global_batch_size=32"]) == 2
    error = capsys.readouterr().err
    assert "train.global_batch_size=32 is not a multiple" in error
    assert "train_ds" not in error


def test_options_win_over_the_recipe() -> None:
    own = TrainOptions(recipe="llama3_8b_dpo", output_dir="/o", training_data=("/d.jsonl",), hf_model="/m")
    config = compose(DpoConfig, main_arguments(request(own, gpus=2)))
    assert config.model.restore_from_path == "/m"
    assert (config.trainer.devices, config.trainer.num_nodes) == (2, 1)


def test_what_the_wrapper_only_assumes_a_recipe_decides(tmp_path: Path) -> None:
    own = TrainOptions(recipe="tiny", output_dir="/o", training_data=("/d.jsonl",))
    args = ("logger.name=mine", "logger.wandb=false", "logger.wandb_name=w", "train.max_time_per_run=01:00")
    made = request(own, args)
    wandb = {"exp_manager.create_wandb_logger": True, "exp_manager.wandb_logger_kwargs.name": "t"}
    made = replace(made, wandb=wandb, job=JobOptions())
    manager = compose(SftConfig, main_arguments(made, {"exp_manager.max_time_per_run": "02:00"})).exp_manager
    assert (manager.name, manager.create_wandb_logger, manager.max_time_per_run) == ("mine", False, "01:00")
    assert manager.wandb_logger_kwargs.name == "w"
    named = compose(SftConfig, main_arguments(replace(made, job=JobOptions(expname="t"))))
    assert named.exp_manager.name == "t"


def test_files_of_the_recipe_give_way_to_those_of_the_call(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("data: {train: {file_path: /rows.jsonl}}\n")
    files = ("/a.jsonl", "/b.jsonl")
    own = TrainOptions(recipe="tiny", output_dir="/o", training_data=files, config_name="one")
    made = request(replace(own, config_path=str(tmp_path)))
    assert compose(SftConfig, main_arguments(made)).model.data.train_ds.files == files


def test_nodes_alone_take_the_processes_of_the_recipe() -> None:
    own = TrainOptions(recipe="llama3_8b", output_dir="/o", training_data=("/d.jsonl",))
    assert resolve_recipe(own, NodeOptions(num_nodes=2), ()).nodes == NodeOptions(num_gpus=8, num_nodes=2)
    with pytest.raises(UserError, match="use --num_nodes instead"):
        resolve_recipe(own, NodeOptions(num_nodes=2), ("dist.num_nodes=4",))
    assert resolve_recipe(own, NodeOptions(), ("dist.devices=-1",)).nodes == NodeOptions()


def test_a_file_changes_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("optimizer: {lr: 2e-6}\ndata: {train: {file_path: /rows.jsonl}}\n")
    own = TrainOptions(recipe="llama3_8b_dpo", output_dir="/o", config_path=str(tmp_path), config_name="more")
    config = compose(DpoConfig, main_arguments(request(own)))
    assert config.model.optim.lr == 2e-6
    plan_train(request(own))
    with pytest.raises(UserError, match="training_data is missing"):
        plan_train(request(TrainOptions(recipe="tiny", output_dir="/o")))


@pytest.mark.parametrize(
    ("own", "args", "message"),
    [
        (OWN, ("++logger.log_dir=/x",), "use --output_dir instead"),
        (OWN, ("++data.train.file_path=/x",), "use --training_data instead"),
        (OWN, ("++train.train_itres=1",), "Did you mean 'train.train_iters'"),
        (OWN, ("++trainer.dpo.max_steps=1",), "In recipes it is called 'train.train_iters'"),
        (TrainOptions(recipe="llama_8b", output_dir="/o"), (), "no recipe 'llama_8b'. Did you mean"),
        (TrainOptions(recipe="tiny", output_dir="/o", training_algo="dpo"), (), "the recipe decides"),
    ],
)
def test_what_does_not_fit_is_refused(own: TrainOptions, args: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        request(own, args)
    assert message in str(caught.value)


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(names())
    assert main(["recipe", "show", "qwen2_5_7b", "++train.train_iters=3", "--origin", "--gpus=8xH100"]) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert shown["train.train_iters"].split()[1:] == ["3", "++train.train_iters"]
    assert "recipe qwen2_5_7b (families.py:" in shown["optimizer.lr"]
    assert shown["optimizer.eps"].endswith("default")
    assert "(to be given)" in shown["logger.log_dir"]
    assert float(shown["weights"].split()[1]) == pytest.approx(7_615_616_512 * 4 / 8 / 2**30, abs=0.01)
    assert shown["fits:"].endswith("GiB")
    assert main(["recipe", "show", "tiny"]) == 0
    assert "rank" in next(line for line in capsys.readouterr().out.splitlines() if "peft.dim" in line)


def test_exports_lead_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = wrap_arguments({"train.train_iters": 3, "logger.name": "it${s} a name"})
    expected = get_recipe("tiny_dpo")()
    override(expected, changed.args)
    recipe(changed, action="export", name="tiny_dpo", output=str(tmp_path / "all.yaml"))
    again = get_recipe("qwen3_8b_lora")()
    override(again, [f"--config-path={tmp_path}", "--config-name=all"])
    assert again == expected
    words = recipe(changed, action="export", name="tiny_dpo", format="overrides").splitlines()
    again = get_recipe("llama3_8b")()
    override(again, words)
    assert again == expected
    arguments = recipe(changed, action="export", name="tiny_dpo", format="main").splitlines()
    assert arguments == expected.main_overrides()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe", "show"], "needs the name of a recipe"),
        (["recipe", "shwo", "tiny"], "Did you mean 'show'?"),
        (["recipe", "show", "tyni_dpo"], "Did you mean 'tiny_dpo'?"),
        (["recipe", "show", "tiny", "++train.train_itres=3"], "Did you mean 'train.train_iters'?"),
        (["recipe", "show", "tiny", "--gpus=8xH10"], "Did you mean 'H100'?"),
        (["recipe", "show", "tiny", "--orign"], "Did you mean '--origin'?"),
    ],
)
def test_mistakes_of_ns_recipe(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
