"""Preference pairs for tests of DPO, and DPO written out by hand."""

import json
import random
from pathlib import Path
from typing import Any

STEP_PAIRS = 16


def write_graded(path: Path, problems: int, seed: int = 0) -> Path:
    """Write graded generations: right answers calculate, wrong ones guess, in words that vary."""
    dice = random.Random(seed)
    rows = []
    for number in range(problems):
        a, b = dice.randrange(100), dice.randrange(100)
        reasons = f"{a}+{b}={a + b}." + " And so on." * dice.randrange(4)
        excuses = "No idea." + " Perhaps." * dice.randrange(4)
        for text, answer in ((reasons, a + b), (excuses, a + b + 1 + dice.randrange(9))):
            rows.append(
                {
                    "problem": f"{number}: Ann has {a} apples and gets {b} more. How many?",
                    "generation": f"{text} The answer is \\boxed{{{answer}}}.",
                    "verdict": "correct" if answer == a + b else "incorrect",
                    "finish_reason": "stop",
                }
            )
    dice.shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_pairs(path: Path, count: int, seed: int = 0) -> Path:
    """Write pairs of answers of very different lengths, neither of which is easy to tell from the other."""
    dice = random.Random(seed)
    rows = []
    for _ in range(count):
        a, b = dice.randrange(100), dice.randrange(100)
        texts = [f"It is {n}." + " And so on." * dice.randrange(6) for n in (a + b, a + b + 1)]
        rows.append(
            {"prompt": f"Ann has {a} apples, {b} more. How many?\n", "chosen": texts[0], "rejected": texts[1]}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plain_log_prob(model: Any, tokenizer: Any, prompt: str, answer: str) -> Any:
    """Return the log-probability of an answer and its end, and how many tokens that is."""
    import torch

    asked = tokenizer(prompt)["input_ids"]
    said = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    logits = model(input_ids=torch.tensor([asked + said])).logits[0]
    of_all = torch.log_softmax(logits[len(asked) - 1 : -1], dim=-1)
    return of_all[torch.arange(len(said)), torch.tensor(said)].sum(), len(said)


def plain_dpo(folder: Path, rows: Path, steps: int, lr: float, loss: str) -> list[tuple[float, float]]:
    """Train in the order of the file; return loss and margin of the rewards of each step.

    Args:
        folder: the model.
        rows: pairs.
        steps: of 16 pairs.
        lr: learning rate.
        loss: "dpo" with beta 0.2; or "ipo" with beta 0.5, of means over tokens, and 0.3 of the loss of the
            better answer's tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    learning, start = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    matrices = [p for p in learning.parameters() if p.ndim == 2]
    vectors = [p for p in learning.parameters() if p.ndim == 1]
    groups: Any = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-8)
    pairs = [json.loads(line) for line in rows.read_text().splitlines()]
    figures = []
    for step in range(steps):
        losses, margins = [], []
        for pair in pairs[step * STEP_PAIRS : (step + 1) * STEP_PAIRS]:
            (win, win_tokens), (lose, lose_tokens) = (
                plain_log_prob(learning, tokenizer, pair["prompt"], pair[key])
                for key in ("chosen", "rejected")
            )
            with torch.no_grad():
                win_start, lose_start = (
                    plain_log_prob(start, tokenizer, pair["prompt"], pair[key])[0]
                    for key in ("chosen", "rejected")
                )
            if loss == "dpo":
                margin = 0.2 * ((win - win_start) - (lose - lose_start))
                losses.append(torch.log(1 + torch.exp(-margin)))
            else:
                gap = (win - win_start) / win_tokens - (lose - lose_start) / lose_tokens
                margin = 0.5 * gap
                losses.append((gap - 1.0) ** 2 - 0.3 * win / win_tokens)
            margins.append(margin.item())
        mean = torch.stack(losses).mean()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(learning.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        figures.append((mean.item(), sum(margins) / len(margins)))
    return figures
