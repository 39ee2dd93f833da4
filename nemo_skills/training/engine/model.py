"""Loads a Hugging Face model, spread over the processes, and refuses what would be silently wrong."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.training.config import ModelConfig
from nemo_skills.training.engine import attention
from nemo_skills.training.engine.dropout import add_dropout
from nemo_skills.training.engine.loss import install_token_losses
from nemo_skills.training.engine.parallel import Topology

LOG = get_logger(__name__)

_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack")
# how configs of mixture-of-experts models call their number
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


_MOST_SAID = 400
"""Letters of somebody else's message."""


def find_model(name: str, topology: Topology, *, weights: bool = True) -> Path:
    """Return the folder of a model; one that is named is downloaded, or found in the cache.

    Args:
        name: folder, or name on the hub.
        topology: of the processes.
        weights: whether its weights are needed; without them neither is its config.json.

    Raises:
        UserError: there is no such model.
    """
    path = Path(name).expanduser()
    if (path / "config.json").is_file() or (not weights and path.is_dir()):
        return path
    if path.exists() or name.startswith(("/", ".", "~")):
        what = "has no config.json: it is no Hugging Face model" if path.exists() else "does not exist"
        raise UserError(f"model.restore_from_path={name}: the folder {what}.")
    from huggingface_hub import snapshot_download

    try:
        # one process fetches, the others find it in the cache
        for mine in (topology.is_main, not topology.is_main):
            if mine:
                path = Path(snapshot_download(name, ignore_patterns=None if weights else list(_WEIGHTS)))
            topology.barrier()
    except Exception as error:
        raise UserError(
            f"model.restore_from_path={name}: no such folder, and not found online: {error}"
        ) from None
    return path


def build_model(folder: Path, config: ModelConfig, topology: Topology, *, bf16: bool) -> Any:
    """Load a model for training; `model(…, targets=…)` returns the losses of the trained tokens.

    Raises:
        UserError: the model cannot be trained in this way.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    attention.register()
    with _loading(config):
        settings = AutoConfig.from_pretrained(folder)
    refuse(settings, config, topology)
    options: dict[str, Any] = {
        "dtype": torch.float32,
        "attn_implementation": _attention(config, topology, bf16=bf16),
    }
    if topology.world_size > 1:
        options["distributed_config"] = _spread(config, topology, bf16=bf16)
    elif topology.device.type != "cpu":
        options["device_map"] = {"": topology.device}
    with _loading(config):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, config=settings, output_loading_info=True, **options
        )
    _check_complete(sorted(report["missing_keys"]), config)
    if getattr(model, "_is_stateful", False) or not model._supports_attention_backend:
        raise UserError(f"{type(model).__name__} cannot keep rows apart that lie in one sequence.")
    _check_sharded(model, config, topology)
    with evaluating(model):
        install_token_losses(model, config.loss_chunk_size, topology.device)
    add_dropout(model, config)
    if config.peft.peft_scheme == "lora":
        from nemo_skills.training.engine.lora import add_lora

        add_lora(model, config, topology)
    if config.activations_checkpoint_granularity == "full":
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train()


def _check_complete(missing: list[str], config: ModelConfig) -> None:
    """Refuse a model whose files lack weights: transformers would make them up."""
    if missing:
        more = f" and {len(missing) - 1} more weights are" if len(missing) > 1 else " is"
        raise UserError(
            f"model.restore_from_path={config.restore_from_path}: {missing[0]}{more} missing from its files."
        )


@contextlib.contextmanager
def _loading(config: ModelConfig) -> Iterator[None]:
    """Say in one line what is wrong with a model's files, or with how it should be loaded."""
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = shorten(" ".join(str(error).split()), _MOST_SAID, placeholder=" ...")
        own = config.attn_implementation
        raise UserError(
            f"model.restore_from_path={config.restore_from_path}"
            f"{f' with model.attn_implementation={own}' if own else ''} cannot be loaded: {reason}"
        ) from error


def autocast(topology: Topology, *, bf16: bool) -> contextlib.AbstractContextManager[Any]:
    """Return what makes a forward pass compute in bfloat16."""
    if not bf16:
        return contextlib.nullcontext()
    cast: contextlib.AbstractContextManager[Any] = torch.autocast(topology.device.type, torch.bfloat16)
    return cast


def refuse(settings: Any, config: ModelConfig, topology: Topology) -> None:
    """Check that this model can be spread in this way; some combinations would be silently wrong.

    Raises:
        UserError: it cannot.
    """
    text = settings.get_text_config()
    tp, data = topology.tp, topology.data_size
    if tp > 1 and data > 1 and getattr(text, "tie_word_embeddings", False):
        raise UserError(
            "This model's input and output embeddings are tied, which gives wrong results with tensor "
            "parallelism and several data- or context-parallel processes at once. Use "
            "model.tensor_model_parallel_size=1, or no other processes than the tensor-parallel ones."
        )
    if tp > 1 and any(getattr(text, name, None) for name in _EXPERTS):
        raise UserError(
            "The experts of this model cannot be split in training: use model.tensor_model_parallel_size=1; "
            "FSDP spreads them over the processes."
        )
    heads: Any = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", tp)
    if heads % tp:
        raise UserError(f"model.tensor_model_parallel_size={tp} does not divide the {heads} key-value heads.")
    if topology.cp > 1 and config.attn_implementation is not None:
        raise UserError("model.context_parallel_size needs our own attention: leave out attn_implementation.")


def _attention(config: ModelConfig, topology: Topology, *, bf16: bool) -> str:
    if config.attn_implementation is not None:
        return config.attn_implementation
    # flash attention computes in half precision only
    if bf16 and topology.device.type == "cuda" and topology.cp == 1:
        from transformers.utils import is_flash_attn_2_available

        if is_flash_attn_2_available():
            return "flash_attention_2"
    return attention.NAME


def _spread(config: ModelConfig, topology: Topology, *, bf16: bool) -> Any:
    from transformers.distributed import DistributedConfig

    copies = {"fsdp_size": topology.data_size} if config.fsdp else {"dp_replicate_size": topology.data_size}
    return DistributedConfig(tp_size=topology.tp, fsdp_mixed_precision=bf16, **copies)


def _check_sharded(model: Any, config: ModelConfig, topology: Topology) -> None:
    """Make sure that weights really are spread: copies in every process would train, too."""
    if topology.world_size == 1:
        return
    matrices = [(name, p) for name, p in model.named_parameters() if p.ndim > 1 and "layers." in name]
    for name, parameter in matrices:
        if not isinstance(parameter, DTensor):
            raise UserError(
                f"{type(model).__name__}: {name} was not spread over the {topology.world_size} processes."
            )
        whole = parameter.numel()
        shards = topology.tp * (topology.data_size if config.fsdp else 1)
        if shards > 1 and parameter.to_local().numel() >= whole:
            raise UserError(f"{type(model).__name__}: every process has the whole of {name}.")


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch dropout and gradients off for a while."""
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()
        # without a backward pass FSDP leaves the last weights whole: others would see those
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
