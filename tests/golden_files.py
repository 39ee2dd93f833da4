"""Golden files: what the code renders today, compared word for word with what was reviewed."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("golden")


def assert_golden(name: str, text: str) -> None:
    """Compare with `tests/golden/<name>`, which must exist; NS_UPDATE_GOLDEN=1 writes it instead."""
    path = GOLDEN / name
    if os.environ.get("NS_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    if not path.is_file():
        pytest.fail(f"{path} is missing; NS_UPDATE_GOLDEN=1 writes it", pytrace=False)
    expected = path.read_text(encoding="utf-8")
    if text != expected:
        lines = difflib.unified_diff(
            expected.splitlines(), text.splitlines(), f"golden/{name}", "rendered now", lineterm=""
        )
        shown = "\n".join(lines) or "they differ in line ends only"
        pytest.fail(f"{shown}\n\nIf this is intended: NS_UPDATE_GOLDEN=1, and review the diff", pytrace=False)
