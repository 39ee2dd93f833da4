"""Plugins for NeMo-Run change the task and the executor that are about to be launched."""

from pathlib import Path
from typing import Any

import nemo_run as run
import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.training.engine.profiling import Profiler
from nemo_skills.training.recipes import get_recipe
from nemo_skills.training.recipes.interop import as_partial
from nemo_skills.training.recipes.launching import recipe_script, shell_safe
from nemo_skills.training.recipes.plugins import (
    FaultTolerancePlugin,
    NsysPlugin,
    PerfEnvPlugin,
    PreemptionPlugin,
    ProfilerPlugin,
    WandbPlugin,
)
from nemo_skills.training.recipes.run import decoded, recipe

OTHER = run.Script(path="train.py", entrypoint="python")


def local(**settings: Any) -> run.LocalExecutor:
    return run.LocalExecutor(launcher="torchrun", **settings)


def slurm(**settings: Any) -> run.SlurmExecutor:
    return run.SlurmExecutor(
        account="a", tunnel=run.LocalTunnel(job_dir="/jobs"), launcher="torchrun", **settings
    )


def test_profiler() -> None:
    executor = local(env_vars={"MINE": "1"})
    ProfilerPlugin(step_start=10, step_end=15, ranks=[0, 8], folder="/profiles").setup(OTHER, executor)
    found = Profiler.of_environment(8, Path("run"), executor.env_vars)
    assert (found.first, found.last, found.rank, found.folder, found.nsys) == (
        10,
        15,
        8,
        Path("/profiles"),
        False,
    )
    assert Profiler.of_environment(1, Path("run"), executor.env_vars).first == 0
    assert Profiler.of_environment(0, Path("run"), {}).first == 0
    assert executor.env_vars["MINE"] == "1"
    with pytest.raises(UserError, match="step_end not smaller"):
        ProfilerPlugin(step_start=3, step_end=2).setup(OTHER, executor)
    with pytest.raises(UserError, match="DIR=/my profiles: only letters"):
        ProfilerPlugin(folder="/my profiles").setup(OTHER, executor)


@pytest.mark.parametrize(
    ("variables", "message"),
    [({"NS_PROFILE_STEPS": "4"}, "such as 10-12"), ({"NS_PROFILE_STEPS": "4-3"}, "the first of which")],
)
def test_mistakes_in_variables(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Profiler.of_environment(0, Path(), variables)


def test_nsys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executor = slurm()
    NsysPlugin(step_start=10, step_end=15, trace=["cuda"]).setup(OTHER, executor)
    assert Profiler.of_environment(0, Path(), executor.env_vars).nsys
    prefix = executor.get_launcher().get_nsys_prefix("/here")
    assert prefix is not None and "cuda" in prefix and "--capture-range=cudaProfilerApi" in prefix
    assert isinstance(executor.launcher, run.Torchrun)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="nsys is not in PATH"):
        NsysPlugin().setup(OTHER, local())
    (tmp_path / "nsys").touch(mode=0o755)
    NsysPlugin().setup(OTHER, here := local())
    assert here.get_launcher().nsys_profile


def test_wandb() -> None:
    plugin = WandbPlugin(project="sums", name="first try", group="a=b")
    script, partial = recipe_script("tiny", ["train.train_iters=7"]), as_partial("tiny")
    plugin.setup(script, executor := local())
    plugin.setup(partial, executor)
    assert executor.env_vars == {}
    for logger in (recipe(script.args).logger, partial.config.logger):
        names = (logger.wandb, logger.wandb_project, logger.wandb_name, logger.wandb_group)
        assert names == (True, "sums", "first try", "a=b")
    assert recipe(script.args).train.train_iters == 7
    WandbPlugin(project="sums").setup(OTHER, executor)
    assert executor.env_vars == {"WANDB_PROJECT": "sums"}


def test_preemption() -> None:
    plugin = PreemptionPlugin(seconds_before=90, max_time_per_run="00:00:50:00", retries=2)
    script = recipe_script("tiny")
    plugin.setup(script, executor := slurm())
    assert (executor.signal, executor.retries) == ("TERM@90", 2)
    assert recipe(script.args).train.max_time_per_run == "00:00:50:00"
    # what was set by hand stays
    PreemptionPlugin(retries=1).setup(OTHER, other := slurm(signal="USR1@5", retries=4))
    assert (other.signal, other.retries) == ("USR1@5", 4)
    with pytest.raises(UserError, match="recipes alone"):
        plugin.setup(OTHER, executor)


def test_fault_tolerance(caplog: pytest.LogCaptureFixture) -> None:
    FaultTolerancePlugin(retries=5).setup(OTHER, slurm())
    assert not caplog.text
    FaultTolerancePlugin(retries=5).setup(OTHER, executor := local())
    assert executor.retries == 5
    assert "LocalExecutor does not start a job again" in caplog.text
    assert isinstance(executor.get_launcher(), run.Torchrun)
    FaultTolerancePlugin(in_job_restarts=2, heartbeat_timeout_s=600).setup(OTHER, executor)
    launcher = executor.get_launcher()
    assert isinstance(launcher, run.FaultTolerance)
    assert (launcher.max_restarts, launcher.rank_heartbeat_timeout) == (2, 600)
    with pytest.raises(UserError, match="needs in_job_restarts"):
        FaultTolerancePlugin(heartbeat_timeout_s=1).setup(OTHER, executor)


def test_performance_variables() -> None:
    executor = local(env_vars={"TOKENIZERS_PARALLELISM": "true"})
    PerfEnvPlugin(threads=4, expandable_segments=False, variables={"NCCL_DEBUG": "WARN"}).setup(
        OTHER, executor
    )
    assert executor.env_vars == {
        "OMP_NUM_THREADS": "4",
        "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "NCCL_DEBUG": "WARN",
    }


def test_arguments_that_no_shell_changes() -> None:
    plain = ["train.train_iters=20", "++logger.log_dir=/out/a-b_c"]
    assert shell_safe(plain) == plain
    odd = [
        "logger.name='a \"b\" $c'",
        "~train.seed",
        "optimizer.betas=[0.9,0.95]",
        "logger.log_dir=/ö/100%41",
    ]
    safe = shell_safe(odd)
    assert all(char.isalnum() or char in "@%+=:,./-_" for arg in safe for char in arg)
    assert decoded(safe) == odd
    assert recipe(["tiny", *shell_safe(["logger.name='a \"b\" $c'"])]).logger.name == 'a "b" $c'


def test_names_are_checked() -> None:
    with pytest.raises(UserError, match="Did you mean 'tiny'"):
        recipe_script("tinny")
    with pytest.raises(UserError, match="Name a recipe first"):
        recipe(["train.train_iters=3"])
    with pytest.raises(UserError, match="train_iters"):
        as_partial("tiny", ["train.train_iter=3"])
    assert as_partial(get_recipe("tiny")()) == as_partial("tiny")
