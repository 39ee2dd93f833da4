"""First answers: `MODEL=… make quickstart`, or `python -m nemo_skills.examples.first_answers`.

Lets a real model server answer the first rows of a file with `ns generate`, and shows the answers. Two
environment variables change what is used:

MODEL: a path or a Hugging Face name instead of the tiny model, such as HuggingFaceTB/SmolLM2-135M-Instruct.
INPUT: a JSONL file with the key `problem` instead of the shipped word problems.
"""

import argparse
import os
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from nemo_skills.core.errors import JobFailedError, UserError
from nemo_skills.core.jsonl import check_input, iter_lines, parse_row
from nemo_skills.core.script import run_script
from nemo_skills.examples import tiny_model

_ROWS = 5
_SHOWN = 160


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_skills.examples.first_answers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output_dir", type=Path, default=Path("quickstart"), help="default: ./quickstart")
    output_dir: Path = parser.parse_args().output_dir
    input_file = Path(os.environ.get("INPUT") or str(files("nemo_skills") / "examples/word_problems.jsonl"))
    check_input(input_file)
    model = os.environ.get("MODEL") or _tiny_model(output_dir / "model")
    generate(model, input_file, output_dir)
    show(output_dir / "generation" / "output.jsonl")
    if not os.environ.get("MODEL"):
        print(
            "The tiny model's weights are random, so its text is nonsense on purpose. For real answers:\n"
            "  MODEL=HuggingFaceTB/SmolLM2-135M-Instruct make quickstart"
        )


def generate(model: str, input_file: Path, output_dir: Path) -> None:
    """Run `ns generate` the way a user would, in a process of its own."""
    arguments = [
        "generate",
        "--server_type=hf",
        f"--model={model}",
        f"--input_file={input_file}",
        f"--output_dir={output_dir}",
        # another MODEL or INPUT must not be answered from an earlier run
        "--rerun_done",
        "++skip_filled=false",
        "++prompt_config=generic/math",
        f"++max_samples={_ROWS}",
        "++inference.tokens_to_generate=64",
    ]
    print("$ ns " + shlex.join(arguments), flush=True)
    ended = subprocess.run([sys.executable, "-m", "nemo_skills.pipeline.cli", *arguments], check=False)
    if ended.returncode != 0:
        logs = output_dir / "generation-logs"
        raise JobFailedError(
            f"ns generate ended with exit code {ended.returncode}; logs are in {logs}",
            exit_code=ended.returncode,
        )


def show(output: Path) -> None:
    """Print a table of the generated rows and where they are."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("problem", "generation", "tokens", show_lines=True)
    table.columns[-1].justify = "right"
    for line in iter_lines(output):
        row = parse_row(output, line)
        if "generation" not in row:
            raise UserError(f"{output}, line {line.number}: the row has no generation", exit_code=1)
        # Text, not str: rich would read [brackets] of an answer as markup
        table.add_row(
            Text(_shortened(str(row.get("problem", "")))),
            Text(_shortened(str(row["generation"]))),
            str(row.get("num_generated_tokens", "")),
        )
    Console().print(table)
    print(f"rows: {output}\nlogs: {output.parents[1] / 'generation-logs'}")


def _tiny_model(folder: Path) -> str:
    # Built anew each time: an interrupted or older build would be hard to tell from a good one
    print(f"building a tiny model in {folder}", flush=True)
    return str(tiny_model.build(folder))


def _shortened(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text).strip()
    return printable if len(printable) <= _SHOWN else printable[: _SHOWN - 1] + "…"


if __name__ == "__main__":
    run_script(main)
