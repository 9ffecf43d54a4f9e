"""Guidance: denoisers made of denoisers, so that every sampler can be guided."""

from ornstein.guidance.autoguidance import Autoguidance
from ornstein.guidance.classifier import (
    BayesClassifier,
    ClassifierGuided,
    CleanClassifierGuided,
    MeanShift,
    NoisyClassifier,
    Unconditional,
)
from ornstein.guidance.classifier_free import ClassifierFree
from ornstein.guidance.given import Given
from ornstein.guidance.inverse import MomentMatching, PiGDM, Reconstruction, beneath_clipping
from ornstein.guidance.line import Guidance, Guide, evaluations
from ornstein.guidance.observed import DPS, MCG, Replacement, dps_step
from ornstein.guidance.restore import METHODS, Method, restore

__all__ = [
    "DPS",
    "MCG",
    "METHODS",
    "Autoguidance",
    "BayesClassifier",
    "ClassifierFree",
    "ClassifierGuided",
    "CleanClassifierGuided",
    "Given",
    "Guidance",
    "Guide",
    "MeanShift",
    "Method",
    "MomentMatching",
    "NoisyClassifier",
    "PiGDM",
    "Reconstruction",
    "Replacement",
    "Unconditional",
    "beneath_clipping",
    "dps_step",
    "evaluations",
    "restore",
]
