"""Serves a NeMo checkpoint: converts it once, then becomes the server of the copy.

    python -m nemo_skills.inference.server.serve_nemo --model CHECKPOINT -- vllm serve {model} …

The command that follows gets the folder of the copy for `{model}`; `python` as its first word is the engine's
interpreter.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger, setup_logging
from nemo_skills.core.script import run_script
from nemo_skills.inference.server.announce import run_folder, write_json

LOG = get_logger(__name__)

_MODEL = "{model}"
_LAUNCHER_S = 10.0
_POLL_S = 0.05


def main() -> None:
    """Run the command line."""
    setup_logging()
    options = parse(sys.argv[1:])
    folder = _copy(Path(options.model), options.hf_model_name)
    if options.publish:
        publish(str(folder))
    if options.python:
        os.environ["PATH"] = os.pathsep.join([str(Path(options.python).parent), os.environ.get("PATH", "")])
    words = command(options, folder)
    LOG.info("serving %s from %s", options.model, folder)
    try:
        os.execvp(words[0], words)  # noqa: S606
    except OSError as error:
        raise UserError(f"cannot start {words[0]}: {error.strerror}", exit_code=127) from None


def command(options: argparse.Namespace, folder: Path) -> list[str]:
    """Return the command of the engine."""
    program, *words = (str(folder) if word == _MODEL else word for word in options.command)
    return [(options.python or sys.executable) if program == "python" else program, *words]


def publish(model: str) -> None:
    """Let clients of this server know it by another name than its launcher has said."""
    folder, deadline = run_folder(), time.monotonic() + _LAUNCHER_S
    while folder is not None and time.monotonic() < deadline:
        for path in folder.glob("server-*.json"):
            entry = json.loads(path.read_text(encoding="utf-8"))
            if entry.get("pid") == os.getpid():
                write_json(path, {**entry, "model": model})
                return
        time.sleep(_POLL_S)


def _copy(model: Path, hf_model_name: str | None) -> Path:
    try:
        from nemo_skills.conversion.hf_copy import hf_copy
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is missing in {sys.executable}, where NeMo checkpoints are converted for serving."
            " Install this package with its extra 'train' there, or convert the model before: ns convert."
        ) from None
    return hf_copy(model, hf_model_name)


def parse(args: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; the command follows the first `--`."""
    parser = argparse.ArgumentParser(prog="serve_nemo", description="Serve a NeMo checkpoint.")
    parser.add_argument("--model", required=True, help="NeMo folder or .nemo file")
    parser.add_argument("--hf-model-name", help="where config and tokenizer are, if not in the checkpoint")
    parser.add_argument("--python", help="interpreter that has the engine; default: this one")
    parser.add_argument("--publish", action="store_true", help="tell clients the name of the copy")
    cut = list(args).index("--") if "--" in args else len(args)
    options = parser.parse_args(args[:cut])
    options.command = list(args[cut + 1 :])
    if not options.command:
        parser.error("the command of the engine is missing; it follows --")
    return options


if __name__ == "__main__":
    run_script(main)
