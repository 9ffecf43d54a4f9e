"""Diffusion on vectors: two-dimensional laws and tables of numbers, with a residual perceptron for a network."""

from __future__ import annotations

from ornstein.assemble import assemble, called
from ornstein.config import Recipe
from ornstein.contract import Contract
from ornstein.files import InputError
from ornstein.nets import MLP
from ornstein.process import GaussianProcess
from ornstein.system import System


def initialise(recipe: Recipe, contract: Contract, process: GaussianProcess | None = None) -> System:
    """The system that a recipe describes for rows (D,) under a contract; see `assemble`."""
    return assemble(recipe, contract, lambda outputs, conditions: perceptron(recipe, contract), process)


def perceptron(recipe: Recipe, contract: Contract) -> MLP:
    """The recipe's network for rows (D,); InputError for data that are no table, or for another network."""
    if len(contract.shape) != 1:
        raise InputError(f"data of shape {contract.shape} are not rows of a table; use another system")
    if recipe.net.name != "mlp":
        raise InputError(f"net.name={recipe.net.name!r} is not for tables; use 'mlp'")
    if recipe.learned_variance:
        raise InputError("learned_variance=true is not for tables; see the recipe dpm2015 for a learned covariance")
    return called(MLP, {"features": contract.shape[0], **recipe.net.options}, "net.options")
