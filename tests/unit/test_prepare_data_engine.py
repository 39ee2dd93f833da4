"""The engine of the data preparation: every row is accounted for, however many processes and parts."""

import gzip
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.training.data_preparation_utils.base import Processor
from nemo_skills.training.data_preparation_utils.engine import Engine, Outcome
from nemo_skills.training.data_preparation_utils.filters import Verdicts, Where
from nemo_skills.training.data_preparation_utils.inputs import find_inputs
from nemo_skills.training.data_preparation_utils.order import Shuffle, Split
from nemo_skills.training.data_preparation_utils.pairs import MakePairs
from nemo_skills.training.data_preparation_utils.reading import ReadGenerations, SelectKeys
from nemo_skills.training.data_preparation_utils.running import Step
from nemo_skills.training.data_preparation_utils.sampling import Deduplicate, SamplePerProblem
from nemo_skills.training.data_preparation_utils.stats import Histogram

Row = dict[str, Any]


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(
    folder: Path,
    steps: Sequence[Processor],
    *,
    processes: int = 1,
    part_bytes: int = 1 << 20,
    pattern: str = "in*.jsonl",
    **options: Any,
) -> Outcome:
    """Run steps over the files of a folder."""
    numbered = tuple(Step(i, f"step{i}", step) for i, step in enumerate(steps, start=1))
    engine = Engine(
        inputs=find_inputs(str(folder / pattern)), steps=numbered, output=folder / "out.jsonl",
        validation=folder / "validation.jsonl", processes=processes, part_bytes=part_bytes, tmp_dir=folder,
        manifest=folder / "manifest.json", **options,
    )  # fmt: skip
    return engine.run()


rows_of_problems = st.lists(
    st.fixed_dictionaries(
        {
            "problem": st.sampled_from(["a", "b", "c ", "ü\ud7ff", "e" * 40, "f"]),
            "generation": st.sampled_from(["x", "X ", "y", "z", "", ["x", "y"], ["w", "w", "q"]]),
            "verdict": st.sampled_from(["correct", "incorrect", "no_answer"]),
        }
    ),
    min_size=1,
    max_size=60,
)
SETTINGS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(rows=rows_of_problems, part_bytes=st.sampled_from([60, 300, 1 << 20]), files=st.integers(1, 3))
def test_every_row_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], part_bytes: int, files: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    # of these some stay in the training data
    rows = [*rows, *({"problem": f"p{i}", "generation": "x", "verdict": "correct"} for i in range(9))]
    for number in range(files):
        write(folder / f"in{number}.jsonl", rows[number::files])
    steps = [
        ReadGenerations(), Verdicts(keep=("correct", "incorrect")), Deduplicate(),
        SamplePerProblem(max_samples=2), Split(validation=0.4), SelectKeys(drop=("verdict",)),
        Shuffle(seed=3),
    ]  # fmt: skip
    outcome = run(folder, steps, part_bytes=part_bytes)
    counted = outcome.tally.steps
    assert all(step.balanced() for step in counted)
    assert all(after.rows_in == before.rows_out for before, after in pairwise(counted))
    assert counted[0].rows_in == len(rows)
    assert sum(file.rows for file in outcome.files) == counted[-1].rows_out
    for file in outcome.files:
        assert len(read(file.path)) == file.rows and file.path.stat().st_size == file.size


def plain_loop(rows: Sequence[Row]) -> list[Row]:
    """What the steps of the next test do, in the most obvious way."""
    kept: list[Row] = []
    seen: set[tuple[str, str]] = set()
    for row in rows:
        generations = row["generation"] if isinstance(row["generation"], list) else [row["generation"]]
        for generation in generations:
            key = (row["problem"], generation.lower().strip())
            if generation and row["verdict"] != "no_answer" and key not in seen:
                seen.add(key)
                kept.append({**row, "generation": generation})
    return kept


@SETTINGS
@given(rows=rows_of_problems, part_bytes=st.sampled_from([60, 300, 1 << 20]))
def test_rows_keep_the_order_of_the_input_and_are_those_of_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], part_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    write(folder / "in.jsonl", rows)
    steps = [ReadGenerations(), Where(expression="verdict != 'no_answer'"), Deduplicate()]
    outcome = run(folder, steps, part_bytes=part_bytes)
    assert (read(folder / "out.jsonl") if outcome.files else []) == plain_loop(rows)


def many_rows(count: int) -> list[Row]:
    dice = random.Random(1)
    return [
        {
            "problem": f"problem {dice.randrange(count // 4)}",
            "generation": f"answer {dice.randrange(9)}",
            "verdict": dice.choice(["correct", "incorrect"]),
            "n": i,
        }
        for i in range(count)
    ]


def test_processes_and_parts_do_not_matter_but_the_seed_does(tmp_path: Path) -> None:
    write(tmp_path / "in1.jsonl", many_rows(3000))
    write(tmp_path / "in2.jsonl", many_rows(500))

    def output(seed: int = 0, **options: Any) -> tuple[bytes, bytes, list[Any]]:
        steps = [
            Deduplicate(), SamplePerProblem(max_samples=2, seed=seed), Split(validation=20, seed=seed),
            Deduplicate(key="generation", fields=("problem",)), Shuffle(seed=seed),
        ]  # fmt: skip
        outcome = run(tmp_path, steps, **options)
        tally = [(s.rows_in, s.rows_out, s.dropped, s.examples) for s in outcome.tally.steps]
        return (tmp_path / "out.jsonl").read_bytes(), (tmp_path / "validation.jsonl").read_bytes(), tally

    one = output()
    assert one == output(part_bytes=4000) == output(processes=3, part_bytes=9000)
    other = output(seed=1)
    assert other[0] != one[0] and other[1] != one[1]
    assert len(one[0].splitlines()) > 1000


def test_compressed_inputs_and_a_progress_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = many_rows(300)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "in1.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "in2.jsonl.zst").write_bytes(zstandard.compress(text))
    monkeypatch.setenv("NS_TERMINAL_WIDTH", "100")
    run(tmp_path, [Where(expression="True"), Deduplicate(fields=())], processes=2, pattern="in*")
    assert [row["n"] for row in read(tmp_path / "out.jsonl")] == sorted(
        {row["problem"]: row["n"] for row in reversed(rows)}.values()
    )
    shown = capfd.readouterr().err
    assert "Reading" in shown and "Grouping by problem" in shown and "600 rows" in shown


def test_shuffling_changes_nothing_but_the_order(tmp_path: Path) -> None:
    rows = many_rows(2000)
    write(tmp_path / "in.jsonl", rows)
    run(tmp_path, [Shuffle(seed=5)], part_bytes=20_000)
    shuffled = [row["n"] for row in read(tmp_path / "out.jsonl")]
    assert sorted(shuffled) == list(range(2000)) and shuffled != list(range(2000))
    # every place gets every row with the same probability: the mean of a half is near that of the whole
    assert abs(sum(shuffled[:1000]) / 1000 - 999.5) < 60


def test_untouched_rows_keep_their_text(tmp_path: Path) -> None:
    text = '{"problem": "a",  "big": 123456789012345678901234567890, "e": "\\u00e9"}'
    (tmp_path / "in.jsonl").write_text(f"\ufeff{text}\n\n  {text} \n")
    run(tmp_path, [Where(expression="big > 0"), Shuffle()])
    assert (tmp_path / "out.jsonl").read_text() == f"{text}\n{text}\n"


def test_conversations_with_the_same_question_stay_together(tmp_path: Path) -> None:
    def conversation(problem: int, sample: int) -> Row:
        asked = {"role": "user", "content": f"What is {problem} + {problem}?"}
        said = [{"role": "assistant", "content": f"Answer {sample}."}, {"role": "user", "content": "Why?"}]
        system = [{"role": "system", "content": f"Mood {sample}."}] if sample % 2 else []
        return {"messages": [*system, asked, *said[:sample]], "asked": problem}

    write(tmp_path / "in.jsonl", [conversation(i % 50, i // 50) for i in range(200)])
    run(tmp_path, [Split(validation=20, key="messages")])
    train, validation = read(tmp_path / "out.jsonl"), read(tmp_path / "validation.jsonl")
    apart = {row["asked"] for row in validation}
    assert len(apart) == 20 and len(validation) == 80
    assert not apart & {row["asked"] for row in train}
    turns = [{"turns": [f"question {i % 9}", {"turn": str(i)}], "asked": i % 9} for i in range(36)]
    write(tmp_path / "in.jsonl", turns)
    run(tmp_path, [Split(validation=3, key="turns")])
    assert Counter(row["asked"] for row in read(tmp_path / "validation.jsonl")).most_common()[2][1] == 4


def test_a_number_of_problems_goes_to_validation_with_all_their_rows(tmp_path: Path) -> None:
    rows = many_rows(2000)
    write(tmp_path / "in.jsonl", rows)
    run(tmp_path, [Split(validation=17), Shuffle()], processes=2, part_bytes=30_000)
    train, validation = read(tmp_path / "out.jsonl"), read(tmp_path / "validation.jsonl")
    apart = {row["problem"] for row in validation}
    assert len(apart) == 17 and apart.isdisjoint(row["problem"] for row in train)
    assert len(train) + len(validation) == 2000
    run(tmp_path, [Split(validation=0.2)])
    share = len({row["problem"] for row in read(tmp_path / "validation.jsonl")}) / 500
    assert 0.14 < share < 0.26
    (tmp_path / "validation.jsonl").unlink()
    assert [file.path.name for file in run(tmp_path, [Split(validation=1e-9)]).files] == ["out.jsonl"]
    assert not (tmp_path / "validation.jsonl").exists()
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(UserError, match="validation=500 leaves no training rows"):
        run(tmp_path, [Split(validation=500)])
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_every_answer_has_the_same_chance(tmp_path: Path) -> None:
    rows = [
        {"problem": str(p), "generation": str(g), "source": "ab"[g > 0]}
        for p in range(2000)
        for g in range(4)
    ]
    write(tmp_path / "in.jsonl", rows)
    run(tmp_path, [SamplePerProblem(max_samples=1)])
    counts = Counter(row["generation"] for row in read(tmp_path / "out.jsonl"))
    assert sum(counts.values()) == 2000 and all(400 < count < 600 for count in counts.values())
    first = {(row["problem"], row["generation"]) for row in read(tmp_path / "out.jsonl")}
    write(tmp_path / "in.jsonl", rows[::-1])
    run(tmp_path, [SamplePerProblem(max_samples=1)])
    assert first == {(row["problem"], row["generation"]) for row in read(tmp_path / "out.jsonl")}
    run(tmp_path, [SamplePerProblem(max_samples=2, balance="source")])
    by_problem = defaultdict(set)
    for row in read(tmp_path / "out.jsonl"):
        by_problem[row["problem"]].add(row["source"])
    assert all(sources == {"a", "b"} for sources in by_problem.values())


def test_pairs_balance_too(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", many_rows(1000))
    outcome = run(tmp_path, [Deduplicate(), MakePairs(max_pairs=2)], part_bytes=5000)
    pairs = outcome.tally.steps[2]
    assert pairs.balanced() and pairs.merged == 2 * pairs.created == 2 * pairs.rows_out > 100
    assert set(pairs.dropped) == {"no partner", "more than max_pairs"}
    texts = {(row["problem"], row["generation"]): row["verdict"] for row in plain_loop(many_rows(1000))}
    for row in read(tmp_path / "out.jsonl"):
        assert row["chosen"] != row["rejected"]
        assert texts[row["problem"], row["chosen"]] == "correct"
        assert texts[row["problem"], row["rejected"]] == "incorrect"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_row_that_is_no_good_is_named_and_nothing_is_written(tmp_path: Path, processes: int) -> None:
    write(tmp_path / "in1.jsonl", many_rows(10))
    rows = [{**row, "n": 100 + row["n"]} for row in many_rows(5)]
    del rows[3]["verdict"]
    write(tmp_path / "in2.jsonl", rows)
    with pytest.raises(UserError, match=r"in2\.jsonl:4: step2: the row has no 'verdict': grade"):
        run(tmp_path, [Deduplicate(fields=("n",)), Verdicts()], processes=processes, part_bytes=200)
    rows[3] = {"verdict": "correct", "problm": "x"}
    write(tmp_path / "in2.jsonl", rows)
    with pytest.raises(UserError, match=r"in2\.jsonl:4: grouping by 'problem': .*Did you mean 'problm'"):
        run(tmp_path, [Verdicts(), Deduplicate()], processes=processes)
    (tmp_path / "in2.jsonl").write_text('{"problem": "a"}\n{"problem": \n')
    with pytest.raises(UserError, match=r"in2\.jsonl:2: not valid JSON"):
        run(tmp_path, [Shuffle()], processes=processes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in1.jsonl", "in2.jsonl"]
    outcome = run(tmp_path, [Shuffle()], processes=processes, skip_bad_rows=True)
    assert outcome.tally.steps[0].dropped == {"not a JSON object": 1}


def test_a_killed_worker_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", many_rows(10))

    class Kill(Verdicts):
        def reject(self, row: Row) -> str | None:
            import os

            os.kill(os.getpid(), 9)
            return None

    with pytest.raises(UserError, match="worker process was killed"):
        run(tmp_path, [Kill()], processes=2)


def test_examples_are_the_first_rows_that_were_dropped(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", many_rows(1000))
    outcome = run(tmp_path, [Where(expression="n % 2 == 0")], processes=2, part_bytes=2000)
    (examples,) = outcome.tally.steps[1].examples.values()
    assert [example.row["n"] for example in examples] == [1, 3, 5]
    assert outcome.tally.steps[1].dropped == {"condition not met": 500}


@given(st.lists(st.integers(0, 10**9), min_size=1))
def test_histogram_bins_hold_the_lengths_that_they_name(lengths: list[int]) -> None:
    histogram = Histogram()
    histogram.note(lengths[:3])
    for length in lengths[3:]:
        histogram.note([length])
    assert (histogram.count, histogram.total, histogram.longest) == (len(lengths), sum(lengths), max(lengths))
    bins = histogram.as_json()["bins"]
    starts = [start for start, _ in bins]
    assert starts == sorted(set(starts))
    for i, (start, count) in enumerate(bins):
        end = starts[i + 1] if i + 1 < len(starts) else max(lengths) + 1
        assert count == sum(start <= length < end for length in lengths)
