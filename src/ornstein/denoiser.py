"""From a network to a prediction: x0 = c_skip·x_t + c_out·F(c_in·x_t, c_noise, cond).

A parameterisation is one row of `COEFFICIENTS`; every view of a prediction (x0, eps, score, v) is a line in x_t and F whose
coefficients are found in float64 before they meet the data. Source: Karras et al. 2022, arXiv 2206.00364, section 5;
Salimans and Ho 2022, arXiv 2202.00512.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from ornstein.metrics.extract import weights_hash
from ornstein.process import Chain, GaussianProcess, align
from ornstein.process.gaussian import Time

Condition = Mapping[str, Tensor] | None
Line = tuple[Tensor, Tensor]
"""The two coefficients of a line, float64, () or (B,)."""


def _chain_mean(alpha: Tensor, sigma: Tensor, sigma_data: float, process: GaussianProcess, t: Tensor) -> Line:
    if not isinstance(process, Chain):
        raise ValueError(
            f"predicts='mean' needs the steps of a Chain, not {type(process).__name__}; use 'x0', 'eps', 'v' or 'edm'"
        )
    posterior = process.posterior(t, (t - 1 / process.steps).clamp(min=0))
    return -posterior.on_x_t / posterior.on_x0, 1 / posterior.on_x0


COEFFICIENTS: dict[str, Callable[[Tensor, Tensor, float, GaussianProcess, Tensor], Line]] = {
    "x0": lambda a, s, d, process, t: (torch.zeros_like(a), torch.ones_like(a)),
    "eps": lambda a, s, d, process, t: (1 / a, -s / a),
    "score": lambda a, s, d, process, t: (1 / a, s**2 / a),
    "v": lambda a, s, d, process, t: (a / (a**2 + s**2), -s / (a**2 + s**2).sqrt()),
    "edm": lambda a, s, d, process, t: (
        a * d**2 / (s**2 + a**2 * d**2),
        s * d / (s**2 + a**2 * d**2).sqrt(),
    ),
    "mean": _chain_mean,
}
"""(c_skip, c_out) of what a network may predict, from (alpha, sigma, sigma_data, process, t)."""

_DEFINED_WITHOUT_SIGNAL = ("x0", "v", "edm")

VIEWS: dict[str, Callable[[Tensor, Tensor], Line]] = {
    "x0": lambda a, s: (torch.zeros_like(a), torch.ones_like(a)),
    "eps": lambda a, s: (1 / s, -a / s),
    "score": lambda a, s: (-1 / s**2, a / s**2),
    "v": lambda a, s: (a / (s * (a**2 + s**2).sqrt()), -((a**2 + s**2).sqrt()) / s),
}
"""The line in (x_t, x0) that each view of a prediction is, from (alpha, sigma)."""


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of x_t: x0 = skip·x_t + out·raw, seen as `.x0`, `.eps`, `.score` or `.v`, each like x_t.

    v = (alpha·eps - sigma·x0)/sqrt(alpha² + sigma²). `predicts` names what `raw` is, so that this view costs nothing.
    `variance_fraction` (like x_t, or None) places a learned reverse variance between β̃ (0) and β (1) on a log scale.
    `pullback` (of `Differentiable`, else None) takes u like x0 to (d x0/d x_t)ᵀ u, each sample's own, for the x0 before any
    clipping.
    """

    x_t: Tensor
    alpha: Tensor
    sigma: Tensor
    raw: Tensor
    skip: Tensor
    out: Tensor
    predicts: str = "x0"
    variance_fraction: Tensor | None = None
    pullback: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def from_x0(
        cls, x_t: Tensor, alpha: Tensor, sigma: Tensor, x0: Tensor, variance_fraction: Tensor | None = None
    ) -> Prediction:
        """A prediction that is given as x0 itself."""
        return cls(x_t, alpha, sigma, x0, torch.zeros_like(alpha), torch.ones_like(alpha), "x0", variance_fraction)

    def with_x0(self, x0: Tensor) -> Prediction:
        """The same prediction with another x0; all views follow."""
        moved = Prediction.from_x0(self.x_t, self.alpha, self.sigma, x0, self.variance_fraction)
        return moved if self.pullback is None else replace(moved, pullback=self.pullback)

    def view(self, name: str) -> Tensor:
        """One of `VIEWS` by name, with the shape of x_t."""
        if name == self.predicts:
            return self.raw
        on_x_t, on_x0 = VIEWS[name](self.alpha, self.sigma)
        return combine(on_x_t + on_x0 * self.skip, self.x_t, on_x0 * self.out, self.raw)

    @property
    def x0(self) -> Tensor:
        """E[x0 | x_t]."""
        return self.view("x0")

    @property
    def eps(self) -> Tensor:
        """E[eps | x_t] = (x_t - alpha·x0)/sigma."""
        return self.view("eps")

    @property
    def score(self) -> Tensor:
        """∇ log p(x_t) = -eps/sigma = (alpha·x0 - x_t)/sigma²."""
        return self.view("score")

    @property
    def v(self) -> Tensor:
        """(alpha·eps - sigma·x0)/sqrt(alpha² + sigma²)."""
        return self.view("v")


def combine(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """a·x + b·y with coefficients () or (B,) in float64; a term with a zero scalar coefficient is not touched."""
    if a.ndim == 0 and b.ndim == 0:
        p, q = float(a), float(b)
        if p == 0:
            return y if q == 1 else q * y
        return x.mul(p).add_(y, alpha=q)
    return align(a, x) * x + align(b, x) * y


def network_input(x_t: Tensor, process: GaussianProcess, times: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """What a network is shown of x_t (B, *) at float64 times () or (B,): c_in·x_t and c_noise (B,).

    c_in = 1/sqrt(alpha² sigma_data² + sigma²) gives unit variance to data of standard deviation sigma_data.
    """
    alpha, sigma = process.moments(times)
    label = process.noise_label(times).to(device=x_t.device, dtype=x_t.dtype).expand(x_t.shape[0])
    scale = (alpha**2 * sigma_data**2 + sigma**2).rsqrt()
    if scale.ndim == 0 and abs(float(scale) - 1) < 1e-12:  # variance preserving on unit data: save a pass
        return x_t, label
    return align(scale, x_t) * x_t, label


class Denoises(Protocol):
    """What samplers, losses and guidance ask for: a process, and a prediction at (x_t, t, cond)."""

    @property
    def process(self) -> GaussianProcess:
        """The process whose x_t it takes."""

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The prediction at x_t (B, *) and time t, a number or (B,)."""


class Denoiser(nn.Module):
    """A network, a process and what the network predicts: one of x0, eps, v, score, edm, mean.

    net(x, c_noise, cond) takes c_in·x_t (B, *) with c_in = 1/sqrt(alpha² sigma_data² + sigma²), or x_t itself without
    `scale_input` (a network that is not to know the noise level must not see it in its input's scale), c_noise (B,) from
    `process.noise_label`, and a dict of tensors or None; it returns F like x_t, or with `learned_variance` twice the channels
    (axis 1), the second half placing log sigma² between β̃ (-1) and β (+1).
    `sigma_data` is the standard deviation of the encoded data. Values are never clipped here: see `Clipped`.
    Source: Karras et al. 2022, arXiv 2206.00364; Nichol and Dhariwal 2021, arXiv 2102.09672 for the variance.
    """

    def __init__(
        self,
        net: nn.Module,
        process: GaussianProcess,
        predicts: str = "eps",
        *,
        sigma_data: float = 1.0,
        learned_variance: bool = False,
        scale_input: bool = True,
    ) -> None:
        super().__init__()
        if predicts not in COEFFICIENTS:
            raise ValueError(f"predicts={predicts!r} is not one of {', '.join(COEFFICIENTS)}")
        if not (math.isfinite(sigma_data) and sigma_data > 0):
            raise ValueError(f"sigma_data={sigma_data} must be a positive number: the standard deviation of the encoded data")
        self.net = net
        self.process = process
        self.predicts = predicts
        self.sigma_data = sigma_data
        self.learned_variance = learned_variance
        self.scale_input = scale_input

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(alpha, sigma, c_skip, c_out) at float64 times () or (B,)."""
        alpha, sigma = self.process.moments(t)
        if self.predicts not in _DEFINED_WITHOUT_SIGNAL and bool((alpha == 0).any()):
            raise ValueError(
                f"predicts={self.predicts!r} cannot say what x0 is where alpha = 0 (t=1 of {type(self.process).__name__}): "
                f"x_t holds no signal; use one of {', '.join(_DEFINED_WITHOUT_SIGNAL)}"
            )
        skip, out = COEFFICIENTS[self.predicts](alpha, sigma, self.sigma_data, self.process, t)
        return alpha, sigma, skip, out

    def forward(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The prediction at x_t (B, *) and time t in [0, 1], a number or (B,)."""
        times = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        alpha, sigma, skip, out = self.coefficients(times)
        scaled, label = network_input(x_t, self.process, times, self.sigma_data)
        raw = self.net(scaled if self.scale_input else x_t, label, cond)
        fraction = None
        if self.learned_variance:
            if raw.shape[1] != 2 * x_t.shape[1]:
                raise ValueError(f"learned_variance=True needs {2 * x_t.shape[1]} output channels, the net gives {raw.shape[1]}")
            raw, fraction = raw.chunk(2, dim=1)
            fraction = (fraction.to(x_t.dtype) + 1) / 2
        if raw.shape != x_t.shape:
            raise ValueError(f"the net returned shape {tuple(raw.shape)} for x_t of shape {tuple(x_t.shape)}; they must agree")
        return Prediction(x_t, alpha, sigma, raw.to(x_t.dtype), skip, out, self.predicts, fraction)


def describe(denoiser: object) -> str:
    """What a denoiser is made of, from the outermost wrapper in: "Clipped(low=-1, high=1) of Denoiser(edm)".

    Two denoisers of the same network with different guidance or clipping differ in it: functions show by name, other networks
    that guide by a hash of their weights, options that are None not at all. The own weights and precision do not show.
    """
    if isinstance(denoiser, HalfPrecision):
        return describe(denoiser.denoiser)
    name = type(denoiser).__name__
    if isinstance(denoiser, Denoiser):
        return f"{name}({denoiser.predicts})"
    if not hasattr(denoiser, "denoiser"):
        return name
    options = [field for field in fields(denoiser) if field.name != "denoiser"] if is_dataclass(denoiser) else []
    given = {option.name: getattr(denoiser, option.name) for option in options}
    shown = ", ".join(f"{name}={_shown(value)}" for name, value in given.items() if value is not None)
    return f"{name}({shown}) of {describe(denoiser.denoiser)}"


def _shown(value: object) -> str:
    """An option as text that is the same in every run: an address in a repr would make each another denoiser."""
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value, Tensor):
        return str(value.tolist()) if value.numel() <= 16 else f"{type(value).__name__}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shown, value))})"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, partial):
        return _shown((value.func, *value.args, value.keywords))
    if others := networks(value):
        # of other networks, which the digest of a calibrated plan does not cover, the weights count
        return " ".join([describe(value), *(weights_hash(module)[:8] for module in others)])
    return str(getattr(value, "__qualname__", None) or (value if isinstance(value, str) else type(value).__name__))


def networks(denoiser: object) -> list[nn.Module]:
    """The networks that a denoiser calls: the one at the bottom of its wrappers, and any that guide it."""
    if isinstance(denoiser, nn.Module):
        return [denoiser]
    if is_dataclass(denoiser) and not isinstance(denoiser, type):
        return [module for field in fields(denoiser) for module in networks(getattr(denoiser, field.name))]
    return networks(denoiser.denoiser) if hasattr(denoiser, "denoiser") else []


@dataclass(frozen=True)
class Clipped:
    """A denoiser whose x0 is clamped to [low, high], for data that declare these bounds.

    Never applied unasked: it biases the score wherever x0 leaves the box. Source: Ho et al. 2020, arXiv 2006.11239.
    """

    denoiser: Denoises
    low: float
    high: float

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The wrapped prediction with x0 clamped."""
        prediction = self.denoiser(x_t, t, cond)
        return prediction.with_x0(prediction.x0.clamp(self.low, self.high))


@dataclass(frozen=True)
class DynamicThreshold:
    """A denoiser whose x0 is clamped, sample by sample, to its own `quantile` of |x0| and scaled back to `bound`.

    Keeps large guidance from saturating pixels; below the bound nothing changes. Source: Saharia et al. 2022, arXiv 2205.11487.
    """

    denoiser: Denoises
    bound: float = 1.0
    quantile: float = 0.995

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The wrapped prediction with x0 thresholded."""
        prediction = self.denoiser(x_t, t, cond)
        x0 = prediction.x0
        limit = x0.abs().flatten(1).quantile(self.quantile, dim=1).clamp(min=self.bound)
        limit = limit.reshape(-1, *[1] * (x0.ndim - 1))
        return prediction.with_x0(x0.clamp(-limit, limit) * (self.bound / limit))


@dataclass(frozen=True)
class Differentiable:
    """A denoiser whose predictions can be differentiated in x_t: `prediction.pullback(u)` is (d x0/d x_t)ᵀ u, like x_t.

    One evaluation forward and one backward through the network, whatever the number of u; memory as in training, until the
    prediction is dropped. With Var[x0 | x_t] = (sigma²/alpha) d E[x0 | x_t]/d x_t (second-order Tweedie) it is also the product
    with the posterior covariance. Predictions themselves carry no gradient. Source: Chung et al. 2023, arXiv 2209.14687, eq. 15.
    """

    denoiser: Denoises

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The wrapped prediction at x_t (B, *) and t, with its pullback."""
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_()
            prediction = self.denoiser(leaf, t, cond)
            x0 = prediction.x0

        def pullback(u: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(x0, leaf, u.to(x0), retain_graph=True)
            return gradient

        fraction = prediction.variance_fraction
        return replace(
            prediction, x_t=x_t, raw=prediction.raw.detach(), variance_fraction=None if fraction is None else fraction.detach(),
            pullback=pullback,
        )  # fmt: skip


@dataclass(frozen=True)
class HalfPrecision:
    """A denoiser whose network runs under autocast to `dtype`; coefficients and states keep their precision.

    Faster where the hardware multiplies bfloat16 faster; predictions move by about 1e-2 of their size, and a sample then
    depends on its batch by as much.
    """

    denoiser: Denoises
    dtype: torch.dtype = torch.bfloat16

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The wrapped prediction, computed under autocast."""
        with torch.autocast(x_t.device.type, dtype=self.dtype):
            return self.denoiser(x_t, t, cond)
