"""Likelihood by the probability flow, the latents it maps data to and back, and bits per dimension."""

from ornstein.likelihood.bits import DEQUANTISATIONS, BitsPerDim, bits_per_dim
from ornstein.likelihood.density import DIVERGENCES, LogProb, log_prob
from ornstein.likelihood.latents import Latents, decode, encode, slerp

__all__ = [
    "DEQUANTISATIONS",
    "DIVERGENCES",
    "BitsPerDim",
    "Latents",
    "LogProb",
    "bits_per_dim",
    "decode",
    "encode",
    "log_prob",
    "slerp",
]
