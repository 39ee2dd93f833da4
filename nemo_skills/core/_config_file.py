"""Config files: where they are, and what is in them on which line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_skills.core._grammar import CommandLine
from nemo_skills.core._schema import KeyPath
from nemo_skills.core.errors import UserError, did_you_mean

# Where the packaged code lies inside a job; without packaging it lies where the user is
_PACKAGED_CODE = "/nemo_run/code"


def find_file(line: CommandLine) -> Path:
    """Return the config file of a command line."""
    if not line.config_name:
        raise UserError("--config-path and --config-dir need --config-name")
    folders = config_folders(line)
    names = [line.config_name] if line.config_name.endswith((".yaml", ".yml")) else []
    names += [f"{line.config_name}.yaml", f"{line.config_name}.yml"]
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    looked = " or ".join(str(folder) for folder in folders)
    present = [p.stem for folder in folders if folder.is_dir() for p in folder.glob("*.y*ml")]
    raise UserError(f"--config-name: no {names[0]} in {looked}.{did_you_mean(line.config_name, present)}")


def config_folders(line: CommandLine) -> list[Path]:
    """Return the folders to look for a config file in; packaged code is here where it came from."""
    given = [folder for folder in (line.config_path, line.config_dir) if folder]
    return [_unpackaged(Path(folder)) for folder in given] or [Path()]


def _unpackaged(folder: Path) -> Path:
    if folder.exists() or not folder.is_relative_to(_PACKAGED_CODE):
        return folder
    inside = folder.relative_to(_PACKAGED_CODE)
    here = Path.cwd()
    repository = [root for root in (here, *here.parents) if (root / ".git").exists()][:1]
    found = [root / inside for root in (here, *repository) if (root / inside).exists()]
    return found[0] if found else folder


def read_file(file: Path) -> tuple[dict[Any, Any], dict[KeyPath, int]]:
    """Return the content of a config file, and the line of each of its keys."""
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.load(file)
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{line}: not valid YAML: {error.problem}") from None
    except (OSError, UnicodeDecodeError, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(config, DictConfig):
        raise UserError(f"{file}: expected a mapping of keys to values")
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    if content.pop("defaults", ["_self_"]) != ["_self_"]:
        raise UserError(f"{file}: has a list of defaults, which is not supported: put all keys into one file")
    return content, dict(_key_lines(node, ()))


def _key_lines(node: Any, above: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    for key, value in getattr(node, "value", ()) if getattr(node, "id", "") == "mapping" else ():
        path = (*above, str(key.value))
        yield path, key.start_mark.line + 1
        yield from _key_lines(value, path)
