"""One's own process: `LinearSDE` from f(t) and g(t), and `SDE`, which finds out whether f(x, t) is one of these."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from ornstein.noise import Noise
from ornstein.process.gaussian import GaussianProcess
from ornstein.process.simulate import Coefficient, Drift, Prior, SimulatedSDE, values

_ORDER = 16
_TOLERANCE = 1e-13
"""Relative error that a cell may leave."""
_NARROWEST = 2.0**-44
"""Cells are not halved further: below, the nodes next to t = 1 would round to it."""
_MOST_CELLS = 4096


class LinearSDE(GaussianProcess):
    """dx = f(t) x dt + g(t) dw with one's own `drift` f and `diffusion` g, and Var[x_0|data] = `initial_variance`.

    log alpha = ∫f, sigma² = alpha² (initial_variance + ∫ g²/alpha²), by Gauss-Legendre quadrature in float64 on cells of
    [0, 1] that are halved until 16 nodes and twice 16 agree to 1e-13 (or the cell is 2^-44 wide: so are jumps and kinks found).
    `quadrature_error` says what is left. The functions take t (n,) float64 and return (n,) or a number; they must always say
    the same, since the cells are found once. `prior_std` is sigma(1) unless given (VP takes 1); plans stop at `t_min`.
    ValueError, naming the coefficient and t, where it fails, has the wrong shape or is not finite.
    """

    def __init__(
        self,
        drift: Coefficient,
        diffusion: Coefficient,
        initial_variance: float = 0.0,
        t_min: float = 1e-3,
        prior_std: float | None = None,
    ) -> None:
        if not (math.isfinite(initial_variance) and initial_variance >= 0):
            raise ValueError(f"initial_variance={initial_variance} must be a finite number of at least 0")
        if not 0 <= t_min < 1:
            raise ValueError(f"t_min={t_min} must lie in [0, 1); plans stop there and denoise")
        if prior_std is not None and not (math.isfinite(prior_std) and prior_std > 0):
            raise ValueError(f"prior_std={prior_std} must be positive; leave it out for sigma(1)")
        self.drift_of = drift
        self.diffusion_of = diffusion
        self.initial_variance = initial_variance
        self.t_min = t_min
        self._prior_std = prior_std

    def _key(self) -> tuple[object, ...]:
        return self.drift_of, self.diffusion_of, self.initial_variance, self.t_min, self._prior_std

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LinearSDE) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        functions = f"drift={_named(self.drift_of)}, diffusion={_named(self.diffusion_of)}"
        numbers = f"initial_variance={self.initial_variance:g}, t_min={self.t_min:g}, prior_std={self._prior_std}"
        return f"LinearSDE({functions}, {numbers})"

    @property
    def prior_std(self) -> float:
        """Standard deviation of the end law: as given, or sigma(1)."""
        return super().prior_std if self._prior_std is None else self._prior_std

    @property
    def quadrature_error(self) -> float:
        """Relative error of alpha and sigma² on [0, 1]: four times what halving every cell changes, with rounding.

        A feature of f or g that falls between all the nodes of its cell (1/32 wide at first) is not seen.
        """
        return self._cells.error

    def drift_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g²) as the user wrote them."""
        return values("drift", self.drift_of, t), values("diffusion", self.diffusion_of, t) ** 2

    def mean_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma²) by quadrature from the edge below, of t's shape."""
        cells, flat = self._cells, t.reshape(-1)
        k = (torch.searchsorted(cells.edges, flat.detach().contiguous(), right=True) - 1).clamp(0, len(cells.edges) - 2)
        loss, gained = self._integrals(cells.edges[k], flat - cells.edges[k])
        variance = torch.exp(2 * loss) * cells.variance[k] + gained
        return torch.exp(cells.log_alpha[k] + loss).reshape(t.shape), variance.reshape(t.shape)

    def time_of(self, log_ratio: Tensor) -> Tensor:
        """By Newton's method within its cell, to 1e-13: the slope of log(sigma/alpha) is g²/(2 sigma²), never negative."""
        cells = self._cells
        ratios = 0.5 * cells.variance.log() - cells.log_alpha
        k = (torch.searchsorted(ratios, log_ratio.contiguous()) - 1).clamp(0, len(ratios) - 2)
        low, high = cells.edges[k], cells.edges[k + 1]
        t = (low + high) / 2
        for _ in range(64):
            alpha, variance = self.mean_variance(t)
            excess = 0.5 * variance.log() - alpha.log() - log_ratio
            low, high = torch.where(excess > 0, low, t), torch.where(excess > 0, t, high)
            # in log t, where log(sigma/alpha) is nearly a line close to the data
            near = t * torch.exp(-excess * 2 * variance / (t * self.drift_diffusion(t)[1]))
            after = torch.where((near >= low) & (near <= high), near, (low + high) / 2)  # so written, NaN bisects
            done, t = bool(((after - t).abs() <= 1e-13 * after).all()), after
            if done:
                break
        return t

    def _integrals(self, left: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """∫f and ∫ g² exp(2∫_u^right f) du over the intervals [left, left + width], both (n,)."""
        nodes, weights, running = _quadrature(_ORDER)
        half = (width / 2).unsqueeze(-1)
        f, squared = self.drift_diffusion(left.unsqueeze(-1) + half * (1 + nodes))
        loss = (half * f * weights).sum(-1)
        rest = loss.unsqueeze(-1) - half * (f @ running.T)
        return loss, (half * squared * torch.exp(2 * rest) * weights).sum(-1)

    @cached_property
    def _cells(self) -> _Cells:
        # outside inference mode, or these tensors could not be used under autograd later
        with torch.inference_mode(False), torch.no_grad():
            edges = torch.linspace(0, 1, 33, dtype=torch.float64)
            while True:
                left, width = edges[:-1], edges.diff()
                whole, gained = self._integrals(left, width)
                first, second = self._integrals(left, width / 2), self._integrals(left + width / 2, width / 2)
                loss, gain = first[0] + second[0], torch.exp(2 * second[0]) * first[1] + second[1]
                off_loss, off_gain = (whole - loss).abs(), (gained - gain).abs()
                cells = _accumulate(edges, loss, gain, off_loss, off_gain, self.initial_variance)
                size = torch.maximum(gain, torch.exp(2 * loss) * cells.variance[:-1])
                bad = (off_loss > _TOLERANCE * loss.abs().clamp(min=1)) | (off_gain > _TOLERANCE * size)
                bad &= width > _NARROWEST
                if not bool(bad.any()) or len(edges) > _MOST_CELLS:
                    return cells
                edges = torch.cat([edges, (left + width / 2)[bad]]).sort().values


@dataclass(frozen=True)
class _Cells:
    """log alpha and sigma² at the edges of the cells, and their relative error."""

    edges: Tensor
    log_alpha: Tensor
    variance: Tensor
    error: float


def _accumulate(edges: Tensor, loss: Tensor, gain: Tensor, off_loss: Tensor, off_gain: Tensor, variance: float) -> _Cells:
    """sigma²_{k+1} = exp(2 loss_k) sigma²_k + gain_k, all terms positive, with the errors carried along."""
    variances, error, worst, drifted = [variance], 0.0, 0.0, 0.0
    for lost, gained, off_lost, off_gained in zip(*(v.tolist() for v in (loss, gain, off_loss, off_gain)), strict=True):
        kept = math.exp(2 * lost) * variances[-1] if lost < 350 else math.inf
        variances.append(kept + gained)
        drifted += off_lost
        if variances[-1] > 0:
            error = (kept * (error + 2 * off_lost) + off_gained) / variances[-1]
        worst = max(worst, error, drifted)
    log_alpha = torch.cat([torch.zeros(1, dtype=torch.float64), loss.cumsum(0)])
    rounding = 2.0**-52 * (len(loss) + float(log_alpha.abs().max()))
    return _Cells(edges, log_alpha, torch.tensor(variances, dtype=torch.float64), 4 * worst + rounding)


@cache
def _quadrature(order: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [-1, 1], and the matrix that maps values at the nodes to ∫_{-1}^{node}."""
    legendre = np.polynomial.legendre
    nodes, weights = legendre.leggauss(order)
    values_to_coefficients = np.linalg.inv(legendre.legvander(nodes, order - 1))
    integrals = np.stack([legendre.legval(nodes, legendre.legint(row, lbnd=-1)) for row in np.eye(order)], 1)
    as_tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a))  # noqa: E731
    return as_tensor(nodes), as_tensor(weights), as_tensor(integrals @ values_to_coefficients)


@dataclass(frozen=True, repr=False)
class _Slope:
    """a(t) of a drift f(x, t) = a(t)·x, read off f(1, t)."""

    drift: Drift
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return f"slope of {_named(self.drift)}"

    def __call__(self, t: Tensor) -> Tensor:
        ones = torch.ones((len(t), *self.shape), dtype=torch.float64)
        return self.drift(ones, t.reshape(-1, *[1] * len(self.shape))).flatten(1).mean(1)


def _named(function: object) -> str:
    return getattr(function, "__name__", None) or repr(function)


NONLINEAR = ("refuse", "simulate")
"""What `SDE` may do with a drift that no `LinearSDE` has."""
_TIMES = (0.001, 0.12, 0.31, 0.5, 0.73, 0.9, 0.999)
_SCALES = (1.0, 1e-2, 1e2)
_LINEAR = 1e-9


def SDE(  # noqa: N802 - a noun to its users, whichever class it returns
    drift: Drift,
    diffusion: Coefficient,
    *,
    initial_variance: float = 0.0,
    shape: Sequence[int] = (2,),
    nonlinear: str = "refuse",
    prior: Prior | None = None,
    t_min: float = 1e-3,
) -> LinearSDE | SimulatedSDE:
    """dx = f(x, t) dt + g(t) dw from f and g as functions: a `LinearSDE` if f(x, t) = a(t)·x, which is found out numerically.

    f takes x (B, *shape) and t with axes added to broadcast over x; g takes t (n,) float64. `shape` is that of a datum.
    Any other f is refused with the reason in a ValueError, or, with nonlinear="simulate", becomes a `SimulatedSDE`, whose `prior`
    must be named: the standard deviation of a centred normal or a function (shape, noise) -> draws. For a linear one a number is
    its prior_std, sigma(1) unless given.
    Only the f that is seen at random x of sizes 0.01 to 100 and at seven t is judged. g may not depend on x.
    """
    if nonlinear not in NONLINEAR:
        raise ValueError(f"nonlinear={nonlinear!r} is not one of {', '.join(NONLINEAR)}")
    if _arguments(diffusion) > 1:
        raise ValueError(
            "diffusion takes more than t: noise whose size depends on x is not covered, write g(t); a g of x alone "
            "becomes constant in the variable ∫dx/g(x)"
        )
    layout = tuple(int(n) for n in shape)
    reason = why_not_linear(drift, layout)
    if reason is None:
        if callable(prior):
            raise ValueError("prior is a function, but the drift is linear and the end law normal: give its standard deviation")
        return LinearSDE(_Slope(drift, layout), diffusion, initial_variance, t_min, prior)
    if nonlinear == "refuse":
        raise ValueError(f"{reason}; or train it on simulated paths: nonlinear='simulate' with a prior")
    if prior is None:
        raise ValueError(
            f"prior=None: {reason}, so the law at t=1 is not known; give its standard deviation or a function (shape, noise)"
        )
    return SimulatedSDE(drift, diffusion, prior, initial_variance, t_min)


def _arguments(function: Coefficient) -> int:
    """How many arguments must be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def why_not_linear(drift: Drift, shape: Sequence[int]) -> str | None:
    """Why f(x, t), for data of `shape`, is not a(t)·x with one a for all numbers: a sentence, or None if it is.

    f(x) - f(0) must be homogeneous and additive to 1e-9 relative at several sizes of x; f(0) must be 0; what f does to one number
    must not reach another, and must be the same for all.
    """
    for t in _TIMES:
        if (reason := _at(drift, tuple(shape), t)) is not None:
            return reason
    return None


def _at(drift: Drift, shape: tuple[int, ...], t: float) -> str | None:
    def f(x: Tensor) -> Tensor:
        value = torch.as_tensor(drift(x, torch.full((len(x), *[1] * len(shape)), t, dtype=torch.float64)))
        if value.shape != x.shape:
            raise ValueError(f"drift returned shape {tuple(value.shape)} for x of shape {tuple(x.shape)}; they must agree")
        return value

    def differs(one: Tensor, other: Tensor) -> Tensor:
        """Where two values disagree beyond rounding, judged by the largest of all."""
        size = max(float(one.abs().max()), float(other.abs().max()), 1e-300)
        return ~((one - other).abs() <= _LINEAR * size)  # so written, NaN differs

    noise, at = Noise(0), f"at t={t:g}"
    zero = f(torch.zeros((1, *shape), dtype=torch.float64))
    for k, scale in enumerate(_SCALES):
        x, y = scale * noise.normal((2, 4, *shape), stream="probe", step=k, dtype=torch.float64)
        # f(0) may dwarf f(x) - f(0): these digits are lost, and must not count as a difference
        first, second, double, both = (f(v) - zero for v in (x, y, 2 * x, x + y))
        if not bool(first.isfinite().all() & double.isfinite().all()):
            return f"drift is not finite {at} for x of size {scale:g}"
        if bool(differs(f(x[:1]), f(x)[:1]).any()):
            return f"drift of a sample depends on the other samples of its batch ({at})"
        if bool((differs(double, 2 * first) & differs(double + zero, 2 * first + zero)).any()):
            off = float((double - 2 * first).abs().max() / double.abs().max())
            return f"drift is not linear: f(2x) ≠ 2 f(x) by {off:.1%} {at} for x of size {scale:g}"
        if bool((differs(both, first + second) & differs(both + zero, first + second + zero)).any()):
            off = float((both - first - second).abs().max() / both.abs().max())
            return f"drift is not linear: f(x + y) ≠ f(x) + f(y) by {off:.1%} {at} for x of size {scale:g}"
    size = float((f(torch.ones_like(zero)) - zero).abs().max())
    if float(zero.abs().max()) > _LINEAR * max(size, 1e-300):
        shown = ", ".join(f"{v:.3g}" for v in zero.flatten()[:3].tolist()) + (", …" if zero.numel() > 3 else "")
        return (
            f"drift is affine: f(0, t) = ({shown}) {at}; subtract it, by working with x - m(t) where dm/dt = f(m, t), m(0) = 0: "
            "what is left is linear"
        )
    count = math.prod(shape)
    places = range(count) if count <= 64 else noise.permutation(count, stream="probe")[:64].tolist()
    units = torch.zeros((len(places), count), dtype=torch.float64)
    units[range(len(places)), list(places)] = 1
    columns = f(units.reshape(-1, *shape)).flatten(1)
    own = columns[range(len(places)), list(places)]
    others = columns - units * own.unsqueeze(1)
    if bool(differs(columns, columns - others).any()):
        i, j = (int(v) for v in (others.abs() == others.abs().max()).nonzero()[0])
        return (
            f"drift mixes numbers {at}: number {places[i]} of x moves number {j} at rate {float(others[i, j]):.3g}, "
            "where f(x, t) = a(t)·x has one rate a for all and moves none by another"
        )
    if bool(differs(own, own[:1].expand_as(own)).any()):
        low, high = int(own.argmin()), int(own.argmax())
        return (
            f"drift scales numbers differently {at}: number {places[low]} at rate {float(own[low]):.3g}, "
            f"number {places[high]} at rate {float(own[high]):.3g}; give all the same rate"
        )
    return None
