"""The tiny recipe has the same losses under torchrun, NeMo-Run's executors and ours."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_skills.core.hydra import encode_override
from nemo_skills.examples import tiny_model
from tests.conftest import REPO
from tests.integration.docker_jobs import python_mounts
from tests.integration.train_runs import write_rows
from tests.services.docker import BASE_IMAGE, DockerEngine
from tests.services.slurm import SlurmCluster

pytestmark = pytest.mark.service("train")

BIN = Path(sys.executable).parent
EXAMPLE = [sys.executable, "-m", "nemo_skills.examples.launch_recipe", "--recipe=tiny"]
STEPS = 3
# what forwards arguments must not lose these characters
FOLDER = "out 'put' $HOME [1,2]"
Losses = list[tuple[float, float]]


class Tiny:
    """The tiny recipe with a model and rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = tiny_model.build(folder / "model", for_training=True)
        self.rows = write_rows(folder / "rows.jsonl", 40)

    def changes(self, output: Path) -> list[str]:
        """Return the overrides of a run."""
        values = {
            "model.restore_from_path": self.model,
            "data.train.file_path": self.rows,
            "train.train_iters": STEPS,
            "logger.log_dir": output,
        }
        return [encode_override(key, str(v) if isinstance(v, Path) else v) for key, v in values.items()]

    def run(self, argv: list[str], output: Path, **env: str) -> Losses:
        """Run a command that trains, and return its losses and norms."""
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **env}
        ended = subprocess.run(
            argv, env=environ, cwd=self.folder, capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-3000:]
        return losses(output)


def losses(output: Path) -> Losses:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    found = [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]
    assert len(found) == STEPS
    assert found[0] != found[1]
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def expected(tiny: Tiny) -> Losses:
    """Losses of two processes under torchrun."""
    output = tiny.folder / "torchrun"
    argv = [
        str(BIN / "torchrun"),
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "nemo_skills.training.recipes.run",
    ]
    return tiny.run([*argv, "tiny", *tiny.changes(output)], output)


@pytest.fixture
def nemo_run(tiny: Tiny, tmp_path: Path) -> Callable[..., Losses]:
    """Train with the example script."""

    def train(*options: str, **env: str) -> Losses:
        output = tmp_path / FOLDER
        found = tiny.run([*EXAMPLE, *options, *tiny.changes(output)], output, **env)
        assert (output / f"checkpoints/step={STEPS}/hf/model.safetensors").exists()
        return found

    return train


def test_local_executor(nemo_run: Callable[..., Losses], expected: Losses, tmp_path: Path) -> None:
    """As a configuration, which NeMo-Run serialises; with a plugin that has the training record a step."""
    assert nemo_run("--processes=2", "--partial", "--profile=2") == expected
    profile = tmp_path / FOLDER / "profile"
    names = {
        event.get("name")
        for event in json.loads((profile / "rank0-steps2-2.json").read_text())["traceEvents"]
    }
    assert "aten::mm" in names
    assert "aten::mm" in (profile / "rank0-steps2-2.txt").read_text()


@pytest.mark.service("docker")
def test_docker_executor(
    nemo_run: Callable[..., Losses], expected: Losses, docker_engine: DockerEngine, tiny: Tiny, tmp_path: Path
) -> None:
    mounts = [*python_mounts(), f"{REPO}:{REPO}:ro", f"{tiny.folder}:{tiny.folder}", f"{tmp_path}:{tmp_path}"]
    options = [f"--volume={mount}" for mount in mounts]
    env = {name: docker_engine.env[name] for name in ("DOCKER_HOST", "DOCKER_CONFIG")}
    assert (
        nemo_run("--executor=docker", f"--image={BASE_IMAGE}", "--processes=2", *options, **env) == expected
    )


@pytest.mark.service("slurm")
def test_slurm_executor_on_two_nodes(
    nemo_run: Callable[..., Losses], expected: Losses, slurm_cluster: SlurmCluster
) -> None:
    options = ("--executor=slurm", "--account=test", "--nodes=2", "--processes=1", "--time=00:05:00")
    assert nemo_run(*options, SLURM_CONF=slurm_cluster.env["SLURM_CONF"]) == expected


def test_ns_train(tiny: Tiny, expected: Losses, tmp_path: Path) -> None:
    options = ("--recipe=tiny", f"--output_dir={tmp_path / 'out'}", f"--hf_model={tiny.model}")
    options += (f"--training_data={tiny.rows}", "--training_device=cpu", "--num_gpus=2")
    options += (f"--average_steps={STEPS}",)
    argv = [
        sys.executable,
        "-m",
        "nemo_skills.pipeline.cli",
        "train",
        *options,
        f"++train.train_iters={STEPS}",
    ]
    assert tiny.run(argv, tmp_path / "out/training") == expected
