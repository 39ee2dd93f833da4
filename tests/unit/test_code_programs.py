"""What is taken from answers that hold programs, and which outputs count as the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.evaluation.graders.programs import assertion_program, extract_code, same_output, same_value


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\nfirst\n```\nbetter:\n```py\nsecond\n```\n```bash\nls\n```", "second\n"),
        ("```\nplain\n```", "plain\n"),
        ("```\nplain\n```\n```python\nnamed\n```\n```\noutput\n```", "named\n"),
        ("<think>```python\nno\n```</think>\n```python\nyes\n```", "yes\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("```python\ncut off = ", "cut off = "),
        ("```python\n\n```", None),
        ("no code at all", None),
        ("<think>```python\nonly thought\n```</think> I give up.", None),
    ],
)
def test_last_python_block(answer: str, code: str | None) -> None:
    assert extract_code(answer) == code


def test_body_alone_is_put_under_its_signature() -> None:
    row = {"problem": "def f(x):\n    '''Doc.'''\n", "entry_point": "f", "preamble": ""}
    program = assertion_program(row, "    return x\n", "assert f(1) == 1", 101)
    compile(program, "p", "exec")
    assert program.count("def f(") == 1
    whole = assertion_program(
        row, "from __future__ import annotations\ndef f(x): return x\n", "assert f(1)", 101
    )
    compile(whole, "p", "exec")
    assert "Doc." not in whole


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n3\n", "1 2 \n3", True),
        ("0.50\n", "0.5", True),
        ("1e3", "1000", True),
        ("YES", "yes", False),
        ("1\n2", "1 2", False),
        ("1\n\n2", "1\n2", False),
        ("nan", "nan", True),
        ("12", "1 2", False),
        ("", "", True),
    ],
)
def test_same_output(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) is same


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=_VALUES, other=_VALUES, noise=st.text())
def test_values_are_compared_as_values(value: object, other: object, noise: str) -> None:
    printed = f"{noise}\nmark:{json.dumps(value)}\n"
    assert same_value(printed, "mark:", json.dumps(value, indent=1))
    assert same_value(printed, "mark:", json.dumps(other)) == (value == other)
    assert not same_value(noise.replace("mark:", ""), "mark:", json.dumps(value))
