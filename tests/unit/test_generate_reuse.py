"""What a run does again when its input has changed: each row has an answer of its own, and is asked once."""

import gzip
import json
import os
import shutil
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import add_fields
from nemo_skills.inference import reuse
from nemo_skills.inference.config import GenerateConfig, ServerConfig
from nemo_skills.inference.done import DoneMark, read_keys
from nemo_skills.inference.job import Generation
from nemo_skills.inference.merge_chunks import merge_chunks
from nemo_skills.inference.opening import already_complete
from nemo_skills.inference.outputs import OutputPaths

Texts = list[str]


class Runner:
    """Runs jobs without a server: each answer is a number that no other answer has."""

    def __init__(self, folder: Path) -> None:
        self.source, self.output = folder / "in.jsonl", folder / "out" / "o.jsonl"
        self._answers = count()
        self._times = count(10**9)

    def write(self, texts: Texts, path: Path | None = None) -> None:
        path = path or self.source
        path.write_bytes(b"".join(orjson.dumps({"question": text}) + b"\n" for text in texts))
        # a clock that is too coarse to tell two edits apart is not what is tested here
        os.utime(path, ns=(next(self._times), next(self._times)))

    def run(self, stop_after: int | None = None, **settings: Any) -> Texts | None:
        """Return what was asked, None when nothing was to do."""
        chosen: dict[str, Any] = {"input_file": str(self.source), "output_file": str(self.output), **settings}
        config = GenerateConfig(
            prompt_config="generic/default", server=ServerConfig(server_type="stub"), **chosen
        )
        paths = OutputPaths.of(self.output, config.chunk_id)
        if config.skip_filled and not paths.journal.exists() and already_complete(config, paths):
            return None
        asked: Texts = []
        with Generation.open(config, paths) as job:
            if job.complete:
                return None
            for work in job.source:
                if len(asked) == stop_after:
                    return asked
                asked.append(work.row["question"])
                answer = {"generation": f"{work.row['question']} {next(self._answers)}"}
                job.journal.append(
                    work.line.position, work.line.raw, add_fields(work.line.raw, work.row, answer)
                )
            job.finish()
        return asked

    def rows(self, path: Path | None = None) -> list[tuple[str, str]]:
        """Return question and answer of every row, which must fit, and no answer may be there twice."""
        rows = [json.loads(line) for line in (path or self.output).read_text().splitlines()]
        assert all(row["generation"].split()[0] == row["question"] for row in rows)
        assert len({row["generation"] for row in rows}) == len(rows)
        return [(row["question"], row["generation"]) for row in rows]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def letters(text: str) -> Texts:
    return list(text)


inputs = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(st.tuples(inputs, st.none() | st.integers(0, 8)), min_size=1, max_size=6),
    parts=st.booleans(),
)
@example(runs=[("aa", 1), ("ba", 0), ("aa", None)], parts=False)
@example(runs=[("bca", 2), ("ca", 0), ("aa", 1), ("ca", None)], parts=False)
def test_any_edits_and_stops_ask_only_for_what_no_answer_is_there(tmp_path_factory, runs, parts) -> None:
    runner = Runner(tmp_path_factory.mktemp("reuse"))
    kept: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        if parts:
            patch.setattr(reuse, "_PART_ROWS", 2)
        for texts, stop in ((list(texts), stop) for texts, stop in runs):
            runner.write(texts)
            asked = runner.run(stop)
            missing = sum((Counter(texts) - kept).values())
            if stop is not None and missing > stop:
                assert len(asked or ()) == stop
                kept += Counter(asked)
                continue
            assert Counter(asked) == Counter(texts) - kept
            assert [question for question, _ in runner.rows()] == texts
            kept = Counter(texts)
            assert runner.run() is None
            assert sorted(path.name for path in runner.output.parent.iterdir()) == ["o.jsonl", "o.jsonl.done"]


class TestFinished:
    def test_inserted_rows_shift_the_others(self, runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
        runner.write(letters("abcdefgh"))
        runner.run()
        before = dict(runner.rows())
        runner.write(letters("abXcdeYfgh"))
        assert runner.run() == ["X", "Y"]
        assert {**dict(runner.rows()), **before} == dict(runner.rows())
        assert "8 of its 8 rows keep their answers" in caplog.text
        assert "in.jsonl:3 has changed" in caplog.text
        assert "in.jsonl:7 has changed" in caplog.text

    def test_a_longer_input_and_a_shorter_one(self, runner: Runner) -> None:
        runner.write(letters("abc"))
        runner.run()
        runner.write(letters("abcde"))
        assert runner.run() == ["d", "e"]
        runner.write(letters("bd"))
        assert runner.run() == []
        assert [question for question, _ in runner.rows()] == ["b", "d"]

    def test_more_samples(self, runner: Runner) -> None:
        runner.write(letters("abcde"))
        assert runner.run(max_samples=2) == ["a", "b"]
        assert runner.run(max_samples=2) is None
        assert runner.run(max_samples=4) == ["c", "d"]
        assert runner.run() == ["e"]
        assert runner.run(max_samples=1000) is None

    def test_the_same_rows_in_other_files_are_no_change(self, runner: Runner) -> None:
        runner.write(letters("abcd"))
        runner.run()
        before = runner.output.stat()
        os.utime(runner.source)
        assert runner.run() is None
        packed = runner.source.with_name("in.jsonl.gz")
        packed.write_bytes(gzip.compress(runner.source.read_bytes()))
        assert runner.run(input_file=str(packed)) is None
        runner.write(letters("ab"), runner.source.with_name("1.jsonl"))
        runner.write(letters("cd"), runner.source.with_name("2.jsonl"))
        assert runner.run(input_file=str(runner.source.with_name("[12].jsonl"))) is None
        # the mark knows the new files now, and they need not be read again
        mark = DoneMark.read(runner.output.with_name("o.jsonl.done"))
        assert mark.source is not None
        assert len(mark.source.stamps) == 2
        assert len(list(read_keys(runner.output.with_name("o.jsonl.done")))) == 4
        assert os.path.samestat(runner.output.stat(), before)
        runner.source.unlink()
        assert runner.run() is None

    def test_an_output_that_was_changed_too_cannot_be_matched(self, runner: Runner) -> None:
        runner.write(letters("abc"))
        runner.run()
        copy = runner.output.read_bytes()
        runner.output.write_bytes(copy.replace(b"a 0", b"a 9"))
        runner.write(letters("abcd"))
        with pytest.raises(UserError, match="that file has changed too"):
            runner.run()
        assert runner.output.with_name("o.jsonl.done").exists()
        runner.output.write_bytes(copy)
        assert runner.run() == ["d"]
        runner.output.write_bytes(b"")
        runner.write(letters("ab"))
        assert runner.run(skip_filled=False) == ["a", "b"]

    def test_other_settings_are_not_mixed(self, runner: Runner) -> None:
        runner.write(letters("abc"))
        runner.run()
        runner.write(letters("abcd"))
        with pytest.raises(UserError, match="parse_reasoning: False → True"):
            runner.run(parse_reasoning=True)
        assert runner.run() == ["d"]

    def test_killed_at_any_step_of_taking_over(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        steps = ["Journal.annotate", "Journal.sync", "Path.unlink"]
        for step in steps:
            shutil.rmtree(runner.output.parent, ignore_errors=True)
            runner.write(letters("abcdef"))
            runner.run()
            runner.write(letters("abXcdef"))
            with monkeypatch.context() as patch:
                kill_at(patch, step)
                with pytest.raises(KeyboardInterrupt):
                    runner.run()
            assert runner.run() == ["X"]
            assert [question for question, _ in runner.rows()] == letters("abXcdef")

    def test_a_mark_of_another_program_is_believed(self, runner: Runner) -> None:
        runner.write(letters("abc"))
        runner.run()
        runner.output.with_name("o.jsonl.done").write_text("")
        runner.write(letters("abcd"))
        assert runner.run() is None


def kill_at(patch: pytest.MonkeyPatch, step: str) -> None:
    """Let a function die before it does anything, as far as files go."""
    from nemo_skills.core.jsonl import Journal

    kind, name = step.split(".")
    owner = {"Journal": Journal, "Path": Path, "DoneMark": DoneMark}[kind]
    real = getattr(owner, name)

    def die(self: Any, *args: Any, **kwargs: Any) -> Any:
        if owner is Journal:
            self.flush()
            raise KeyboardInterrupt
        if owner is DoneMark or self.name.endswith(".done"):
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    patch.setattr(owner, name, die)


class TestChunks:
    def chunks(self, runner: Runner, number: int = 3) -> list[Texts | None]:
        return [runner.run(num_chunks=number, chunk_id=chunk) for chunk in range(number)]

    def asked(self, runner: Runner, number: int) -> Texts:
        return [text for chunk in self.chunks(runner, number) for text in chunk or ()]

    def test_a_merged_output_gives_its_answers_to_chunks(self, runner: Runner) -> None:
        runner.write(letters("abcdefghi"))
        assert self.chunks(runner) == [letters("abc"), letters("def"), letters("ghi")]
        assert merge_chunks(runner.output, 3)
        before = dict(runner.rows())
        assert self.chunks(runner) == [None] * 3
        assert runner.run() is None
        os.utime(runner.source)
        assert self.chunks(runner) == [None] * 3
        runner.write(letters("abcXdefghi"))
        assert runner.run(num_chunks=3, chunk_id=0) == []
        assert not merge_chunks(runner.output, 3)  # the others are still to come
        assert self.chunks(runner) == [None, ["X"], []]
        assert merge_chunks(runner.output, 3)
        assert [question for question, _ in runner.rows()] == letters("abcXdefghi")
        assert {**dict(runner.rows()), **before} == dict(runner.rows())
        assert self.chunks(runner) == [None] * 3
        assert sorted(path.name for path in runner.output.parent.iterdir()) == ["o.jsonl", "o.jsonl.done"]

    def test_a_merge_that_was_killed_is_done_again(
        self, runner: Runner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for texts in (letters("abcdef"), letters("aXbcdef")):  # the second time there is a whole already
            runner.write(texts)
            self.chunks(runner)
            for step in ("DoneMark.write", "Path.unlink"):
                with monkeypatch.context() as patch:
                    kill_at(patch, step)
                    with pytest.raises(KeyboardInterrupt):
                        merge_chunks(runner.output, 3)
            assert merge_chunks(runner.output, 3)
            assert [question for question, _ in runner.rows()] == texts
            assert len(list(read_keys(runner.output.with_name("o.jsonl.done")))) == len(texts)

    def test_equal_rows_of_several_chunks_keep_their_own_answers(self, runner: Runner) -> None:
        runner.write(letters("aaaaaa"))
        self.chunks(runner)
        merge_chunks(runner.output, 3)
        runner.write(letters("aaaaaaa"))
        assert self.asked(runner, 2) == ["a"]
        assert merge_chunks(runner.output, 2)
        assert len(runner.rows()) == 7

    def test_another_number_of_chunks(self, runner: Runner) -> None:
        runner.write(letters("abcdefgh"))
        assert runner.run(num_chunks=4, chunk_id=0) == ["a", "b"]
        assert runner.run(num_chunks=2, chunk_id=0) == ["c", "d"]
        assert runner.run(num_chunks=2, chunk_id=1) == letters("efgh")
        assert merge_chunks(runner.output, 2)
        assert [question for question, _ in runner.rows()] == letters("abcdefgh")

    def test_fewer_rows_than_chunks(self, runner: Runner) -> None:
        runner.write(letters("ab"))
        assert self.asked(runner, 5) == ["a", "b"]
        assert merge_chunks(runner.output, 5)
        runner.write(letters("abc"))
        assert self.asked(runner, 5) == ["c"]
        assert merge_chunks(runner.output, 5)
        assert len(runner.rows()) == 3


class TestInputs:
    def test_files_by_pattern_and_list_are_one_input(self, runner: Runner, weird_tmp_path: Path) -> None:
        for name, text in {"b.jsonl": "cd", "a.jsonl": "ab", "c,[x].jsonl": "ef"}.items():
            runner.write(letters(text), weird_tmp_path / name)
        listed = f"{weird_tmp_path}/[ab].jsonl, {weird_tmp_path}/a.jsonl"
        assert runner.run(input_file=listed, max_samples=3) == ["a", "b", "c"]
        assert runner.run(input_file=str(weird_tmp_path / "c,[x].jsonl"), output_file=str(runner.output)) == [
            "e",
            "f",
        ]

    def test_errors_name_file_and_line(self, runner: Runner, tmp_path: Path) -> None:
        runner.write(letters("ab"), tmp_path / "1.jsonl")
        (tmp_path / "2.jsonl").write_text('{"question": "c"}\n\n{"question": \n')
        with pytest.raises(UserError, match=r"2\.jsonl:3: not valid JSON"):
            runner.run(input_file=f"{tmp_path}/*.jsonl")
        (tmp_path / "2.jsonl").write_text('{"question": "c"}\n\n{"answer": 1}\n')
        with pytest.raises(UserError, match=r"2\.jsonl:3: .*question"):
            runner.run(input_file=f"{tmp_path}/*.jsonl")
        assert not list(runner.output.parent.glob("o.jsonl"))
        with pytest.raises(UserError, match=r"No file matches .*nothing\*"):
            runner.run(input_file=f"{tmp_path}/nothing*")
        with pytest.raises(UserError, match=r"does not exist.*Did you mean '.*/1\.jsonl'"):
            runner.run(input_file=f"{tmp_path}/2.jsonl,{tmp_path}/11.jsonl")

    def test_a_pattern_never_takes_outputs(self, runner: Runner, tmp_path: Path) -> None:
        runner.write(letters("ab"))
        runner.output = tmp_path / "o.jsonl"
        assert runner.run(input_file=f"{tmp_path}/*.jsonl") == ["a", "b"]
        with pytest.raises(UserError, match=r"o\.jsonl would be overwritten"):
            runner.run(input_file=f"{tmp_path}/*.jsonl")
        runner.output = tmp_path / "p.jsonl"
        runner.write(letters("ab"), tmp_path / "p_chunk_1.jsonl")
        with pytest.raises(UserError, match=r"p_chunk_1\.jsonl would be overwritten"):
            runner.run(input_file=f"{tmp_path}/p_*")

    @pytest.mark.parametrize("kind", ["gz", "zst"])
    def test_compressed_input_resumes(self, runner: Runner, kind: str) -> None:
        texts = [f"question-{i}" for i in range(3000)]
        runner.write(texts)
        plain = runner.source.read_bytes()
        half = plain.index(b"\n", len(plain) // 2) - 7  # several members or frames, cut within a row
        pack = gzip.compress if kind == "gz" else zstandard.compress
        packed = runner.source.with_name(f"in.jsonl.{kind}")
        packed.write_bytes(pack(plain[:half]) + pack(plain[half:]))
        assert runner.run(1000, input_file=str(packed)) == texts[:1000]
        assert runner.run(input_file=str(packed)) == texts[1000:]
        assert [question for question, _ in runner.rows()] == texts

    @pytest.mark.parametrize("kind", ["gz", "zst"])
    def test_a_compressed_input_that_is_cut_off_is_an_error(self, runner: Runner, kind: str) -> None:
        runner.write([f"question-{i}" for i in range(3000)])
        pack = gzip.compress if kind == "gz" else zstandard.compress
        whole = pack(runner.source.read_bytes())
        packed = runner.source.with_name(f"in.jsonl.{kind}")
        for cut in (len(whole) // 2, len(whole) - 1):
            packed.write_bytes(whole[:cut])
            with pytest.raises(UserError, match="ends in the middle"):
                runner.run(input_file=str(packed))
        packed.write_bytes(b"no such thing" * 10)
        with pytest.raises(UserError, match="is not valid"):
            runner.run(input_file=str(packed))
        assert not runner.output.exists()
