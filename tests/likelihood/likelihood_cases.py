"""What the likelihood tests share: processes, oracles of standardised data, a small network, and wrappers that watch calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ornstein.denoiser import Condition, Denoiser, Denoises, Prediction
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, Cosine, GaussianProcess, SubVP
from ornstein.process.gaussian import Time
from ornstein.testing import GaussianDenoiser, MixtureDenoiser, Oracle

F64 = torch.float64
PROCESSES: dict[str, GaussianProcess] = {"vp": VP(), "ve": VE(), "sub_vp": SubVP(), "edm": EDM(), "cosine": Cosine()}
KINDS = ("mixture", "gaussian")


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def normal(*shape: int, stream: str = "x") -> Tensor:
    return Noise(1).normal(shape, stream=stream, dtype=F64)


def mixture(process: GaussianProcess, dimensions: int = 3, shift: float = 0.0) -> MixtureDenoiser:
    """Three components; the data have zero mean (then moved by `shift`) and unit variance on average."""
    weights, stds = f64(0.2, 0.3, 0.5), f64(0.1, 0.5, 0.3)
    means = normal(3, dimensions, stream="means")
    means = means - weights @ means
    size = math.sqrt(float((weights @ means**2).mean() + weights @ stds**2))
    return MixtureDenoiser(means / size + shift, stds / size, weights, process)


def gaussian(process: GaussianProcess, dimensions: int = 3) -> GaussianDenoiser:
    """Correlated data of zero mean and unit variance on average."""
    root = normal(dimensions, dimensions, stream="root")
    covariance = root @ root.T + 0.5 * torch.eye(dimensions)
    return GaussianDenoiser(torch.zeros(dimensions), covariance / covariance.diagonal().mean(), process)


def oracle(kind: str, process: GaussianProcess) -> Oracle:
    return mixture(process) if kind == "mixture" else gaussian(process)


class MLP(nn.Module):
    """A small smooth network with random weights, over flattened numbers; dropout acts in training mode alone."""

    def __init__(self, dimensions: int, dropout: float = 0.0, gain: float = 1.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(dimensions + 1, 12), nn.Linear(12, dimensions)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for k, p in enumerate(self.parameters()):
                p.copy_(gain * Noise(2).normal(p.shape, stream="weights", step=k) / math.sqrt(p.shape[-1]))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        hidden = torch.tanh(self.first(torch.cat([x.flatten(1), c_noise[:, None]], 1)))
        return self.last(self.dropout(hidden)).reshape(x.shape)


def net(process: GaussianProcess, dimensions: int = 3, *, dropout: float = 0.0, dtype: torch.dtype = F64) -> Denoiser:
    return Denoiser(MLP(dimensions, dropout), process, "edm").to(dtype)


@dataclass
class Counted:
    """A denoiser that notes how many rows every call had."""

    denoiser: Denoises
    rows: list[int] = field(default_factory=list)

    @property
    def process(self) -> GaussianProcess:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        self.rows.append(len(x_t))
        return self.denoiser(x_t, t, cond)
