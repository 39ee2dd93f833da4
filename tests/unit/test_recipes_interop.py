"""NeMo-Run configurations as YAML and for Hydra, and back."""

import functools
import pathlib
from typing import Any

import fiddle as fdl
import nemo_run as run
import pytest
import yaml
from hydra.utils import instantiate
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nemo_run.core.serialization.yaml import YamlSerializer
from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer
from omegaconf import OmegaConf

from nemo_skills.core.errors import UserError
from nemo_skills.training.recipes.interop import (
    by_value,
    configured,
    from_hydra,
    from_tree,
    from_yaml,
    to_hydra,
    to_tree,
    to_yaml,
)
from tests.unit.recipe_demo import (
    Dtype,
    Features,
    Frozen,
    LlamaConfig,
    LlamaModel,
    MockData,
    SomeObject,
    Trainer,
    in_order,
    pretrain,
    take,
)

EXAMPLES = 60
# to make examples smaller takes minutes
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
HERE = "tests.unit.recipe_demo"
NUMBERS = st.integers() | st.floats(allow_nan=False) | st.booleans()
TEXTS = st.text() | st.sampled_from(
    ["1e5", "${x}", "\\${x}", "null", "2020-01-01", "1_0", "0x1", "~", "???", "\x85", "=", "<<"]
)
YAML_VALUES = NUMBERS | TEXTS | st.none() | st.binary()
KEYS = TEXTS | st.integers() | st.booleans()
MORE_VALUES = st.sampled_from(
    [
        Dtype.HALF,
        Features.PACKED | Features.SHUFFLED,
        take,
        Frozen,
        len,
        Trainer.for_node,
        pathlib.PosixPath("/a b"),
    ]
)


def configs(inside: st.SearchStrategy[Any], *, everything: bool = True) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["named", "first", "free", "path"])
    kwargs = st.dictionaries(names, inside, max_size=3)
    kinds = st.sampled_from([run.Config, run.Partial])
    by_name = st.builds(lambda kind, given: kind(take, **given), kinds, kwargs)
    in_places = st.builds(lambda kind, args: kind(take, *args), kinds, st.lists(inside, max_size=3))
    without_names = st.builds(lambda kind, a, b: kind(in_order, a, third=b), kinds, inside, inside)
    return by_name | in_places | without_names if everything else by_name


def nested(leaves: st.SearchStrategy[Any], *, everything: bool) -> st.SearchStrategy[Any]:
    def around(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        found = (
            st.lists(inside, max_size=3)
            | st.dictionaries(KEYS if everything else st.text(), inside, max_size=3)
            | configs(inside, everything=everything)
        )
        shared = st.builds(lambda value: [value, {"again": value}], inside)
        if not everything:
            return found
        odd_keys = st.dictionaries(
            st.sampled_from(["_target_", "_partial_", None, (1, "a"), Dtype.HALF, "k"]), inside, max_size=2
        )
        tuples = st.lists(inside, max_size=3).map(tuple)
        return found | shared | tuples | odd_keys | st.frozensets(NUMBERS, max_size=3)

    return st.recursive(leaves, around, max_leaves=8)


ANYTHING = configs(nested(YAML_VALUES | MORE_VALUES, everything=True))


def exact(value: Any) -> Any:
    """Return a text that tells 1 from True and a list from a tuple, for comparisons."""
    if isinstance(value, fdl.Buildable):
        return (type(value), value.__fn_or_cls__, {k: exact(v) for k, v in value.__arguments__.items()})
    if isinstance(value, functools.partial):
        return (functools.partial, exact(value()))
    if isinstance(value, (list, tuple)):
        return (type(value), [exact(item) for item in value])
    if isinstance(value, dict):
        return (dict, [(exact(key), exact(item)) for key, item in value.items()])
    return (type(value), value)


@given(ANYTHING)
@settings(max_examples=EXAMPLES, deadline=None, phases=PHASES)
def test_yaml_and_back(config: Any) -> None:
    back = from_yaml(to_yaml(config))
    assert exact(back) == exact(config)
    assert to_yaml(back) == to_yaml(config)


@given(ANYTHING)
@settings(max_examples=EXAMPLES, deadline=None, phases=PHASES)
def test_hydra_builds_the_same(config: Any) -> None:
    tree = to_hydra(config)
    assert exact(instantiate(tree)) == exact(fdl.build(config))
    # also through a file
    text = to_yaml(config, hydra=True)
    assert exact(instantiate(OmegaConf.create(text))) == exact(fdl.build(config))
    # Hydra knows no sharing
    assert exact(from_hydra(tree)) == exact(from_hydra(OmegaConf.create(text))) == exact(from_yaml(text))
    assert exact(from_yaml(text)) == exact(config)


PLAIN = nested(NUMBERS | st.text() | st.none() | st.binary(), everything=False)


@given(configs(PLAIN, everything=False))
@settings(max_examples=EXAMPLES, deadline=None, phases=PHASES)
def test_nemo_run_writes_the_same(config: Any) -> None:
    theirs = YamlSerializer().serialize(config)
    assert exact_tree(yaml.safe_load(to_yaml(config))) == exact_tree(yaml.safe_load(theirs))
    back = from_yaml(theirs)
    assert back == config
    theirs = ZlibJSONSerializer()
    assert to_yaml(theirs.deserialize(theirs.serialize(config))) == to_yaml(config)


def exact_tree(tree: Any) -> Any:
    """NeMo-Run sorts keys."""
    if isinstance(tree, dict):
        return sorted(((exact(k), exact_tree(v)) for k, v in tree.items()), key=repr)
    return [exact_tree(item) for item in tree] if isinstance(tree, list) else exact(tree)


def test_import_paths_are_written_as_nemo_run_does() -> None:
    config = run.Partial(take, first=pretrain, named=LlamaConfig)
    assert yaml.safe_load(to_yaml(config)) == yaml.safe_load(YamlSerializer().serialize(config))
    assert from_yaml(YamlSerializer().serialize(config)) == config
    torch = pytest.importorskip("torch")
    config = run.Config(take, first=torch.bfloat16)
    assert yaml.safe_load(to_yaml(config)) == yaml.safe_load(YamlSerializer().serialize(config))
    assert from_yaml(to_yaml(config)) == config


def test_what_is_shared_stays_shared() -> None:
    size = run.Config(LlamaConfig, seq_length=16)
    config = run.Config(SomeObject, a=size, b=run.Config(SomeObject, a=size), items=[size, size.clone()])
    back = from_yaml(to_yaml(config))
    assert back == config
    assert back.a is back.b.a is back.items[0]
    assert back.a is not back.items[1]
    # NeMo-Run's writes three of them
    assert from_yaml(YamlSerializer().serialize(config)) != config
    back.a.seq_length = 32
    assert fdl.build(back).b.a.seq_length == 32


def test_what_is_not_set_stays_so() -> None:
    config = run.Config(LlamaConfig, num_layers=2)
    del config.num_layers
    assert to_tree(config) == {"_target_": f"{HERE}.LlamaConfig"}
    assert from_tree(to_tree(config)).__arguments__ == {}
    assert to_tree(run.Config(dict, a=1)) == {"_target_": "builtins.dict", "a": 1}
    assert from_tree(to_tree(run.Config(dict, a=1))) == run.Config(dict, a=1)
    # a literal and a call that makes it are not the same
    call = run.Config(tuple, [1, 2])
    assert exact(from_tree(to_tree([call, (1, 2)]))) == exact([call, (1, 2)])
    assert instantiate(to_hydra(run.Config(take, first=call))) == ((1, 2), (), None, {})


def test_configs_of_dataclasses() -> None:
    frozen = Frozen(size=3, inner=LlamaConfig(num_layers=2, dtype=Dtype.HALF))
    config = configured(frozen)
    assert fdl.build(config) == frozen
    assert fdl.build(from_yaml(to_yaml(config))) == frozen
    assert instantiate(to_hydra(config)) == frozen
    config.size = 4
    config.inner.num_layers *= 2
    assert fdl.build(config) == Frozen(size=4, inner=LlamaConfig(num_layers=4, dtype=Dtype.HALF))
    # equal values are no shared ones
    twice = configured([frozen, frozen])
    twice[0].size = 9
    assert twice[1].size == 3


def test_any_function_becomes_a_configuration() -> None:
    def sizes(layers: int) -> LlamaModel:
        model = LlamaModel()
        for _ in range(2):
            model.config.num_layers = layers
        return model

    converted = run.autoconvert(sizes, to_buildable_fn=by_value)
    assert converted(3) == run.Config(
        LlamaModel, config=configured(LlamaConfig(num_layers=3)), initialise=None
    )
    partial = run.autoconvert(sizes, partial=True, to_buildable_fn=by_value)(3)
    assert fdl.build(partial)() == sizes(3)
    with pytest.raises(UserError, match="returned a int, not a dataclass"):
        run.autoconvert(lambda: 1, to_buildable_fn=by_value)()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda: to_tree(run.Config(take, first=[lambda: 1])),
            r"config\.first\[0\]: .*it has no import path",
        ),
        (
            lambda: to_tree(run.Config(take, first={"a": object()})),
            r"config\.first\['a'\]: .*run\.Config of it",
        ),
        (lambda: to_hydra(3), "not a int"),
        (lambda: from_yaml("a: ["), "not valid YAML"),
        (lambda: from_yaml(f"_target_: {HERE}.LlamaModle"), "Did you mean 'LlamaModel'"),
        (lambda: from_yaml(f"a: [{{_target_: {HERE}.LlamaModel, size: 3}}]"), r"config\.a\[0\]: .*size"),
    ],
)
def test_mistakes(write: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write()


# The examples of NeMo-Run's guide to its configuration


def pretraining(seq_length: int = 8192) -> run.Partial[Any]:
    return run.Partial(
        pretrain,
        model=run.Config(LlamaModel, config=run.Config(LlamaConfig, seq_length=seq_length)),
        data=run.Config(MockData, seq_length=seq_length, global_batch_size=512, micro_batch_size=1),
        max_lr=3e-4,
    )


def model_config() -> run.Config[LlamaModel]:
    return run.Config(LlamaModel, config=run.Config(LlamaConfig, seq_length=16384))


@run.autoconvert
def automodel() -> LlamaModel:
    return LlamaModel(config=LlamaConfig(seq_length=16384))


MODEL_YAML = f"""\
_target_: {HERE}.LlamaModel
config:
  _target_: {HERE}.LlamaConfig
  seq_length: 16384
"""


def test_a_partial_ties_a_function_to_its_arguments() -> None:
    partial = pretraining()
    assert fdl.build(partial)() == "32 layers on 512 rows at 0.0003"
    assert from_yaml(to_yaml(partial)) == partial
    built = instantiate(to_hydra(partial))
    assert isinstance(built, functools.partial)
    assert built() == fdl.build(partial)()


def test_autoconvert_equals_what_is_written_by_hand() -> None:
    assert configured(automodel()) == model_config()
    assert to_yaml(automodel()) == to_yaml(model_config())


def test_partial_called_equals_config_built() -> None:
    partial = run.Partial(LlamaModel, config=run.Config(LlamaConfig, seq_length=16384))
    assert fdl.build(partial)() == fdl.build(model_config()) == LlamaModel(LlamaConfig(seq_length=16384))


def test_yaml_of_a_config_before_and_after_a_change() -> None:
    config = model_config()
    assert to_yaml(config) == MODEL_YAML
    config.config.seq_length *= 2
    assert to_yaml(config) == MODEL_YAML.replace("16384", "32768")
    # the same change of the text
    assert from_yaml(MODEL_YAML.replace("16384", "32768")) == config


def test_yaml_of_a_partial() -> None:
    partial = run.Partial(LlamaModel, config=run.Config(LlamaConfig, seq_length=16384))
    first, rest = MODEL_YAML.split("\n", 1)
    assert to_yaml(partial) == f"{first}\n_partial_: true\n{rest}"
    assert from_yaml(f"{rest}{first}\n_partial_: true\n") == partial


def test_broadcast_and_walk() -> None:
    text = f"_target_: {HERE}.SomeObject\na: 5\nb:\n  _target_: {HERE}.SomeObject\n  a: 10\n"
    config = run.Config(SomeObject, a=5, b=run.Config(SomeObject, a=10))
    assert to_yaml(config) == text
    from_file = from_yaml(text)
    for one in (config, from_file):
        one.broadcast(a=20)
        assert to_yaml(one) == text.replace(" 5", " 20").replace(" 10", " 20")
        one.walk(a=lambda cfg: cfg.a * 2)
        assert to_yaml(one) == text.replace(" 5", " 40").replace(" 10", " 40")
    assert config == from_file
