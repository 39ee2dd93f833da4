"""A recipe on Slurm that is told to end saves, and continues in the same job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_skills.examples import tiny_model
from tests.integration.train_runs import write_rows
from tests.services.process import wait_until
from tests.services.slurm import SlurmCluster

pytestmark = [pytest.mark.service("train"), pytest.mark.service("slurm")]

LAUNCH = """
import sys
from pathlib import Path
import nemo_run as run
from nemo_skills.training.recipes.launching import launch, recipe_script
from nemo_skills.training.recipes.plugins import PreemptionPlugin

if __name__ == "__main__":
    executor = run.SlurmExecutor(
        account="test",
        launcher="torchrun",
        ntasks_per_node=1,
        env_vars={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        packager=run.Packager(),
        tunnel=run.LocalTunnel(job_dir=str(Path(run.config.get_nemorun_home(), "experiments"))),
    )
    launch(recipe_script("tiny", sys.argv[1:]), executor, plugins=[PreemptionPlugin(retries=1)], detach=True)
"""


def test_it_saves_and_continues(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH)
    model = tiny_model.build(tmp_path / "model", for_training=True)
    values = {
        "model.restore_from_path": model,
        "data.train.file_path": write_rows(tmp_path / "rows.jsonl", 40),
        "train.train_iters": 100000,
        "train.train_epochs": 1000000,
        "checkpoint.save_interval": 100000,
        "logger.log_dir": tmp_path / "out",
    }
    env = {**os.environ, "SLURM_CONF": slurm_cluster.env["SLURM_CONF"]}
    argv = [sys.executable, str(script), *(f"{key}={value}" for key, value in values.items())]
    ended = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    (job_id,) = slurm_cluster.command("squeue", "--noheader", "--format=%A").split()
    batch = next(Path(os.environ["NEMORUN_HOME"]).rglob("*_sbatch.sh")).read_text()
    assert "#SBATCH --signal=TERM@120" in batch

    def steps() -> list[int]:
        log = tmp_path / "out/metrics.jsonl"
        return [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else []

    try:
        wait_until("it trains", lambda: len(steps()) > 3, 200)
        slurm_cluster.command("scancel", "--signal=TERM", job_id)
        checkpoints = tmp_path / "out/checkpoints"
        wait_until("it has saved", lambda: list(checkpoints.glob("step=*/complete.json")), 60)
        wait_until("it waits", lambda: slurm_cluster.job(int(job_id))["JobState"] == "PENDING", 60)
        (saved,) = (int(path.name.partition("=")[2]) for path in checkpoints.iterdir())
        slurm_cluster.release(int(job_id))
        wait_until("it goes on", lambda: len(steps()) > saved, 200)
        assert steps()[: saved + 1] == list(range(1, saved + 2))
    finally:
        slurm_cluster.command("scancel", "--signal=KILL", job_id)
        slurm_cluster.command("scancel", job_id)
