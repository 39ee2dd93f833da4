"""Grading in several processes, with a hard time limit for each answer."""

from nemo_skills.evaluation.pool._pool import Graded, GradingPool, Item, Limits

__all__ = ["Graded", "GradingPool", "Item", "Limits"]
