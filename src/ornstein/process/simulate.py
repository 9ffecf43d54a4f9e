"""Equations without a closed kernel: dx = f(x, t) dt + g(t) dw for any f, known by its simulated paths alone.

There is no q(x_t | x_0) to denoise towards, so a score net learns by implicit or sliced matching on `simulate`d x_t, and the end
law must be named by whoever wrote the equation; `check` compares it with where the paths end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ornstein.noise import Noise
from ornstein.process.gaussian import Equation, Time, align
from ornstein.progress import track

if TYPE_CHECKING:
    from ornstein.process.check import Check

Drift = Callable[[Tensor, Tensor], Tensor]
"""f(x, t): x (B, *), and t of x's dtype with axes of length 1 added, so that it broadcasts; returns the shape of x."""
Coefficient = Callable[[Tensor], Tensor | float]
"""g(t) or f(t): t (n,) float64 on the CPU; returns (n,), or a number."""
Score = Callable[[Tensor, Tensor], Tensor]
"""∇ log p_t(x): x (B, *), t (B,) float64; returns the shape of x."""
Prior = float | Callable[[Sequence[int], Noise], Tensor]
"""The standard deviation of a centred normal, or (shape, noise) -> draws of that shape."""


@dataclass(frozen=True)
class SimulatedSDE(Equation):
    """dx = f(x, t) dt + g(t) dw from data with noise of `initial_variance` added, for any drift f; g depends on t alone.

    `drift` is f(x, t) and `diffusion` is g(t), see `SDE`, which makes one where it must; `prior_law` is the law at t = 1, a
    standard deviation or a function (shape, noise) -> draws; backward paths stop at `t_min`.
    """

    drift: Drift
    diffusion: Coefficient
    prior_law: Prior
    initial_variance: float = 0.0
    t_min: float = 1e-3

    def corrupt(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """Refused with ValueError: there is no kernel, and one normal does not make a path; see `simulate`."""
        raise ValueError("a SimulatedSDE has no closed kernel to corrupt by; use simulate(x0, t, noise)")

    def prior(self, shape: Sequence[int], noise: Noise, *, first: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draws of the end law that was named, of `shape` = (samples, ...)."""
        if not callable(self.prior_law):
            return self.prior_law * noise.normal(shape, stream="prior", first=first, dtype=dtype)
        # a user's function does not know `first`: it draws the samples before, too, so that none depends on its batch
        return self.prior_law((first + shape[0], *shape[1:]), noise)[first:].to(dtype)

    def forward(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(f(x, t), g(t)); ValueError, naming the coefficient and t, for a wrong shape or for g that is not finite."""
        times = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        drift = self.drift(x, align(times.expand(len(x)), x))
        if drift.shape != x.shape:
            raise ValueError(f"drift returned shape {tuple(drift.shape)} for x of shape {tuple(x.shape)}; they must agree")
        return drift, align(values("diffusion", self.diffusion, times), x)

    def simulate(self, x0: Tensor, t: float | Tensor, noise: Noise, *, steps: int = 100, step: int = 0, first: int = 0) -> Tensor:
        """x_t for data x0 (B, *) by `steps` Euler-Maruyama steps from 0 to t, a number or (B,). Weak order 1.

        Keyed by stream "path": sample i depends on (step, first + i) alone. `step` is the moment of training.
        """
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        times = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        if not bool(((times >= 0) & (times <= 1)).all()):
            raise ValueError(f"t={t} leaves [0, 1]; the data are at 0 and the noise at 1")

        def normals(k: int) -> Tensor:
            moment = step * (steps + 1) + k
            return noise.normal(x0.shape, stream="path", step=moment, first=first, dtype=x0.dtype, device=x0.device)

        x = x0 + math.sqrt(self.initial_variance) * normals(steps) if self.initial_variance else x0
        for k in range(steps):
            x = euler_maruyama(self, x, times * (k / steps), times / steps, normals(k))
        return x

    def reverse(
        self,
        score: Score,
        *,
        noise: Noise,
        shape: Sequence[int] | None = None,
        start: Tensor | None = None,
        steps: int = 500,
        amount: float = 1.0,
        first: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """Draws (B, *) from `shape` or from `start` at t = 1, by `steps` Euler-Maruyama steps of `backward` down to t_min.

        amount = 1 is the reverse equation, 0 the probability flow (Euler). Keyed by streams "prior" and "step".
        Source: Song et al. 2021, arXiv 2011.13456, eq. 6.
        """
        if (start is None) == (shape is None):
            raise ValueError(f"give one of shape={shape} and start={'a tensor' if start is not None else None}")
        x = self.prior(shape, noise, first=first) if start is None else start  # type: ignore[arg-type]
        times = torch.linspace(1, self.t_min, steps + 1, dtype=torch.float64)
        for k in track(range(steps), steps, "reverse equation", enabled=progress):
            drift, g = self.backward(x, times[k], score(x, times[k].expand(len(x))), amount=amount)
            h = float(times[k] - times[k + 1])
            x = x - h * drift
            if amount:
                z = noise.normal(x.shape, stream="step", step=k, first=first, dtype=x.dtype, device=x.device)
                x = x + math.sqrt(h) * g * z
        return x

    def check(self, data: Tensor | None = None, *, paths: int = 4096, steps: int = 1000, noise: Noise | None = None) -> Check:
        """Simulate from `data` (N, *) and say in words where the paths explode or do not end in the prior; see `Check`.

        `data` are ±1, one number each, unless given: give your own, since f may treat its numbers differently.
        """
        from ornstein.process.check import check_simulated

        return check_simulated(self, data, paths, steps, noise or Noise(0))


def euler_maruyama(process: Equation, x: Tensor, t: float | Tensor, h: float | Tensor, z: Tensor) -> Tensor:
    """x + h·drift(x, t) + g(t)·sqrt(h)·z for x, z (B, *), t and h a number or (B,). Source: Maruyama 1955."""
    drift, g = process.forward(x, t)
    length = align(torch.as_tensor(h, dtype=torch.float64), x)
    return x + length * drift + g * length.sqrt() * z


def values(name: str, coefficient: Coefficient, t: Tensor) -> Tensor:
    """A user's coefficient at float64 times t, of t's shape; ValueError names it, and the first t where it is not finite."""
    flat = t.reshape(-1)
    try:
        value = torch.as_tensor(coefficient(flat), dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name}(t) failed on a float64 tensor t of shape {tuple(flat.shape)} ({error}); write it with torch functions"
        ) from error
    if value.numel() != 1 and value.shape != flat.shape:
        raise ValueError(
            f"{name}(t) returned shape {tuple(value.shape)} for t of shape {tuple(flat.shape)}; return that shape, or a number"
        )
    value = value.reshape(-1).expand_as(flat)
    bad = (~value.isfinite()).nonzero()
    if len(bad):
        where = int(bad[0])
        raise ValueError(f"{name} is {float(value[where])} at t={float(flat[where]):.6g}; make it finite on all of [0, 1]")
    return value.reshape(t.shape)
