"""Score matching: a net s(x) is drawn towards ∇ log p(x) from samples of p alone.

    explicit            ½|s - ∇ log p|²                              the Fisher divergence, where the score is known
    implicit            ½|s|² + tr ∇s                                the same up to a constant, where it is not
    sliced              ½(vᵀs)² + vᵀ∇s v                             random v with E[vvᵀ] ∝ I in place of the trace
    sliced, reduced     ½|s|² + vᵀ∇s v                               E[vvᵀ] = I
    finite difference   ½|s̄|² + vᵀ(s₊ - s₋)/(2w)                     s± = s(x ± w·v), s̄ their mean: no derivative at all
    denoising           ½|s(x + sigma·eps) + eps/sigma|²             the score of the noised law, biased for p by O(sigma²)

The functions take any `Score` and give one value per datum, summed over its numbers and differentiable in the net's
parameters; `MatchingLoss` puts one of them at random noise levels of a denoiser. Derivatives are `torch.func.vjp`'s.
Source: Hyvärinen 2005; Vincent 2011; Song et al. 2019, arXiv 1905.07088 (sliced); Pang et al. 2020, arXiv 2007.03317
(finite differences); Song and Ermon 2019, arXiv 1907.05600 (many noise levels).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vjp, vmap

from ornstein.denoiser import Condition, Denoises
from ornstein.losses.times import Times, TimeSampler
from ornstein.noise import Noise
from ornstein.process import GaussianProcess, align
from ornstein.process.gaussian import Time

Score = Callable[[Tensor], Tensor]
"""x (B, *) -> s(x) like x, each sample by itself: a plain net, or `score_at` of a denoiser."""

DIRECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda z: z,
    "rademacher": lambda z: 1 - 2 * (z < 0).to(z),
    "sphere": lambda z: math.sqrt(z.shape[-1]) * z / z.norm(dim=-1, keepdim=True),
    "unit_sphere": lambda z: z / z.norm(dim=-1, keepdim=True),
}
"""Slices v (..., d) from standard normals z (..., d). All have E[vvᵀ] = I but "unit_sphere", which has I/d."""

CHUNK = 32
"""Directions differentiated at once: bounds the memory of an evaluation; a gradient keeps every direction's graph."""


def score_at(denoiser: Denoises, t: Time, cond: Condition = None) -> Score:
    """x ↦ ∇ log p_t(x) of a denoiser at time t, a number or (B,), and condition: its score without a noise level."""
    return lambda x: denoiser(x, t, cond).score


def explicit(score: Score, x: Tensor, truth: Tensor) -> Tensor:
    """½|s(x) - truth|² for data x (B, *) and their known score `truth` like x; (B,). Its mean is the Fisher divergence.

    Raises ValueError for a score or truth of another shape.
    """
    return 0.5 * _square(_like(score(x), x) - _like(truth, x, "truth"))


def implicit(score: Score, x: Tensor) -> Tensor:
    """½|s|² + tr ∇s with the exact trace, (B,); its mean is that of `explicit` less ½ E|∇ log p|².

    Costs one derivative per number of a datum, `CHUNK` at a time: for a few hundred numbers, beyond them see `sliced`.
    Raises ValueError for a score of another shape. Source: Hyvärinen 2005, theorem 1.
    """
    d = math.prod(x.shape[1:])
    basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])
    s, slopes = _slopes(score, x, basis)
    return 0.5 * _square(s) + slopes.sum(0)


def sliced(
    score: Score,
    x: Tensor,
    noise: Noise,
    *,
    directions: str = "rademacher",
    slices: int = 1,
    variance_reduced: bool = True,
    step: int = 0,
    first: int = 0,
) -> Tensor:
    """½(vᵀs)² + vᵀ∇s v, or `variance_reduced` ½|s|² + vᵀ∇s v, averaged over `slices` draws of v; (B,).

    Unbiased for `implicit` under `DIRECTIONS` with E[vvᵀ] = I; "unit_sphere" makes SSM `implicit`/d and is refused for the
    other. Sample i takes the directions of stream "slice", (step, first + i). The reduced form has the lower variance if
    Var[vᵀ∇s v] < 2((tr ∇s)² - tr (∇s)²), here at the optimum of normal data: not if a few directions hold all of ∇s.
    Raises ValueError for an unknown direction or one whose second moment spoils the minimum.
    Source: Song et al. 2019, arXiv 1905.07088, eq. 7 and 8.
    """
    _check_directions(directions, carried=not variance_reduced)
    v = _directions(directions, x, noise, slices, step, first)
    s, slopes = _slopes(score, x, v)
    if variance_reduced:
        return 0.5 * _square(s) + slopes.mean(0)
    return (0.5 * (v * s).flatten(2).sum(2).square() + slopes).mean(0)


def finite_difference(
    score: Score,
    x: Tensor,
    noise: Noise,
    *,
    directions: str = "rademacher",
    slices: int = 1,
    width: float | Tensor = 0.1,
    step: int = 0,
    first: int = 0,
) -> Tensor:
    """½|s̄|² + vᵀ(s₊ - s₋)/(2w) with s± = s(x ± w·v) and s̄ = (s₊ + s₋)/2, averaged over `slices`; (B,).

    `sliced`, variance reduced, without a derivative: the 2·`slices` points are one batched call of the net. Exact for a linear
    score, else biased by O(w²), with w the `width`, a number or (B,); below 1e-3 float32 rounding, of order 1e-7/w, takes over.
    The points lie w·√d from x: a score that bends on a scale l wants w·√d well below it. Directions as in `sliced`.
    Raises ValueError for "unit_sphere" and for a width that is not positive.
    Source: Pang et al. 2020, arXiv 2007.03317.
    """
    _check_directions(directions, carried=False)
    wide = torch.as_tensor(width, dtype=torch.float64)
    if not bool((wide > 0).all()):
        raise ValueError(f"width={width} must be positive; 0.1 of the scale on which the score bends is usual")
    w = align(wide, x)
    v = _directions(directions, x, noise, slices, step, first)
    values = vmap(lambda y: _like(score(y), x), randomness="different")(torch.cat([x + w * v, x - w * v]))
    ahead, behind = values.chunk(2)
    slope = (v * ((ahead - behind) / (2 * w))).flatten(2).sum(2)
    return (0.5 * ((ahead + behind) / 2).flatten(2).square().sum(2) + slope).mean(0)


def denoising(score: Score, x0: Tensor, sigma: float | Tensor, eps: Tensor, *, weight: float | Tensor = 1.0) -> Tensor:
    """weight·½|s(x0 + sigma·eps) + eps/sigma|² at one level `sigma`, a number or (B,), with normals eps like x0; (B,).

    Its minimiser is the score of data plus noise. `weight` is lambda(sigma), a number or (B,): sigma² makes every level count
    alike. Raises ValueError for a sigma that is not positive. Source: Vincent 2011, eq. 11; Song and Ermon 2019, arXiv
    1907.05600, eq. 2 and 5.
    """
    level = torch.as_tensor(sigma, dtype=torch.float64)
    if not bool((level > 0).all()):
        raise ValueError(f"sigma={sigma} must be positive: clean data have no noise to be told from")
    scale = align(level, x0)
    x = x0 + scale * eps
    return weight * (0.5 * _square(_like(score(x), x) + eps / scale))


class _Place(NamedTuple):
    """Where a loss looks: x = mean + sigma·eps, (B, *), with sigma (B,), and the key of further randomness."""

    mean: Tensor
    sigma: Tensor
    eps: Tensor
    x: Tensor
    noise: Noise
    step: int
    first: int


def _sliced(reduced: bool) -> Callable[[MatchingLoss, Score, _Place], Tensor]:
    def value(loss: MatchingLoss, score: Score, at: _Place) -> Tensor:
        return sliced(
            score,
            at.x,
            at.noise,
            directions=loss.directions,
            slices=loss.slices,
            variance_reduced=reduced,
            step=at.step,
            first=at.first,
        )

    return value


def _finite_difference(loss: MatchingLoss, score: Score, at: _Place) -> Tensor:
    return finite_difference(
        score,
        at.x,
        at.noise,
        directions=loss.directions,
        slices=loss.slices,
        width=loss.width * at.sigma,
        step=at.step,
        first=at.first,
    )


OBJECTIVES: dict[str, Callable[[MatchingLoss, Score, _Place], Tensor]] = {
    "implicit": lambda loss, score, at: implicit(score, at.x),
    "sliced": _sliced(reduced=False),
    "sliced_vr": _sliced(reduced=True),
    "finite_difference": _finite_difference,
    "denoising": lambda loss, score, at: denoising(score, at.mean, at.sigma, at.eps),
}
"""What `MatchingLoss` may ask of the score at a noise level; (B,). All have the minimiser ∇ log p_t."""

WEIGHTS: dict[str, Callable[[GaussianProcess, Tensor, Tensor, int], Tensor]] = {
    "sigma2": lambda process, t, sigma, d: sigma**2 / d,
    "likelihood": lambda process, t, sigma, d: process.diffusion(t) ** 2,
    "none": lambda process, t, sigma, d: torch.ones_like(sigma),
}
"""lambda(t) from (process, t, sigma, numbers of a datum): "sigma2" is 1/E|∇ log p(x_t|x_0)|²; "likelihood" is g², under which
the loss bounds -log p (Song et al. 2021, arXiv 2101.09258)."""


@dataclass(frozen=True)
class MatchingLoss:
    """E_t lambda(t)·(an objective of the score at x_t): one value per datum, (B,); a loss for the trainer.

    `objective` is one of `OBJECTIVES`, `weighting` of `WEIGHTS`, `times` says where in t, never below the process's t_min.
    `directions` and `slices` belong to the sliced objectives; finite differences step `width`·sigma. With "denoising" and
    "sigma2" it is half of `DenoisingLoss("eps")`; the others reach the same minimum without being told eps, with more variance
    and at the price of derivatives: they are for processes whose kernel is unknown, and for comparison.
    Raises ValueError for an unknown name, and for "unit_sphere" where it spoils the minimum.
    """

    objective: str = "sliced_vr"
    weighting: str = "sigma2"
    times: TimeSampler = field(default_factory=Times)
    directions: str = "rademacher"
    slices: int = 1
    width: float = 0.1

    def __post_init__(self) -> None:
        for name, value, table in (("objective", self.objective, OBJECTIVES), ("weighting", self.weighting, WEIGHTS)):
            if value not in table:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(table)}")
        _check_directions(self.directions, carried=self.objective == "sliced")
        if self.slices < 1:
            raise ValueError(f"slices={self.slices} must be at least 1")
        if not self.width > 0:
            raise ValueError(f"width={self.width} must be positive; it is in units of sigma, 0.1 is usual")

    def __call__(
        self,
        denoiser: Denoises,
        x0: Tensor,
        noise: Noise,
        *,
        step: int = 0,
        first: int = 0,
        total: int | None = None,
        cond: Condition = None,
    ) -> Tensor:
        """The loss of data x0 (B, *), (B,). Sample i of the batch uses the noise of (step, first + i); `total` is the size of
        the whole batch over all processes (B if None)."""
        process = denoiser.process
        t, importance = self.times.draw(process, len(x0), noise, step=step, first=first, total=total)
        eps = noise.normal(x0.shape, stream="train", step=step, first=first, dtype=x0.dtype, device=x0.device)
        alpha, sigma = process.moments(t)
        place = _Place(align(alpha, x0) * x0, sigma, eps, process.corrupt(x0, t, eps), noise, step, first)
        loss = OBJECTIVES[self.objective](self, score_at(denoiser, t, cond), place)
        loss = loss * WEIGHTS[self.weighting](process, t, sigma, math.prod(x0.shape[1:])).to(loss)
        self.times.update(process, t, loss.detach().cpu())
        return loss * importance.to(loss)


def _slopes(score: Score, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(s(x) like x, vᵀ∇s v of shape (K, B)) for directions v (K, B or 1, *)."""

    # reverse mode: the gradient of PyTorch's forward-mode LayerNorm is wrong, without an error (2.13)
    s, pull = vjp(lambda y: _like(score(y), y), x)[:2]
    return s, vmap(lambda w: (w * pull(w.expand_as(x))[0]).flatten(1).sum(1), chunk_size=CHUNK)(v)


def _directions(name: str, x: Tensor, noise: Noise, slices: int, step: int, first: int) -> Tensor:
    """Slices (K, B, *) for x (B, *); those of sample i are a function of (step, first + i)."""
    if slices < 1:
        raise ValueError(f"slices={slices} must be at least 1")
    shape = (len(x), slices, math.prod(x.shape[1:]))
    z = noise.normal(shape, stream="slice", step=step, first=first, dtype=x.dtype, device=x.device)
    return DIRECTIONS[name](z).movedim(1, 0).reshape(slices, *x.shape)


def _check_directions(name: str, carried: bool) -> None:
    """`carried` says whether every term of the objective carries v twice, so that the scale of v does not matter."""
    if name not in DIRECTIONS:
        raise ValueError(f"directions={name!r} is not one of {', '.join(DIRECTIONS)}")
    if name == "unit_sphere" and not carried:
        raise ValueError(
            "directions='unit_sphere' has E[vvᵀ] = I/d, which shrinks the slope but not ½|s|²: the minimum would be the score "
            "divided by d; use 'sphere' (radius √d), or plain sliced matching, where both terms carry v"
        )


def _square(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)


def _like(value: Tensor, x: Tensor, name: str = "score") -> Tensor:
    if value.shape != x.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)} for x of shape {tuple(x.shape)}; they must agree")
    return value
