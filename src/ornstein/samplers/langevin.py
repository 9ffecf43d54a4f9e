"""Langevin dynamics as a corrector: moves at one noise level, towards the law that the score says is there."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.process import align
from ornstein.samplers.loop import Step
from ornstein.samplers.plan import Plan

NORMS = ("expected", "sample")


@dataclass(frozen=True)
class LangevinCorrector:
    """A hook for `sample(after=…)` that makes any plan the predictor of a predictor-corrector sampler.

    Wherever a row has brought the state to a new noise level s, `steps` times

        x ← x + d·score(x, s) + sqrt(2 e) z        e = (snr·|z|/|score|)²

    With `norms` "expected", |z|/|score| is sigma, its value for x_s whose noise outweighs the data: one snr serves every Gaussian
    process, and no sample depends on another. With "sample" it is each sample's own, in place of the published mean over the
    batch. Steps that depend on x and z so lead to the law p^(D/(D+2))·|score|² in place of p: harmless in many dimensions, where
    |score| hardly varies, and wrong in few. d = e would give a normal of standard deviation sigma a variance too large by
    e/(2 sigma²); d = sigma² (1 - sqrt(1 - 2 e/sigma²)), which is e for small steps, keeps it. Each step costs a call (`calls`);
    clean data are not corrected. Noise is keyed by stream "corrector".
    Source: Song et al. 2021, arXiv 2011.13456, algorithms 4 and 5, where d = e.
    """

    denoiser: Denoises
    snr: float = 0.3
    steps: int = 1
    norms: str = "expected"

    def __post_init__(self) -> None:
        if not self.snr > 0:
            raise ValueError(f"snr={self.snr} must be above 0; 0.16 to 0.5 are usual")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1; without a corrector leave it out")
        if self.norms not in NORMS:
            raise ValueError(f"norms={self.norms!r} is not one of {', '.join(NORMS)}")

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """The corrected state (B, *) after a row."""
        if step.s is None or step.s >= step.before:
            return x
        variance = self.denoiser.process.moments(step.s)[1] ** 2
        for j in range(self.steps):
            key = step.index * self.steps + j
            z = step.noise.normal(x.shape, stream="corrector", step=key, first=step.first, dtype=x.dtype, device=x.device)
            score = self.denoiser(x, step.s, step.cond).score
            part = torch.tensor(self.snr**2, dtype=torch.float64)  # e/sigma²
            if self.norms == "sample":
                size = z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)
                part = part * size.to("cpu", torch.float64).square() / variance
            part = part.clamp(max=0.5)  # beyond, a step would forget the noise altogether and overshoot
            d, e = variance * (1 - (1 - 2 * part).sqrt()), variance * part
            x = x + align(d, x) * score + align((2 * e).sqrt(), x) * z
        return x

    def calls(self, plan: Plan) -> int:
        """Network evaluations per sample of `plan` with this corrector."""
        levels = [plan.rows[0].t, *(row.s for row in plan.rows if row.s is not None)]
        return plan.calls + self.steps * sum(s < before for before, s in itertools.pairwise(levels))
