"""Markdown and LaTeX of generations as HTML."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.evaluation.viewer.text import render


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("It costs $5 and $6.", 0),
        ("It costs $5 and x is $x$.", 1),
        ("\\[x^2\\] in a line, \\(y\\) and $$z$$", 3),
        ("before\n\\[\nx\n- y\n\\]\nafter", 1),
        ("\\begin{align*}a&=b\\\\c&=d\\end{align*}", 1),
        ("`$x$` and\n```\n\\[y\\]\n```\n", 0),
        ("\\$x\\$", 0),
        ("$a_1$ * $b_2$ and *c*", 2),
        ("$x$-axis, **$y$**", 2),
    ],
)
def test_formulas_are_found(text: str, formulas: int) -> None:
    assert render(text).count("<math") == formulas


def test_code_and_emphasis_are_kept() -> None:
    assert "<em>c</em>" in render("$a_1$ * $b_2$ and *c*")
    assert "<code>$x$</code>" in render("`$x$`")
    assert "<td>" in render("|a|b|\n|-|-|\n|1|$2$|")


def test_what_is_no_latex_is_shown_as_it_is() -> None:
    assert "<code>a}^^&lt;b&gt;{</code>" in render("$a}^^<b>{$")


def test_hostile_text() -> None:
    formulas = "$\\text{<img src='x'/>}$ $\\text{<b>}$"
    shown = render(f"<script>x</script> [a](javascript:alert(1)) ![i](http://x/y) {formulas}")
    assert "<script" not in shown
    assert "<img" not in shown
    assert "<b>" not in shown
    assert 'href="javascript' not in shown


@pytest.mark.parametrize("text", ["$" * 50_000, "\\[" * 50_000, "`" * 50_000, "{" * 50_000, "$$a" * 30_000])
def test_no_text_takes_long(text: str) -> None:
    started = time.monotonic()
    render(text)
    assert time.monotonic() - started < 20


@given(st.text(alphabet="$\\[](){}`~*_ab1 \n<>&\ue000\ue001"))
def test_any_text_is_shown(text: str) -> None:
    shown = render(text)
    assert "\ue000" not in shown
    assert "<a>" not in shown
