"""What is packed comes out again; files are complete or not there."""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.training.packed_files import (
    PADDING,
    PackedReader,
    PackRows,
    PackShape,
    packed_prefix,
    part_path,
    write_packed,
)
from nemo_skills.training.packed_merging import merge
from nemo_skills.training.packing import plan_packs
from nemo_skills.training.packing_info import Counts, Fill, PackingInfo
from nemo_skills.training.packing_rows import RowFiller
from nemo_skills.training.packing_tokens import open_store

Sequence = tuple[tuple[int, ...], tuple[bool, ...]]
CAPACITY = 48
FILLER = 9

tokens = st.tuples(st.integers(0, 2**30 - 1), st.booleans())
sequences = st.lists(tokens, min_size=2, max_size=33).map(
    # nothing precedes the first token, so it is never learned
    lambda pairs: (tuple(i for i, _ in pairs), (False, *(m for _, m in pairs[1:])))
)
slow = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def pack(prefix: Path, given_sequences: list[Sequence], multiple: int, vocabulary: int = 2**30) -> None:
    """Do what the main does, without a tokenizer."""
    with open_store(prefix.parent) as store:
        for ids, mask in given_sequences:
            values = np.array(ids, np.int32) * 2 + np.array(mask, np.int32)
            store.append(values, np.array([len(ids)], np.int32))
        store.finish()
        inputs = -(-(store.lengths - 1) // multiple) * multiple
        plan = plan_packs(inputs, CAPACITY)
        filling = RowFiller(plan, store, inputs + 1, FILLER)
        with write_packed(prefix, filling.shape, info(plan.tokens, vocabulary).to_json()) as writer:
            for rows in filling.rows():
                writer.append(rows)


def info(total: int, vocabulary: int) -> PackingInfo:
    fill = Fill(packs=1, sequences=1, inputs=total, padding=0, pairs=0, cross_document_pairs=0)
    return PackingInfo(
        pack_size=CAPACITY, context_parallel_size=1, seed=0, packing_algorithm="x", tokenizer="t",
        vocabulary="v", vocabulary_size=vocabulary, inputs=("in",), fingerprint="f",
        counts=Counts(rows=1, sequences=1), fill=fill,
    )  # fmt: skip


def unpack(prefix: Path) -> list[Sequence]:
    return sorted((tuple(s.input_ids), tuple(s.loss_mask)) for pack in PackedReader(prefix) for s in pack)


@slow
@given(given_=st.lists(sequences, min_size=1, max_size=40), multiple=st.sampled_from([1, 16]))
def test_unpacking_gives_what_was_packed(given_: list[Sequence], multiple: int, tmp_path: Path) -> None:
    pack(tmp_path / "p", given_, multiple)
    # the padding behind each sequence is not learned, and makes its inputs divisible
    padded = [
        (ids + (FILLER,) * more, mask + (False,) * more)
        for ids, mask in given_
        for more in [-(len(ids) - 1) % multiple]
    ]
    found = unpack(tmp_path / "p")
    assert found == sorted(padded)
    assert all((len(ids) - 1) % multiple == 0 for ids, _ in found)
    assert all(sum(len(s.input_ids) - 1 for s in p) <= CAPACITY for p in PackedReader(tmp_path / "p"))


@slow
@given(given_=st.lists(sequences, min_size=1, max_size=30))
def test_the_arrays_have_the_documented_layout(given_: list[Sequence], tmp_path: Path) -> None:
    """Read as other trainers do: labels are one token further on, and the mask stands with the inputs."""
    pack(tmp_path / "p", given_, 1)
    ids, mask, starts = (np.load(tmp_path / f"p.{n}.npy") for n in ("input_ids", "loss_mask", "seq_start_id"))
    assert (ids.dtype, mask.dtype, starts.dtype) == (np.int32, bool, np.int32)
    learned = []
    for row, row_mask, row_starts in zip(ids, mask, starts, strict=True):
        end = list(row).index(PADDING) if PADDING in row else len(row)
        assert (row[end:] == PADDING).all() and row_mask[end:].all()
        bounds = [*row_starts[row_starts != PADDING], end]
        for a, b in pairwise(bounds):
            learned.append(tuple(row[a + 1 : b][row_mask[a : b - 1]]))
            assert not row_mask[b - 1]
    assert sorted(learned) == sorted(tuple(i for i, m in zip(*s, strict=True) if m) for s in given_)


def test_merging_keeps_packs_in_order_and_widens_rows(tmp_path: Path) -> None:
    short: list[Sequence] = [((1, 2), (False, True))] * 3
    long: list[Sequence] = [(tuple(range(40)), (False,) + (True,) * 39)] * 5
    pack(tmp_path / "a", short, 1)
    pack(tmp_path / "b", long, 1)
    merge([tmp_path / "a.npy", tmp_path / "b"], tmp_path / "c")
    assert unpack(tmp_path / "c") == sorted(short + long)
    parts = [list(PackedReader(tmp_path / name)) for name in "abc"]
    assert [len(pack) for pack in parts[2]] == [len(pack) for pack in parts[0] + parts[1]]
    about = json.loads((tmp_path / "c.json").read_text())
    assert about["counts"]["rows"] == 2 and about["inputs"] == ["in", "in"]


def spoil(tmp_path: Path, how: str) -> None:
    about = tmp_path / "b.json"
    found = json.loads(about.read_text())
    ids = np.load(part_path(tmp_path / "b", "input_ids"))
    if how == "vocabulary":
        found["vocabulary"] = "another"
    elif how == "pack_size":
        found["pack_size"] = 2 * CAPACITY
    elif how == "no json":
        about.unlink()
        return
    elif how == "other rows":
        np.save(part_path(tmp_path / "b", "input_ids"), np.concatenate([ids, ids]))
    elif how == "dtype":
        np.save(part_path(tmp_path / "b", "input_ids"), ids.astype(np.int64))
    elif how == "cut":
        part_path(tmp_path / "b", "input_ids").write_bytes(
            part_path(tmp_path / "b", "input_ids").read_bytes()[:-4]
        )
    elif how == "tokens":
        ids[0, 0] = 2**30
        np.save(part_path(tmp_path / "b", "input_ids"), ids)
    elif how == "missing":
        part_path(tmp_path / "b", "loss_mask").unlink()
    about.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("vocabulary", "b does not go with .*a: vocabulary is another, not v"),
        ("pack_size", "b does not go with .*a: pack_size is 96, not 48"),
        ("no json", "b.json is missing"),
        ("other rows", "do not belong together: input_ids is 2 x 4, loss_mask 1 x 4"),
        ("dtype", "expected a table of int32, found shape 1 x 4 of int64"),
        ("cut", "is no whole .npy file"),
        ("tokens", "row 0 has tokens that are not of the vocabulary"),
        ("missing", "loss_mask.npy does not exist"),
    ],
)
def test_parts_that_do_not_go_together_are_not_merged(how: str, message: str, tmp_path: Path) -> None:
    some: list[Sequence] = [((1, 2), (False, True))] * 2
    pack(tmp_path / "a", some, 1)
    pack(tmp_path / "b", some, 1)
    spoil(tmp_path, how)
    with pytest.raises(UserError, match=message):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert not list(tmp_path.glob("c*"))


def test_an_output_is_no_input_and_no_input_counts_twice(tmp_path: Path) -> None:
    pack(tmp_path / "a", [((1, 2), (False, True))], 1)
    with pytest.raises(UserError, match="is one of the inputs"):
        merge([tmp_path / "a"], tmp_path / "a.npy")
    with pytest.raises(UserError, match="more than once"):
        merge([tmp_path / "a", tmp_path / "a.npy"], tmp_path / "c")


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from nemo_skills.training.packed_files import PackRows, PackShape, write_packed

calls = 0
def deadly(name):
    real = getattr(Path, name)
    def call(self, *args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *args, **kwargs)
    setattr(Path, name, call)
for name in ("open", "replace", "unlink"):
    deadly(name)
rows = PackRows(np.full((3, 5), 7, np.int32), np.ones((3, 5), bool), np.zeros((3, 1), np.int32))
with write_packed(Path(sys.argv[1]), PackShape(3, 5, 1), {"version": "new"}) as writer:
    writer.append(rows)
"""


@pytest.mark.parametrize("before", [False, True], ids=["nothing there", "older files there"])
def test_files_of_a_killed_run_are_never_taken_for_complete(before: bool, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    old, new = [(1, 1, 1)] * 2, [(7,) * 5] * 3
    for moment in range(1, 40):
        if before:
            rows = PackRows(np.full((2, 3), 1, np.int32), np.ones((2, 3), bool), np.zeros((2, 1), np.int32))
            with write_packed(prefix, PackShape(2, 3, 1), {"version": "old"}) as writer:
                writer.append(rows)
        ended = subprocess.run([sys.executable, "-c", KILLED, str(prefix), str(moment)], timeout=60)
        try:
            reader = PackedReader(prefix)
        except UserError:
            assert ended.returncode == -9
            continue
        found = [tuple(pack[0].input_ids) for pack in reader]
        version = (reader.about or {}).get("version")
        assert (found, version) in [(old, "old"), (new, "new"), (new, None)]
        if ended.returncode == 0:
            assert version == "new"
            break
        for path in tmp_path.glob("p.*.npy"):
            path.unlink()
    # every step of the writing has had its turn
    assert ended.returncode == 0 and moment > 8
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy", ".npy", ".npy"]


def test_an_error_leaves_older_files_as_they_were(tmp_path: Path) -> None:
    pack(tmp_path / "p", [((1, 2), (False, True))], 1)
    held = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RuntimeError), write_packed(tmp_path / "p", PackShape(2, 3, 1), None):
        raise RuntimeError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == held


@pytest.mark.parametrize("given_", ["x_seed0", "x_seed0.npy", "x_seed0.loss_mask.npy", "x_seed0.json"])
def test_files_are_named_by_prefix_or_as_trainers_do(given_: str) -> None:
    assert packed_prefix(f"/data/{given_}") == Path("/data/x_seed0")


def test_a_missing_file_names_what_is_there(tmp_path: Path) -> None:
    pack(tmp_path / "p", [((1, 2), (False, True))], 1)
    with pytest.raises(UserError, match=r"Packed files there: p\.npy"):
        PackedReader(tmp_path / "q.npy")


def test_context_parallel_multiples() -> None:
    from nemo_skills.core.hydra import compose
    from nemo_skills.training.packing_config import PackingConfig

    base = [
        "model.data.train_ds.file_names=[a]", "model.data.train_ds.max_seq_length=96", "tokenizer_path=t",
        "output_dir=o", "pack_sizes=[96]",
    ]  # fmt: skip
    for size in (1, 2, 3, 4, 8, 12, 16):
        config = compose(PackingConfig, [*base, f"model.context_parallel_size={size}"])
        assert config.multiple % (2 * size) == 0 or size == 1
        if math.log2(size).is_integer() and size > 1:
            assert config.multiple == max(16, 2 * size)


def test_reading_the_settings_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "numpy", "hydra"}
    mains = "nemo_skills.training.prepare_packed_ft_dataset, nemo_skills.training.merge_packed_data"
    code = f"import sys, {mains}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
