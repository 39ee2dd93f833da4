"""Grading in several processes, with a hard time limit for each answer."""

from nemo_skills.evaluation.pool._pool import GradingPool, Limits
from nemo_skills.evaluation.pool._window import Graded, Item

__all__ = ["Graded", "GradingPool", "Item", "Limits"]
