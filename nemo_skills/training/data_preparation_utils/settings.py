"""Settings of the data preparation main."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import MISSING, opt


@dataclass(frozen=True, kw_only=True)
class PrepareDataConfig:
    """Turns graded generations into training data."""

    input_files: str = opt(
        MISSING, "JSONL files (.gz, .zst too): paths or patterns, with spaces or commas between"
    )
    output_path: Path = opt(MISSING, "where the training data goes")
    validation_path: Path | None = opt(None, "validation data, if any; null: <output>-validation.jsonl")

    prompt_config: str | None = opt(None, "name of a shipped prompt, or path of a .yaml file")
    prompt_template: str | None = opt(None, "name or path of a chat template: write text with its tags")
    tokenizer: str | None = opt(None, "name or path of a tokenizer: write text made by its chat template")
    system_message: str | None = opt(None, "system message instead of the prompt's own")
    examples_type: str | None = opt(None, "few-shot examples instead of the prompt's own")
    problem_key: str = opt("problem", "key by which rows are known to be about the same problem")
    generation_key: str = opt("generation", "key of the answers in the input")
    decontaminate_against: str | None = opt(
        None, "files of benchmark questions, or names of prepared benchmarks; such problems are dropped"
    )
    validation_size: float | int = opt(0, "problems for validation: a share below 1, or how many")
    seed: int = opt(0, "for everything that is drawn by lot")

    processors: list[dict[str, Any]] = opt(MISSING, "the steps, in order; ++processors.<name>.<key>=...")

    on_bad_row: Literal["error", "skip"] = opt("error", "a line that is not a JSON object")
    processes: int | None = opt(None, "how many processes work; null: one for each processor")
    part_mb: int = opt(16, "rows are sorted in parts of about that many megabytes, one for each process")
    tmp_dir: Path | None = opt(None, "where rows are sorted on disk; null: beside the output")
    report: Path | None = opt(None, "an HTML page: rows in and out, examples of dropped ones, lengths")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = opt("INFO", "how much to log")

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        if self.prompt_template is not None and self.tokenizer is not None:
            raise UserError("prompt_template and tokenizer exclude each other: each says how text is made.")
        for name in ("processes", "part_mb"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be positive.")
        if self.validation == self.output_path:
            raise UserError("validation_path and output_path are the same file.")

    @property
    def validation(self) -> Path:
        """The validation file."""
        output = self.output_path
        return self.validation_path or output.with_name(f"{output.stem}-validation{output.suffix}")

    @property
    def manifest(self) -> Path:
        """Says what was made of what; written last."""
        return self.output_path.with_name(f"{self.output_path.stem}.manifest.json")
