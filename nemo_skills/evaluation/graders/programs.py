"""From a model's answer to programs that test it, and what counts as the right output."""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from nemo_skills.evaluation.graders.mathematics.extraction import after_reasoning

_BLOCK = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_PYTHON = ("python", "py", "python3")
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)
_IMPORTS = """\
import bisect, collections, copy, datetime, functools, heapq, itertools
import math, operator, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
sys.setrecursionlimit(50000)
"""
# what the program prints is not its result, and may be long
_SILENCE = """\
import os as _os
_result_fd_ = _os.dup(1)
_os.dup2(_os.open(_os.devnull, _os.O_WRONLY), 1)
"""
_CALL = """

def _call_it():
    import json, sys
    values = [json.loads(line) for line in sys.stdin.read().splitlines() if line.strip()]
    target = globals().get("Solution")
    function = getattr(target(), {name!r}) if target is not None else globals()[{name!r}]
    text = json.dumps(function(*values))
    with open(_result_fd_, "w") as file:
        file.write("\\n" + {mark!r} + text)

_call_it()
"""
_IMPORT = re.compile(r"^(?:import|from)[ \t]+(\w+)", re.MULTILINE)
_CHECK = """\
import importlib.util, sys
print(sys.executable)
print(*(name for name in {names!r} if importlib.util.find_spec(name) is None))
"""


def extract_code(text: str) -> str | None:
    """Return the program in an answer: its last Python block, or the last of unnamed kind; None: no block."""
    answer = after_reasoning(text)
    blocks = [(found[2].lower(), found[3]) for found in _BLOCK.finditer(answer)]
    for kinds in (_PYTHON, ("",)):
        code = [body for kind, body in blocks if kind in kinds and body.strip()]
        if code:
            return code[-1]
    return None


def assertion_program(row: Mapping[str, Any], code: str, test: str, passed: int) -> str:
    """Return a program that ends with exit code `passed` if a function passes its assertions."""
    name, problem = row.get("entry_point"), str(row.get("problem", ""))
    defined = not name or re.search(rf"\b{re.escape(name)}\b\s*(?:\(|=|:)", code)
    if not defined and f"def {name}(" in problem:
        code = problem + code  # only the body was given
    return _with_preamble(
        str(row.get("preamble") or ""), f"{code}\n\n{test}\n\nimport os as _os\n_os._exit({passed})\n"
    )


def contest_program(code: str) -> str:
    """Return a program that reads standard input."""
    return _with_preamble(_IMPORTS, code)


def call_program(name: str, code: str, mark: str) -> str:
    """Return a program that calls a function, or a method of `Solution`, with values of standard input.

    It prints the result as JSON after `mark`, and nothing else.
    """
    return _with_preamble(_SILENCE + _IMPORTS, code + _CALL.format(name=name, mark=mark))


def imports_of(test: str) -> set[str]:
    """Return the modules that a test imports first of all."""
    return set(_IMPORT.findall(test))


def import_check(names: Sequence[str]) -> str:
    """Return a program that prints its interpreter, and in a line of their own the modules that it lacks."""
    return _CHECK.format(names=tuple(names))


def _with_preamble(preamble: str, code: str) -> str:
    future = "".join(_FUTURE.findall(code))
    return f"{future}{preamble}\n{_FUTURE.sub('', code)}"


def same_value(stdout: str, mark: str, expected: str) -> bool:
    """Tell whether a call printed the expected JSON value after the mark."""
    _, found, printed = stdout.rpartition(f"\n{mark}")
    try:
        return bool(found) and bool(json.loads(printed) == json.loads(expected))
    except ValueError:
        return False


def same_output(printed: str, expected: str) -> bool:
    """Tell whether two outputs agree line by line, but for blanks at ends and how numbers are written."""
    left, right = _lines(printed), _lines(expected)
    return len(left) == len(right) and all(
        one == other or _same_line(one, other) for one, other in zip(left, right, strict=True)
    )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _same_line(one: str, other: str) -> bool:
    left, right = one.split(), other.split()
    return len(left) == len(right) and all(map(_same_word, left, right))


def _same_word(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return Decimal(one) == Decimal(other)
    except InvalidOperation:
        return False
