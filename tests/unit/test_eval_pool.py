"""The grading pool: hangs, crashes, order, memory, and what is left behind."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.evaluation.graders import GraderSpec
from nemo_skills.evaluation.pool import GradingPool, Item, Limits
from nemo_skills.evaluation.verdicts import Grade, Verdict

GRADERS = "tests.unit.eval_graders"
OBEDIENT = GraderSpec(name=f"{GRADERS}:Obedient")
WAIT_S = 60.0


def item(act: Any, *, grade: bool = True) -> Item:
    return Item(orjson.dumps({"do": act}), grade=grade)


def grade_all(acts: list[Any], timeout_s: float = 1.0) -> list[Grade]:
    with GradingPool(OBEDIENT, Limits(timeout_s=timeout_s, processes=2)) as pool:
        grades = [graded.grade for graded in pool.grade(map(item, acts))]
    assert all(grade is not None for grade in grades)
    return [grade for grade in grades if grade is not None]


def children() -> set[int]:
    """The processes that this process has started, and those that they have."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + WAIT_S
    while alive := set(filter(lives, pids)):
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = children()
    yield
    wait_until_gone(children() - before)


def test_whatever_goes_wrong_disturbs_no_other_answer() -> None:
    trouble = {
        "spin": Verdict.timed_out,
        "sleep": Verdict.timed_out,
        "eat": Verdict.timed_out,
        "segfault": Verdict.grader_error,
        "exit": Verdict.grader_error,
        "raise": Verdict.grader_error,
        "unwritable": Verdict.grader_error,
    }
    acts = [act for number, name in enumerate(trouble) for act in (name, number)]
    grades = grade_all([*range(10), *acts, *range(10)])
    asked = [*range(10), *acts, *range(10)]
    for act, grade in zip(asked, grades, strict=True):
        if isinstance(act, str):
            assert grade.verdict is trouble[act], act
            assert grade.details["error"], act
        else:
            assert (grade.verdict, grade.predicted_answer) == (Verdict.correct, str(act))


def test_time_in_the_queue_does_not_count() -> None:
    # 40 answers of 0.15 s in batches: together far over the limit of one answer
    grades = grade_all([{"sleep": 0.15}] * 40, timeout_s=2.0)
    assert {grade.verdict for grade in grades} == {Verdict.correct}


def test_an_answer_that_hangs_does_not_hold_up_the_others() -> None:
    read = 0

    def items() -> Iterator[Item]:
        nonlocal read
        yield item("sleep")
        for number in range(5000):
            read += 1
            yield item(number)

    with GradingPool(OBEDIENT, Limits(timeout_s=3.0, processes=2)) as pool:
        graded = pool.grade(items())
        first = next(graded).grade
        # the others were graded while the first one hung
        assert read == 5000
        started = time.monotonic()
        assert sum(1 for _ in graded) == 5000
        assert time.monotonic() - started < 2.0
    assert first is not None
    assert first.verdict is Verdict.timed_out


def burn(seconds: float) -> dict[str, float]:
    return {"burn": seconds}


def test_slow_answers_have_a_second_chance() -> None:
    # longer than others should wait, but not than is allowed
    limits = Limits(timeout_s=WAIT_S, soft_timeout_s=0.1, processes=2)
    acts = [act for number in range(3) for act in (number, burn(0.3))]
    with GradingPool(OBEDIENT, limits) as pool:
        grades = [graded.grade for graded in pool.grade(map(item, acts))]
    assert [grade.predicted_answer for grade in grades if grade is not None] == list(map(str, acts))


def test_many_that_hang_share_the_time_of_the_second_round() -> None:
    limits = Limits(timeout_s=1.0, soft_timeout_s=0.05, processes=2)
    acts = [act for number in range(12) for act in (number, "spin")]
    started = time.monotonic()
    with GradingPool(OBEDIENT, limits) as pool:
        grades = [graded.grade for graded in pool.grade(map(item, acts))]
    # one after the other, of a second each on a busy machine
    assert time.monotonic() - started < 60.0
    for act, grade in zip(acts, grades, strict=True):
        assert grade is not None
        assert grade.verdict is (Verdict.timed_out if act == "spin" else Verdict.correct)


def test_a_few_that_hang_get_all_their_time() -> None:
    limits = Limits(timeout_s=0.5, soft_timeout_s=0.1, processes=2)
    with GradingPool(OBEDIENT, limits) as pool:
        grades = [graded.grade for graded in pool.grade(map(item, [1, "spin", 2]))]
    assert [grade.verdict.value for grade in grades if grade is not None] == [
        "correct",
        "timed_out",
        "correct",
    ]
    assert grades[1] is not None
    assert grades[1].details["error"] == "grading took more than 0.5 s"


def test_rows_may_pass_through_ungraded() -> None:
    items = [item(number, grade=number % 3 == 0) for number in range(100)]
    with GradingPool(OBEDIENT, Limits(timeout_s=5.0, processes=2)) as pool:
        graded = list(pool.grade(items))
    assert [g.item for g in graded] == items
    assert [g.grade is None for g in graded] == [not i.grade for i in items]


def test_no_process_is_started_for_nothing() -> None:
    before = children()
    with GradingPool(OBEDIENT, Limits(timeout_s=5.0)) as pool:
        assert len(list(pool.grade([item(1, grade=False)]))) == 1
        assert children() == before


def test_the_same_processes_grade_several_files() -> None:
    with GradingPool(OBEDIENT, Limits(timeout_s=5.0, processes=1)) as pool:
        pids = {
            g.grade.details["pid"] for _ in range(3) for g in pool.grade([item(1)]) if g.grade is not None
        }
    assert len(pids) == 1


def test_stopping_early_leaves_a_usable_pool() -> None:
    with GradingPool(OBEDIENT, Limits(timeout_s=60.0, processes=2)) as pool:
        graded = pool.grade(map(item, [1, "sleep", "spin", 2]))
        next(graded)
        graded.close()
        assert [g.grade.predicted_answer for g in pool.grade([item(3)]) if g.grade is not None] == ["3"]


def test_memory_is_bounded_by_the_window_not_by_the_input() -> None:
    read, most_ahead = 0, 0

    def items() -> Iterator[Item]:
        nonlocal read
        for _ in range(400):
            read += 1
            yield Item(orjson.dumps({"do": 1, "generation": "x" * 1_000_000}))

    with GradingPool(OBEDIENT, Limits(timeout_s=5.0, processes=2)) as pool:
        for done, _ in enumerate(pool.grade(items()), start=1):
            most_ahead = max(most_ahead, read - done)
    assert most_ahead < 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20


def test_it_works_off_the_main_thread() -> None:
    found: list[Grade] = []
    thread = threading.Thread(target=lambda: found.extend(grade_all([1, "sleep", 2])))
    thread.start()
    thread.join(WAIT_S)
    assert [grade.verdict for grade in found] == [Verdict.correct, Verdict.timed_out, Verdict.correct]


def test_a_missing_library_is_reported_once() -> None:
    pool = GradingPool(GraderSpec(name=f"{GRADERS}:Unprepared"), Limits(timeout_s=5.0, processes=2))
    with pool, pytest.raises(UserError, match="install the library"):
        list(pool.grade([item(1)]))


def test_fingerprints_tell_settings_apart() -> None:
    default = GraderSpec(name=f"{GRADERS}:Picky")
    assert default.fingerprint == GraderSpec(name=f"{GRADERS}:Picky", options={"strict": True}).fingerprint
    assert default.fingerprint != GraderSpec(name=f"{GRADERS}:Picky", options={"strict": False}).fingerprint


PROGRAM = """
import orjson
from nemo_skills.evaluation.graders import GraderSpec
from nemo_skills.evaluation.pool import GradingPool, Item, Limits
acts = [1, *["spin"] * 8]
spec = GraderSpec(name="tests.unit.eval_graders:Obedient")
with GradingPool(spec, Limits(timeout_s=600, processes=2)) as pool:
    for graded in pool.grade(Item(orjson.dumps({"do": act})) for act in acts):
        print("graded", flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_survives_its_parent(signum: signal.Signals) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": "."},
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == b"graded\n"
        deadline = time.monotonic() + WAIT_S
        # a nursery and two workers, which spin in C code
        while len(family := psutil.Process(program.pid).children(recursive=True)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # Ctrl-C reaches every process of the terminal's group
        os.killpg(program.pid, signum) if signum is signal.SIGINT else os.kill(program.pid, signum)
        program.communicate(timeout=WAIT_S)
    finally:
        program.kill()
    wait_until_gone({process.pid for process in family})
