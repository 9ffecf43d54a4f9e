"""Ornstein: diffusion probabilistic models outside text-to-image, on one exact, tested core.

    process  = ornstein.VP()                                        how data are destroyed
    denoiser = ornstein.Denoiser(net, process, predicts="eps")      what a network says of x_t
    plan     = ornstein.samplers.ddim(process, calls=20)            a sampler as a table
    x0       = ornstein.sample(denoiser, plan, shape=(64, 1, 28, 28), noise=ornstein.Noise(0))

Names are imported when first used, so that `import ornstein` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Noise": "noise",
    "InputError": "files",
    "VP": "process",
    "VE": "process",
    "SubVP": "process",
    "Cosine": "process",
    "EDM": "process",
    "Rectified": "process",
    "Chain": "process",
    "LinearSDE": "process",
    "SDE": "process",
    "GaussianProcess": "process",
    "Denoiser": "denoiser",
    "Prediction": "denoiser",
    "Clipped": "denoiser",
    "DynamicThreshold": "denoiser",
    "DenoisingLoss": "losses",
    "Times": "losses",
    "LossAware": "losses",
    "MatchingLoss": "losses",
    "bound": "losses",
    "Discretised": "losses",
    "Plan": "samplers",
    "Row": "samplers",
    "Trajectory": "samplers",
    "sample": "samplers",
    "sample_adaptive": "samplers",
    "sample_boltzmann": "samplers",
    "anneal": "samplers",
    "calibrate": "calibration",
    "ClassifierFree": "guidance",
    "ClassifierGuided": "guidance",
    "Given": "guidance",
    "restore": "guidance",
    "Ensemble": "metrics",
    "log_prob": "likelihood",
    "bits_per_dim": "likelihood",
    "encode": "likelihood",
    "decode": "likelihood",
    "slerp": "likelihood",
    "UNet": "nets",
    "MLP": "nets",
    "Contract": "contract",
    "System": "system",
    "load": "model",
}
_MODULES = ("grid", "guidance", "losses", "metrics", "nets", "operator", "process", "samplers", "sequence", "testing")

__all__ = [
    "EDM",
    "MLP",
    "SDE",
    "VE",
    "VP",
    "Chain",
    "ClassifierFree",
    "ClassifierGuided",
    "Clipped",
    "Contract",
    "Cosine",
    "Denoiser",
    "DenoisingLoss",
    "Discretised",
    "DynamicThreshold",
    "Ensemble",
    "GaussianProcess",
    "Given",
    "InputError",
    "LinearSDE",
    "LossAware",
    "MatchingLoss",
    "Noise",
    "Plan",
    "Prediction",
    "Rectified",
    "Row",
    "SubVP",
    "System",
    "Times",
    "Trajectory",
    "UNet",
    "__version__",
    "anneal",
    "bits_per_dim",
    "bound",
    "calibrate",
    "decode",
    "encode",
    "grid",
    "guidance",
    "load",
    "log_prob",
    "losses",
    "metrics",
    "nets",
    "operator",
    "process",
    "restore",
    "sample",
    "sample_adaptive",
    "sample_boltzmann",
    "samplers",
    "sequence",
    "slerp",
    "testing",
]

if TYPE_CHECKING:
    from ornstein import grid, guidance, losses, metrics, nets, operator, process, samplers, sequence, testing
    from ornstein.calibration import calibrate
    from ornstein.contract import Contract
    from ornstein.denoiser import Clipped, Denoiser, DynamicThreshold, Prediction
    from ornstein.files import InputError
    from ornstein.guidance import ClassifierFree, ClassifierGuided, Given, restore
    from ornstein.likelihood import bits_per_dim, decode, encode, log_prob, slerp
    from ornstein.losses import DenoisingLoss, Discretised, LossAware, MatchingLoss, Times, bound
    from ornstein.metrics import Ensemble
    from ornstein.model import load
    from ornstein.nets import MLP, UNet
    from ornstein.noise import Noise
    from ornstein.process import EDM, SDE, VE, VP, Chain, Cosine, GaussianProcess, LinearSDE, Rectified, SubVP
    from ornstein.samplers import Plan, Row, Trajectory, anneal, sample, sample_adaptive, sample_boltzmann
    from ornstein.system import System


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"ornstein.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"ornstein.{name}")
    raise AttributeError(f"module 'ornstein' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
