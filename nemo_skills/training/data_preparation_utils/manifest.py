"""What was made of what: a small JSON file beside the output, written last."""

import dataclasses
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

from nemo_skills.core.jsonl import InputFiles, disk_errors, write_file
from nemo_skills.training.data_preparation_utils.engine import Outcome
from nemo_skills.training.data_preparation_utils.settings import PrepareDataConfig
from nemo_skills.training.data_preparation_utils.stats import StepStats


def write_manifest(config: PrepareDataConfig, inputs: InputFiles, outcome: Outcome) -> None:
    """Write the manifest."""
    content = {
        "nemo_skills": _version(),
        "config": _plain(dataclasses.asdict(config)),
        "inputs": [
            {"path": str(path.absolute()), "size": stamp.size, "modified_ns": stamp.modified_ns}
            for path, stamp in zip(inputs.paths, inputs.stamps(), strict=True)
        ],
        "steps": [step_json(step) for step in outcome.tally.steps],
        "lengths": {what: lengths.as_json() for what, lengths in sorted(outcome.tally.lengths.items())},
        "outputs": [
            {"path": str(file.path.absolute()), "rows": file.rows, "size": file.size, "sha256": file.sha256}
            for file in outcome.files
        ],
    }
    with disk_errors(config.manifest):
        write_file(config.manifest, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")


def step_json(step: StepStats) -> dict[str, Any]:
    """Return the counts of a step."""
    return {
        "name": step.name,
        "rows_in": step.rows_in,
        "rows_out": step.rows_out,
        "dropped": dict(step.dropped.most_common()),
        "created": step.created,
        "merged": step.merged,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _version() -> str:
    try:
        return version("nemo-skills")
    except PackageNotFoundError:
        return "unknown"
