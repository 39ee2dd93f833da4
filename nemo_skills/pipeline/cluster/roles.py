"""Which container role a job runs in where several would do."""

from nemo_skills.pipeline.cluster.config import ClusterConfig

_WITH_TORCH = ("nemo", "nemo-skills")


def role_with_torch(cluster: ClusterConfig) -> str:
    """Return the role of training and conversion: the image made for them, or else that of the mains."""
    return next((role for role in _WITH_TORCH if role in cluster.containers), _WITH_TORCH[-1])
