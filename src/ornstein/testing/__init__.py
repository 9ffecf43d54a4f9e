"""Denoisers with exact answers: Gaussian data, mixtures of Gaussians, and a finite data set.

They have the interface of a `Denoiser`, so that every loss, sampler, likelihood and inverse problem can be held against the
truth: `given` turns a prior into the posterior under a linear measurement. All arithmetic is in float64 on the CPU; predictions
come back in the dtype and on the device of x_t. Data may have any shape (B, *); means and covariances are over the D flattened
numbers.
"""

from ornstein.testing.classes import ClassOracle, GuidedNormal
from ornstein.testing.gaussian import REVERSE_VARIANCES, BoundTerms, GaussianDenoiser
from ornstein.testing.mixture import FullMixtureDenoiser, MixtureDenoiser, empirical_denoiser
from ornstein.testing.oracle import Oracle

__all__ = [
    "REVERSE_VARIANCES",
    "BoundTerms",
    "ClassOracle",
    "FullMixtureDenoiser",
    "GaussianDenoiser",
    "GuidedNormal",
    "MixtureDenoiser",
    "Oracle",
    "empirical_denoiser",
]
