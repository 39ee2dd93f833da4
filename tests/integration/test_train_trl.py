"""The first losses are those of TRL's trainer."""

from pathlib import Path

import pytest

from tests.integration.train_runs import GLOBAL_BATCH, build_small, metrics, sft_args, train_here, write_rows

pytestmark = pytest.mark.service("train")
STEPS = 20


def test_first_losses_equal_trl(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is not installed (extra 'trl')")
    from tests.integration.trl_runs import trl_trainer

    model = build_small(tmp_path / "model", tie_word_embeddings=True)
    rows = write_rows(tmp_path / "train.jsonl", STEPS * GLOBAL_BATCH)
    args = sft_args(
        model, rows, tmp_path / "ours", trainer__sft__max_epochs=1, trainer__sft__save_interval=999
    )
    plain = ["++model.data.train_ds.shuffle=False", "++model.optim.sched.warmup_steps=0"]
    assert train_here([*args, *plain])
    ours = metrics(tmp_path / "ours")
    trainer = trl_trainer(
        model, rows, tmp_path / "trl", per_device_train_batch_size=GLOBAL_BATCH, num_train_epochs=1
    )
    trainer.train()
    assert len(trainer.seen) == STEPS
    for step, theirs in enumerate(trainer.seen, start=1):
        assert ours[step, "loss"] == pytest.approx(theirs, rel=1e-5), step
    # and it did learn
    assert trainer.seen[-1] < trainer.seen[0] / 2
