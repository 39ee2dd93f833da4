"""Parts of the training engine against closed forms and plain implementations."""

import itertools
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import compose
from nemo_skills.training.config import CheckpointConfig, DatasetConfig, OptimConfig, SchedConfig, SftConfig

pytestmark = pytest.mark.service("train")

REQUIRED = [
    "++model.restore_from_path=/m",
    "++model.data.train_ds.file_path=/rows.jsonl",
    "++exp_manager.explicit_log_dir=/out",
]


def topology(rank: int = 0, *, tp: int = 1, cp: int = 1, dp: int = 1) -> Any:
    import torch

    from nemo_skills.training.engine.parallel import Topology

    return Topology(rank=rank, tp=tp, cp=cp, dp=dp, device=torch.device("cpu"))


class Numbered:
    """Samples of one document each, which holds the sample's number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sequence[Any]:
        from nemo_skills.training.engine.data import document

        return (document([7, index + 100], [False, True]),)


def numbers(micro_batches: Sequence[Any]) -> list[int]:
    found = itertools.chain.from_iterable(batch.targets.tolist() for batch in micro_batches)
    return [target - 100 for target in found if target >= 0]


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("++model.tensor_model_paralel_size=2", "tensor_model_parallel_size"),
        ("++model.optim.name=fused_adm", "fused_adam"),
        ("++trainer.sft.max_step=3", "max_steps"),
        ("++exp_manager.max_time_per_run=4h", "DD:HH:MM:SS"),
        ("++model.data.train_ds.file_names=[/a.jsonl]", "not both"),
        ("++model.optim.betas=[0.9]", "two numbers"),
        ("++trainer.precision=16", "bf16"),
        ("++model.pipeline_model_parallel_size=2", "must be 1"),
    ],
)
def test_wrong_settings(wrong: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        compose(SftConfig, [*REQUIRED, wrong])


def test_the_main_is_imported_without_torch() -> None:
    heavy = {"torch", "transformers", "numpy"}
    code = f"import sys, nemo_skills.training.start_sft; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_time_and_missing_settings() -> None:
    config = compose(SftConfig, [*REQUIRED, "++exp_manager.max_time_per_run=01:02:03:04"])
    assert config.exp_manager.seconds_per_run == 86400 + 2 * 3600 + 3 * 60 + 4
    for left_out in REQUIRED:
        name = left_out[2:].partition("=")[0]
        with pytest.raises(UserError, match=name.rpartition(".")[2]):
            compose(SftConfig, [arg for arg in REQUIRED if arg != left_out])


@given(st.integers(1, 40), st.integers(0, 500), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_data_order(rows: int, step: int, dp: int, micro: int, accumulate: int) -> None:
    """Whatever the processes: the same samples in a step, and each epoch has every sample once."""
    from nemo_skills.training.engine.data import Batches

    size = dp * micro * accumulate
    config = DatasetConfig(micro_batch_size=micro, global_batch_size=size)

    def taken(rank: int, dp: int, micro: int) -> list[int]:
        settings = DatasetConfig(micro_batch_size=micro, global_batch_size=size)
        return numbers(Batches(Numbered(rows), settings, topology(rank, dp=dp), 3).step(step * size))

    alone = taken(0, 1, 1)
    assert [number for rank in range(dp) for number in taken(rank, dp, micro)] == alone
    order = Batches(Numbered(rows), config, topology(), 3)
    epoch = step * size // rows
    assert sorted(order.indices(epoch * rows, rows)) == list(range(rows))
    # resumed in the middle
    assert order.indices(0, (step + 1) * size)[-size:] == alone
    other = Batches(Numbered(100), config, topology(), 4)
    assert (
        other.indices(0, 100)
        != other.indices(100, 100)
        != Batches(Numbered(100), config, topology(), 5).indices(100, 100)
    )


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 8))
@settings(deadline=None)
def test_batches_that_cannot_be_divided(size: int, micro: int, dp: int) -> None:
    """Given ones are refused with values that fit; the default is such a value."""
    from nemo_skills.training.batch_sizes import check_batch

    chosen = DatasetConfig(micro_batch_size=micro).batch_size(dp)
    check_batch(chosen, micro, dp)
    assert 32 <= chosen < 32 + micro * dp
    if size % (micro * dp) == 0:
        check_batch(size, micro, dp)
        return
    with pytest.raises(UserError, match="nearest values that are: ") as caught:
        check_batch(size, micro, dp)
    named = str(caught.value).rpartition(": ")[2].rstrip(".").split(" or ")
    for value in map(int, named):
        check_batch(value, micro, dp)
        assert abs(value - size) < micro * dp


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.sampled_from([1, 2, 3, 4]))
@settings(max_examples=100, deadline=None)
def test_every_token_sees_its_document_and_only_what_precedes(lengths: list[int], cp: int) -> None:
    """Over all processes, each pair of query and key that may meet does so exactly once."""
    import torch

    from nemo_skills.training.engine.attention import Layout, own_part

    padding = -sum(lengths) % (2 * cp)
    lengths = [*lengths, padding] if padding else lengths
    starts = np.cumsum([0, *lengths])
    seen = []
    for rank in range(cp):
        place = topology(rank, cp=cp)
        queries = iter(own_part(torch.arange(sum(lengths)), place).tolist())
        for segment in Layout.shared(lengths, place).segments:
            for i in range(segment.queries):
                query = next(queries)
                last = starts[segment.document] + segment.keys - segment.queries + i
                assert last == query
                seen += [(query, int(key)) for key in range(starts[segment.document], last + 1)]
        assert next(queries, None) is None
    documents = np.repeat(np.arange(len(lengths)), lengths)
    expected = [(q, k) for q in range(len(documents)) for k in range(q + 1) if documents[q] == documents[k]]
    assert sorted(seen) == expected


@pytest.mark.parametrize("window", [None, 5])
def test_attention_equals_a_dense_mask(window: int | None) -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from nemo_skills.training.engine.attention import Layout, document_attention

    torch.manual_seed(0)
    lengths = [3, 17, 1, 9]
    total = sum(lengths)
    q, k, v = (torch.randn(1, heads, total, 8, dtype=torch.float64) for heads in (4, 2, 2))
    document = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    place = torch.arange(total)
    mask = (document[:, None] == document) & (place[:, None] >= place)
    if window:
        mask &= place[:, None] - place < window
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    options: dict[str, Any] = {"scaling": 0.3, "sliding_window": window}
    found, _ = document_attention(
        torch.nn.Identity(), q, k, v, None, document_layout=Layout.whole(lengths), **options
    )
    assert torch.allclose(found, expected.transpose(1, 2))


@given(st.integers(2, 300), st.integers(0, 20), st.integers(0, 20), st.floats(0, 1e-4))
@settings(deadline=None)
def test_learning_rates(total: int, warmup: int, constant: int, least: float) -> None:
    from nemo_skills.training.engine.optimiser import learning_rate

    sched = {"warmup_steps": warmup, "constant_steps": constant, "min_lr": least}
    for name in ("CosineAnnealing", "linear"):
        config = OptimConfig(lr=1e-3, sched=SchedConfig(name=name, **sched))  # type: ignore[arg-type]
        rates = [learning_rate(step, total, config) for step in range(total + 1)]
        assert all(a < b for a, b in itertools.pairwise(rates[: warmup + 1]))
        assert all(a >= b for a, b in itertools.pairwise(rates[warmup:]))
        if warmup + constant < total:
            assert max(rates) == rates[warmup] == 1e-3
            assert rates[total - constant :] == pytest.approx([least] * (constant + 1))


def test_cosine_is_that_of_transformers() -> None:
    import torch
    from transformers import get_cosine_schedule_with_warmup

    from nemo_skills.training.engine.optimiser import learning_rate

    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = get_cosine_schedule_with_warmup(optimiser, 0, 37)
    config = OptimConfig(lr=0.5, sched=SchedConfig(warmup_steps=0))
    for step in range(37):
        assert learning_rate(step, 37, config) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()


@given(st.lists(st.floats(0, 9), min_size=1, max_size=9, unique=True), st.integers(-1, 4), st.integers(-1, 4))
@settings(deadline=None)
def test_which_checkpoints_stay(losses: list[float], best: int, last: int) -> None:
    from nemo_skills.training.engine.checkpoint import Progress, steps_to_keep

    complete = {i * 10: Progress(step=i * 10, metrics={"val_loss": loss}) for i, loss in enumerate(losses)}
    kept = steps_to_keep(complete, CheckpointConfig(save_top_k=best, save_last_k=last))
    if best == last == -1:
        assert kept == set(complete)
        return
    order = sorted(complete, key=lambda step: losses[step // 10])
    assert kept == {*order[: max(best, 0)], *sorted(complete)[-max(last, 1) :]}
    assert max(complete) in kept


def test_only_checkpoints_with_the_monitored_figure_are_ranked() -> None:
    from nemo_skills.training.engine.checkpoint import Progress, steps_to_keep

    # training losses are lower than any of validation
    found: dict[int, dict[str, float]] = {
        1: {"loss": 0.1}, 2: {"loss": 0.5, "val_loss": 0.8}, 3: {"loss": 0.2},
        4: {"loss": 0.4, "val_loss": 0.9}, 5: {"loss": 0.3},
    }  # fmt: skip
    complete = {step: Progress(step=step, metrics=metrics) for step, metrics in found.items()}
    assert steps_to_keep(complete, CheckpointConfig(save_top_k=1)) == {2, 5}
    assert steps_to_keep(complete, CheckpointConfig(save_top_k=3)) == {2, 4, 5}
    assert steps_to_keep(complete, CheckpointConfig(save_top_k=1, mode="max")) == {4, 5}
    # none has it: the smallest loss, whatever the mode
    assert steps_to_keep(complete, CheckpointConfig(save_top_k=1, monitor="val_x", mode="max")) == {1, 5}


@given(
    st.lists(st.binary(max_size=9).map(lambda raw: raw.replace(b"\n", b"")), min_size=1), st.integers(1, 20)
)
def test_lines_end_where_they_do_in_pieces_too(lines: list[bytes], piece: int) -> None:
    from nemo_skills.training.engine import samples

    text = b"\n".join([*lines, b"."])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "_PIECE", piece)
        found = samples._newlines(np.frombuffer(text, np.uint8)).tolist()
    assert found == [i for i, byte in enumerate(text) if byte == ord("\n")]


def test_gradients_are_clipped_to_their_norm() -> None:
    import torch

    from nemo_skills.training.engine.optimiser import clip_gradients

    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 2.0)
    assert clip_gradients(parameters, 0) == pytest.approx(28**0.5)
    assert clip_gradients(parameters, 1.5) == pytest.approx(28**0.5)
    assert clip_gradients(parameters, 1.5) == pytest.approx(1.5, rel=1e-5)
