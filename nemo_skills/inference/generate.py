"""Generation main: reads rows, asks a model about each, writes the rows with their answers.

`python -m nemo_skills.inference.generate --help` lists the settings.
"""

from nemo_skills.core.hydra import main
from nemo_skills.inference.config import EndpointType, GenerateConfig, InferenceConfig, ServerConfig

__all__ = ["EndpointType", "GenerateConfig", "InferenceConfig", "ServerConfig", "generate", "run"]


def generate(config: GenerateConfig) -> None:
    """Answer every row of a JSONL file; whatever happens, a rerun goes on from the finished ones."""
    # a launcher imports this module for the schema alone
    from nemo_skills.core.log import setup_logging
    from nemo_skills.inference.job import Generation, show_prompts
    from nemo_skills.inference.opening import already_complete
    from nemo_skills.inference.outputs import OutputPaths
    from nemo_skills.inference.runner import run_until_signal

    setup_logging(config.log_level)
    paths = OutputPaths.of(config.output_file, config.chunk_id)
    if config.dry_run:
        show_prompts(config)
        return
    if config.skip_filled and not paths.journal.exists() and already_complete(config, paths):
        return
    with Generation.open(config, paths) as job:
        if not job.complete:
            run_until_signal(job.answer_rows())
            job.finish()


run = main(GenerateConfig)(generate)

if __name__ == "__main__":
    run()
