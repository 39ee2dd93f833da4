"""How fast answers are graded, against calling math-verify in a plain loop, and with answers that hang.

A batch is half word problems with a number as answer, half symbolic answers (fractions, roots, polynomials,
sets, intervals, matrices) with random numbers, so that no two comparisons are the same; one in four is wrong.

- `vs_loop`: answers a second of the grading pool, over those of a loop that parses and verifies the same
  texts with math-verify, in one process and with its own defaults. `symbolic_vs_loop` is the same for the
  symbolic half alone.
- `poisoned_vs_clean`: the time for a batch in which one answer in a hundred hangs for ever (in one call of C
  code) and has to be killed after the grader's time limit, over the time for the same batch without those.

Both times of a ratio are taken one after the other, several times; a noisy machine slows all alike.
Run: `python benchmarks/grading.py [answers] [repeats]`. The last line is one JSON object.
"""

import json
import logging
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from nemo_skills.evaluation.graders import GraderSpec
from nemo_skills.evaluation.graders.math import MathGrader
from nemo_skills.evaluation.pool import GradingPool, Item, Limits
from nemo_skills.evaluation.verdicts import Verdict

BOUNDS = {"vs_loop": 1.5, "poisoned_vs_clean": 1.5}
WRONG = 4
POISON = 100
STORY = (
    "First, the shop sells {a} boxes in the morning and {b} in the afternoon, which makes {c} boxes.\n"
    "Each of them costs 3 dollars, so we multiply by 3. " * 4
)
Row = dict[str, Any]
dice = random.Random(0)


def number(_: int) -> tuple[str, str, str]:
    """A number, and another way to write it."""
    a = dice.randint(1000, 10**6)
    return str(a), f"{a:,}", f"{a + 1:,}"


def fraction(_: int) -> tuple[str, str, str]:
    """A fraction that is not in lowest terms, times a variable."""
    a, b, c = dice.randint(2, 99), dice.randint(2, 99), dice.randint(2, 9)
    return rf"\frac{{{a}}}{{{b}}}x", rf"\frac{{{a * c}x}}{{{b * c}}}", rf"\frac{{{a * c}x}}{{{b * c + 1}}}"


def root(_: int) -> tuple[str, str, str]:
    """A root that can be simplified."""
    a, b = dice.randint(2, 99), dice.choice([2, 3, 5, 6, 7, 10, 11, 13])
    return rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"\sqrt{{{a * a * b + 1}}}"


def polynomial(_: int) -> tuple[str, str, str]:
    """A product of factors, and the same expanded."""
    a, b = dice.randint(1, 99), dice.randint(1, 99)
    return f"(x+{a})(x+{b})", f"x^2+{a + b}x+{a * b}", f"x^2+{a + b}x-{a * b}"


def numbers(_: int) -> tuple[str, str, str]:
    """A set in two orders."""
    a, b, c = dice.sample(range(1, 999), 3)
    return rf"\{{{a},{b},{c}\}}", f"{c}, {a}, {b}", f"{c}, {a}, {b + 1000}"


def interval(_: int) -> tuple[str, str, str]:
    """An interval, and the inequality."""
    a, b = sorted(dice.sample(range(1, 999), 2))
    return f"({a},{b}]", rf"{a} < x \le {b}", rf"{a} \le x \le {b}"


def matrix(_: int) -> tuple[str, str, str]:
    """A column, and the same with fractions."""
    a, b = dice.randint(1, 99), dice.randint(1, 99)
    column = r"\begin{{pmatrix}}{}\\{}\end{{pmatrix}}".format
    return column(a, b), column(rf"\frac{{{2 * a}}}{{2}}", b), column(rf"\frac{{{2 * a}}}{{3}}", b)


SYMBOLIC = (fraction, root, polynomial, numbers, interval, matrix)


def batch(count: int, kinds: Sequence[Callable[[int], tuple[str, str, str]]]) -> list[Row]:
    """Make rows, one kind after the other."""
    rows = []
    for i in range(count):
        expected, right, wrong = kinds[i % len(kinds)](i)
        answer = wrong if i % WRONG == 0 else right
        story = STORY.format(a=dice.randint(1, 99), b=dice.randint(1, 99), c=dice.randint(1, 99))
        rows.append({"expected_answer": expected, "generation": f"{story}\nSo it is $\\boxed{{{answer}}}$."})
    return rows


def poisoned(rows: list[Row]) -> list[Row]:
    """Replace answers by some that hang: binomial coefficients with hundreds of millions of digits."""
    hang = [rf"\boxed{{\binom{{{10**9 + i}}}{{{5 * 10**8}}}}}" for i in range(len(rows))]
    return [
        {**row, "generation": hang[i]} if i % POISON == POISON // 2 else row for i, row in enumerate(rows)
    ]


def by_pool(rows: list[Row]) -> tuple[float, dict[str, int]]:
    """Return the time that a pool takes, started and warm, and its verdicts."""
    limits = Limits(timeout_s=MathGrader.timeout_s, soft_timeout_s=MathGrader.soft_timeout_s)
    verdicts: dict[str, int] = {}
    with GradingPool(GraderSpec(name="math"), limits) as pool:
        # both start with the library imported
        list(pool.grade([Item(orjson.dumps({"generation": "1", "expected_answer": "1"}))] * 8))
        started = time.perf_counter()
        for graded in pool.grade(Item(orjson.dumps(row)) for row in rows):
            assert graded.grade is not None
            verdicts[graded.grade.verdict] = verdicts.get(graded.grade.verdict, 0) + 1
        return time.perf_counter() - started, verdicts


def by_loop(rows: list[Row]) -> tuple[float, int]:
    """Return the time that a loop takes, and how many answers it finds correct."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    verify(parse("$x^2+2x+1$"), parse("$(x+1)^2$"))
    started = time.perf_counter()
    correct = sum(verify(parse(f"${row['expected_answer']}$"), parse(row["generation"])) for row in rows)
    return time.perf_counter() - started, correct


def main() -> int:
    """Measure, print, and fail when a bound is broken."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20000
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    mixed: list[Callable[[int], tuple[str, str, str]]] = [
        kind for each in SYMBOLIC for kind in (number, each)
    ]
    ratios: dict[str, list[float]] = {"vs_loop": [], "symbolic_vs_loop": [], "poisoned_vs_clean": []}
    for _ in range(repeats):
        for name, kinds in (("vs_loop", mixed), ("symbolic_vs_loop", list(SYMBOLIC))):
            rows = batch(count // 16, kinds)
            loop, found = by_loop(rows)
            pool, verdicts = by_pool(rows)
            right = len(rows) - len(rows[::WRONG])
            print(f"{name}: loop {len(rows) / loop:.0f}/s, {found} of {right} right answers found")
            print(f"{name}: pool {len(rows) / pool:.0f}/s, {verdicts}")
            ratios[name].append(loop / pool)
        rows = batch(count, mixed)
        clean, verdicts = by_pool(rows)
        assert Verdict.timed_out not in verdicts, verdicts
        sick, verdicts = by_pool(poisoned(rows))
        hanging = sum(i % POISON == POISON // 2 for i in range(count))
        given_up = verdicts[Verdict.timed_out] - hanging
        # next to so many that hang, a slow answer may be given up; but hardly any
        assert 0 <= given_up <= count // 1000, verdicts
        print(f"poisoned: clean {clean:.1f} s; {hanging} that hang: {sick:.1f} s, {given_up} others given up")
        ratios["poisoned_vs_clean"].append(sick / clean)
    result = {name: round(statistics.median(values), 2) for name, values in ratios.items()}
    print(json.dumps({**result, "answers": count, "repeats": repeats}))
    return int(
        result["vs_loop"] < BOUNDS["vs_loop"] or result["poisoned_vs_clean"] > BOUNDS["poisoned_vs_clean"]
    )


if __name__ == "__main__":
    sys.exit(main())
