"""Calibration: a plan's times and coefficients learned against a trained model's own fine flow."""

from ornstein.calibration.calibrate import calibrate, weights_digest
from ornstein.calibration.reference import Pairs, Path, Reference, fine_flow
from ornstein.calibration.student import Table, beside, shares_of, table_of

__all__ = [
    "Pairs",
    "Path",
    "Reference",
    "Table",
    "beside",
    "calibrate",
    "fine_flow",
    "shares_of",
    "table_of",
    "weights_digest",
]
