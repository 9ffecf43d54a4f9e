"""Denoising diffusion on images (rows A4, D1, E1): digits, faces, flowers, or a folder of one's own.

| paper (arXiv 2006.11239) | here |
|---|---|
| eq. 1-4, forward process | `process.Chain`, or any `GaussianProcess` |
| eq. 6-7, posterior | `GaussianProcess.posterior` |
| eq. 5, bound; eq. 13, decoder | `losses.bound`, `losses.Discretised` |
| eq. 14, L_simple; algorithm 1 | `losses.DenoisingLoss`, called by `System.loss` |
| algorithm 2 | `samplers.ancestral`, run by `System.sample` |
| appendix B, U-Net | `nets.UNet` |

Class conditions with dropout follow Ho and Salimans, arXiv 2207.12598; learned variances Nichol and Dhariwal, arXiv 2102.09672;
the "edm" parameterisation and its times Karras et al., arXiv 2206.00364.
"""

from __future__ import annotations

from typing import Any

from ornstein.assemble import assemble, called
from ornstein.config import Recipe
from ornstein.contract import Contract
from ornstein.files import InputError
from ornstein.nets import UNet
from ornstein.process import GaussianProcess
from ornstein.system import System


def initialise(recipe: Recipe, contract: Contract, process: GaussianProcess | None = None) -> System:
    """The system that a recipe describes for images (C, H, W) under a contract; see `assemble`."""
    return assemble(recipe, contract, lambda outputs, conditions: unet(recipe, contract, outputs, conditions), process)


def unet(recipe: Recipe, contract: Contract, outputs: int, conditions: dict[str, Any]) -> UNet:
    """The recipe's U-Net for images (C, H, W), with `outputs` channels out; InputError for data that are no images."""
    if len(contract.shape) != 3:
        raise InputError(f"data of shape {contract.shape} are not images (channels, height, width); use another system")
    if recipe.net.name != "unet":
        raise InputError(f"net.name={recipe.net.name!r} is not for images; use 'unet'")
    given = {"dims": 2, "in_channels": contract.shape[0], "out_channels": outputs, **conditions}
    return called(UNet, {**given, **recipe.net.options}, "net.options")
