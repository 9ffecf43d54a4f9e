"""Langevin dynamics along falling noise levels: as a corrector between the rows of any plan, and as a plan of its own.

At one noise level a step moves towards the law that the score says is there. Source: Song and Ermon 2019, arXiv 1907.05600.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.grid import Grid, Spacing
from ornstein.process import GaussianProcess, align
from ornstein.samplers.frame import Frame, floats
from ornstein.samplers.loop import Step
from ornstein.samplers.plan import Plan, Row

NORMS = ("expected", "sample")
_SILENCE = 7.0
"""What log(sigma/alpha) counts as at most, where the first level has no signal."""


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


def annealed_langevin(
    process: GaussianProcess,
    calls: int,
    grid: str | Spacing | Grid = "log_snr",
    *,
    steps: int = 5,
    rate: float | None = None,
    end: float | None = None,
) -> Plan:
    """`steps` Langevin steps per level on as many levels as `calls` allow, the last call denoising. Weak order ½.

        x ← x + r sigma² score(x, t) + sqrt(2 r) sigma z = (1 - r) x + r alpha x0 + sqrt(2 r) sigma z

    and the next level takes over what this one leaves, times alpha_s/alpha_t.
    `rate` is r, the step size over the variance of the noise, at every level; unless given it is `best_rate` of the level's
    own ratio of noise. On the default grid the levels are geometric. It needs ten times the calls of other samplers, because
    nothing but the score brings the noise down; as a corrector between another sampler's rows see `LangevinCorrector`.
    Source: Song and Ermon 2019, arXiv 1907.05600, algorithm 1, and the last denoising step of 2020, arXiv 2006.09011.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1: Langevin steps per noise level")
    if rate is not None and not 0 < rate < 2:
        raise ValueError(f"rate={rate} must lie in (0, 2): from 2 on, Langevin steps grow without bound")
    if calls < (least := steps + 1 if end is None else 2 * steps):
        raise ValueError(f"calls={calls}: {steps} steps per level need at least {least} calls; give more, or fewer steps")
    levels = (calls - 1) // steps if end is None else calls // steps - 1
    jumps = Frame(process, "x0").jumps(levels, grid, end)
    times = [t for t, _ in jumps] + ([] if end is None else [end])
    noise = [min(float(process.log_ratio(t)), _SILENCE) for t in times]
    rows = []
    for k, t in enumerate(times):
        alpha, sigma = floats(process, t)
        above = max(k, 1)  # the first level has no ratio of its own and takes the next one's
        gap = noise[above - 1] - noise[above] if above < len(noise) else 0.0
        r = best_rate(math.exp(gap), steps) if rate is None else rate
        following = times[k + 1] if k + 1 < len(times) else t
        shrink = floats(process, following)[0] / alpha if alpha > 0 else 1.0
        for step in range(steps):
            on = shrink if step == steps - 1 else 1.0
            after = following if step == steps - 1 else t
            rows.append(Row(t, after, on * (1 - r), ((0, on * r * alpha),), on * math.sqrt(2 * r) * sigma))
    if end is None:
        rows.append(Row(times[-1], None, 0.0, ((0, 1.0),)))
    return Plan("annealed_langevin", "x0", tuple(rows))


def steady_variance(rate: float, ratio: float, steps: int) -> float:
    """The variance over sigma² at which the noise settles when every level is `ratio` times quieter than the one above.

    A step takes v to (1 - r)² v + 2 r, which rests at w = 2/(2 - r) > 1; with q = (1 - r)^(2 steps) and v = ratio² R before
    a level, R = w (1 - q)/(1 - ratio² q). Infinite where the steps cannot keep up with the levels. The ratio of Song and Ermon
    2020, arXiv 2006.09011, proposition 3, is R after the first level only; what it leaves adds up over the levels.
    """
    rest, left = 2 / (2 - rate), (1 - rate) ** (2 * steps)
    return rest * (1 - left) / (1 - ratio**2 * left) if ratio**2 * left < 1 else math.inf


def best_rate(ratio: float, steps: int) -> float:
    """The rate with the least `steady_variance`; about sqrt((ratio² - 1)/steps) for levels close together."""
    from scipy.optimize import minimize_scalar

    if not ratio > 1 or steps < 1:
        return 1 / (1 + steps)  # levels that do not fall leave nothing to keep up with
    slowest = -math.expm1(-math.log(ratio) / steps)  # below it ratio² q > 1: the noise of earlier levels adds up for ever
    found = minimize_scalar(lambda r: steady_variance(r, ratio, steps), bounds=(slowest, 1.0), method="bounded")
    return float(found.x)
