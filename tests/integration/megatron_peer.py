"""A program that loads and saves models with Megatron-Core on CPUs, in one process or several under torchrun.

For each model of a folder: loads `nemo/` strictly, saves it again in ways that Megatron-Core has, and, in one
process, notes in `report.json` how far its logits are from transformers'.
"""

import contextlib
import json
import os
import queue
import sys
from pathlib import Path
from typing import Any

import torch

# what Megatron-Core does on GPUs only, and does not need here
torch.cuda.current_device = lambda: "cpu"
torch.cuda.synchronize = lambda *_: None

# ruff: noqa: E402
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer.transformer_config import TransformerConfig

# a queue between processes is started with a process of its own; nothing is saved in the background here
filesystem_async._results_queue = queue.Queue()
CudaRNGStatesTracker.fork = lambda *_: contextlib.nullcontext()
WAYS: dict[str, tuple[str, dict[str, bool]]] = {
    "stacked": ("model.", {}),
    "layers": ("module.", {"non_homogeneous_layers": True}),
    "halves": ("", {"singleton_local_shards": True}),
}
"""Prefix of keys, and how layers are stored."""


def build(config: dict[str, Any], world: int) -> GPTModel:
    """Make Megatron-Core's model for a Hugging Face config; the vocabulary is padded."""
    family = config["model_type"]
    transformer = TransformerConfig(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=config["num_attention_heads"],
        num_query_groups=config["num_key_value_heads"],
        kv_channels=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        normalization="RMSNorm",
        layernorm_epsilon=config["rms_norm_eps"],
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=family == "qwen2",
        qk_layernorm=family == "qwen3",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        tensor_model_parallel_size=world,
    )
    return GPTModel(
        transformer,
        get_gpt_layer_local_spec(qk_layernorm=transformer.qk_layernorm, normalization="RMSNorm"),
        vocab_size=-(-config["vocab_size"] // 64) * 64,
        max_sequence_length=config["max_position_embeddings"],
        position_embedding_type="rope",
        rotary_base=int(config["rope_parameters"]["rope_theta"]),
        share_embeddings_and_output_weights=config["tie_word_embeddings"],
    ).eval()


def load(model: GPTModel, folder: Path) -> None:
    """Load a checkpoint; whatever is missing or too much is an error."""
    wanted = model.sharded_state_dict(prefix="model.")
    state = dist_checkpointing.load(wanted, str(folder), strict=StrictHandling.RAISE_ALL)
    model.load_state_dict({key.removeprefix("model."): value for key, value in state.items()}, strict=True)


def difference(model: GPTModel, folder: Path, vocab: int) -> float:
    """Return the largest difference between the logits of both implementations."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, vocab, (3, 24))
    positions = torch.arange(24).expand_as(ids)
    mask = torch.ones(24, 24, dtype=torch.bool).triu(1)[None, None]
    with torch.no_grad():
        return float((model(ids, positions, mask)[..., :vocab] - theirs(ids).logits).abs().max())


def main() -> None:
    """Go through the models of a folder."""
    torch.manual_seed(0)
    work, world = Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{work}/store", rank=0, world_size=1)
    else:
        torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=world)
    report = {}
    ways = sys.argv[2:]
    for folder in sorted(path.parent for path in work.glob("*/nemo")):
        config = json.loads((folder / "hf/config.json").read_text())
        model = build(config, world)
        load(model, folder / "nemo/model_weights")
        if world == 1:
            report[folder.name] = difference(model, folder / "hf", config["vocab_size"])
        for way in ways:
            prefix, metadata = WAYS[way]
            output = folder / f"{way}-{world}"
            if torch.distributed.get_rank() == 0:
                output.mkdir()
            torch.distributed.barrier()
            dist_checkpointing.save(model.sharded_state_dict(prefix=prefix, metadata=metadata), str(output))
    if world == 1:
        (work / "report.json").write_text(json.dumps(report))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
