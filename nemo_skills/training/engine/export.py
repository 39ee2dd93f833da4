"""Writes a model that is being trained as a Hugging Face folder."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".index.json")


def export_model(model: Any, source: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write weights, config and tokenizer; every process must call it, the main one writes.

    Args:
        model: sharded or not; adapters are merged into the weights.
        source: folder of the original model.
        folder: folder to write.
        dtype: of the weights.
    """
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    from nemo_skills.training.engine.lora import merged

    weights = {name: tensor.to(dtype) for name, tensor in merged(model, weights).items()}
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(source)
    settings.dtype = dtype
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(settings)
    tied = getattr(shell, "all_tied_weights_keys", None) or {}
    # a weight that stands for another one is not written twice
    weights = {name: tensor for name, tensor in weights.items() if tied.get(name) not in weights}
    folder.mkdir(parents=True, exist_ok=True)
    copy_side_files(source, folder)
    shell.save_pretrained(folder, state_dict=weights)


def copy_side_files(source: Path, folder: Path) -> None:
    """Copy tokenizer, generation config and whatever else lies beside the weights, as it is."""
    for path in source.iterdir():
        if path.is_file() and path.name != "config.json" and not path.name.endswith(_WEIGHTS):
            shutil.copyfile(path, folder / path.name)
