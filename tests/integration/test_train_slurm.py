"""`ns train` on a real Slurm cluster: chains whose jobs are too short, failures, and the mean at the end."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from nemo_skills.examples import tiny_model
from nemo_skills.pipeline import cli, train
from tests.integration.slurm_jobs import SlurmUser
from tests.services.process import wait_until

pytestmark = pytest.mark.service("slurm")
STAND_IN = Path(__file__).with_name("stand_in_sft.py")
ANSWER = "\\boxed{18}"


@pytest.fixture
def user(slurm_user: SlurmUser, monkeypatch: pytest.MonkeyPatch) -> SlurmUser:
    slurm_user.commit("stand_in_sft.py", STAND_IN.read_text())
    monkeypatch.setitem(train.MAINS, "sft", ("stand_in_sft", train.SCHEMA))
    monkeypatch.syspath_prepend(slurm_user.repository)
    return slurm_user


def ns_train(user: SlurmUser, *words: str) -> int:
    options = (f"--cluster={user.config()}", f"--output_dir={user.path('out')}", "--not_exclusive")
    return cli.main(
        ["train", *options, "--hf_model=/models/m", "--training_data=/data/d.jsonl", "--expname=t", *words]
    )


def mean(user: SlurmUser) -> float:
    folder = user.workspace / "out" / "model-averaged-hf"
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "stand-in"}
    return float(load_file(folder / "model.safetensors")["w"][0])


def test_jobs_that_are_too_short_finish_together(user: SlurmUser) -> None:
    assert ns_train(user, "--num_training_jobs=4", "++exp_manager.max_time_per_run=00:00:00:01") == 0
    first = user.ids("t")["t"]
    log = user.workspace / "out" / "training-logs" / "t-main.log"
    wait_until("training has begun", lambda: log.exists() and "starting at step 1" in log.read_text(), 60)
    user.warn(first)  # the first one is near its time limit at once
    states = user.wait("t")
    # what stopped early is a failure to Slurm, but not to the chain
    assert states["t"] == states["t-part2"] == "FAILED"
    assert states["t-part4"] == states["t-average"] == "COMPLETED"
    assert "stopped after step" in log.read_text()
    steps = [int(p.name.partition("=")[2]) for p in (user.workspace / "out/training/checkpoints").iterdir()]
    assert mean(user) == pytest.approx(sum(steps) / len(steps))
    assert len(steps) > 4  # those of the stops besides the regular ones

    # again: nothing is trained any more, and only what was asked for is averaged
    assert ns_train(user, "--average_steps=15,20") == 0
    assert user.wait("t") == {**states, "t": "COMPLETED"}
    assert "all steps are done already" in log.read_text()
    assert mean(user) == 17.5


def test_a_failure_ends_the_chain(user: SlurmUser) -> None:
    assert ns_train(user, "--num_training_jobs=3", "++model.seed=13") == 0
    assert user.wait("t") == {
        "t": "FAILED",
        "t-part2": "FAILED",
        "t-part3": "FAILED",
        "t-average": "CANCELLED",
    }
    assert "nothing to continue" in (user.workspace / "out/training-logs/t-part2-sbatch.log").read_text()
    assert not (user.workspace / "out" / "model-averaged-hf").exists()


def test_processes_on_two_nodes_stop_together(user: SlurmUser) -> None:
    words = ("--num_nodes=2", "--num_gpus=2", "--training_device=cpu")
    assert ns_train(user, *words, "--num_training_jobs=2", "++exp_manager.max_time_per_run=00:00:00:02") == 0
    states = user.wait("t")
    log = (user.workspace / "out/training-logs/t-main.log").read_text()
    assert log.count("world 4") == 4, log
    assert states == {"t": "FAILED", "t-part2": "COMPLETED", "t-average": "COMPLETED"}, log


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.service("train")
@pytest.mark.service("hf")
def test_real_training_in_three_jobs_and_an_evaluation(
    slurm_user: SlurmUser, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model learns to answer 18 to everything, which every other question of a benchmark wants."""
    user = slurm_user
    tiny_model.build(user.workspace / "model")
    questions = [f"What is {a} plus {b}?" for a in range(8) for b in range(8)]
    rows = [{"messages": [said("user", q), said("assistant", ANSWER)]} for q in questions]
    (user.workspace / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = user.workspace / "data" / "gsm8k" / "test.jsonl"
    benchmark.parent.mkdir(parents=True)
    expected = [{"problem": q, "expected_answer": str(18 + i % 2)} for i, q in enumerate(questions[:8])]
    benchmark.write_text("".join(json.dumps(row) + "\n" for row in expected))
    cluster = (f"--cluster={user.config()}", "--not_exclusive")

    words = ["--num_training_jobs=3", "--num_nodes=2", "--expname=t"]
    words += [f"--hf_model={user.path('model')}", f"--training_data={user.path('rows.jsonl')}"]
    words += ["++model.data.train_ds.global_batch_size=16", "++model.optim.lr=3e-3"]
    words += ["++trainer.sft.max_epochs=99", "++trainer.sft.max_steps=40", "++trainer.sft.save_interval=20"]
    assert (
        cli.main(["train", *cluster, f"--output_dir={user.path('out')}", "--average_steps=20,40", *words])
        == 0
    )
    words = [f"--model={user.path('out')}/model-averaged-hf", "--server_type=hf", "--benchmarks=gsm8k"]
    words += [f"--data_dir={user.path('data')}", f"--output_dir={user.path('scores')}"]
    words += [
        "--run_after=t",
        "--expname=e",
        "++inference.tokens_to_generate=24",
    ]
    assert cli.main(["eval", *cluster, *words]) == 0

    for job in ("t", "t-part2"):
        user.cut_short("t", job)
    assert user.wait("t", timeout_s=200) == {
        "t": "FAILED",
        "t-part2": "FAILED",
        "t-part3": "COMPLETED",
        "t-average": "COMPLETED",
    }
    assert user.trained_steps() == list(range(1, 41))
    assert set(user.wait("e", timeout_s=200).values()) == {"COMPLETED"}
    capsys.readouterr()
    assert cli.main(["summarize_results", str(user.workspace / "scores")]) == 0
    assert "50.00" in capsys.readouterr().out
