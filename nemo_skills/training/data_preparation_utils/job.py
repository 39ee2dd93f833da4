"""A whole run of the data preparation: inputs, steps, output, manifest, report."""

import dataclasses
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import InputFiles, disk_errors
from nemo_skills.core.log import get_logger
from nemo_skills.training.data_preparation_utils.build import build_steps
from nemo_skills.training.data_preparation_utils.engine import Engine
from nemo_skills.training.data_preparation_utils.inputs import find_inputs
from nemo_skills.training.data_preparation_utils.manifest import write_manifest
from nemo_skills.training.data_preparation_utils.pool import available_cpus
from nemo_skills.training.data_preparation_utils.report import table, write_report
from nemo_skills.training.data_preparation_utils.settings import PrepareDataConfig

_log = get_logger(__name__)


def prepare(config: PrepareDataConfig) -> None:
    """Read, filter, group, format and write the rows.

    Raises:
        UserError: a setting, a row or the disk is no good, or no row is left.
    """
    steps = build_steps(config.processors)
    inputs = find_inputs(config.input_files)
    config = _expanded(config)
    _refuse_overwriting(config, inputs)
    output = config.output_path
    tmp_dir = config.tmp_dir or output.parent
    for folder in (output.parent, tmp_dir):
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    processes = config.processes or available_cpus()
    _log.info("Preparing %s with %d processes.", inputs, processes)
    engine = Engine(
        inputs=inputs, steps=tuple(steps), output=output, validation=config.validation, processes=processes,
        part_bytes=config.part_mb << 20, tmp_dir=tmp_dir, skip_bad_rows=config.on_bad_row == "skip",
        manifest=config.manifest,
    )  # fmt: skip
    outcome = engine.run()
    counts = table(outcome.tally.steps)
    if config.report is not None:
        write_report(config.report, f"Training data {output.name}", outcome)
    if not outcome.tally.steps[0].rows_in:
        raise UserError(f"{inputs}: no rows in the input.")
    if not outcome.files:
        raise UserError(f"No row is left; nothing was written.\n{counts}")
    write_manifest(config, inputs, outcome)
    _log.info("Rows by step:\n%s", counts)
    if config.validation_size and len(outcome.files) == 1:
        _log.warning("No problem fell to validation by lot; give a number of them (++validation_size=10).")
    if config.validation.exists() and config.validation not in [file.path for file in outcome.files]:
        _log.warning(
            "%s is from an earlier run: its rows may be in the training data now.", config.validation
        )
    for file in outcome.files:
        _log.info("Wrote %s: %d rows, %d bytes.", file.path, file.rows, file.size)


def _expanded(config: PrepareDataConfig) -> PrepareDataConfig:
    """Return the config with `~` replaced in its paths."""

    def expanded(path: Path | None) -> Path | None:
        return path and path.expanduser()

    return dataclasses.replace(
        config,
        output_path=config.output_path.expanduser(),
        validation_path=expanded(config.validation_path),
        tmp_dir=expanded(config.tmp_dir),
        report=expanded(config.report),
    )


def _refuse_overwriting(config: PrepareDataConfig, inputs: InputFiles) -> None:
    for path in (config.output_path, config.validation):
        if path.resolve() in {given.resolve() for given in inputs.paths}:
            raise UserError(f"{path} is both input and output.")
        if path.is_dir():
            raise UserError(f"{path} is a folder; output_path is the name of a file.")
