"""A NeMo checkpoint as a source of conversion: its tensors, config and tokenizer."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from nemo_skills.conversion.byte_ranges import Column, FilePlan, Rows, TensorData
from nemo_skills.conversion.families import Family, all_families, find_families, find_family
from nemo_skills.conversion.hf_source import CONFIG, is_tokenizer_file
from nemo_skills.conversion.mapping import NemoRows
from nemo_skills.conversion.model_config import ModelConfig, parse_config
from nemo_skills.conversion.nemo_config import hf_config, parse_nemo_config, tokenizer_files
from nemo_skills.conversion.nemo_files import HF_FOLDER, MODEL_CONFIG, CheckpointFiles, open_checkpoint
from nemo_skills.conversion.nemo_tensors import NemoTensors
from nemo_skills.conversion.result import SOURCES_FILE
from nemo_skills.conversion.torch_dist_reader import TorchDistReader
from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.core.safetensors import ITEM_SIZES, is_weight_file

LOG = get_logger(__name__)

_EMBEDDING = "embedding.word_embeddings.weight"


@dataclass(frozen=True)
class NemoSource:
    """A checkpoint that can be converted."""

    files: CheckpointFiles
    tensors: NemoTensors
    family: Family
    config: ModelConfig
    config_text: bytes
    """Its `config.json`."""
    others: tuple[FilePlan, ...]
    """Tokenizer and whatever else belongs to the Hugging Face model."""

    @property
    def nbytes(self) -> int:
        """Size of all tensors as they are stored."""
        stored = self.tensors.stored.values()
        return sum(math.prod(tensor.size) * ITEM_SIZES[tensor.dtype] for tensor in stored)

    def data(self, name: str, places: list[NemoRows], target: str | None) -> TensorData:
        """Return the numbers of a Hugging Face tensor."""
        rows = tuple(rows for place in places for rows in self.tensors.rows(place))
        dtype = self.tensors.dtype(places[0])
        return TensorData(name, rows, dtype, target or dtype)


@contextmanager
def open_nemo(
    path: Path, model_type: str | None, hf_model_name: str | None, scratch: Path
) -> Iterator[NemoSource]:
    """Open a checkpoint.

    Args:
        path: A folder or a tar.
        model_type: What the user says that it is, if anything.
        hf_model_name: Where config and tokenizer are, if the checkpoint has none.
        scratch: A folder for what has to be unpacked.

    Raises:
        UserError: there is none, it is damaged, its family is not supported or not what the user says, or its
            tensors are not those that its config promises.
    """
    with open_checkpoint(path, scratch) as files:
        tensors = NemoTensors(TorchDistReader(files), str(path))
        text, others = _hf_files(files, tensors, model_type, hf_model_name)
        where = f"{path}: {CONFIG}"
        config = parse_config(text, where)
        family = find_family(config.model_type, model_type, where)
        tensors.check(family, config.shape)
        yield NemoSource(files, tensors, family, config, text, tuple(others))


def _hf_files(
    files: CheckpointFiles, tensors: NemoTensors, model_type: str | None, hf_model_name: str | None
) -> tuple[bytes, list[FilePlan]]:
    """Return the text of `config.json` and the other files: the checkpoint's own, or from somewhere else."""
    kept = f"{HF_FOLDER}/"
    others = {n.removeprefix(kept): n for n in files.slices if n.startswith(kept) or is_tokenizer_file(n)}
    # a model that was put there by hand
    others = {n: stored for n, stored in others.items() if not is_weight_file(n) and n != SOURCES_FILE}
    if CONFIG in others:
        if hf_model_name is not None:
            LOG.info("%s holds config and tokenizer; hf_model_name is not needed", files.where)
        text = files.read(others.pop(CONFIG))
        return text, [_copy(files, name, stored) for name, stored in others.items()]
    if hf_model_name is not None:
        return _from_model(hf_model_name)
    name = files.find(MODEL_CONFIG)
    if name is None:
        raise UserError(f"{files.where} holds neither {kept}{CONFIG} nor {MODEL_CONFIG}: give hf_model_name")
    families = _matching_families(tensors, model_type)
    embedding = tensors.stored[tensors.prefix + _EMBEDDING]
    config = parse_nemo_config(
        files.read(name), families[0].name, embedding.size[0], f"{files.where}: {name}"
    )
    family = _with_window(families, config, f"{files.where}: {name}")
    LOG.warning(
        "%s does not say what it was in Hugging Face's terms; taken for a %s model with a vocabulary of %d",
        files.where, family.name, config.shape.vocab,
    )  # fmt: skip
    content = {**hf_config(config, family, embedding.dtype), **_special_tokens(files)}
    text = orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n"
    others |= {usual: n for usual, n in tokenizer_files(files.read(name)).items() if n in files.slices}
    if not any(map(is_tokenizer_file, others)):
        LOG.warning("%s holds no tokenizer: hf_model_name says where to take it from", files.where)
    return text, [_copy(files, name, stored) for name, stored in others.items()]


def _special_tokens(files: CheckpointFiles) -> dict[str, int]:
    """Return what the tokenizer says of the first and the last token: others are no better than a guess."""
    found = {}
    with suppress(KeyError, TypeError, AttributeError, orjson.JSONDecodeError):
        roles = orjson.loads(files.read("tokenizer_config.json"))
        added = orjson.loads(files.read("tokenizer.json"))["added_tokens"]
        numbers = {token["content"]: int(token["id"]) for token in added}
        for role in ("bos_token", "eos_token"):
            token = roles.get(role)
            text = token["content"] if isinstance(token, dict) else token
            if text in numbers:
                found[f"{role}_id"] = numbers[text]
    return found


def _copy(files: CheckpointFiles, name: str, stored: str) -> FilePlan:
    piece = files.slices[stored]
    column = Column(str(piece.path), piece.start, piece.size)
    return FilePlan(name, (TensorData(name, (Rows((column,), 1),), "U8", "U8"),))


def _from_model(name: str) -> tuple[bytes, list[FilePlan]]:
    """Return config and tokenizer of another model."""
    folder = Path(name) if Path(name).is_dir() else _download(name)
    try:
        text = (folder / CONFIG).read_bytes()
    except OSError as error:
        raise UserError(f"hf_model_name={name}: cannot read {folder / CONFIG}: {error.strerror}") from None
    wanted = (path for path in given_files(str(folder)) if path.name != CONFIG)
    return text, [FilePlan(path.name, (path.read_bytes(),)) for path in wanted]


def given_files(hf_model_name: str | None) -> list[Path]:
    """Return the files that are taken from a model's folder, if it is one and not a name on the hub."""
    if hf_model_name is None or not Path(hf_model_name).is_dir():
        return []
    return [path for path in sorted(Path(hf_model_name).iterdir()) if path.is_file() and _is_taken(path.name)]


def _is_taken(name: str) -> bool:
    return is_tokenizer_file(name) or name in (CONFIG, "generation_config.json")


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"hf_model_name={name} is no folder, and huggingface_hub is not installed") from None
    try:
        patterns = ["*.json", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*.index.json"]))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"hf_model_name={name} is no folder and cannot be fetched: {reason}") from error


def _matching_families(tensors: NemoTensors, model_type: str | None) -> list[Family]:
    """Return the families whose tensors a checkpoint has."""
    found = []
    candidates: Mapping[str, Family] = all_families()
    wanted = list(candidates.values()) if model_type is None else find_families(model_type)
    for family in wanted:
        others = {rule.nemo: rule for other in candidates.values() for rule in other.rules}
        mine = {rule.nemo for rule in family.rules}
        optional = {"output_layer.weight"}
        if all(tensors.has(rule) == (name in mine) for name, rule in others.items() if name not in optional):
            found.append(family)
    if found:
        return found
    names = ", ".join(family.name for family in wanted)
    raise UserError(f"the checkpoint has not the tensors of a model of type {names}; give hf_model_name")


def _with_window(families: list[Family], config: ModelConfig, where: str) -> Family:
    """Return the first family, of those that have an attention window if the model has one."""
    if not config.sliding_window:
        return families[0]
    for family in families:
        if "window_size" in family.nemo_settings(config):
            return family
    raise UserError(
        f"{where}: models of type {families[0].name} have no window_size={config.sliding_window};"
        " give hf_model_name"
    )
