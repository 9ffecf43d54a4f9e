"""Operators y = A(x): what inverse problems measure and cold diffusion degrades by."""

from ornstein.operator.base import (
    LARGEST,
    Constant,
    Mask,
    Matrix,
    Nonlinear,
    Operator,
    Spectrum,
    conjugate_gradients,
    dense_spectrum,
)
from ornstein.operator.channels import Channelwise, Separable
from ornstein.operator.compose import Compose, Scaled
from ornstein.operator.filters import Convolution, desaturate, down_sample, gaussian_blur, grey, motion_blur
from ornstein.operator.fourier import Fourier, fourier_lines, fourier_random
from ornstein.operator.nonlinear import clip, phase
from ornstein.operator.parse import OPERATORS, parse, usage
from ornstein.operator.radon import Radon

__all__ = [
    "LARGEST",
    "OPERATORS",
    "Channelwise",
    "Compose",
    "Constant",
    "Convolution",
    "Fourier",
    "Mask",
    "Matrix",
    "Nonlinear",
    "Operator",
    "Radon",
    "Scaled",
    "Separable",
    "Spectrum",
    "clip",
    "conjugate_gradients",
    "dense_spectrum",
    "desaturate",
    "down_sample",
    "fourier_lines",
    "fourier_random",
    "gaussian_blur",
    "grey",
    "motion_blur",
    "parse",
    "phase",
    "usage",
]
