"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598), and what was added to it.

    guidance interval     Kynkäänniemi et al. 2024, arXiv 2404.07724
    rescaled guidance     Lin et al. 2023, arXiv 2305.08891, section 3.4
    negative condition    in place of the unconditional branch

docs/guidance.md says what a guided denoiser samples, which is not the tilted density p(x)^(1-γ) p(x|c)^γ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises, Prediction
from ornstein.guidance.line import Interval, Scale, check, evaluations, extrapolate, guided_rows, strength
from ornstein.process import GaussianProcess
from ornstein.process.gaussian import Time


@dataclass(frozen=True)
class ClassifierFree:
    """A conditional denoiser guided by its own unconditional branch: x0 = x0(∅) + γ·(x0(cond) - x0(∅)).

    The same holds for eps, score and v, which are lines in x0. `scale` γ is a number or a function of t in [0, 1]; γ = 1 is the
    conditional model and 0 the unconditional one, a network evaluation each; any other γ evaluates both in one batch of twice
    the samples. γ = 1 + w for papers that write (1 + w)·eps(cond) - w·eps(∅): see `from_w`. The network must have been trained
    with its condition withheld at times (`null`). Without a condition nothing is guided.

    `interval` (low, high) guides only where low < sigma/alpha <= high and is the conditional model, evaluated once, elsewhere
    (arXiv 2404.07724). `rescale` φ in (0, 1] takes the standard deviation over the numbers of each sample's guided x0 φ of the
    way back to that of its conditional x0 (arXiv 2305.08891, section 3.4, which does so to the network's output; of the views
    x0 is the one whose spread is an image's contrast). `negative` is a condition of one row that takes the place of ∅ for all
    samples. ValueError for a scale that is not finite, an empty interval, a φ outside (0, 1], or a negative of several rows.
    """

    denoiser: Denoises
    scale: Scale
    interval: Interval = None
    rescale: float | None = None
    negative: Condition = None

    def __post_init__(self) -> None:
        check(self.scale, self.interval, self.rescale)
        for name, value in (self.negative or {}).items():
            if len(value) != 1:
                raise ValueError(f"negative[{name!r}] has {len(value)} rows; give one, from which all samples are guided away")

    @classmethod
    def from_w(
        cls, denoiser: Denoises, w: float, interval: Interval = None, rescale: float | None = None, negative: Condition = None
    ) -> ClassifierFree:
        """A paper's w, a number: x0 = (1 + w)·x0(cond) - w·x0(∅), so γ = 1 + w and w = 0 is the conditional model."""
        return cls(denoiser, 1 + w, interval, rescale, negative)

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def evaluations(self, t: float) -> int:
        """Network evaluations of a call at t in [0, 1], per sample: 2, or 1 where γ is 1, or 0 without rescaling."""
        alone = strength(self.scale, self.interval, self.process, t) in self._alone
        return (1 if alone else 2) * evaluations(self.denoiser, t)

    @property
    def _alone(self) -> tuple[float, ...]:
        """The γ that need one branch only."""
        return (0.0, 1.0) if self.rescale is None else (1.0,)

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The guided prediction at x_t (B, *) and t, a number or (B,), under a condition of B rows."""
        if cond is None and self.negative is None:
            return self.denoiser(x_t, t)
        scale = strength(self.scale, self.interval, self.process, t)
        rows = guided_rows(scale)
        if (isinstance(rows, Tensor) and len(rows) == 0) or (isinstance(scale, float) and scale == 1):
            return self.denoiser(x_t, t, cond)
        given, other = self._branches(x_t, cond)
        if isinstance(scale, float) and scale in self._alone:
            return self.denoiser(x_t, t, other)
        n = len(x_t)
        both = {name: torch.cat([value, other[name][rows]]) for name, value in given.items()}
        times = t if not isinstance(t, Tensor) or t.ndim == 0 else torch.cat([t, t[rows]])
        pair = self.denoiser(torch.cat([x_t, x_t[rows]]), times, both)
        alpha, sigma = (m if m.ndim == 0 else m[:n] for m in (pair.alpha, pair.sigma))
        fraction = None if pair.variance_fraction is None else pair.variance_fraction[:n]
        x0 = pair.x0
        mine = Prediction.from_x0(x_t, alpha, sigma, x0[:n], fraction)
        return extrapolate(mine, x0[n:], rows, scale, self.rescale)

    def _branches(self, x_t: Tensor, cond: Condition) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The two conditions, of the same names and a row per sample: towards the first, away from the second."""
        n = len(x_t)
        withheld = torch.ones(n, dtype=torch.bool, device=x_t.device)
        away = {name: value.to(x_t.device).expand(n, *value.shape[1:]) for name, value in (self.negative or {}).items()}
        given = {**away, "null": withheld} if cond is None else {"null": ~withheld, **cond}
        if odd := sorted(set(away) - set(given)):
            raise ValueError(f"negative has {odd[0]!r}, which the condition {sorted(cond or {})} lacks; give both or neither")
        return given, {**given, **away, "null": ~withheld if away else withheld}
