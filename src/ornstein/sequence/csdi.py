"""CSDI: diffusion imputation with attention over time and over channels, beside SSSD and for many channels.

| paper (arXiv 2107.03502) | here |
|---|---|
| section 4.2: conditional diffusion of what is hidden given what is observed | `ImputerSystem.predict` |
| section 4.3, algorithm 1: self-supervised training by hiding | `ImputerSystem.loss`, `sequence.masks` |
| section 5, figure 3: two-dimensional attention, side information | `nets.CSDINet` |
| section 3, "unconditional" with replacement | `ImputerSystem.restore(method="replacement")` |
| quadratic schedule, T = 50 | replaced by the process of the recipe |
"""

from __future__ import annotations

from ornstein.config import Recipe
from ornstein.contract import Contract
from ornstein.nets import CSDINet
from ornstein.process import GaussianProcess
from ornstein.sequence.imputer import ImputerSystem, build


def initialise(recipe: Recipe, contract: Contract, process: GaussianProcess | None = None) -> ImputerSystem:
    """The system that a recipe describes, freshly initialised; see `imputer.build`."""
    return build(recipe, contract, process, "axial", CSDINet)
