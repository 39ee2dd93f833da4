"""Packing main: several rows of training data in each training sequence.

`python -m nemo_skills.training.prepare_packed_ft_dataset --help` lists the settings.
"""

from nemo_skills.core.hydra import main
from nemo_skills.training.packing_config import PackingConfig

__all__ = ["PackingConfig", "prepare_packed_ft_dataset", "run"]


def prepare_packed_ft_dataset(config: PackingConfig) -> None:
    """Tokenise training data and put several rows into each training sequence."""
    # a launcher imports this module for the schema alone
    from nemo_skills.core.log import setup_logging
    from nemo_skills.training.packing_job import pack_dataset

    setup_logging(config.log_level)
    pack_dataset(config)


run = main(PackingConfig)(prepare_packed_ft_dataset)

if __name__ == "__main__":
    run()
