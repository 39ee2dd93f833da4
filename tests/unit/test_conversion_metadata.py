"""Metadata of checkpoints as versions of Megatron-Core have written it, read without Megatron."""

import pickle
import sys
from pathlib import Path, PosixPath
from types import ModuleType

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan

from nemo_skills.conversion.stand_ins import StandInUnpickler
from nemo_skills.core.errors import UserError
from tests.unit.conversion_models import assert_same, make_model, to_hf, to_nemo

_STRATEGY = "megatron.core.dist_checkpointing.strategies.torch"
_LOCAL_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""What a layer spec without Transformer Engine calls these tensors."""


def _metadata_class(monkeypatch: pytest.MonkeyPatch) -> type[Metadata]:
    """Make the subclass that Megatron-Core's pickles name; the module is gone when they are read."""
    module = ModuleType(_STRATEGY)
    kind = type("MCoreMetadata", (Metadata,), {"__module__": _STRATEGY})
    module.MCoreMetadata = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, _STRATEGY, module)
    return kind


@pytest.mark.parametrize("kind", ["plain", "megatron"])
def test_variants_of_metadata_and_names_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model = make_model(tmp_path / "model", "qwen3", "bfloat16")
    nemo = to_nemo(model, tmp_path / "nemo")
    path = nemo / "model_weights" / ".metadata"
    written = pickle.loads(path.read_bytes())

    def name(key: str) -> str:
        for ours, theirs in _LOCAL_NAMES.items():
            key = key.replace(ours, theirs)
        return key.replace("model.", "module.", 1)

    tensors = {name(key): entry for key, entry in written.state_dict_metadata.items()}
    places = {
        MetadataIndex(name(i.fqn), i.offset, index=3): _with_path(info) if kind == "megatron" else info
        for i, info in written.storage_data.items()
    }
    optimizer = next(iter(tensors.values()))
    tensors["optimizer.state.exp_avg.module.x"] = optimizer
    places[MetadataIndex("optimizer.state.exp_avg.module.x", [0])] = _StorageInfo("gone.distcp", 0, 10)
    changed = Metadata(tensors, planner_data={"a": ("b", 0)}, storage_data=places)
    if kind == "megatron":
        with monkeypatch.context() as patch:
            changed = _metadata_class(patch)(tensors, storage_data=places)
            changed.storage_meta = StorageMeta(checkpoint_id=PosixPath("/checkpoints/x"), save_id="1")
            changed.mcore_data = {"k": {"nd_reformulated_orig_global_shape": (1, 2)}}
            changed.all_local_plans = [SavePlan([])]
            path.write_bytes(pickle.dumps(changed))
    else:
        path.write_bytes(pickle.dumps(changed))
    assert_same(model, to_hf(nemo, tmp_path / "back"))


def _with_path(info: _StorageInfo) -> _StorageInfo:
    return _StorageInfo(PosixPath(info.relative_path), info.offset, info.length)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "code",
    [b"cposix\nsystem\n(S'true'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR."],
)
def test_pickles_that_would_run_something_are_refused(code: bytes) -> None:
    with pytest.raises(UserError, match=r"refers to \w+\.\w+: that is no checkpoint, it was not loaded"):
        StandInUnpickler(code, "it").read()


def test_functions_of_torch_are_not_called(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for module, name in (("torch", "save"), ("torch.hub", "load"), ("torch._utils", "_rebuild_tensor_v2")):
        code = f"c{module}\n{name}\n(S'1'\nS'{target}'\ntR.".encode()
        StandInUnpickler(code, "it").read()
    assert not target.exists()
