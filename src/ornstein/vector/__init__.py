"""Vectors: two-dimensional laws, tables of numbers, and one file per paper."""

from ornstein.vector.data import DISTRIBUTIONS, Table, curve, load_table, swiss_roll_law

__all__ = ["DISTRIBUTIONS", "Table", "curve", "load_table", "swiss_roll_law"]
