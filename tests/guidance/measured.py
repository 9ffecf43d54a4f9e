"""What the tests of inverse problems share: a Gaussian prior, a dense measurement, and Bayes' rule written out."""

from __future__ import annotations

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser
from ornstein.guidance import Given
from ornstein.nets import MLP
from ornstein.noise import Noise
from ornstein.operator import Matrix
from ornstein.process import GaussianProcess
from ornstein.testing import GaussianDenoiser

D = 5
NOISE = Noise(7)


def normal(*shape: int, stream: str = "test") -> Tensor:
    return NOISE.normal(shape, stream=stream, dtype=torch.float64)


def correlated(d: int = D) -> tuple[Tensor, Tensor]:
    """A mean and a covariance with variances from 0.1 to 3."""
    directions, _ = torch.linalg.qr(normal(d, d, stream="directions"))
    covariance = directions * torch.logspace(-1, 0.5, d, dtype=torch.float64) @ directions.T
    return normal(1, d, stream="mean")[0], (covariance + covariance.T) / 2


def prior(process: GaussianProcess, d: int = D) -> GaussianDenoiser:
    return GaussianDenoiser(*correlated(d), process)


def network(process: GaussianProcess, predicts: str = "v") -> Denoiser:
    """A network whose x0 is curved in x_t: its last layer, which is born 0, is drawn too."""
    net = MLP(D, width=16, depth=2).double()
    with torch.no_grad():
        for k, parameter in enumerate(net.parameters()):
            parameter.copy_(0.3 * normal(1, parameter.numel(), stream=f"net {k}").reshape(parameter.shape))
    return Denoiser(net, process, predicts)


def measurement(samples: int = 3, rows: int = 2, noise_std: float | None = 0.3, d: int = D) -> Given:
    return Given(normal(samples, rows, stream="y"), Matrix(normal(rows, d, stream="matrix")), noise_std=noise_std)


def bayes(mean: Tensor, covariance: Tensor, x_t: Tensor, alpha: float, sigma: float, given: Given, noise_std: float) -> Tensor:
    """E[x0 | x_t, y] of N(mean, covariance), by conditioning on (x_t, y) at once, (B, D)."""
    d = len(mean)
    both = torch.cat([alpha * torch.eye(d, dtype=torch.float64), given.measured.matrix])
    noise = torch.diag(torch.tensor([sigma**2] * d + [noise_std**2] * (len(both) - d), dtype=torch.float64))
    seen = torch.cat([x_t, given.values.flatten(1).expand(len(x_t), -1)], dim=1)
    gain = torch.linalg.solve(both @ covariance @ both.T + noise, both @ covariance).T
    return mean + (seen - both @ mean) @ gain.T
