"""Offline generation without a model: prompts of rows, batches, journals of several ranks, the merge."""

import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import compose
from nemo_skills.core.jsonl import Journal, Shards, row_check
from nemo_skills.inference.offline import job
from nemo_skills.inference.offline.aligner import AlignerTask
from nemo_skills.inference.offline.job import Launch, run_offline
from nemo_skills.inference.offline.merge import Counts, Entry, Refusal
from nemo_skills.inference.offline.ranks import Ranks
from nemo_skills.inference.offline.sft_rows import sft_prompt
from nemo_skills.inference.offline.spec import Answer, EngineSpec, Item, Result, Sampling, sample_seed
from nemo_skills.inference.offline.task import Inputs
from nemo_skills.inference.run_generation import RunGenerationConfig

USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"input": "x", "output": "y"}, "x"),
        ({"prompt": "x"}, "x"),
        ({"messages": [USER, BOT]}, [USER]),
        ({"messages": [USER, BOT, USER]}, [USER, BOT, USER]),
        ({"prompt": [USER]}, [USER]),
        (
            {
                "system": "be kind",
                "mask": "User",
                "conversations": [{"from": "User", "value": "q"}, {"from": "Assistant", "value": "a"}],
            },
            [{"role": "system", "content": "be kind"}, USER],
        ),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [USER]),
    ],
)
def test_prompts_of_rows(row: dict[str, Any], expected: object) -> None:
    assert sft_prompt(row, chat=False) == expected


def test_a_text_as_a_users_message() -> None:
    assert sft_prompt({"input": "q"}, chat=True) == [USER]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"inputs": "x"}, r"one of the keys input, .*Did you mean 'input'\? Keys of the row: inputs"),
        ({}, "Keys of the row: none"),
        ({"input": 3}, "'input' must hold a text"),
        ({"messages": []}, "'messages' must hold a list of messages"),
        ({"messages": [{"content": "x"}]}, "needs 'role' and 'content'"),
        ({"messages": [BOT]}, "no message of a user"),
        ({"conversations": [{"from": "User"}]}, "needs 'from' and 'value'"),
    ],
)
def test_rows_without_a_prompt(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sft_prompt(row, chat=False)


def test_seeds_differ_by_row_and_response_and_nothing_else() -> None:
    seeds = {sample_seed(s, p, r) for s in range(5) for p in range(50) for r in range(4)}
    assert len(seeds) == 1000
    assert sample_seed(1, 2, 3) == 580410228
    assert all(0 <= seed < 2**31 for seed in seeds)


@given(
    st.tuples(*[st.integers(0, 10**6)] * 4),
    st.dictionaries(st.text(), st.text() | st.integers(-(2**53), 2**53)),
    st.text(),
)
def test_entries_survive_the_journal(
    counts: tuple[int, int, int, int], row: dict[str, Any], error: str
) -> None:
    text = json.dumps(row).encode()
    whole = Entry(Counts(*counts), text)
    refused = Entry(Counts(*counts), None, Refusal("context_length", error))
    assert Entry.decode(whole.encode()) == whole
    assert Entry.decode(refused.encode()) == refused


def test_specs_and_results_survive_json() -> None:
    spec = EngineSpec(engine="vllm", model="m", sampling=Sampling(end_strings=("a", "b")), args={"x": [1]})
    result = Result(
        prompt="p",
        prompt_tokens=3,
        cut=1,
        answers=(Answer(text="t", tokens=2, finish="stop", logprobs=(-1.5, 0)),),
    )
    from dataclasses import asdict

    assert EngineSpec.of(json.loads(json.dumps(asdict(spec)))) == spec
    assert Result.of(json.loads(json.dumps(asdict(result)))) == result


def test_shards_read_several_journals_as_one(weird_tmp_path: Path) -> None:
    rows = [b'{"row":%d}' % i for i in range(6)]
    for rank in range(2):
        journal = Journal.open(weird_tmp_path / f"{rank}.jsonl")
        for i in range(rank, 5, 2):
            journal.append(i, rows[i], b'{"answer":%d,"long":"%b"}' % (i, b"x" * 10_000 * i))
        journal.append(9, b"{}", b"{}")  # beyond the input, from a longer one
        journal.append(5, b'{"row":"was another"}', b'{"answer":"old"}')
        journal.close()
    with (weird_tmp_path / "1.jsonl").open("ab") as file:
        file.write((weird_tmp_path / "0.jsonl").read_bytes()[:60])  # cut off while it was written
    with Shards(array("I", map(row_check, rows))) as shards:
        for name in ("0", "absent", "1"):
            shards.add(weird_tmp_path / f"{name}.jsonl")
        assert [shards.has(i) for i in range(6)] == [True] * 5 + [False]
        assert shards.found == 5
        assert [json.loads(shards.row(i))["answer"] for i in range(5)] == [0, 1, 2, 3, 4]


class _Echo:
    """An engine that repeats prompts and seeds."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.fail_after: int | None = None

    def answer(self, items: Sequence[Item]) -> list[Result]:
        if self.fail_after is not None and len(self.batches) >= self.fail_after:
            raise UserError("out of luck", exit_code=1)
        self.batches.append([str(item.prompt) for item in items])
        return [self._result(item) for item in items]

    def _result(self, item: Item) -> Result:
        prompt = str(item.prompt)
        if "long" in prompt:
            return Result(prompt=prompt, prompt_tokens=99, refused="the prompt has 99 tokens, 5 are allowed")
        answers = tuple(Answer(text=f"{prompt}/{seed}", tokens=1, finish="stop") for seed in item.seeds)
        return Result(prompt=prompt, prompt_tokens=1, answers=answers)

    def close(self) -> None:
        pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> _Echo:
    echo = _Echo()
    monkeypatch.setattr(job, "open_engine", lambda *_: echo)
    monkeypatch.setattr(job, "check_model", lambda _: None)
    return echo


def run(folder: Path, env: Mapping[str, str] = {}, rows: int = 11, **overrides: object) -> Path:
    source = folder / "in.jsonl"
    if not source.exists():
        source.write_text("".join(json.dumps({"input": f"q{i}"}) + "\n" for i in range(rows)))
    values = {
        "pretrained_checkpoint.restore_from_path": "m",
        "model.data.train_ds.file_path": source,
        "exp_manager.explicit_log_dir": folder / "out",
        "model.global_batch_size": 4,
        "model.micro_batch_size": 2,
        **overrides,
    }
    config = compose(RunGenerationConfig, [f"{key}={value}" for key, value in values.items()])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        launch = Launch(
            spec=config.engine_spec(),
            batch=config.batch,
            devices=config.trainer.devices,
            resume=config.resume,
        )
        run_offline(AlignerTask(config), launch)
    return config.output


def ranks(rank: int, size: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(size)}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_steps_and_consumed_samples(tmp_path: Path, engine: _Echo) -> None:
    found = read(run(tmp_path))
    assert [row["step"] for row in found] == [0] * 4 + [1] * 4 + [2] * 3
    assert [row["consumed_samples"] for row in found] == [4] * 4 + [8] * 4 + [11] * 3
    assert [row["prompt"] for row in found] == [f"q{i}" for i in range(11)]
    assert list(found[0]) == ["step", "consumed_samples", "prompt", "responses"]
    assert engine.batches[-1] == ["q10"]


def test_epochs_sample_anew(tmp_path: Path, engine: _Echo) -> None:
    found = read(run(tmp_path, **{"trainer.generation.max_epochs": 2}))
    assert len(found) == 22
    assert [row["step"] for row in found[11:]] == [0] * 4 + [1] * 4 + [2] * 3
    assert found[-1]["consumed_samples"] == 22
    assert found[0]["prompt"] == found[11]["prompt"]
    assert found[0]["responses"] != found[11]["responses"]


@pytest.mark.parametrize("size", [2, 3, 7])
def test_any_number_of_ranks_in_any_order(tmp_path: Path, engine: _Echo, size: int) -> None:
    (tmp_path / "one").mkdir()
    expected = run(tmp_path / "one").read_bytes()
    alone = sorted(engine.batches)
    engine.batches.clear()
    for rank in reversed(range(size)):
        output = run(tmp_path, ranks(rank, size))
        assert output.exists() == (rank == 0)
    assert output.read_bytes() == expected
    assert sorted(engine.batches) == alone, "batches do not depend on the number of ranks"
    assert sorted(path.name for path in output.parent.iterdir()) == [output.name, f"{output.name}.done"]


def test_going_on_with_another_number_of_ranks(tmp_path: Path, engine: _Echo) -> None:
    (tmp_path / "one").mkdir()
    expected = run(tmp_path / "one").read_bytes()
    engine.batches.clear()
    run(tmp_path, ranks(1, 3))
    engine.fail_after = 3
    with pytest.raises(UserError, match="out of luck"):
        run(tmp_path, ranks(0, 3))
    engine.fail_after = None
    done = [question for batch in engine.batches for question in batch]
    assert len(done) == 6
    engine.batches.clear()
    run(tmp_path, ranks(0, 2))
    output = run(tmp_path, ranks(1, 2))
    assert output.read_bytes() == expected
    assert not {q for batch in engine.batches for q in batch} & set(done), "nothing is done twice"


def test_a_torn_batch_is_done_again_as_a_whole(tmp_path: Path, engine: _Echo) -> None:
    engine.fail_after = 2
    with pytest.raises(UserError):
        run(tmp_path)
    journal = tmp_path / "out" / "generations" / "generations.jsonl-ranks" / "rank-00000.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:-20])
    engine.fail_after = None
    engine.batches.clear()
    found = read(run(tmp_path))
    assert engine.batches[0] == ["q2", "q3"]
    assert [row["prompt"] for row in found] == [f"q{i}" for i in range(11)]


def test_an_edited_row_is_done_again(tmp_path: Path, engine: _Echo) -> None:
    run(tmp_path, ranks(0, 2))
    source = tmp_path / "in.jsonl"
    source.write_text(source.read_text().replace("q1", "changed", 1))
    engine.batches.clear()
    run(tmp_path, ranks(0, 2))
    assert engine.batches == [["q0", "changed"]]
    found = read(run(tmp_path, ranks(1, 2)))
    assert found[1]["prompt"] == "changed"


def test_a_complete_output_is_left_alone(tmp_path: Path, engine: _Echo) -> None:
    output = run(tmp_path)
    before = output.stat().st_mtime_ns
    engine.batches.clear()
    run(tmp_path)
    run(tmp_path, ranks(1, 2))
    assert (engine.batches, output.stat().st_mtime_ns) == ([], before)
    with pytest.raises(UserError, match="seed was 1234, is 1"):
        run(tmp_path, seed=1)
    run(tmp_path, seed=1, resume="false")
    assert len(engine.batches) == 6


def test_prompts_that_are_too_long_are_counted(tmp_path: Path, engine: _Echo) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(
        "".join(json.dumps({"input": f"{'long' if i % 4 == 1 else 'q'}{i}"}) + "\n" for i in range(6))
    )
    output = run(tmp_path)
    assert [row["prompt"] for row in read(output)] == ["q0", "q2", "q3", "q4"]
    assert [row["step"] for row in read(output)] == [0, 0, 0, 1], "steps count all rows of the input"
    skipped = read(output.with_name("generations.failed.jsonl"))
    assert [(row["input"], row["_line"], row["_reason"]) for row in skipped] == [
        ("long1", 2, "context_length"), ("long5", 6, "context_length"),
    ]  # fmt: skip
    mark = json.loads(output.with_name("generations.jsonl.done").read_text())
    assert (mark["rows"], mark["failed"], mark["responses"]) == (4, 2, 4)


def test_a_long_prompt_as_an_error(tmp_path: Path, engine: _Echo) -> None:
    (tmp_path / "in.jsonl").write_text('{"input": "q"}\n\n{"input": "long"}\n')
    with pytest.raises(UserError, match=r"in\.jsonl:3: the prompt has 99 tokens"):
        run(tmp_path, **{"model.data.train_ds.long_prompts": "error"})


def test_bad_rows_are_found_before_anything_is_generated(tmp_path: Path, engine: _Echo) -> None:
    (tmp_path / "in.jsonl").write_text('{"input": "q"}\n{"question": "x"}\n{broken\n')
    with pytest.raises(UserError, match=r"in\.jsonl:2: a row needs one of the keys input"):
        run(tmp_path, **{"model.micro_batch_size": 1})
    assert engine.batches == []


def test_input_and_output_must_differ(tmp_path: Path, engine: _Echo) -> None:
    output = run(tmp_path)
    with pytest.raises(UserError, match="would be overwritten"):
        run(tmp_path, **{"model.data.train_ds.file_path": output})


def test_numbers_of_processes_that_do_not_fit(tmp_path: Path, engine: _Echo) -> None:
    with pytest.raises(UserError, match="1 nodes with 3 processes each are 3 processes, but 2 were started"):
        run(tmp_path, ranks(0, 2), **{"trainer.devices": 3})


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 6), st.integers(1, 3))
def test_every_row_belongs_to_exactly_one_rank(
    tmp_path_factory: pytest.TempPathFactory, rows: int, batch: int, size: int, epochs: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "in.jsonl").write_text('{"input": "q"}\n' * rows)
    config = compose(
        RunGenerationConfig,
        [
            "pretrained_checkpoint.restore_from_path=m",
            f"model.data.train_ds.file_path={folder}/in.jsonl",
            f"exp_manager.explicit_log_dir={folder}",
            f"trainer.generation.max_epochs={epochs}",
        ],
    )
    inputs = Inputs(AlignerTask(config), batch)
    found = [
        place.position
        for rank in range(size)
        for _, places in inputs.batches(Ranks(rank=rank, size=size))
        for place in places
    ]
    assert sorted(found) == list(range(rows * epochs))
    assert inputs.total == rows * epochs
