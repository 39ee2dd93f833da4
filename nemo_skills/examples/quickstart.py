"""First steps: `make quickstart`.

The whole way of a model, on this machine and without a GPU, in a few minutes: builds a tiny model with random
weights, scores it on word problems that it has not seen, prepares and packs training data, fine-tunes it,
scores it again, and shows both scores and the loss. Every step is a command that can be used for real models.

With MODEL or INPUT in the environment that model answers a few rows instead, see
`nemo_skills.examples.first_answers`.
"""

import argparse
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from nemo_skills.core.errors import JobFailedError
from nemo_skills.core.hydra import encode_override
from nemo_skills.core.jsonl import disk_errors
from nemo_skills.core.script import run_script
from nemo_skills.examples import arithmetic, first_answers, tiny_model

TEST_ROWS = 200
AT_MOST_BEFORE, AT_LEAST_AFTER = 5.0, 90.0
"""Right answers in percent; anything else means that something is broken."""
_STEPS = 600
_BENCHMARK = """\
from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/instruction", generation_args=("++inference.tokens_to_generate=64",)
)
"""
_BARS = "▁▂▃▄▅▆▇█"
_BARS_SHOWN = 60


@dataclass(frozen=True)
class Folder:
    """Where everything lies."""

    root: Path

    @property
    def model(self) -> Path:
        """The untrained model."""
        return self.root / "model"

    @property
    def benchmarks(self) -> Path:
        """A benchmark as users write their own."""
        return self.root / "benchmarks"

    @property
    def solutions(self) -> Path:
        """Problems with worked solutions, as generations that were graded."""
        return self.root / "solutions.jsonl"

    @property
    def rows(self) -> Path:
        """Rows to train on."""
        return self.root / "sft-data.jsonl"

    @property
    def packed(self) -> Path:
        """The same, packed."""
        return self.root / "packed"

    @property
    def training(self) -> Path:
        """Results of training."""
        return self.root / "trained"

    def scores(self, name: str) -> Path:
        """Results of an evaluation."""
        return self.root / f"eval-{name}"

    def clear(self) -> None:
        """Remove what an earlier run has left."""
        for path in (self.model, self.benchmarks, self.packed, self.training):
            shutil.rmtree(path, ignore_errors=True)
        for name in ("before", "after"):
            shutil.rmtree(self.scores(name), ignore_errors=True)


def main() -> None:
    """Run the command line."""
    if os.environ.get("MODEL") or os.environ.get("INPUT"):
        first_answers.main()
        return
    parser = argparse.ArgumentParser(
        prog="python -m nemo_skills.examples.quickstart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output_dir", type=Path, default=Path("quickstart"), help="default: ./quickstart")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default: 0)")
    args = parser.parse_args()
    folder = Folder(args.output_dir)
    make(folder, args.seed)
    before = evaluate(folder, "before", folder.model)
    prepare(folder, args.seed)
    train(folder, args.seed)
    after = evaluate(folder, "after", folder.training / "model-averaged-hf")
    print(f"\nloss     {curve(folder)}")
    print(f"before   {before:5.1f} % of {TEST_ROWS} problems that were not trained on")
    print(f"after    {after:5.1f} %")
    print(f"read them: ns view {folder.scores('before')} {folder.scores('after')}")
    if before > AT_MOST_BEFORE or after < AT_LEAST_AFTER:
        raise JobFailedError(
            f"the model should go from at most {AT_MOST_BEFORE} % to at least {AT_LEAST_AFTER} %", exit_code=1
        )


def make(folder: Folder, seed: int) -> None:
    """Make the untrained model, the benchmark, and worked solutions of other problems."""
    print(f"a tiny model with random weights and new word problems: {folder.root}", flush=True)
    with disk_errors(folder.root):
        folder.clear()
        tiny_model.build(folder.model, seed, for_training=True)
        benchmark = folder.benchmarks / "arithmetic"
        benchmark.mkdir(parents=True)
        (benchmark / "__init__.py").write_text(_BENCHMARK)
        held_out = [asdict(one) for one in itertools.islice(arithmetic.problems("test"), TEST_ROWS)]
        _write(benchmark / "test.jsonl", held_out)
        _write(
            folder.solutions,
            [
                {"problem": one.problem, "generation": one.solution, "verdict": "correct"}
                for one in arithmetic.problems("train", seed)
            ],
        )


def evaluate(folder: Folder, name: str, model: Path) -> float:
    """Score a model; returns the share of right answers in percent."""
    output = folder.scores(name)
    ns(
        "eval",
        "--benchmarks=arithmetic",
        f"--extra_datasets={folder.benchmarks}",
        f"--model={model}",
        "--server_type=hf",
        f"--output_dir={output}",
        f"--expname=quickstart-{name}",
    )
    report = json.loads((output / "eval-results" / "arithmetic" / "metrics.json").read_text())
    return float(report["metrics"]["pass@1"]["symbolic_correct"]["value"])


def prepare(folder: Folder, seed: int) -> None:
    """Turn solutions into packed rows."""
    run(
        "nemo_skills.training.prepare_data",
        f"++input_files={folder.solutions}",
        f"++output_path={folder.rows}",
        "++prompt_config=generic/instruction",
        f"++tokenizer={folder.model}",
        f"++seed={seed}",
    )
    run(
        "nemo_skills.training.prepare_packed_ft_dataset",
        encode_override("model.data.train_ds.file_names", [str(folder.rows)]),
        "++model.data.train_ds.max_seq_length=512",
        f"++tokenizer_path={folder.model}",
        f"++output_dir={folder.packed}",
        "++pack_sizes=[512]",
        f"++seed={seed}",
    )


def train(folder: Folder, seed: int) -> None:
    """Fine-tune on the packed rows."""
    # matrices this small are not worth sharing, least of all with a busy machine
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ns(
        "train",
        f"--hf_model={folder.model}",
        f"--training_data={folder.packed / f'packed_512_seed{seed}.input_ids.npy'}",
        f"--output_dir={folder.training}",
        "--training_device=cpu",
        "--expname=quickstart-train",
        "++model.data.train_ds.packed_sequence=true",
        "++model.data.train_ds.micro_batch_size=6",
        "++model.data.train_ds.global_batch_size=6",
        "++model.data.train_ds.max_seq_length=512",
        "++model.optim.lr=3e-3",
        "++model.optim.sched.warmup_steps=20",
        f"++model.seed={seed}",
        "++trainer.sft.max_epochs=100",
        f"++trainer.sft.max_steps={_STEPS}",
    )


def curve(folder: Folder) -> str:
    """Return the loss over all steps, drawn in one line of text, with its first and last value."""
    lines = (folder.training / "training" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    width = -(-len(losses) // _BARS_SHOWN)
    means = [sum(part) / len(part) for part in (losses[i : i + width] for i in range(0, len(losses), width))]
    bars = "".join(_BARS[int(mean / max(means) * (len(_BARS) - 1))] for mean in means)
    return f"{means[0]:.2f} {bars} {means[-1]:.2f}"


def ns(command: str, *arguments: str) -> None:
    """Run a command of ns the way a user would, in a process of its own."""
    print("\n$ ns " + shlex.join((command, *arguments)), flush=True)
    _call("nemo_skills.pipeline.cli", command, *arguments)


def run(module: str, *arguments: str) -> None:
    """Run a main."""
    print(f"\n$ python -m {module} " + shlex.join(arguments), flush=True)
    _call(module, *arguments)


def _call(module: str, *arguments: str) -> None:
    ended = subprocess.run([sys.executable, "-m", module, *arguments], check=False)
    if ended.returncode != 0:
        raise JobFailedError(
            f"{module} ended with exit code {ended.returncode}; what it printed is above",
            exit_code=ended.returncode,
        )


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    run_script(main)
