"""SSSD (row E10): diffusion imputation with structured state spaces.

| paper (arXiv 2208.09399) | here |
|---|---|
| section 3.2, setting D1: noise and loss on what is hidden alone | `ImputerSystem.loss` |
| figure 1: residual blocks with two S4 layers, gate, skip | `nets.SSSDNet` |
| S4 (arXiv 2111.00396), S4D (arXiv 2206.11893) | `nets.S4`, net.options.kernel |
| masks RM, MNR, BM, TF | `sequence.masks` |
| T = 200, beta 1e-4 … 0.02: sqrt(ᾱ_T) = 0.36, not 0 | replaced by the process of the recipe, EDM, whose end is its prior |
"""

from __future__ import annotations

from ornstein.config import Recipe
from ornstein.contract import Contract
from ornstein.nets import SSSDNet
from ornstein.process import GaussianProcess
from ornstein.sequence.imputer import ImputerSystem, build


def initialise(recipe: Recipe, contract: Contract, process: GaussianProcess | None = None) -> ImputerSystem:
    """The system that a recipe describes, freshly initialised; see `imputer.build`."""
    return build(recipe, contract, process, "s4", SSSDNet)
