"""Generation without a server, with the settings of NeMo-Aligner's script of this name.

`python -m nemo_skills.inference.run_generation --help` lists the settings. Start it as it is, with torchrun,
or as the tasks of a Slurm step: every process loads the model and takes its share of the rows.
"""

import sys
from collections.abc import Sequence

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import main
from nemo_skills.inference.offline.aligner_config import RunGenerationConfig

__all__ = ["RunGenerationConfig", "run", "run_generation"]


def run_generation(config: RunGenerationConfig) -> None:
    """Respond to every row of a JSONL file, without a server."""
    # a launcher imports this module for the schema alone
    from nemo_skills.inference.offline.aligner import AlignerTask
    from nemo_skills.inference.offline.job import Launch, run_offline

    launch = Launch(
        spec=config.engine_spec(),
        batch=config.batch,
        python=config.engine_python,
        devices=config.trainer.devices,
        nodes=config.trainer.num_nodes,
        resume=config.resume,
    )
    run_offline(AlignerTask(config), launch)


_program = main(RunGenerationConfig)(run_generation)


def run(args: Sequence[str] | None = None) -> None:
    """Run the main; config files may use the arithmetic that NeMo-Aligner's use."""
    from nemo_skills.inference.offline.environment import check_environment, register_arithmetic

    try:
        check_environment()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    register_arithmetic()
    _program(args)


if __name__ == "__main__":
    run()
