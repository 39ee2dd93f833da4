"""Reads a result back: all numbers by hash, and what transformers computes with them."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_skills.conversion.byte_ranges import FilePlan, Source, TensorData
from nemo_skills.conversion.hf_plan import plan_hf
from nemo_skills.conversion.hf_source import CONFIG, HFSource, is_tokenizer_file, open_hf
from nemo_skills.conversion.mapping import Span, nemo_rows
from nemo_skills.conversion.nemo_plan import plan_nemo
from nemo_skills.conversion.nemo_source import NemoSource, open_nemo
from nemo_skills.conversion.result import Result, number_of_processes, write_result
from nemo_skills.core.errors import UserError, require
from nemo_skills.core.jsonl import disk_errors, open_locked
from nemo_skills.core.log import get_logger

if TYPE_CHECKING:
    import torch

LOG = get_logger(__name__)

_PROMPTS = ("The capital of France is", "def add(a, b):\n    return", "If 3 apples cost 6 dollars, one costs")
_LENGTH = 12
_TOLERANCE = 1e-4
"""Largest difference, relative to the largest logit: the same numbers may be summed up in another order."""
_ONE_FILE = 1 << 62


def verify_nemo(source: HFSource, target: str | None, result: Path) -> None:
    """See to it that a checkpoint holds a Hugging Face model, and that the way back gives the same model.

    Args:
        source: The model.
        target: The type that it was cast to, if it was.
        result: The checkpoint.

    Raises:
        UserError: it does not.
    """
    with open_nemo(result, None, None, result.parent) as back:
        _compare_hashes(source, target, back, None)
        again = _scratch(result)
        _write(again, plan_hf(back, None, _ONE_FILE), back.nbytes)
    _compare_logits(source.folder, again, target)
    shutil.rmtree(again)


def verify_hf(source: NemoSource, target: str | None, result: Path) -> None:
    """See to it that a Hugging Face folder holds a checkpoint's model, and that survives a round trip.

    Args:
        source: The checkpoint.
        target: The type that it was cast to, if it was.
        result: The folder.

    Raises:
        UserError: it does not.
    """
    converted = open_hf(result, None)
    _compare_hashes(converted, None, source, target)
    scratch = _scratch(result)
    size = source.nbytes
    _write(scratch / "nemo", plan_nemo(converted, None, None, _ONE_FILE), size)
    with open_nemo(scratch / "nemo", None, None, scratch) as there:
        _write(scratch / "hf", plan_hf(there, None, _ONE_FILE), size)
    _compare_logits(result, scratch / "hf", None)
    shutil.rmtree(scratch)


def verify_done(output: Path, check: Callable[[Path], None] | None) -> None:
    """See to it that a result of an earlier conversion is right, if that is asked for.

    Raises:
        UserError: it is not; it is left as it is.
    """
    if check is None:
        return
    scratch = output.with_name(f"{output.name}.unfinished")
    with disk_errors(output):
        scratch.mkdir(exist_ok=True)
        lock = open_locked(scratch / "lock")
        try:
            # under this name a check finds a place of its own beside it
            link = scratch / "result"
            link.unlink(missing_ok=True)
            link.symlink_to(output.absolute())
            check(link)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(lock)


def _scratch(result: Path) -> Path:
    """Return where a round trip is written: beside the result, which has not got its name yet."""
    folder = result.with_name("verification")
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _write(output: Path, files: list[FilePlan], nbytes: int) -> None:
    write_result(Result(output=output, files=files, sources={}, processes=number_of_processes(None, nbytes)))


def _compare_hashes(hf: HFSource, hf_target: str | None, nemo: NemoSource, nemo_target: str | None) -> None:
    places = nemo_rows(nemo.family, nemo.config.shape)
    with Source() as reader:
        for name, kind in hf.kinds.items():
            if name not in places:
                continue
            whole = TensorData(
                name, (hf.rows(Span(name, 0, kind.shape[0])),), kind.dtype, hf_target or kind.dtype
            )
            other = nemo.data(name, places[name], nemo_target)
            if whole.target != other.target or _digest(reader, whole) != _digest(reader, other):
                raise UserError(f"verification failed: tensor {name} is not the same in {nemo.files.where}")
    LOG.info("verified: %d tensors are the same by their hashes", len(places))


def _digest(reader: Source, data: TensorData) -> bytes:
    digest = hashlib.sha256()
    for block in reader.blocks(data):
        digest.update(block)
    return digest.digest()


def _compare_logits(before: Path, after: Path, target: str | None) -> None:
    try:
        import torch
        import transformers
    except ImportError:
        raise UserError("verify needs torch and transformers: install the extra 'train'") from None
    del transformers
    prompts = _prompts(before)
    one = _logits(before, prompts, target)
    other = _logits(after, prompts, target)
    for prompt, mine, theirs in zip(prompts, one, other, strict=True):
        difference = (mine - theirs).abs().max().item()
        finite = bool(torch.isfinite(mine).all() and torch.isfinite(theirs).all())
        require(finite, f"verification failed: logits of {before} are not finite for the tokens {prompt}")
        if difference > _TOLERANCE * max(1.0, mine.abs().max().item()):
            raise UserError(f"verification failed: logits differ by {difference:g} for the tokens {prompt}")
    LOG.info("verified: logits of %d prompts are the same before and after", len(prompts))


def _prompts(folder: Path) -> list[list[int]]:
    """Return token ids: of texts where there is a tokenizer, otherwise made up."""
    import orjson
    from transformers import AutoTokenizer

    vocab = int(orjson.loads((folder / CONFIG).read_bytes())["vocab_size"])
    if any(is_tokenizer_file(path.name) for path in folder.iterdir()):
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            texts = [list(tokenizer(text)["input_ids"])[:_LENGTH] for text in _PROMPTS]
        except (
            Exception
        ) as error:  # what a broken tokenizer raises is anyone's guess, and no fault of weights
            LOG.warning("the tokenizer of %s cannot be loaded: %s", folder, error)
        else:
            return [[token % vocab for token in text] for text in texts if text]
    return [
        [(7 * seed + 3 * position) % vocab for position in range(_LENGTH)] for seed in range(len(_PROMPTS))
    ]


def _logits(folder: Path, prompts: list[list[int]], dtype: str | None) -> "list[torch.Tensor]":
    import torch
    from transformers import AutoModelForCausalLM

    from nemo_skills.conversion.dtypes import torch_name

    kind = getattr(torch, torch_name(dtype)) if dtype else "auto"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).logits.float() for prompt in prompts]
