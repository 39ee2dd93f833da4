"""Megatron-Core, a peer of its own, loads what we write, computes the same, and is read back by us."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.require import require

pytestmark = pytest.mark.service("train")

_PEER = Path(__file__).with_name("megatron_peer.py")
_WAYS = {1: ("stacked", "layers", "halves"), 2: ("stacked", "halves")}
"""How it saves, by number of processes."""
_MODELS: dict[str, dict[str, object]] = {
    "llama": {"num_hidden_layers": 3},
    "llama-tied-wide": {"tie_word_embeddings": True, "head_dim": 8},
    "mistral": {"num_attention_heads": 6, "hidden_size": 24, "sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 4},
}
_MULTI_QUERY = {"mistral-mqa": {"num_key_value_heads": 1, "sliding_window": None}}
"""One group of heads cannot be split between two processes."""


def _run(work: Path, processes: int) -> None:
    start = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        if processes > 1
        else []
    )
    done = subprocess.run(
        [sys.executable, *start, str(_PEER), str(work), *_WAYS[processes]],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module", params=[1, 2])
def work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Models of all families, converted by us, then loaded and saved by Megatron-Core in some processes."""
    require("megatron", importlib.util.find_spec("megatron.core") is not None, "install the extra 'test'")
    from tests.unit.conversion_models import make_model, to_nemo

    folder, processes = tmp_path_factory.mktemp("megatron"), int(request.param)
    for name, sizes in (_MODELS | (_MULTI_QUERY if processes == 1 else {})).items():
        model = make_model(folder / name / "hf", name.partition("-")[0], **sizes)
        to_nemo(model, folder / name / "nemo")
    _run(folder, processes)
    return folder, processes


def test_logits_are_those_of_transformers(work: tuple[Path, int]) -> None:
    folder, processes = work
    if processes > 1:
        pytest.skip("with several processes only loading and saving is compared")
    report = json.loads((folder / "report.json").read_text())
    assert report.keys() == _MODELS.keys() | _MULTI_QUERY.keys()
    assert all(difference < 1e-4 for difference in report.values()), report


def test_what_it_writes_is_read_back(work: tuple[Path, int], tmp_path: Path) -> None:
    from nemo_skills.conversion.nemo_source import open_nemo
    from tests.unit.conversion_models import assert_same, to_hf

    folder, processes = work
    for name, way in itertools.product(_MODELS, _WAYS[processes]):
        saved, hf = folder / name / f"{way}-{processes}", folder / name / "hf"
        # the vocabulary is padded there, and two processes have each a part of the rows or columns
        with open_nemo(saved, None, str(hf), tmp_path) as source:
            stored = source.tensors.stored
            embedding = stored[f"{source.tensors.prefix}embedding.word_embeddings.weight"]
            assert embedding.size[0] == 64 and len(embedding.chunks) == processes
            assert any(".layers.0." in key for key in stored) == (way != "stacked")
        assert_same(hf, to_hf(saved, tmp_path / f"{name}-{way}", hf_model_name=str(hf)))
