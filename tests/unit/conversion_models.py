"""Tiny models of every family, as transformers makes and saves them."""

import json
from pathlib import Path

import safetensors.torch
import torch

from nemo_skills.conversion import hf_to_nemo, nemo_to_hf
from nemo_skills.conversion.config import ConvertConfig

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
Tensors = dict[str, torch.Tensor]


def make_model(
    folder: Path, family: str, dtype: str = "float32", shard: str = "5GB", **sizes: object
) -> Path:
    """Save a model of random numbers; `sizes` are keys of its config."""
    import transformers

    usual: dict[str, object] = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 61, "max_position_embeddings": 64,
    }  # fmt: skip
    if family == "qwen3":
        usual["head_dim"] = 8
    config = transformers.AutoConfig.for_model(family, **(usual | sizes))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    # norms and biases begin as ones and zeros, which would hide that they were mixed up
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


def load(folder: Path) -> Tensors:
    """Return all tensors of a Hugging Face folder."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in safetensors.torch.load_file(file).items()}


def to_nemo(source: Path, output: Path, **settings: object) -> Path:
    hf_to_nemo.convert(ConvertConfig(input_model=str(source), output_model=str(output), **settings))  # type: ignore[arg-type]
    return output


def to_hf(source: Path, output: Path, **settings: object) -> Path:
    nemo_to_hf.convert(ConvertConfig(input_model=str(source), output_model=str(output), **settings))  # type: ignore[arg-type]
    return output


def assert_same(one: Path, other: Path) -> None:
    """Two folders hold the same bits under the same names, and the same config and tokenizer."""
    first, second = load(one), load(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and tensor.shape == second[name].shape, name
        assert torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8)), name
    names = ("config.json", "generation_config.json", "tokenizer.json")
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def set_config(folder: Path, **keys: object) -> None:
    """Change keys of a model's config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
