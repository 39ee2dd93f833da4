"""Recipes: complete configurations of trainings, to be changed and started."""

from nemo_skills.training.recipes.config import ConfigContainer
from nemo_skills.training.recipes.registry import get_recipe, names

__all__ = ["ConfigContainer", "get_recipe", "names"]
