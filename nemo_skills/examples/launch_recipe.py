"""Launches the training of a recipe with NeMo-Run: copy it, and adapt what is in it to where you train.

    python -m nemo_skills.examples.launch_recipe --recipe tiny --processes 2 data.train.file_path=rows.jsonl …

What this script does not know itself it forwards to the training.
"""

import argparse
import os
import sys
from pathlib import Path

import nemo_run as run

from nemo_skills.core.script import run_script
from nemo_skills.training.recipes.interop import as_partial
from nemo_skills.training.recipes.launching import launch, recipe_script
from nemo_skills.training.recipes.plugins import PerfEnvPlugin, ProfilerPlugin


def executor(options: argparse.Namespace) -> run.Executor:
    """Say where to train: torchrun starts the processes everywhere."""
    # programs of this environment, such as torchrun
    variables = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    common = {"launcher": "torchrun", "env_vars": variables, "packager": run.Packager()}
    if options.executor == "docker":
        # on the host's network nobody knows the container by its name
        variables["PET_LOCAL_ADDR"] = "localhost"
        return run.DockerExecutor(
            container_image=options.image,
            volumes=options.volume,
            network="host",
            ntasks_per_node=options.processes,
            num_gpus=options.gpus,
            **common,
        )
    if options.executor == "slurm":
        return run.SlurmExecutor(
            account=options.account,
            partition=options.partition,
            nodes=options.nodes,
            ntasks_per_node=options.processes,
            gpus_per_node=options.gpus,
            container_image=options.image,
            container_mounts=options.volume,
            time=options.time,
            tunnel=run.LocalTunnel(job_dir=str(Path(run.config.get_nemorun_home(), "experiments"))),
            **common,
        )
    return run.LocalExecutor(ntasks_per_node=options.processes, **common)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="tiny", help="see ns recipe list (default: tiny)")
    parser.add_argument("--executor", choices=("local", "docker", "slurm"), default="local")
    parser.add_argument("--processes", type=int, default=1, help="of each node")
    parser.add_argument("--nodes", type=int, default=1, help="on Slurm")
    parser.add_argument("--gpus", type=int, help="of each node")
    parser.add_argument("--image", help="of the container; on Slurm there need not be one")
    parser.add_argument("--volume", action="append", default=[], help="HOST:CONTAINER, for the container")
    parser.add_argument("--account", help="on Slurm")
    parser.add_argument("--partition", help="on Slurm")
    parser.add_argument("--time", default="01:00:00", help="on Slurm")
    parser.add_argument("--profile", metavar="STEP", type=int, help="record this step")
    parser.add_argument(
        "--partial", action="store_true", help="send the whole configuration instead of arguments"
    )
    options, forwarded = parser.parse_known_args()
    build = as_partial if options.partial else recipe_script
    plugins: list[run.Plugin] = [PerfEnvPlugin()]
    if options.profile:
        plugins.append(ProfilerPlugin(step_start=options.profile, step_end=options.profile))
    launch(build(options.recipe, forwarded), executor(options), plugins=plugins, name="train")


# a process that another one starts imports this file: it must not launch again
if __name__ == "__main__":
    run_script(main)
