"""Exact-reference bench of samplers: what they claim, what is measured, and the page that says how to choose one."""

from __future__ import annotations

from ornstein.verify.claims import CLAIMS, Claim
from ornstein.verify.measure import Bench, Result, examine, verify
from ornstein.verify.report import page, table

__all__ = ["CLAIMS", "Bench", "Claim", "Result", "examine", "page", "table", "verify"]
