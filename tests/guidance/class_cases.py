"""Two classes of exact laws, and noisy states of them: what the tests of classifier guidance share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ornstein.denoiser import Condition, Prediction
from ornstein.guidance import (
    BayesClassifier,
)
from ornstein.noise import Noise
from ornstein.process import EDM, VP, GaussianProcess, Rectified, chain
from ornstein.process.gaussian import Time
from ornstein.testing import GaussianDenoiser

F64 = torch.float64
LABEL = torch.tensor([0, 1, 1, 0, 1])
NONE = torch.ones(5, dtype=torch.bool)
TIMES = torch.tensor([0.2, 0.9, 0.5, 0.05, 0.7], dtype=F64)
WEIGHTS = (0.3, 0.7)
PROCESSES: dict[str, GaussianProcess] = {"vp": VP(), "edm": EDM(0.01, 20.0), "rectified": Rectified(), "chain": chain(steps=50)}


class Classes:
    """Exact denoiser of two Gaussian classes: E[x0 | x_t, c], or without a class Σ p(c | x_t) E[x0 | x_t, c]."""

    def __init__(self, process: GaussianProcess) -> None:
        wide = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
        narrow = torch.tensor([[0.1, -0.05], [-0.05, 0.2]], dtype=F64)
        means = torch.tensor([[-1.0, 0.5], [1.0, -0.3]], dtype=F64)
        self.process = process
        self.laws = GaussianDenoiser(means[0], wide, process), GaussianDenoiser(means[1], narrow, process)
        self.bayes = BayesClassifier(self.laws, WEIGHTS)

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        each = [law(x_t, t) for law in self.laws]
        x0 = torch.stack([prediction.x0 for prediction in each], 1)
        shares = self.bayes(x_t, t).softmax(1)
        if cond is not None and "label" in cond:
            own = nn.functional.one_hot(cond["label"], 2).to(shares)
            shares = torch.where(cond.get("null", torch.zeros(len(x_t), dtype=torch.bool)).unsqueeze(1), shares, own)
        return Prediction.from_x0(x_t, each[0].alpha, each[0].sigma, (shares.unsqueeze(2) * x0).sum(1))


def states(process: GaussianProcess, time: Time, n: int = 5, seed: int = 1) -> Tensor:
    return process.corrupt(Noise(seed).normal((n, 2), dtype=F64), time, Noise(seed + 1).normal((n, 2), dtype=F64))
