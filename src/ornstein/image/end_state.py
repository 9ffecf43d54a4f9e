"""The law of fully degraded data, from which cold diffusion generates: a Gaussian mixture along their leading directions.

Source: Bansal et al. 2022, arXiv 2208.09392, section 5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ornstein.files import InputError
from ornstein.noise import Noise

BASIS_ROWS, FITTED_ROWS = 2048, 20_000
"""Data from which `EndState` finds its directions, and its mixture."""


class EndState(nn.Module):
    """The law of fully degraded data: a Gaussian mixture along their leading directions, and a little noise.

    x_T = centre + z·basis + noise_std·n with z of `components` full Gaussians in `dimensions` numbers; for a blur to the end the
    directions are the channels' means. The noise breaks the symmetry of data that are constant over the image (0.002 in the
    paper). Its tensors are buffers, in model units, and are saved with the network's weights.
    """

    centre: Tensor
    basis: Tensor
    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, shape: tuple[int, ...], components: int = 1, dimensions: int = 8, noise_std: float = 0.002) -> None:
        super().__init__()
        numbers = math.prod(shape)
        if components < 1 or not 1 <= dimensions <= numbers:
            raise ValueError(f"components={components} must be at least 1, dimensions={dimensions} from 1 to {numbers}")
        if not (math.isfinite(noise_std) and noise_std >= 0):
            raise ValueError(f"noise_std={noise_std} must be 0 or positive")
        self.shape, self.noise_std = shape, noise_std
        self.register_buffer("centre", torch.zeros(numbers))
        self.register_buffer("basis", torch.zeros(dimensions, numbers))
        self.register_buffer("weights", torch.zeros(components))
        self.register_buffer("means", torch.zeros(components, dimensions))
        self.register_buffer("factors", torch.zeros(components, dimensions, dimensions))

    def fit(self, x: Tensor, seed: int = 0) -> None:
        """Learn the law of the end states x (N, *), in model units; ValueError for fewer than two, or than components."""
        from sklearn.mixture import GaussianMixture

        flat = x.flatten(1).cpu().double()
        components, dimensions = self.means.shape
        if len(flat) < max(2, components):
            raise ValueError(f"{len(flat)} end states are too few for components={components}; give more, at least 2")
        centred = flat - flat.mean(0)
        _, spread, directions = torch.linalg.svd(centred[:BASIS_ROWS], full_matrices=False)
        found = min(dimensions, len(spread))
        basis = torch.zeros(dimensions, flat.shape[1], dtype=torch.float64)
        # each direction is as long as the data's deviation along it, so that coordinates have variance 1, or are 0
        basis[:found] = directions[:found] * spread[:found].unsqueeze(1) / math.sqrt(min(len(flat), BASIS_ROWS))
        length = basis.square().sum(1)
        known = length > 1e-14 * length.max()
        basis[~known] = 0
        if not float(length.max()):
            components = 1  # all end states are one point, and so are the components
        coordinates = centred[:FITTED_ROWS] @ basis.T / torch.where(known, length, 1.0)
        mixture = GaussianMixture(components, random_state=seed).fit(coordinates.numpy())
        learned = {
            "centre": flat.mean(0),
            "basis": basis,
            "weights": torch.from_numpy(mixture.weights_),
            "means": torch.from_numpy(mixture.means_),
            "factors": torch.linalg.cholesky(torch.from_numpy(mixture.covariances_)),
        }
        for name, value in learned.items():
            getattr(self, name).copy_(value)

    def sample(self, n: int, noise: Noise, *, first: int = 0) -> Tensor:
        """n end states (n, *shape) in model units; InputError if none were learned."""
        if not bool(self.weights.any()):
            raise InputError("the model knows no end states to start from; train it with `ornstein train`, or call start.fit")
        total = self.weights.cpu().double().cumsum(0)
        u = noise.uniform((n,), stream="end/component", first=first)
        k = torch.searchsorted(total, u * total[-1]).clamp(max=len(total) - 1).to(self.means.device)
        z = noise.normal((n, self.means.shape[1]), stream="end", first=first).to(self.means)
        x = self.centre + (self.means[k] + (self.factors[k] @ z.unsqueeze(2)).squeeze(2)) @ self.basis
        return x.reshape(n, *self.shape) + self.noise_std * noise.normal((n, *self.shape), stream="end/noise", first=first).to(x)
