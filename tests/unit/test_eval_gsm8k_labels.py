"""The math grader against labels that GSM8K's authors gave to solutions of their models."""

import json
from pathlib import Path

from nemo_skills.dataset.gsm8k import DEFAULTS
from nemo_skills.evaluation.graders import get_grader
from nemo_skills.evaluation.verdicts import Verdict

LABELS = Path(__file__).resolve().parents[1] / "data" / "gsm8k_labelled_endings.jsonl"
AGREEMENT = 0.995

# Expected answer, ending and label wherever the grader says otherwise. A label that comes from comparing
# texts ("A: 70000.0" for 70000 labelled wrong, say) would be listed here, the grader left as it is. There is
# none among those read: "A: 14000" for 14,000 is labelled right.
DISAGREEMENTS: set[tuple[str, str, bool]] = set()


def test_labels_of_model_solutions() -> None:
    rows = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 740
    assert sum(row["correct"] for row in rows) == 322
    assert DEFAULTS.grader_options == ()
    grader = get_grader(DEFAULTS.grader)
    disagreements, agreed = set(), 0
    for row in rows:
        verdict = grader.grade({"generation": row["ending"], "expected_answer": row["expected"]}).verdict
        if (verdict is Verdict.correct) == row["correct"]:
            agreed += 1
        else:
            disagreements.add((row["expected"], row["ending"], row["correct"]))
    assert disagreements == DISAGREEMENTS
    assert agreed / len(rows) >= AGREEMENT
