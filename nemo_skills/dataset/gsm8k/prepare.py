"""Prepares GSM8K: `python -m nemo_skills.dataset.gsm8k.prepare`.

Writes rows with `problem`, `expected_answer` and `reference_solution`.
"""

import argparse
import hashlib
import http.client
import json
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import check_input, disk_errors, write_file
from nemo_skills.core.script import run_script
from nemo_skills.dataset.gsm8k import DEFAULTS

_ORIGIN = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
_TIMEOUT_S = 30
_FINAL_ANSWER = re.compile(r"\s*#### *(-?[\d,]*\.?\d+)\s*$")
_CALCULATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, kw_only=True)
class Split:
    """What a complete, unchanged split looks like."""

    rows: int
    sha256: str
    """Of all questions and answers, so that formatting of the file does not matter."""


SPLITS = {
    "test": Split(rows=1319, sha256="5b736e25f3d1e6cdeef6b3d89e3dc71a7e3c20288f93f1bda635f6fbeb4f41b5"),
    "train": Split(rows=7473, sha256="937e90ecc5698135a95d098621de3388f3b63bec4dbd8fc1b349adf8612890aa"),
}


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """A row as GSM8K's authors publish it."""

    question: str
    answer: str

    def prepared(self) -> dict[str, str]:
        """Return the row as this project uses it: the answer apart, calculator annotations removed."""
        final = _FINAL_ANSWER.search(self.answer)
        if final is None:
            raise UserError("an answer does not end with '#### <number>'")
        return {
            "problem": self.question,
            "expected_answer": final.group(1).replace(",", ""),
            "reference_solution": _CALCULATION.sub("", self.answer[: final.start()]),
        }


def prepare(split: str, output_dir: Path, source: Path | None = None) -> Path:
    """Write `<split>.jsonl` into `output_dir` and return its path.

    Args:
        split: `test` or `train`.
        output_dir: folder to write to; made where absent.
        source: a downloaded file of that split, for machines that cannot reach its origin.
    """
    where = str(source) if source else f"{_ORIGIN}/{split}.jsonl"
    rows = parse_rows(_read(source) if source else _download(where, split), where)
    _check(rows, split, where)
    lines = [json.dumps(row.prepared(), ensure_ascii=False) + "\n" for row in rows]
    output = output_dir / f"{split}.jsonl"
    with disk_errors(output):
        output_dir.mkdir(parents=True, exist_ok=True)
        write_file(output, "".join(lines).encode())
    return output


def parse_rows(data: bytes, where: str) -> list[SourceRow]:
    """Parse the published format, one JSON object with question and answer a line."""
    rows = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, answer = row["question"], row["answer"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{where}, line {number}: not a JSON object with 'question' and 'answer'; "
                "the file as GSM8K's authors publish it is needed"
            ) from None
        rows.append(SourceRow(question=question, answer=answer))
    return rows


def content_hash(rows: Sequence[SourceRow]) -> str:
    """Return the SHA-256 of the questions and answers in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.question, row.answer]).encode() + b"\n")
    return digest.hexdigest()


def _check(rows: Sequence[SourceRow], split: str, where: str) -> None:
    expected = SPLITS[split]
    if len(rows) != expected.rows:
        others = [name for name, other in SPLITS.items() if other.rows == len(rows)]
        hint = f" This is the {others[0]} split: use --split {others[0]}." if others else ""
        raise UserError(f"{where}: {len(rows)} rows, but GSM8K {split} has {expected.rows}.{hint}")
    if content_hash(rows) != expected.sha256:
        raise UserError(f"{where}: the number of rows is right, but their content differs from GSM8K {split}")


def _read(source: Path) -> bytes:
    check_input(source)
    return source.read_bytes()


def _download(url: str, split: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310 (https, fixed host)
            data: bytes = response.read()
            return data
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"cannot download {url} ({error}); fetch it elsewhere and pass it with --source {split}.jsonl",
            exit_code=1,
        ) from None


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m nemo_skills.dataset.gsm8k.prepare", description=__doc__)
    parser.add_argument("--split", choices=tuple(SPLITS), default=DEFAULTS.eval_split)
    parser.add_argument("--source", type=Path, help="an already downloaded file of the split")
    parser.add_argument("--output_dir", type=Path, default=Path("data/gsm8k"))
    args = parser.parse_args()
    output = prepare(args.split, args.output_dir, args.source)
    print(f"{SPLITS[args.split].rows} rows in {output}")


if __name__ == "__main__":
    run_script(main)
