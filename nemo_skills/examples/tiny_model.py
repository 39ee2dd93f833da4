"""Builds a tiny language model on disk: `python -m nemo_skills.examples.tiny_model --output DIR`.

A Llama of half a million random weights with a tokenizer and a chat template. What it writes is nonsense,
but every server can load it within seconds and without a GPU, so a whole pipeline can be tried before a real
model is involved.
"""

import argparse
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import disk_errors
from nemo_skills.core.script import run_script

BOS, EOS, PAD, TURN_BEGIN, TURN_END = "<|begin|>", "<|end|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (BOS, EOS, PAD, TURN_BEGIN, TURN_END)
VOCABULARY = 512
CONTEXT_LENGTH = 4096

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def build(output: Path, seed: int = 0, *, for_training: bool = False) -> Path:
    """Write the model to the folder `output`; the same seed gives the same bytes.

    Args:
        output: folder to write to; made where absent.
        seed: of the random weights.
        for_training: small weights, as training wants them; else large ones, with which the text depends on
            the prompt and does not repeat one token.
    """
    try:
        import torch
        from transformers import GenerationConfig, LlamaForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'nemo-skills[serve]'") from None
    logging.disable_progress_bar()
    tokenizer = build_tokenizer()
    config = _model_config(tokenizer, weights=0.02 if for_training else 0.2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    _mute(model, tokenizer)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids([TURN_END, EOS]),
        pad_token_id=config.pad_token_id,
    )
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    return output


def build_tokenizer() -> Any:
    """Return the tokenizer: byte-level BPE learned from the shipped texts, every digit a token of its own."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=TURN_END,
        pad_token=PAD,
        model_max_length=CONTEXT_LENGTH,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _model_config(tokenizer: Any, weights: float) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        initializer_range=weights,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def _mute(model: Any, tokenizer: Any) -> None:
    """Make control characters, stray bytes and opening tags unlikely: they would garble a terminal."""
    import torch
    from tokenizers import pre_tokenizers

    space, newline = "Ġ", "Ċ"
    odd = {c for c in pre_tokenizers.ByteLevel.alphabet() if not c.isascii()} - {space, newline}
    ids = tokenizer.convert_tokens_to_ids([*sorted(odd), BOS, PAD, TURN_BEGIN])
    with torch.no_grad():
        model.get_input_embeddings().weight[ids] *= 0.1


def _texts() -> Iterator[str]:
    package = files("nemo_skills")
    shipped = ("examples/word_problems.jsonl", "prompt/few_shot_examples/math_word_problems.jsonl")
    for name in shipped:
        for line in package.joinpath(name).read_text(encoding="utf-8").splitlines():
            yield from json.loads(line).values()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_skills.examples.tiny_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    args = parser.parse_args()
    print(f"tiny model in {build(args.output, args.seed)}")


if __name__ == "__main__":
    run_script(main)
