"""Training a system: `train` and what it asks of data."""

from __future__ import annotations

from ornstein.train.engine import Data, train

__all__ = ["Data", "train"]
