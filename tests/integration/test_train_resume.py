"""Whatever ends a run, the next one goes on as if nothing had happened."""

import fcntl
import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from nemo_skills.core.errors import UserError
from tests.integration.train_runs import (
    ONE_THREAD,
    build_small,
    largest_difference,
    main_argv,
    metrics,
    run_main,
    sft_args,
    train_here,
    write_rows,
)

pytestmark = pytest.mark.service("train")

STEPS, SAVE = 60, 5
# dropout shows whether the random state is restored; 70 rows make epochs end inside of steps
SETTINGS: dict[str, Any] = {
    "trainer__sft__max_epochs": 20,
    "trainer__sft__max_steps": STEPS,
    "trainer__sft__save_interval": SAVE,
    "trainer__sft__val_check_interval": 1000,
    "model__hidden_dropout": 0.1,
    "model__attention_dropout": 0.1,
    "model__ffn_dropout": 0.1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "train.jsonl", 70)


@pytest.fixture(scope="module")
def reference(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("reference")
    assert train_here(sft_args(model, rows, output, **SETTINGS))
    return output


def last_step(output: Path) -> int:
    try:
        return (output / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def weights(output: Path) -> bytes:
    return (output / f"checkpoints/step={STEPS}/hf/model.safetensors").read_bytes()


def test_kills_and_signals_at_random_steps(
    model: Path, rows: Path, reference: Path, weird_tmp_path: Path
) -> None:
    output = weird_tmp_path / "run"
    args = sft_args(model, rows, output, **SETTINGS)
    seed = random.randrange(10**6)
    print("seed", seed)  # shown when the test fails
    dice = random.Random(seed)
    codes = []
    for how, first, last in (
        (signal.SIGKILL, 6, 15),
        (signal.SIGTERM, 16, 28),
        (signal.SIGKILL, 29, 38),
        (signal.SIGTERM, 39, 50),
    ):
        main = subprocess.Popen(main_argv(args), env=ONE_THREAD, stderr=subprocess.DEVNULL)
        at, deadline = dice.randint(first, last), time.monotonic() + 300
        while last_step(output) < at and main.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        main.send_signal(how)
        codes.append(main.wait())
        if how == signal.SIGTERM:
            stopped = json.loads((output / "stopped.json").read_text())
            assert stopped["reason"] == "SIGTERM"
            assert (output / f"checkpoints/step={stopped['step']}/complete.json").exists()
    assert codes == [-signal.SIGKILL, 3, -signal.SIGKILL, 3]
    ended = run_main(args)
    assert ended.returncode == 0, ended.stderr
    assert "Going on after step" in ended.stderr
    assert largest_difference(metrics(reference), metrics(output)) < 1e-6
    assert weights(output) == weights(reference)
    begun = time.monotonic()
    again = run_main(args)
    assert again.returncode == 0
    assert "done already" in again.stderr
    # torch is not even imported
    assert time.monotonic() - begun < 20
    assert not (output / "stopped.json").exists()


def test_time_is_over(model: Path, rows: Path, reference: Path, tmp_path: Path) -> None:
    """`max_time_per_run` stops each run; together they give the uninterrupted one."""
    args = sft_args(model, rows, tmp_path, **SETTINGS)
    assert not train_here([*args, "++exp_manager.max_time_per_run=0"])
    assert json.loads((tmp_path / "stopped.json").read_text())["step"] == 0
    seconds, before = 1, 0
    while not train_here([*args, f"++exp_manager.max_time_per_run={seconds}"]):
        stopped = json.loads((tmp_path / "stopped.json").read_text())
        assert stopped["reason"] == "max_time_per_run"
        # on a busy machine it may take that long to come to the first step
        seconds *= 1 if stopped["step"] > before else 2
        assert seconds < 300
        before = stopped["step"]
    assert largest_difference(metrics(reference), metrics(tmp_path)) < 1e-6
    assert weights(tmp_path) == weights(reference)


def cut_off(checkpoint: Path) -> None:
    file = next((checkpoint / "dcp").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-100])


def not_declared_complete(checkpoint: Path) -> None:
    (checkpoint / "complete.json").unlink()


def garbled(checkpoint: Path) -> None:
    """The sizes are right."""
    file = checkpoint / "dcp" / ".metadata"
    file.write_bytes(b"\0" * file.stat().st_size)


@pytest.mark.parametrize("damage", [cut_off, not_declared_complete, garbled])
def test_a_damaged_checkpoint_is_skipped(
    damage: Any, reference: Path, model: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(reference, tmp_path / "run")
    output = tmp_path / "run"
    (output / "finished.json").unlink()
    damage(output / f"checkpoints/step={STEPS}")
    assert train_here(sft_args(model, rows, output, **SETTINGS))
    assert f"step={STEPS}" in caplog.text and "skipped" in caplog.text
    # lines hold times: those of the steps before the good checkpoint are the old ones, the others are new
    before, after = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (reference, output))
    assert len(before) == len(after)
    kept = sum(old == new for old, new in zip(before, after, strict=True))
    assert kept == sum(json.loads(line)["step"] <= STEPS - SAVE for line in before)
    assert largest_difference(metrics(reference), metrics(output)) < 1e-6
    assert weights(output) == weights(reference)


def test_nothing_can_be_read(reference: Path, model: Path, rows: Path, tmp_path: Path) -> None:
    """Starting over would throw a run away: that is for the user to decide."""
    output = tmp_path / "run"
    shutil.copytree(reference, output)
    (output / "finished.json").unlink()
    for checkpoint in (output / "checkpoints").iterdir():
        if (checkpoint / "dcp").exists():
            garbled(checkpoint)
    with pytest.raises(UserError, match="move them away"):
        train_here(sft_args(model, rows, output, **SETTINGS))


def test_only_what_is_asked_for_is_kept(model: Path, rows: Path, tmp_path: Path) -> None:
    more = {**SETTINGS, "trainer__sft__max_steps": 12, "trainer__sft__save_interval": 2}
    keep = {"save_top_k": 2, "save_last_k": 2, "keep_resumable": 1, "monitor": "loss"}
    limits = {f"exp_manager__checkpoint_callback_params__{k}": v for k, v in keep.items()}
    assert train_here(sft_args(model, rows, tmp_path, **more, **limits))
    losses = {step: value for (step, name), value in metrics(tmp_path).items() if name == "loss"}
    left = {int(path.name.removeprefix("step=")) for path in (tmp_path / "checkpoints").iterdir()}
    assert {10, 12} <= left
    # at every save the best two so far stayed
    best: set[int] = set()
    for step in range(2, 13, 2):
        best = set(sorted({*best, step}, key=lambda s: losses[s])[:2]) | {
            s for s in (step, step - 2) if s > 0
        }
    assert left == best
    resumable = [step for step in left if (tmp_path / f"checkpoints/step={step}/dcp").exists()]
    assert resumable == [12]


def test_a_checkpoint_has_the_figures_of_its_step(model: Path, rows: Path, tmp_path: Path) -> None:
    """A validation of an earlier step does not make the checkpoints after it as good."""
    schedule = {"max_steps": 6, "save_interval": 1, "val_check_interval": 3}
    more = {**SETTINGS, **{f"trainer__sft__{name}": value for name, value in schedule.items()}}
    more["model__data__validation_ds__file_path"] = rows
    assert train_here(sft_args(model, rows, tmp_path, **more))
    found = {}
    for path in (tmp_path / "checkpoints").glob("step=*/complete.json"):
        content = json.loads(path.read_text())
        found[content["step"]] = content["metrics"]
    assert {step for step in found if "val_loss" in found[step]} == {3, 6}
    assert {step: figures["loss"] for step, figures in found.items()} == pytest.approx(
        {step: value for (step, name), value in metrics(tmp_path).items() if name == "loss"}
    )


def test_a_run_that_breaks_down_keeps_what_was_good(model: Path, rows: Path, tmp_path: Path) -> None:
    more = {**SETTINGS, "trainer__sft__save_interval": 1, "model__optim__lr": 1e30}
    with pytest.raises(UserError, match=r"Step 2: the loss is .* norm (nan|inf)"):
        train_here(sft_args(model, rows, tmp_path, **more))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step=1"]
    assert not (tmp_path / "finished.json").exists()


def test_another_run_in_the_same_folder_is_refused(
    model: Path, rows: Path, reference: Path, tmp_path: Path
) -> None:
    """Its steps would be neither of one nor of the other data; what is there stays."""
    output = tmp_path / "run"
    shutil.copytree(reference, output)
    other = write_rows(tmp_path / "train.jsonl", 70, seed=1)
    ended = run_main(sft_args(model, other, output, **SETTINGS))
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "finished.json is of a run with model.data.train_ds.file_path=train.jsonl (" in ended.stderr
    # the same data elsewhere are the same
    moved = shutil.copy(rows, other)
    assert run_main(sft_args(model, moved, output, **SETTINGS)).returncode == 0
    longer = {**SETTINGS, "trainer__sft__max_steps": STEPS + 1}
    for change, message in (
        ({"model__seed": 7}, "model.seed=1234, which is now 7"),
        ({"model__data__train_ds__global_batch_size": 8}, "global_batch_size=16, which is now 8"),
    ):
        with pytest.raises(UserError, match=message):
            train_here(sft_args(model, rows, output, **longer, **change))
    with (output / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another process is writing"):
            train_here(sft_args(model, rows, output, **longer))
    assert weights(output) == weights(reference)
    assert train_here(sft_args(model, rows, output, **longer))


def test_a_full_disk(model: Path, rows: Path, tmp_path: Path) -> None:
    """One line, and the checkpoint before is still there to go on from."""
    more = {**SETTINGS, "trainer__sft__save_interval": 1}
    assert train_here(sft_args(model, rows, tmp_path, **{**more, "trainer__sft__max_steps": 1}))
    args = main_argv(sft_args(model, rows, tmp_path, **{**more, "trainer__sft__max_steps": 2}))
    # no file may be longer: written in part, as on a disk without space
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash", *args]
    ended = subprocess.run(limited, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert f"Cannot write {tmp_path}/checkpoints/step=2, is the disk full?" in ended.stderr
    assert (tmp_path / "checkpoints/step=1/complete.json").exists()
    assert subprocess.run(args, env=ONE_THREAD, capture_output=True, timeout=300).returncode == 0
