"""New weights for a model that is trained from scratch."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import torch

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import write_file
from nemo_skills.core.log import get_logger
from nemo_skills.training.config import ModelConfig
from nemo_skills.training.engine.export import copy_side_files
from nemo_skills.training.engine.parallel import Topology

LOG = get_logger(__name__)

_ORIGIN = ".json"
"""Beside the folder, not in it: what lies in the folder of a model is copied with it."""


def fresh_model(source: Path, config: ModelConfig, folder: Path, topology: Topology) -> Path:
    """Return a folder with new weights, made once for all runs that go on from each other.

    One process draws all weights from the seed and writes them: so they are the same on any number of
    processes. It needs the memory for them all.

    Args:
        source: folder of the tokenizer, and of config.json where no architecture is given.
        config: of the model.
        folder: to write to.
        topology: of the processes.

    Raises:
        UserError: there is no config, or it does not fit the tokenizer.
    """
    problem = None
    if topology.is_main and not _is_made(folder, config):
        try:
            _write(source, config, folder)
        except (OSError, ValueError, KeyError, RuntimeError, UserError) as error:
            problem = UserError(f"model.from_scratch: {error}")
    if problem := topology.from_main(problem):
        raise problem
    return folder


def _origin(config: ModelConfig) -> dict[str, Any]:
    shape = asdict(config.architecture) if config.architecture else None
    return {"tokenizer": config.restore_from_path, "seed": config.seed, "architecture": shape}


def _is_made(folder: Path, config: ModelConfig) -> bool:
    """Whether there are weights already; others, of a run that has saved nothing, are made anew."""
    try:
        found = orjson.loads(folder.with_name(folder.name + _ORIGIN).read_bytes())
    except (OSError, ValueError):
        return False
    return bool(found == _origin(config))


def _write(source: Path, config: ModelConfig, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    from nemo_skills.training.tokenise import load_tokenizer

    tokenizer = load_tokenizer(str(source))
    settings = _settings(source, config, tokenizer)
    if len(tokenizer) > settings.vocab_size:
        raise UserError(f"the tokenizer has {len(tokenizer)} tokens, the model {settings.vocab_size}")
    draft = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    LOG.info("New weights: %s of a %s", f"{model.num_parameters():,}", settings.model_type)
    copy_side_files(source, draft)
    model.save_pretrained(draft)
    origin = folder.with_name(folder.name + _ORIGIN)
    origin.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)
    write_file(origin, orjson.dumps(_origin(config)))


def _settings(source: Path, config: ModelConfig, tokenizer: Any) -> Any:
    from transformers import AutoConfig

    if config.architecture is None:
        return AutoConfig.from_pretrained(source)
    # families differ in their default
    shape = asdict(config.architecture) | {"head_dim": config.architecture.head_size}
    given = {name: value for name, value in shape.items() if value is not None}
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return AutoConfig.for_model(given.pop("model_type"), **given, **ends)
