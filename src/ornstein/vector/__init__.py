"""Vectors: two-dimensional laws, tables of numbers, and one file per paper."""

from ornstein.vector.data import DISTRIBUTIONS, Table, curve, describe, law_of, load_table, swiss_roll_law
from ornstein.vector.dpm_system import DPMSystem

__all__ = ["DISTRIBUTIONS", "DPMSystem", "Table", "curve", "describe", "law_of", "load_table", "swiss_roll_law"]
