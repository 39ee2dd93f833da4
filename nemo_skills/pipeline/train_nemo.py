"""`ns train` from and to NeMo checkpoints: training itself knows Hugging Face folders only."""

from pathlib import PurePosixPath

from nemo_skills.pipeline.answering import encoded
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.cluster.roles import role_with_torch
from nemo_skills.pipeline.launch.plan import PYTHON, Component, Job
from nemo_skills.pipeline.options import TrainOptions

TO_HF = "nemo_skills.conversion.nemo_to_hf"
SUFFIX = "-from-nemo"


def start_model(own: TrainOptions) -> str | None:
    """Return the model to start from; a NeMo checkpoint is converted to there."""
    return _between(own, "start-model") if own.nemo_model else own.hf_model


def hf_result(own: TrainOptions) -> str:
    """Return the folder of the averaged model; where a NeMo checkpoint is the result, a step on the way."""
    result = str(PurePosixPath(own.output_dir) / "model-averaged-hf")
    return own.final_hf_path or (_between(own, "model-averaged") if own.nemo_model else result)


def nemo_result(own: TrainOptions) -> str | None:
    """Return the folder of the averaged model as a NeMo checkpoint, where one is wanted."""
    default = str(PurePosixPath(own.output_dir) / "model-averaged-nemo")
    return own.final_nemo_path or (default if own.nemo_model else None)


def _between(own: TrainOptions, name: str) -> str:
    return str(PurePosixPath(own.output_dir) / "in-hf-format" / name)


def start_job(name: str, own: TrainOptions, cluster: ClusterConfig) -> Job | None:
    """Return the job that converts the checkpoint to start from; done before, it finds nothing to do."""
    start = start_model(own)
    if own.nemo_model is None or start is None:
        return None
    values = encoded({"input_model": own.nemo_model, "output_model": start})
    main = Component(name="main", commands=((PYTHON, "-m", TO_HF, *values),), role=role_with_torch(cluster))
    return Job(name=f"{name}{SUFFIX}", components=(main,), writes=(start,))
