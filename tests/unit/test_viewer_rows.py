"""Rows of files of any size by their number."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.evaluation.viewer.rows import STEP, RowFile
from nemo_skills.evaluation.viewer.search import PAGE_ROWS, Filter, backward, forward

ROWS = 3 * STEP + 17


def write(path: Path, rows: int, **fields: str) -> RowFile:
    lines = [
        json.dumps({"n": i, "verdict": "correct" if i % 7 else "incorrect"} | fields) for i in range(rows)
    ]
    path.write_text("".join(line + "\n" for line in lines))
    return RowFile(path)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> RowFile:
    return write(tmp_path_factory.mktemp("rows") / "many.jsonl", ROWS)


@given(start=st.integers(min_value=0, max_value=ROWS + 5), count=st.integers(min_value=0, max_value=2 * STEP))
def test_any_block_of_rows(many: RowFile, start: int, count: int) -> None:
    found = [json.loads(line)["n"] for line in many.block(start, start + count)]
    assert found == list(range(ROWS))[start : start + count]


@given(start=st.integers(min_value=0, max_value=ROWS))
def test_pages_before_and_after_a_row(many: RowFile, start: int) -> None:
    what = Filter(verdict="incorrect")
    wrong = list(range(0, ROWS, 7))
    later = [one.number for one in forward([many], start, what).found]
    assert later == [n for n in wrong if n >= start][:PAGE_ROWS]
    earlier = [one.number for one in backward([many], start, what).found]
    assert earlier == [n for n in wrong if n < start][-PAGE_ROWS:]


def test_a_file_that_takes_its_place_while_it_is_shown(tmp_path: Path) -> None:
    rows = write(tmp_path / "output.jsonl", ROWS)
    rows.index()
    assert rows.count() == ROWS
    write(tmp_path / "new", ROWS, predicted_answer="a longer row").path.replace(rows.path)
    assert rows.count() is None
    assert json.loads(rows.block(STEP + 3, STEP + 4)[0])["n"] == STEP + 3
    rows.index()
    assert rows.count() == ROWS


def test_a_file_that_grows(tmp_path: Path) -> None:
    rows = write(tmp_path / "output.jsonl", STEP)
    rows.index()
    with rows.path.open("a") as file:
        file.write('{"n": "new"}\n')
    assert rows.count() is None
    rows.index()
    assert rows.count() == STEP + 1
