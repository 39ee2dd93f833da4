"""Models come back from NeMo's format bit by bit, whatever their family, sizes and types."""

import gzip
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from safetensors.torch import save_file

from nemo_skills.conversion import verify
from nemo_skills.conversion.hf_source import open_hf
from nemo_skills.core.errors import UserError
from tests.unit.conversion_models import FAMILIES, assert_same, load, make_model, set_config, to_hf, to_nemo


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, object]:
    """Sizes of a model: multi-query, grouped-query or full attention, and odd numbers everywhere."""
    groups, per_group = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3]))
    heads, head = groups * per_group, draw(st.sampled_from([2, 4, 6]))
    return {
        "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": head,
        # in some families the heads together may be wider than the model
        "hidden_size": heads * head, "intermediate_size": draw(st.integers(1, 13)),
        "num_hidden_layers": draw(st.integers(1, 4)), "vocab_size": draw(st.integers(3, 101)),
        "tie_word_embeddings": draw(st.booleans()),
    }  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    family=st.sampled_from(FAMILIES),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    sizes=sizes(),
    wide=st.booleans(),
    shard=st.sampled_from(["1KB", "5GB"]),
    shard_size=st.sampled_from([1e-6, 5.0]),
    output=st.sampled_from(["folder", "file.nemo"]),
)
def test_round_trips_are_bitwise(
    tmp_path_factory: pytest.TempPathFactory, family: str, dtype: str, sizes: dict[str, object], wide: bool,
    shard: str, shard_size: float, output: str,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("c")
    if wide and family != "qwen2":
        sizes = sizes | {"head_dim": int(str(sizes["head_dim"])) * 2}
    model = make_model(folder / "model", family, dtype, shard, **sizes)
    nemo = to_nemo(model, folder / output, max_shard_size=shard_size)
    back = to_hf(nemo, folder / "back", max_shard_size=shard_size)
    assert_same(model, back)
    left = {"model", output, "back"}
    assert {path.name for path in folder.iterdir()} == left
    shutil.rmtree(folder)


def test_the_yaml_says_what_nemo_reads(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
    expected = {
        "llama": ({"rope_parameters": rope}, {"scale_positional_embedding": True, "rotary_base": 5e5}),
        "mistral": ({"sliding_window": 32}, {"window_size": [32, 0]}),
        "qwen2": ({"tie_word_embeddings": True},
                  {"qkv_bias": True, "override_vocab_size": 61, "share_embeddings_and_output_weights": True}),
        "qwen3": ({}, {"kv_channels": 8, "qk_layernorm": True, "override_vocab_size": 61}),
    }  # fmt: skip
    common = {"num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 24, "num_query_groups": 2, "bias": False,
              "normalization": "rmsnorm", "activation": "fast-swiglu", "mcore_gpt": True, "precision": "bf16",
              "dist_ckpt_format": "torch_dist", "transformer_engine": True}  # fmt: skip
    for family, (keys, wanted) in expected.items():
        model = make_model(tmp_path / family, family, "bfloat16", **keys)
        nemo = to_nemo(model, tmp_path / f"{family}-nemo", hf_model_name="org/name")
        written = yaml.safe_load((nemo / "model_config.yaml").read_text())
        assert (common | wanted).items() <= written.items()
        assert written["tokenizer"] == {
            "library": "huggingface", "type": "org/name", "model": None, "use_fast": True
        }  # fmt: skip


def test_configs_of_older_transformers_are_understood(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama", "bfloat16")
    old = json.loads((model / "config.json").read_text())
    for key in ("rope_parameters", "dtype", "head_dim", "num_key_value_heads", "tie_word_embeddings"):
        del old[key]
    scaling = {"factor": 32.0, "rope_type": "llama3"}
    old |= {"rope_theta": 5e5, "rope_scaling": scaling, "torch_dtype": "bfloat16", "num_key_value_heads": 2}
    (model / "config.json").write_text(json.dumps(old))
    nemo = to_nemo(model, tmp_path / "nemo", dtype="fp32")
    written = yaml.safe_load((nemo / "model_config.yaml").read_text())
    wanted = {"rotary_base": 5e5, "scale_positional_embedding": True, "kv_channels": 4, "precision": "32"}
    assert wanted.items() <= written.items()
    back = to_hf(nemo, tmp_path / "back", dtype="bf16")
    assert json.loads((back / "config.json").read_text()) == old


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_without_its_hugging_face_config_is_recognised(tmp_path: Path, family: str) -> None:
    model = make_model(tmp_path / "model", family, tie_word_embeddings=family == "qwen2")
    nemo = to_nemo(model, tmp_path / "nemo")
    shutil.rmtree(nemo / "hf")
    guessed = to_hf(nemo, tmp_path / "guessed", model_type=family)
    given = to_hf(nemo, tmp_path / "given", hf_model_name=str(model))
    assert_same(model, given)
    transformers = pytest.importorskip("transformers")
    ids = torch.arange(12)[None]
    one, other = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (model, guessed)
    )
    assert type(one) is type(other)
    with torch.inference_mode():
        assert torch.equal(one(ids).logits, other(ids).logits)


_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "window": ("mistral", {"sliding_window": 8}),
    "stretched": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}}),
}


@pytest.mark.parametrize("case", _CONFIGS)
def test_what_nemos_config_says_comes_back_without_hugging_faces(tmp_path: Path, case: str) -> None:
    family, sizes = _CONFIGS[case]
    model = make_model(tmp_path / "model", family, "bfloat16", **sizes)
    nemo = to_nemo(model, tmp_path / "nemo")
    shutil.rmtree(nemo / "hf")
    guessed = to_hf(nemo, tmp_path / "guessed")
    transformers = pytest.importorskip("transformers")
    ids = torch.arange(40)[None]
    one, other = (
        transformers.AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (model, guessed)
    )
    assert other.dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.equal(one(ids).logits, other(ids).logits)


_UNKNOWN_TO_NEMO: dict[str, tuple[str, dict[str, Any]]] = {
    "attention window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
    "factor 8 only": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}),
    "rope_type=yarn": ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
        "original_max_position_embeddings": 16}}),
}  # fmt: skip


@pytest.mark.parametrize("what", _UNKNOWN_TO_NEMO)
def test_what_nemo_cannot_express_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level("WARNING")
    family, sizes = _UNKNOWN_TO_NEMO[what]
    model = make_model(tmp_path / "model", family, **sizes)
    assert_same(model, to_hf(to_nemo(model, tmp_path / "nemo"), tmp_path / "back"))
    assert what in caplog.text
    caplog.clear()
    to_nemo(make_model(tmp_path / "plain", family), tmp_path / "plain-nemo")
    assert "NeMo" not in caplog.text


def test_the_last_token_is_what_the_tokenizer_says(tmp_path: Path) -> None:
    nemo = to_nemo(make_model(tmp_path / "model", "llama"), tmp_path / "nemo")
    shutil.rmtree(nemo / "hf")
    added = [{"id": 57, "content": "<|eot|>"}, {"id": 56, "content": "<|begin|>"}]
    (nemo / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    roles = {"eos_token": "<|eot|>", "bos_token": {"content": "<|begin|>"}}
    (nemo / "tokenizer_config.json").write_text(json.dumps(roles))
    config = json.loads((to_hf(nemo, tmp_path / "hf") / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (56, 57)


def test_tokenizers_of_packed_checkpoints_get_their_usual_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nemo = to_nemo(make_model(tmp_path / "model", "llama"), tmp_path / "nemo")
    shutil.rmtree(nemo / "hf")
    (nemo / "tokenizer.json").unlink()
    assert to_hf(nemo, tmp_path / "none") and "holds no tokenizer" in caplog.text
    config = yaml.safe_load((nemo / "model_config.yaml").read_text())
    config["tokenizer"] = {"library": "sentencepiece", "model": "nemo:1f2e_tokenizer.model", "type": None}
    (nemo / "model_config.yaml").write_text(yaml.safe_dump(config))
    (nemo / "1f2e_tokenizer.model").write_bytes(b"pieces")
    caplog.clear()
    assert (to_hf(nemo, tmp_path / "hf") / "tokenizer.model").read_bytes() == b"pieces"
    assert "holds no tokenizer" not in caplog.text


def test_a_result_may_lie_in_the_checkpoints_folder(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama")
    nemo = to_nemo(model, tmp_path / "nemo")
    shutil.rmtree(nemo / "hf")
    inside = to_hf(nemo, nemo / "hf", hf_model_name=str(model))
    assert_same(model, inside)
    assert to_hf(nemo, nemo / "hf", hf_model_name=str(model)) == inside
    damaged = load(inside) | {"model.norm.weight": torch.zeros(16)}
    save_file(damaged, inside / "model.safetensors", metadata={"format": "pt"})
    assert_same(model, to_hf(nemo, tmp_path / "back"))


def test_of_old_and_new_weights_those_that_transformers_loads_are_taken(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama", shard="10KB")
    assert (model / "model.safetensors.index.json").is_file()
    tensors = {name: tensor + 1 for name, tensor in load(model).items()}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    back = load(to_hf(to_nemo(model, tmp_path / "nemo"), tmp_path / "back"))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in back.items())


def test_weights_behind_a_link_are_read(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama")
    nemo = to_nemo(model, tmp_path / "nemo")
    (nemo / "model_weights").rename(tmp_path / "elsewhere")
    (nemo / "model_weights").symlink_to(tmp_path / "elsewhere")
    (nemo / "circle").symlink_to(nemo)
    assert_same(model, to_hf(nemo, tmp_path / "back"))


def test_every_name_of_the_type_is_changed(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama")
    set_config(model, dtype="float32", torch_dtype="float32")
    kept = to_nemo(model, tmp_path / "nemo", dtype="bf16") / "hf" / "config.json"
    assert {json.loads(kept.read_text())[key] for key in ("dtype", "torch_dtype")} == {"bfloat16"}


def test_compressed_tars_are_read(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama")
    nemo = to_nemo(model, tmp_path / "nemo")
    with tarfile.open(tmp_path / "packed.nemo", "w:gz") as tar:
        tar.add(nemo, arcname=".")
    assert_same(model, to_hf(tmp_path / "packed.nemo", tmp_path / "back"))
    with tarfile.open(to_nemo(model, tmp_path / "plain.nemo")) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert_same(model, to_hf(tmp_path / "unpacked", tmp_path / "back2"))
    damaged = gzip.compress(b"no tar")
    (tmp_path / "damaged.nemo").write_bytes(damaged[:-4])
    with pytest.raises(UserError, match="is damaged"):
        to_hf(tmp_path / "damaged.nemo", tmp_path / "back3")
    one_bit = bytearray((tmp_path / "packed.nemo").read_bytes())
    one_bit[-8] ^= 1  # of the checksum
    (tmp_path / "damaged.nemo").write_bytes(one_bit)
    with pytest.raises(UserError, match=r"damaged\.nemo is damaged: CRC"):
        to_hf(tmp_path / "damaged.nemo", tmp_path / "back3")
    names = {path.name for path in tmp_path.iterdir()}
    assert not {name for name in names if "unpacked." in name or "unfinished" in name}


def test_nemo_2_folders_are_read(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama")
    nemo = to_nemo(model, tmp_path / "nemo")
    for path in nemo.iterdir():
        if path.name != "model_weights":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (nemo / "model_weights").rename(nemo / "weights")
    with pytest.raises(UserError, match="give hf_model_name"):
        to_hf(nemo, tmp_path / "back")
    assert_same(model, to_hf(nemo, tmp_path / "back", hf_model_name=str(model)))


@pytest.mark.parametrize("direction", ["there", "back"])
def test_types_are_cast(tmp_path: Path, direction: str) -> None:
    model = make_model(tmp_path / "model", "qwen2", "float32")
    there, back = ("bf16", None) if direction == "there" else (None, "bf16")
    nemo = to_nemo(model, tmp_path / "nemo", dtype=there)
    cast = to_hf(nemo, tmp_path / "cast", dtype=back)
    for name, tensor in load(model).items():
        assert torch.equal(load(cast)[name], tensor.to(torch.bfloat16)), name
    assert json.loads((cast / "config.json").read_text())["dtype"] == "bfloat16"


def test_values_that_a_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama")
    tensors = load(model)
    tensors["model.norm.weight"][3] = 1e6
    _save(model, tensors)
    with pytest.raises(UserError, match=r"final_layernorm.weight holds 1e\+06, which float16 cannot hold"):
        to_nemo(model, tmp_path / "nemo", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_padded_rows_of_the_vocabulary_are_cut(tmp_path: Path) -> None:
    model = make_model(tmp_path / "padded", "llama", vocab_size=64)
    nemo = to_nemo(model, tmp_path / "nemo")
    set_config(nemo / "hf", vocab_size=61)
    back = load(to_hf(nemo, tmp_path / "back"))
    for name, tensor in load(model).items():
        assert torch.equal(back[name], tensor[:61] if tensor.shape[0] == 64 else tensor), name


def test_an_output_layer_that_repeats_the_embedding_is_left_out(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama", tie_word_embeddings=True)
    tensors = load(model)
    _save(model, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    back = load(to_hf(to_nemo(model, tmp_path / "nemo"), tmp_path / "back"))
    assert back.keys() == tensors.keys()
    _save(model, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1})
    with pytest.raises(UserError, match="tie_word_embeddings is true, but"):
        to_nemo(model, tmp_path / "nemo2")


@pytest.mark.parametrize("dtype", [None, "fp16"])
def test_verification_accepts_what_is_right_and_finds_one_wrong_bit(
    tmp_path: Path, dtype: str | None
) -> None:
    model = make_model(tmp_path / "model", "qwen3", "bfloat16")
    nemo = to_nemo(model, tmp_path / "nemo", dtype=dtype, verify=True)
    to_hf(nemo, tmp_path / "back", verify=True)
    source = open_hf(model, None)
    target = {"fp16": "F16"}.get(str(dtype))
    verify.verify_nemo(source, target, nemo)
    weights = nemo / "model_weights" / "__0_0.distcp"
    data = bytearray(weights.read_bytes())
    needle = load(model)["model.layers.1.mlp.down_proj.weight"].to(torch.float16 if dtype else torch.bfloat16)
    data[data.index(needle.view(torch.uint8).numpy().tobytes()) + 5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"tensor model.layers.1.mlp.down_proj.weight is not the same"):
        verify.verify_nemo(source, target, nemo)


def _save(folder: Path, tensors: dict[str, "torch.Tensor"]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
