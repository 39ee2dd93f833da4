import errno
import json
import os
import subprocess
import sys
import zlib
from array import array
from itertools import pairwise
from pathlib import Path
from unittest import mock

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import (
    BadRowError,
    Journal,
    Line,
    Shards,
    _journal,
    _records,
    add_fields,
    atomic_output,
    check_input,
    count_rows,
    iter_lines,
    parse_row,
    row_check,
    row_key,
)

fresh_folder_per_example = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def row_text(position: int) -> bytes:
    return orjson.dumps({"q": f"row {position} ✓\n", "n": position})


def write_journal(path: Path, positions: list[int]) -> Journal:
    journal = Journal.open(path)
    for position in positions:
        journal.append(position, row_text(position), row_text(position))
    journal.flush()
    return journal


def checks(texts: list[bytes]) -> "array[int]":
    return array("I", map(row_check, texts))


def reopen(path: Path, count: int) -> tuple[Journal, list[int]]:
    """Open the journal as a resumed run does; return it and the positions left to do."""
    journal = Journal.open(path)
    return journal, list(journal.match(0, checks([row_text(p) for p in range(count)])).todo)


class TestReader:
    def test_blank_lines_do_not_count_and_numbers_are_of_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "in.jsonl"
        path.write_bytes(b'\xef\xbb\xbf{"a":1}\n\n  \r\n {"a":2} \r\n{"a":3}')
        assert list(iter_lines(path)) == [
            Line(0, 1, b'{"a":1}', path),
            Line(1, 4, b'{"a":2}', path),
            Line(2, 5, b'{"a":3}', path),
        ]
        assert [line.position for line in iter_lines(path, 1, 2)] == [1]
        assert count_rows(path) == 3

    @pytest.mark.parametrize(
        "text", [b'{"a":', b"[1]", b"null", b'"x"', b"3", b'{"a":1} {"b":2}', b"\xff\xfe"]
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, text: bytes) -> None:
        path = tmp_path / "in.jsonl"
        path.write_bytes(b'{"a":1}\n' + text + b"\n")
        lines = list(iter_lines(path))
        with pytest.raises(BadRowError, match=r"in\.jsonl:2: "):
            parse_row(path, lines[1])

    def test_missing_file_suggests_its_neighbour(self, tmp_path: Path) -> None:
        (tmp_path / "input.jsonl").write_text("{}\n")
        with pytest.raises(UserError, match=r"does not exist.*Did you mean '.*input\.jsonl'"):
            check_input(tmp_path / "inptu.jsonl")
        with pytest.raises(UserError, match="folder"):
            check_input(tmp_path)


rows = st.dictionaries(
    st.text(max_size=5),
    st.one_of(st.none(), st.integers(), st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    max_size=5,
)


@given(
    row=rows, ascii_only=st.booleans(), fields=st.dictionaries(st.sampled_from("abc"), st.text(), max_size=2)
)
def test_add_fields_changes_nothing_else(row: dict, ascii_only: bool, fields: dict[str, str]) -> None:
    raw = json.dumps(row, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    merged = json.loads(add_fields(raw, row, fields))
    assert merged == {**row, **fields}
    assert {key: repr(value) for key, value in merged.items() if key not in fields} == {
        key: repr(value) for key, value in row.items() if key not in fields
    }


def test_add_fields_keeps_the_text_of_a_row() -> None:
    raw = b'{"big": 123456789012345678901234567890, "e": 1E2, "u": "\\u00e9" }'
    assert add_fields(raw, orjson.loads(raw), {"x": 1}) == raw[:-2] + b',"x":1}'


class TestJournal:
    @fresh_folder_per_example
    @given(order=st.permutations(range(12)), data=st.data())
    def test_a_tail_torn_at_any_byte_loses_only_that_tail(self, tmp_path_factory, order, data) -> None:
        path = tmp_path_factory.mktemp("journal") / "out.jsonl-async"
        write_journal(path, list(order)).close()
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        garbage = data.draw(st.sampled_from([b"", b"\0" * 7, b"\0" * 300, whole[:30], whole[:50], b"\n"]))
        torn = whole[:cut] + garbage
        path.write_bytes(torn)
        ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]

        with mock.patch.object(_records, "_WINDOW", data.draw(st.sampled_from([80, 150, 1000, 1 << 18]))):
            journal, left = reopen(path, 12)
        assert journal.done == sum(torn.startswith(whole[:end]) for end in ends)
        assert sorted(left) == sorted(order[journal.done :])
        assert path.read_bytes() == whole[: max(end for end in [0, *ends] if torn.startswith(whole[:end]))]
        for position in left:
            journal.append(position, row_text(position), row_text(position))
        written = journal.finalise(path.with_name("out.jsonl"), 12)
        journal.close()
        text = b"".join(row_text(p) + b"\n" for p in range(12))
        assert path.with_name("out.jsonl").read_bytes() == text
        assert written == (12, len(text), zlib.crc32(text))

    @fresh_folder_per_example
    @given(data=st.data())
    def test_damage_in_the_middle_is_reported_and_done_again(self, tmp_path_factory, data) -> None:
        path = tmp_path_factory.mktemp("journal") / "out.jsonl-async"
        write_journal(path, list(range(6))).close()
        text = bytearray(path.read_bytes())
        where, flip = self.draw_damage(data, text)
        number = text.count(b"\n", 0, where)
        text[where] ^= flip
        path.write_bytes(text)

        with mock.patch.object(_records, "_WINDOW", data.draw(st.sampled_from([80, 150, 1 << 18]))):
            journal, left = reopen(path, 6)
        assert journal.repair.damaged_lines == (number + 1,)
        assert left == [number]
        journal.append(number, row_text(number), row_text(number))
        journal.close()
        journal, left = reopen(path, 6)
        assert left == []
        assert list(journal.rows()) == [row_text(p) for p in range(6)]
        journal.close()

    @fresh_folder_per_example
    @given(data=st.data())
    def test_damage_that_opening_overlooks_never_reaches_the_output(self, tmp_path_factory, data) -> None:
        path = tmp_path_factory.mktemp("journal") / "out.jsonl-async"
        write_journal(path, list(range(6))).close()
        text = bytearray(path.read_bytes())
        where, flip = self.draw_damage(data, text)
        text[where] ^= flip
        path.write_bytes(text)

        window = mock.patch.object(_records, "_WINDOW", data.draw(st.sampled_from([80, 150, 1 << 18])))
        with mock.patch.object(_journal, "_CHECKED_TAIL", 0), window:
            for attempt in range(4):
                journal, left = reopen(path, 6)
                for position in left:
                    journal.append(position, row_text(position), row_text(position))
                try:
                    journal.finalise(path.with_name("out.jsonl"), 6)
                    break
                except UserError as error:
                    assert "was damaged" in str(error) and attempt == 0
                    assert not path.with_name("out.jsonl").exists()
                finally:
                    journal.close()
        assert path.with_name("out.jsonl").read_bytes() == b"".join(row_text(p) + b"\n" for p in range(6))

    @staticmethod
    def draw_damage(data, text: bytes) -> tuple[int, int]:
        last_line = text.rindex(b"\n", 0, -1)
        where = data.draw(st.integers(0, last_line - 1).filter(lambda i: text[i] != 10))
        return where, data.draw(st.integers(1, 255).filter(lambda x: text[where] ^ x != 10))

    def test_several_damaged_stretches(self, tmp_path: Path) -> None:
        path = tmp_path / "j"
        write_journal(path, list(range(200))).close()
        lines = path.read_bytes().splitlines(keepends=True)
        lines[3:5] = [b"\0" * 5000 + b"\n"]
        lines[50] = lines[50].replace(b"row", b"\nw\n")
        lines[100] = lines[100][:-1]
        path.write_bytes(b"".join(lines))
        journal, left = reopen(path, 200)
        # the newline between two records is gone: both are lost
        assert left == [3, 4, 51, 101, 102]
        assert journal.repair.damaged_lines == (4, 51, 103)
        for position in left:
            journal.append(position, row_text(position), row_text(position))
        assert list(journal.rows()) == [row_text(p) for p in range(200)]
        journal.close()

    def test_shards_are_read_as_one(self, tmp_path: Path) -> None:
        texts = [row_text(p) for p in range(5)]
        write_journal(tmp_path / "a", [3, 0]).close()
        write_journal(tmp_path / "b", [1, 3]).close()
        (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes() + b"torn")
        with Shards(checks([*texts[:4], b"edited"])) as shards:
            for name in ("a", "b", "none"):
                shards.add(tmp_path / name)
            assert [p for p in range(5) if shards.has(p)] == [0, 1, 3]
            assert (shards.found, shards.row(3)) == (3, texts[3])

    def test_duplicates_leave_one(self, tmp_path: Path) -> None:
        journal = Journal.open(tmp_path / "j")
        journal.append(0, b"raw", b'{"v":1}')
        journal.append(0, b"raw", b'{"v":2}')
        journal.close()
        journal = Journal.open(tmp_path / "j")
        assert journal.match(0, checks([b"raw"])) == ([], [])
        assert list(journal.rows()) == [b'{"v":2}']
        journal.close()

    def test_an_edited_row_is_done_again_and_stays_done(self, tmp_path: Path) -> None:
        path = tmp_path / "j"
        journal = Journal.open(path)
        journal.append(0, b"old", b'{"v":"old"}')
        journal.close()
        journal = Journal.open(path)
        assert journal.match(0, checks([b"new"])) == ([0], [0])
        assert journal.done == 0
        assert list(journal.rows()) == []
        journal.append(0, b"new", b'{"v":"new"}')
        journal.close()
        journal = Journal.open(path)
        assert journal.match(0, checks([b"new"])) == ([], [])
        assert list(journal.rows()) == [b'{"v":"new"}']
        journal.close()

    @settings(max_examples=60, deadline=None)
    @given(
        positions=st.sets(st.integers(65_500, 65_600)),
        edited=st.sets(st.integers(65_500, 65_600)),
        cuts=st.sets(st.integers(65_501, 65_599)),
    )
    def test_match_tells_what_is_to_do_wherever_blocks_begin(self, tmp_path_factory, positions, edited, cuts):
        path = tmp_path_factory.mktemp("journal") / "j"
        write_journal(path, sorted(positions)).close()
        journal = Journal.open(path)
        for _ in range(2):  # looking again changes nothing
            todo, other = set(), set()
            bounds = [65_500, *sorted(cuts), 65_601]
            for start, stop in pairwise(bounds):
                texts = [b"new" if p in edited else row_text(p) for p in range(start, stop)]
                match = journal.match(start, checks(texts))
                todo |= {start + index for index in match.todo}
                other |= {start + index for index in match.edited}
            assert todo == set(range(65_500, 65_601)) - (positions - edited)
            assert other == positions & edited
            assert journal.done == len(positions - edited)
        assert list(journal.rows()) == [row_text(p) for p in sorted(positions - edited)]
        journal.close()

    def test_a_moved_row_counts_at_its_new_position(self, tmp_path: Path) -> None:
        path = tmp_path / "j"
        write_journal(path, [0, 1, 2]).close()
        texts = [b"new", row_text(0), row_text(1), row_text(1)]
        journal = Journal.open(path)
        assert journal.match(0, checks(texts)).todo == [0, 1, 2, 3]
        journal.drop_stale()
        spare = dict(next(journal.spare(1)))
        assert set(spare) == {row_key(row_text(p)) for p in range(3)}
        journal.move(1, row_key(row_text(0)), spare[row_key(row_text(0))])
        journal.move(2, row_key(row_text(1)), spare[row_key(row_text(1))])
        journal.close()
        journal = Journal.open(path)
        assert journal.match(0, checks(texts)) == ([0, 3], [])
        assert set(dict(next(journal.spare(1)))) == {row_key(row_text(2))}
        journal.append(0, b"new", b'{"v":"new"}')
        journal.append(3, row_text(1), b'{"v":"another answer"}')
        rows = [b'{"v":"new"}', row_text(0), row_text(1), b'{"v":"another answer"}']
        keys: list[int] = []
        assert list(journal.rows(keys.append)) == rows
        assert keys == list(map(row_key, texts))
        journal.close()

    def test_a_note_and_large_positions(self, tmp_path: Path) -> None:
        journal = Journal.open(tmp_path / "j")
        journal.annotate(b'{"a":1}')
        assert journal.empty
        journal.append(10**12, b"raw", b"{}")
        journal.annotate(b'{"a":2}')
        journal.close()
        journal = Journal.open(tmp_path / "j")
        assert (journal.note, journal.empty, journal.repair.records) == (b'{"a":2}', False, 1)
        assert journal.match(10**12, checks([b"raw"])).todo == []
        assert list(journal.rows()) == [b"{}"]
        journal.clear()
        assert (journal.note, journal.empty) == (None, True)
        journal.close()

    def test_rows_that_the_input_lost_are_left_out(self, tmp_path: Path) -> None:
        write_journal(tmp_path / "j", [0, 1, 2]).close()
        journal, left = reopen(tmp_path / "j", 2)
        assert (left, journal.done) == ([], 2)
        journal.finalise(tmp_path / "out", 2)
        journal.close()
        assert (tmp_path / "out").read_bytes().count(b"\n") == 2

    def test_a_large_record_and_an_empty_one(self, tmp_path: Path) -> None:
        journal = Journal.open(tmp_path / "j")
        big = orjson.dumps({"text": "x" * 3_000_000})
        for position, row in enumerate([b"{}", big, b"{}"]):
            journal.append(position, b"raw", row)
        assert list(journal.rows()) == [b"{}", big, b"{}"]
        journal.close()
        journal = Journal.open(tmp_path / "j")
        assert journal.match(0, checks([b"raw"] * 3)).todo == []
        assert list(journal.rows()) == [b"{}", big, b"{}"]
        journal.close()

    def test_a_wrong_row_count_leaves_the_output_alone(self, tmp_path: Path) -> None:
        target = tmp_path / "out.jsonl"
        target.write_text("before")
        journal = write_journal(tmp_path / "j", [0, 1])
        with pytest.raises(UserError, match="2 finished rows where 3 are expected"):
            journal.finalise(target, 3)
        journal.close()
        assert target.read_text() == "before"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["j", "out.jsonl"]

    def test_a_foreign_file_is_not_truncated(self, tmp_path: Path) -> None:
        path = tmp_path / "j"
        path.write_text('{"somebody": "else"}\n')
        with pytest.raises(UserError, match="not written by this program"):
            Journal.open(path)
        assert path.read_text() == '{"somebody": "else"}\n'

    def test_second_writer_is_refused_until_the_first_dies(self, tmp_path: Path) -> None:
        path = tmp_path / "j"
        code = (
            "import sys, time; from pathlib import Path; from nemo_skills.core.jsonl import Journal;"
            "j = Journal.open(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
        )
        holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(UserError, match="Another process"):
                Journal.open(path)
        finally:
            holder.kill()
            holder.wait()
        Journal.open(path).close()

    def test_a_failed_write_keeps_whole_records(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = write_journal(tmp_path / "j", [0])
        for position in (1, 2, 3):
            journal.append(position, row_text(position), row_text(position))
        real_write, budget = os.write, [len(row_text(1)) + 100]

        def full_disk(descriptor: int, data: bytes) -> int:
            if not budget[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = real_write(descriptor, bytes(data[: budget[0]]))
            budget[0] = 0
            return written

        monkeypatch.setattr(os, "write", full_disk)
        with pytest.raises(UserError, match="disk is full") as caught:
            journal.flush()
        assert caught.value.exit_code == 1
        monkeypatch.undo()
        journal.close()
        journal, left = reopen(tmp_path / "j", 4)
        assert left == [2, 3]
        assert journal.repair.torn_bytes == 0
        journal.close()


def test_atomic_output_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with pytest.raises(RuntimeError), atomic_output(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_output(target) as file:
        file.write(b"whole")
    assert target.read_bytes() == b"whole"
