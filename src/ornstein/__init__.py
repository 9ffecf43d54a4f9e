"""Ornstein."""
