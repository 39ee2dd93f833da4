"""Supervised fine-tuning in one process: what is computed, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nemo_skills.core.errors import UserError
from tests.integration.train_runs import (
    build_small,
    compose_sft,
    largest_difference,
    metrics,
    pack_rows,
    run_main,
    sft_args,
    train_here,
    write_rows,
)

pytestmark = pytest.mark.service("train")

ROWS = 48
# every step sees all rows
ALL: dict[str, Any] = {
    "trainer__sft__max_epochs": 3,
    "model__data__train_ds__global_batch_size": ROWS,
    "model__data__train_ds__micro_batch_size": 12,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "train.jsonl", ROWS)


@pytest.fixture(scope="module")
def reference(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reference")
    assert train_here(sft_args(model, rows, output, **ALL))
    return output


def padded_losses(model: Path, rows: Path) -> float:
    """Return the mean loss of a plain forward pass, one row at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    total, count = 0.0, 0
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["input"])["input_ids"]
        answer = [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            loss = plain(input_ids=torch.tensor([prompt + answer]), labels=labels).loss
        total, count = total + loss.item() * len(answer), count + len(answer)
    return total / count


def test_the_first_loss_is_that_of_a_plain_forward_pass(model: Path, rows: Path, reference: Path) -> None:
    assert metrics(reference)[1, "loss"] == pytest.approx(padded_losses(model, rows), rel=1e-6)


def test_packed_rows_give_the_same_losses(model: Path, rows: Path, reference: Path, tmp_path: Path) -> None:
    packed, packs = pack_rows(rows, model, tmp_path / "packed", size=512)
    assert packs < ROWS / 3
    more = {**ALL, "model__data__train_ds__packed_sequence": True}
    more |= {"model__data__train_ds__global_batch_size": packs, "model__data__train_ds__micro_batch_size": 1}
    assert train_here(sft_args(model, packed, tmp_path / "run", **more))
    assert largest_difference(metrics(reference), metrics(tmp_path / "run")) < 1e-5


@pytest.mark.parametrize(
    "more",
    [
        {"model__loss_chunk_size": 64},
        {"model__loss_chunk_size": 0, "model__activations_checkpoint_granularity": "full"},
        {"model__attn_implementation": "sdpa", "model__data__train_ds__micro_batch_size": 6},
        {"model__attn_implementation": "eager"},
    ],
    ids=["chunked", "recomputed", "sdpa", "eager"],
)
def test_other_ways_to_compute_the_same(
    more: dict[str, Any], model: Path, rows: Path, reference: Path, tmp_path: Path
) -> None:
    assert train_here(sft_args(model, rows, tmp_path, **{**ALL, **more}))
    assert largest_difference(metrics(reference), metrics(tmp_path)) < 1e-5


def test_bfloat16(model: Path, rows: Path, reference: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    assert train_here(sft_args(model, rows, tmp_path, **ALL, trainer__precision="bf16"))
    difference = largest_difference(metrics(reference), metrics(tmp_path))
    # it did compute in bfloat16, and not much worse for it
    assert 1e-6 < difference < 5e-2
    exported = load_file(tmp_path / "checkpoints/step=3/hf/model.safetensors")
    assert {weight.dtype for weight in exported.values()} == {torch.bfloat16}


def test_the_export_is_the_trained_model(rows: Path, reference: Path, model: Path) -> None:
    """The loss of the next step would be that of the exported model; tokenizer files come along."""
    exported = reference / "checkpoints/step=3/hf"
    after = padded_losses(exported, rows)
    assert after < metrics(reference)[3, "loss"]
    tokenizer_files = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for name in tokenizer_files:
        assert (exported / name).read_bytes() == (model / name).read_bytes()


def test_adapters(model: Path, rows: Path, tmp_path: Path, reference: Path) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed (extra 'lora')")
    from safetensors.torch import load_file

    more: dict[str, Any] = {
        "model__peft__peft_scheme": "lora",
        "model__peft__lora_tuning__adapter_dim": 4,
        "trainer__sft__save_interval": 2,
    }
    more["model__data__validation_ds__file_path"] = str(rows)
    assert train_here(sft_args(model, rows, tmp_path, **ALL, **more))
    found = metrics(tmp_path)
    # an adapter starts as nothing
    assert found[1, "loss"] == pytest.approx(metrics(reference)[1, "loss"], rel=1e-6)
    assert found[3, "loss"] < found[1, "loss"]
    exported = tmp_path / "checkpoints/step=3/hf"
    assert padded_losses(exported, rows) == pytest.approx(found[3, "val_loss"], rel=1e-5)
    before, after = load_file(model / "model.safetensors"), load_file(exported / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert before.keys() == after.keys()
    assert all("proj" in name for name in changed) and len(changed) == 14

    # and they go on from a checkpoint
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "again" / "checkpoints")
    last = tmp_path / "again" / "checkpoints" / "step=3"
    shutil.rmtree(last)
    args = sft_args(model, rows, tmp_path / "again", **ALL, **more)
    assert train_here(args)
    steps = [step for step, name in metrics(tmp_path / "again") if name == "loss"]
    assert steps == [3]
    assert (last / "hf/model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


def test_models_that_change_their_logits(rows: Path, tmp_path: Path) -> None:
    """Gemma 2 caps scores and logits: our attention refuses it, and its own head is used."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from nemo_skills.examples.tiny_model import VOCABULARY, build_tokenizer

    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=16, initializer_range=0.5,
        final_logit_softcapping=2.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = tmp_path / "gemma"
    Gemma2ForCausalLM(config).save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    args = sft_args(model, rows, tmp_path / "run", **ALL)
    with pytest.raises(UserError, match="attn_implementation=eager"):
        train_here(args)
    assert train_here([*args, "++model.attn_implementation=eager"])
    assert metrics(tmp_path / "run")[1, "loss"] == pytest.approx(padded_losses(model, rows), rel=1e-5)


def test_a_small_sliding_window_is_kept(rows: Path, tmp_path: Path) -> None:
    model = build_small(tmp_path / "mistral", "mistral", sliding_window=8)
    assert train_here(sft_args(model, rows, tmp_path / "run", **ALL))
    assert metrics(tmp_path / "run")[1, "loss"] == pytest.approx(padded_losses(model, rows), rel=1e-5)


def test_what_a_user_gets_wrong(model: Path, rows: Path, tmp_path: Path) -> None:
    """One line and exit code 2, no traceback."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text(rows.read_text() + '\n{"input": "1", "ouput": "2"}\n')
    ended = run_main(sft_args(model, bad, tmp_path / "run", **ALL))
    assert ended.returncode == 2
    assert f"{bad}:{ROWS + 2}" in ended.stderr and "Did you mean 'output'?" in ended.stderr
    assert "Traceback" not in ended.stderr
    cases = {
        "none: the folder does not exist": sft_args(tmp_path / "none", rows, tmp_path),
        "no config.json": sft_args(tmp_path, rows, tmp_path),
        "nearest values that are: 16 or 24": [
            *sft_args(model, rows, tmp_path),
            "++model.data.train_ds.micro_batch_size=8",
            "++model.data.train_ds.global_batch_size=20",
        ],
        "packed_sequence=True": sft_args(model, pack_rows(rows, model, tmp_path, size=256)[0], tmp_path),
        "trainer.devices=8, but 1": [*sft_args(model, rows, tmp_path), "++trainer.devices=8"],
        "start a multiple of 2": [*sft_args(model, rows, tmp_path), "++model.context_parallel_size=2"],
    }
    for message, args in cases.items():
        with pytest.raises(UserError, match=message):
            train_here(args)


def test_models_that_cannot_be_loaded(model: Path, rows: Path, tmp_path: Path) -> None:
    def broken(name: str, file: str, content: str | None) -> list[str]:
        folder = shutil.copytree(model, tmp_path / name)
        (folder / file).unlink() if content is None else (folder / file).write_text(content)
        return sft_args(folder, rows, tmp_path / "run")

    cases = {
        "no-json.*not a valid JSON": broken("no-json", "config.json", "{"),
        "other.*`nosuch`": broken("other", "config.json", '{"model_type": "nosuch"}'),
        "bare.*no file named model.safetensors": broken("bare", "model.safetensors", None),
        "cut.*deserializing": broken("cut", "model.safetensors", "short"),
        "attn_implementation=flush": [
            *sft_args(model, rows, tmp_path),
            "++model.attn_implementation=flush",
        ],
    }
    for message, args in cases.items():
        with pytest.raises(UserError, match=message):
            train_here(args)


def test_weights_that_are_missing_are_not_made_up(model: Path, rows: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    gone = [name for name in sorted(weights) if "up_proj" in name]
    save_file(
        {k: v for k, v in weights.items() if k not in gone}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=rf"{gone[0]} and {len(gone) - 1} more weights are missing"):
        train_here(sft_args(folder, rows, tmp_path / "run"))


def test_long_rows_are_cut(model: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from nemo_skills.training.engine.samples import one_document, open_samples
    from nemo_skills.training.tokenise import load_tokenizer

    config = compose_sft([*sft_args(model, rows, tmp_path), "++model.data.train_ds.max_seq_length=50"])
    samples = open_samples(config.model.data.train_ds, load_tokenizer(str(model)), one_document)
    # the last token is no input
    assert max(len(samples[i][0].input_ids) for i in range(len(samples))) == 49
    assert caplog.text.count("tokens are cut to 50") == 1


def test_a_file_listed_twice_counts_once(
    model: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in packing."""
    from nemo_skills.training.config import DatasetConfig
    from nemo_skills.training.engine.samples import open_samples
    from nemo_skills.training.tokenise import load_tokenizer

    tokenizer = load_tokenizer(str(model))
    names = [str(rows), str(rows.parent / "." / "t*.jsonl")]
    assert len(open_samples(DatasetConfig(file_names=names), tokenizer)) == ROWS
    assert caplog.text.count("is listed more than once") == 1
    packed, packs = pack_rows(rows, model, tmp_path, size=256)
    twice = DatasetConfig(file_names=[str(packed), str(packed.with_suffix(".json"))], packed_sequence=True)
    assert len(open_samples(twice, tokenizer)) == packs


def test_combinations_that_are_silently_wrong_are_refused(tmp_path: Path, model: Path, rows: Path) -> None:
    import torch
    from transformers import AutoConfig

    from nemo_skills.training.engine.model import refuse
    from nemo_skills.training.engine.parallel import Topology

    def check(folder: Path, *args: str, **sizes: int) -> None:
        config = compose_sft([*sft_args(folder, rows, tmp_path), *args]).model
        refuse(AutoConfig.from_pretrained(folder), config, Topology(device=torch.device("cpu"), **sizes))

    tied = build_small(tmp_path / "tied", tie_word_embeddings=True)
    check(tied, tp=2)
    check(tied, dp=4)
    check(model, tp=2, dp=2)
    for sizes in ({"dp": 2}, {"cp": 2}):
        with pytest.raises(UserError, match="tied"):
            check(tied, tp=2, **sizes)
    experts = build_small(tmp_path / "experts", "mixtral", num_local_experts=4, num_experts_per_tok=2)
    check(experts, dp=4)
    with pytest.raises(UserError, match="experts"):
        check(experts, tp=2)
    with pytest.raises(UserError, match="key-value heads"):
        check(model, tp=4)
    with pytest.raises(UserError, match="leave out attn_implementation"):
        check(model, "++model.attn_implementation=sdpa", cp=2)
