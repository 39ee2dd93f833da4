"""All 7,473 rows of GSM8K: graded answers, training data, two packed parts, one packed file, the trainer."""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_skills.training.packed_merging import merge
from nemo_skills.training.prepare_data import run as prepare_data
from nemo_skills.training.prepare_packed_ft_dataset import run as pack
from nemo_skills.training.tokenise import load_tokenizer
from tests.conftest import REPO

pytestmark = pytest.mark.service("train")
ROWS = 7473
SIZE = 2048


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nemo_skills.examples.tiny_model import build

    return build(tmp_path_factory.mktemp("tiny"))


def graded(path: Path) -> Path:
    """Write each row's solution as a correct answer, and a shorter one as a wrong one."""
    folder = Path(os.environ.get("NS_TEST_DATA") or REPO.parent / "shared" / "data")
    source = folder / "gsm8k_train.jsonl"
    if not source.is_file():
        pytest.skip(f"{source} is absent; NS_TEST_DATA names the folder that holds it")
    with path.open("w") as file:
        for line in source.read_text().split("\n")[:-1]:
            row = json.loads(line)
            solution = re.sub("<<.*?>>", "", row["answer"])
            for verdict, text in (("correct", solution), ("incorrect", solution[:20])):
                answer = {"problem": row["question"], "generation": text, "verdict": verdict}
                file.write(json.dumps({**answer, "finish_reason": "stop"}) + "\n")
    return path


def succeed(program: Callable[..., None], *arguments: str) -> None:
    try:
        program(list(arguments))
    except SystemExit as ended:
        assert not ended.code, arguments


def test_every_row_arrives(model: Path, tmp_path: Path) -> None:
    from nemo_skills.training.config import DatasetConfig
    from nemo_skills.training.engine.data import open_samples

    data = tmp_path / "sft.jsonl"
    succeed(
        prepare_data, f"++input_files={graded(tmp_path / 'graded.jsonl')}", f"++output_path={data}",
        "++prompt_config=generic/math", "++prompt_template=chatml", "++processes=1",
    )  # fmt: skip
    lines = data.read_text().split("\n")[:-1]
    assert len(lines) == ROWS
    manifest = json.loads((tmp_path / "sft.manifest.json").read_text())
    steps = {step["name"]: step for step in manifest["steps"]}
    assert (steps["read"]["rows_in"], steps["verdicts"]["rows_out"]) == (2 * ROWS, ROWS)

    parts = []
    for name, rows in (("a", lines[:4000]), ("b", lines[4000:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sft.jsonl").write_text("\n".join(rows) + "\n")
        succeed(
            pack, f"++model.data.train_ds.file_names=[{tmp_path / name / 'sft.jsonl'}]",
            f"++model.data.train_ds.max_seq_length={SIZE}", f"++tokenizer_path={model}",
            f"++output_dir={tmp_path / name}", f"++pack_sizes=[{SIZE}]", "++processes=1",
        )  # fmt: skip
        parts.append(tmp_path / name / f"packed_{SIZE}_seed0")
    merged = tmp_path / "all" / f"packed_{SIZE}_seed0"
    merge(parts, merged)

    about: list[Any] = [json.loads(Path(f"{prefix}.json").read_text()) for prefix in (*parts, merged)]
    assert [found["counts"]["rows"] for found in about] == [4000, ROWS - 4000, ROWS]
    for found in about:
        assert found["counts"]["sequences"] == found["counts"]["rows"] == found["fill"]["sequences"]
        assert found["quality"]["efficiency"] > 0.98

    tokenizer = load_tokenizer(str(model))
    packed_config = DatasetConfig(file_path=f"{merged}.npy", packed_sequence=True, max_seq_length=SIZE)
    packs = open_samples(packed_config, tokenizer)
    assert len(packs) == about[2]["fill"]["packs"]
    documents = list(itertools.chain.from_iterable(packs[i] for i in range(len(packs))))
    assert len(documents) == ROWS
    assert sum(len(d.input_ids) for d in documents) == about[2]["counts"]["tokens"]
    learned = sum(int((d.targets >= 0).sum()) for d in documents)
    assert learned == about[2]["counts"]["trained_tokens"]
    assert all(sum(len(d.input_ids) for d in packs[i]) <= SIZE for i in range(len(packs)))

    # the trainer sees in the packs just what it sees in the rows themselves
    rows_ = open_samples(DatasetConfig(file_path=str(data), max_seq_length=SIZE), tokenizer)
    plain = itertools.chain.from_iterable(rows_[i] for i in range(ROWS))
    assert Counter(map(_key, documents)) == Counter(map(_key, plain))


def _key(document: Any) -> tuple[bytes, bytes]:
    return tuple(np.asarray(part, np.int64).tobytes() for part in document)  # type: ignore[return-value]
