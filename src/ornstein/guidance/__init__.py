"""Guidance: denoisers made of denoisers, so that every sampler can be guided."""

from ornstein.guidance.classifier_free import ClassifierFree

__all__ = ["ClassifierFree"]
