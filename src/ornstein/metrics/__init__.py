"""Metrics: records of measured numbers, distances between feature sets, extractors, and the check for memorisation."""

from ornstein.metrics.distribution import (
    Estimate,
    PrecisionRecall,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    maximum_mean_discrepancy,
    precision_recall,
    sliced_wasserstein,
)
from ornstein.metrics.ensemble import Ensemble
from ornstein.metrics.extract import (
    Classifier,
    Columns,
    Extractor,
    Module,
    Pixels,
    accuracy,
    classifier_features,
    load_classifier,
    load_extractor,
    save_classifier,
    train_classifier,
    weights_hash,
)
from ornstein.metrics.fidelity import psnr, ssim
from ornstein.metrics.memory import Memorisation, nearest_distances, nearest_neighbour
from ornstein.metrics.record import Record, read_records, table, write_records

__all__ = [
    "Classifier",
    "Columns",
    "Ensemble",
    "Estimate",
    "Extractor",
    "Memorisation",
    "Module",
    "Pixels",
    "PrecisionRecall",
    "Record",
    "accuracy",
    "classifier_features",
    "frechet_distance",
    "frechet_interval",
    "kernel_distance",
    "load_classifier",
    "load_extractor",
    "maximum_mean_discrepancy",
    "nearest_distances",
    "nearest_neighbour",
    "precision_recall",
    "psnr",
    "read_records",
    "save_classifier",
    "sliced_wasserstein",
    "ssim",
    "table",
    "train_classifier",
    "weights_hash",
    "write_records",
]
