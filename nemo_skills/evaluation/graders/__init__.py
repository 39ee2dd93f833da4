"""Graders by name; a grader's module is imported when it is asked for."""

from nemo_skills.evaluation.graders._registry import GRADERS, GraderSpec, get_grader, grader_class
from nemo_skills.evaluation.graders.base import Grader, NoOptions

__all__ = ["GRADERS", "Grader", "GraderSpec", "NoOptions", "get_grader", "grader_class"]
