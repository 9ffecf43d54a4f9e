"""Operators y = A(x): what inverse problems measure and cold diffusion degrades by."""

from ornstein.operator.base import LARGEST, Mask, Matrix, Nonlinear, Operator, Spectrum, dense_spectrum

__all__ = ["LARGEST", "Mask", "Matrix", "Nonlinear", "Operator", "Spectrum", "dense_spectrum"]
