"""Where prompt configs, chat templates and few-shot examples are found: by packaged name, or by path."""

from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Collection:
    """One kind of files shipped with the package."""

    label: str
    folder: Path
    suffix: str

    def names(self) -> tuple[str, ...]:
        """Return the names of all files shipped, such as `generic/math`."""
        files = self.folder.rglob(f"*{self.suffix}")
        return tuple(sorted(f.relative_to(self.folder).as_posix().removesuffix(self.suffix) for f in files))

    def find(self, name: str) -> Path:
        """Return the file for a packaged name, or for a path ending in the collection's suffix."""
        names = self.names()
        if name in names:
            return self.folder / f"{name}{self.suffix}"
        path = Path(name).expanduser()
        if not name.endswith(self.suffix):
            near = did_you_mean(name, names)
            beside = f" Did you mean the file '{name}{self.suffix}'?"
            if not near and Path(f"{path}{self.suffix}").is_file():
                near = beside
            raise UserError(
                f"unknown {self.label} '{name}'.{near} Looked in {self.folder}, which has: "
                f"{', '.join(names)}. A file of your own is given by a path ending in {self.suffix}"
            )
        if not path.is_file():
            near = did_you_mean(name.removesuffix(self.suffix), names)
            raise UserError(f"{self.label} file not found: {path.absolute()}.{near}")
        return path


PROMPTS = Collection(label="prompt config", folder=_PACKAGE / "config", suffix=".yaml")
TEMPLATES = Collection(label="prompt template", folder=_PACKAGE / "template", suffix=".yaml")
CODE_TAGS = Collection(label="code_tags", folder=_PACKAGE / "code_tags", suffix=".yaml")
EXAMPLES = Collection(label="examples_type", folder=_PACKAGE / "few_shot_examples", suffix=".jsonl")
