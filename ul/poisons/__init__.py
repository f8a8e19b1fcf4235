"""Poisons: each takes a clean `Split` and gives one with the same order and targets and other images."""

from ..base.budgets import strength
from ..base.names import METHODS
from ..data.checks import budget, check
from .making import make, recipes
from .target import counting

__all__ = ["METHODS", "budget", "check", "counting", "make", "recipes", "strength"]
