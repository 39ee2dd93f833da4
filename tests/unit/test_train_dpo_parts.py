"""Parts of DPO: settings, tokens of pairs, losses in closed form, and batches of pairs."""

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import compose
from nemo_skills.training.config import DatasetConfig, SftConfig
from nemo_skills.training.dpo_config import DpoConfig, DpoLossConfig

pytestmark = pytest.mark.service("train")

REQUIRED = [
    "++model.restore_from_path=/m",
    "++model.data.train_ds.file_path=/rows.jsonl",
    "++exp_manager.explicit_log_dir=/out",
]
FLOATS = st.floats(-50, 50)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("++model.dpo.ref_policy_kl_penalt=0.1", "ref_policy_kl_penalty"),
        ("++model.dpo.preference_loss=dpoo", "dpo"),
        ("++model.dpo.ref_policy_kl_penalty=0", "positive"),
        ("++model.dpo.preference_loss_weight=0", "one of them positive"),
        ("++model.data.train_ds.packed_sequence=True", "train_ds.packed_sequence: .*cannot be packed"),
        ("++model.data.validation_ds.file_names=[a.jsonl,b.npy]", r"b\.npy: .*cannot be packed"),
        ("++trainer.sft.max_steps=3", "sft"),
    ],
)
def test_wrong_settings(wrong: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        compose(DpoConfig, [*REQUIRED, wrong])


def test_settings_of_one_algorithm_are_not_those_of_another() -> None:
    config = compose(DpoConfig, [*REQUIRED, "++trainer.dpo.max_steps=3", "++model.dpo.sft_loss_weight=0.1"])
    assert (config.trainer.dpo.max_steps, config.model.dpo.sft_loss_weight) == (3, 0.1)
    for foreign in ("++trainer.dpo.max_steps=3", "++model.dpo.sft_loss_weight=0.1"):
        with pytest.raises(UserError, match="dpo"):
            compose(SftConfig, [*REQUIRED, foreign])


def test_schema_is_read_without_torch() -> None:
    code = "import sys, nemo_skills.training.start_dpo; print({'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return importlib.import_module("nemo_skills.examples.tiny_model").build_tokenizer()


def test_tokens_of_a_pair(tokenizer: Any) -> None:
    """Prompt text and messages give the same tokens; nothing but an answer is learned."""
    from nemo_skills.training.tokenise_pairs import tokenise_pair

    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2", "train": True},
        {"role": "user", "content": "And 2+2?"},
    ]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    answers = {"chosen": "It is 4.", "rejected": "It is 5, I think."}
    pair = tokenise_pair({"messages": messages, **answers}, tokenizer)
    assert pair == tokenise_pair({"prompt": prompt, **answers}, tokenizer)
    assert pair == tokenise_pair(
        {"prompt": prompt, "chosen_response": "It is 4.", "rejected_response": "It is 5, I think."}, tokenizer
    )
    for example, answer in zip(pair, answers.values(), strict=True):
        learned = [i for i, mask in zip(example.input_ids, example.loss_mask, strict=True) if mask]
        assert tokenizer.decode(learned) == answer + "<|im_end|>"
        assert tokenizer.decode(example.input_ids) == prompt + answer + "<|im_end|>"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "reject": "c"}, r"no 'rejected'.*rejected"),
        ({"promt": "a", "chosen": "b", "rejected": "c"}, r"no 'prompt'.*prompt"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "'chosen' must be a text, not int"),
        ({"prompt": "a", "chosen": "b", "chosen_response": "b", "rejected": "c"}, "not both"),
        ({"messages": "a", "chosen": "b", "rejected": "c"}, "list of objects"),
    ],
)
def test_rows_that_lack_something(row: dict[str, Any], message: str, tokenizer: Any) -> None:
    from nemo_skills.training.tokenise_pairs import tokenise_pair

    with pytest.raises(UserError, match=message):
        tokenise_pair(row, tokenizer)


ASKED = [{"role": "user", "content": "a"}]
SAID = {"role": "assistant", "content": "b"}
BAD_ROWS = {
    "sft": [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "no 'input'"),
        ({"messages": ASKED}, "no message of the assistant"),
        ({"messages": "a"}, "list of objects"),
        ({"messages": [*ASKED, {"role": "assistant", "content": None}]}, "message 2 lacks"),
        ({"messages": [{**ASKED[0], "train": True}, SAID]}, "message 1: only what the assistant says"),
    ],
    "dpo": [
        ({"prompt": "a", "chosen": "b"}, "no 'rejected'"),
        ({"input": "a", "output": "b"}, "no 'chosen'"),
        ({"messages": [*ASKED, SAID]}, "no 'chosen'"),
        ({"messages": [], "chosen": "b", "rejected": "c"}, "list of objects"),
        ({"messages": [{"content": "a"}], "chosen": "b", "rejected": "c"}, "message 1 lacks"),
    ],
}


@pytest.mark.parametrize("algorithm", ["sft", "dpo"])
def test_rows_of_another_kind_are_named_before_training(
    algorithm: str, tokenizer: Any, tmp_path: Path
) -> None:
    """What the quick look lets pass can be made into tokens, and what it refuses is refused there, too."""
    from nemo_skills.training.engine.dpo import dpo_task
    from nemo_skills.training.engine.samples import RowSamples, open_samples
    from nemo_skills.training.engine.sft import sft_task

    good = {
        "sft": [{"input": "a", "output": "b"}, {"messages": [*ASKED, SAID]}],
        "dpo": [
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"messages": ASKED, "chosen": "b", "rejected": "c"},
        ],
    }[algorithm]
    is_dpo = algorithm == "dpo"
    task = dpo_task(compose(DpoConfig, REQUIRED)) if is_dpo else sft_task(compose(SftConfig, REQUIRED))
    path = tmp_path / "rows.jsonl"

    def opened(*rows: dict[str, Any]) -> RowSamples:
        path.write_text("".join(json.dumps(row) + "\n" for row in (*good, *rows)))
        samples = open_samples(DatasetConfig(file_path=str(path)), tokenizer, task.tokenise_row)
        assert isinstance(samples, RowSamples)
        return samples

    samples = opened()
    samples.check(task.check_row)
    assert all(samples[i] for i in range(len(samples)))
    for row, message in BAD_ROWS[algorithm]:
        with pytest.raises(UserError, match=rf"rows\.jsonl:3: .*{message}"):
            opened(row).check(task.check_row)
        with pytest.raises(UserError, match=message):
            opened(row)[2]


def test_the_dataset_with_packed_files_is_named(tokenizer: Any) -> None:
    from nemo_skills.training.engine.samples import one_document, open_samples

    config = DatasetConfig(file_path="packed_256_seed0.npy")
    with pytest.raises(UserError, match=r"set \+\+model\.data\.validation_ds\.packed_sequence=True"):
        open_samples(config, tokenizer, one_document, "model.data.validation_ds")


def answers(sums: Sequence[float], counts: Sequence[int] | None = None) -> Any:
    import torch

    from nemo_skills.training.engine.dpo import LogProbs

    numbers = torch.tensor(counts or [1] * len(sums), dtype=torch.float64)
    return LogProbs(torch.tensor(sums, dtype=torch.float64), numbers)


@given(st.tuples(FLOATS, FLOATS), st.tuples(FLOATS, FLOATS), st.floats(0.01, 2))
@settings(deadline=None)
def test_losses_in_closed_form(now: tuple[float, float], before: tuple[float, float], beta: float) -> None:
    from nemo_skills.training.engine.dpo import pair_losses

    gap = (now[0] - before[0]) - (now[1] - before[1])
    config = DpoLossConfig(ref_policy_kl_penalty=beta)
    loss, figures = pair_losses(answers(now), answers(before), config)
    probability = 1 / (1 + math.exp(-beta * gap))
    assert math.exp(-loss.item()) == pytest.approx(probability)
    assert figures["rewards_margin"].item() == pytest.approx(beta * gap, abs=1e-9)
    assert figures["accuracy"].item() == (gap > 0)
    # the other way round it is the other probability
    swapped, _ = pair_losses(answers(now[::-1]), answers(before[::-1]), config)
    assert math.exp(-loss.item()) + math.exp(-swapped.item()) == pytest.approx(1)
    # ipo wants this gap, no more
    ipo = DpoLossConfig(ref_policy_kl_penalty=beta, preference_loss="ipo")
    least, _ = pair_losses(answers((1 / (2 * beta), 0)), answers((0, 0)), ipo)
    assert least.item() == pytest.approx(0, abs=1e-12)


def test_means_and_the_loss_of_the_better_answer() -> None:
    from nemo_skills.training.engine.dpo import pair_losses

    now, before = answers([-8, -9], [4, 3]), answers([-10, -6], [4, 3])
    config = DpoLossConfig(
        preference_average_log_probs=True,
        sft_average_log_probs=False,
        sft_loss_weight=0.5,
        preference_loss_weight=2,
    )
    loss, figures = pair_losses(now, before, config)
    margin = 0.2 * (2 / 4 + 3 / 3)
    assert figures["rewards_margin"].item() == pytest.approx(margin)
    assert figures["sft_loss"].item() == 8
    assert loss.item() == pytest.approx(2 * math.log(1 + math.exp(-margin)) + 0.5 * 8)
    # an answer that was cut off entirely counts as 0
    nothing, _ = pair_losses(answers([0, 0], [0, 0]), answers([0, 0], [0, 0]), config)
    assert nothing.item() == pytest.approx(2 * math.log(2))


class _Countdown:
    """Stands in for a model: token `n` is said with log-probability `-n`."""

    def __call__(self, *, targets: Any, **_: Any) -> Any:
        import torch

        trained = targets[targets >= 0]
        return trained.float() if len(trained) else torch.zeros(1)


class _Pairs:
    """Samples of two documents: chosen learns tokens 1 and `index + 10`, rejected token 3."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Sequence[Any]:
        from nemo_skills.training.engine.data import document

        mask = [False, True, True]
        return document([7, 1, index + 10], mask), document([7, 8, 3], [False, False, True])


def test_log_probabilities_go_to_their_answers() -> None:
    import torch

    from nemo_skills.training.engine.dpo import PairBatch, PairBatches, log_probs
    from nemo_skills.training.engine.parallel import Topology

    place = Topology(device=torch.device("cpu"))
    config = DatasetConfig(micro_batch_size=2, global_batch_size=4, shuffle=False)
    first, second = PairBatches(_Pairs(), config, place, seed=0).step(1)
    assert isinstance(second, PairBatch) and (first.weight, second.weight) == (2, 2)
    found = log_probs(_Countdown(), second, place)
    assert found.sums.tolist() == [-14, -3, -15, -3]
    assert found.counts.tolist() == [2, 1, 2, 1]


def test_a_process_without_pairs_computes_all_the_same() -> None:
    import torch

    from nemo_skills.training.engine.dpo import PairBatch, PairBatches, log_probs
    from nemo_skills.training.engine.parallel import Topology

    config = DatasetConfig(micro_batch_size=1, global_batch_size=4)
    place = Topology(rank=3, dp=4, device=torch.device("cpu"))
    (batch,) = PairBatches(_Pairs(), config, place, seed=0).step(0, 3)
    assert isinstance(batch, PairBatch) and batch.weight == 0 and batch.tokens
    assert log_probs(_Countdown(), batch, place).sums.tolist() == []
