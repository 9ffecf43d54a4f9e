"""Is a process what it says? Its forward equation, simulated, beside its kernel and the law that samplers start from.

Euler-Maruyama with N and with N/2 steps on the same Brownian path; the difference of the two tells the discretisation error of
the finer one and is removed from it (Richardson). Source: Talay and Tubaro 1990, for the expansion in the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise import Noise
from ornstein.process.chain import Chain
from ornstein.process.gaussian import Equation, GaussianProcess, gaussian_kl
from ornstein.process.sde import LinearSDE
from ornstein.process.simulate import SimulatedSDE, euler_maruyama
from ornstein.progress import track

_MARKS = (0.01, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Where the kernel is looked at, as parts of the simulated stretch."""
_RESOLVED = 0.1
"""Largest |f|·h that a step resolves: beyond, Euler-Maruyama leaves the equation."""
_SIGNAL = 1e-3
"""Nats per number by which q(x_1|x_0) may differ from the prior before it is worth a warning."""
_SIGMAS = 5.0


@dataclass(frozen=True)
class Measured:
    """A quantity at time t by simulation, and what the kernel says of it (None: there is none).

    `simulated` has a `standard_error` by chance; `discretisation` is the change from N/2 to N steps, taken off it already.
    """

    t: float
    quantity: str
    expected: float | None
    simulated: float
    standard_error: float
    discretisation: float

    @property
    def agrees(self) -> bool:
        """Whether the kernel is within five standard errors and half of what halving the step changed."""
        if self.expected is None:
            return True
        allowed = _SIGMAS * self.standard_error + 0.5 * abs(self.discretisation) + 1e-9 * abs(self.expected)
        return abs(self.simulated - self.expected) <= allowed


@dataclass(frozen=True)
class Check:
    """What `process.check()` found: plain `warnings` (none if all is well), `measured` numbers per time, and the end law.

    `end_signal` = alpha(1)/sigma(1); `end_gap` compares the end law with the prior: mean KL(q(x_1|x_0) ‖ prior) over the data,
    in nats per number; for a `SimulatedSDE` the largest Kolmogorov-Smirnov distance over directions, and no end_signal.
    `simulated_to` is the time up to which the equation could be simulated with these steps. `str()` is a table for people.
    """

    process: str
    measured: tuple[Measured, ...]
    simulated_to: float
    end_signal: float | None
    end_gap: float | None
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is nothing to warn of."""
        return not self.warnings

    def __str__(self) -> str:
        lines = [f"{self.process}: {'all is well' if self.ok else f'{len(self.warnings)} warning(s)'}"]
        if self.measured:
            lines.append(f"{'t':>8}  {'quantity':<10}{'kernel':>12}{'simulated':>12}{'± chance':>10}{'± steps':>10}")
        for m in self.measured:
            kernel = "-" if m.expected is None else f"{m.expected:.5g}"
            errors = f"{m.standard_error:>10.1g}{abs(m.discretisation):>10.1g}" + ("" if m.agrees else "  differs")
            lines.append(f"{m.t:>8.4g}  {m.quantity:<10}{kernel:>12}{m.simulated:>12.5g}{errors}")
        if self.measured and self.simulated_to < 1:
            lines.append(f"simulated up to t={self.simulated_to:.4g}; beyond, so many steps cannot follow the equation")
        if self.end_gap is not None:
            what = "Kolmogorov-Smirnov distance to the prior" if self.end_signal is None else "nats per number from the prior"
            signal = "" if self.end_signal is None else f"alpha/sigma = {self.end_signal:.3g}, "
            lines.append(f"end law: {signal}{self.end_gap:.3g} {what}")
        return "\n".join([*lines, *(f"! {warning}" for warning in self.warnings)])


def check_gaussian(process: GaussianProcess, data: Tensor | None, paths: int, steps: int, noise: Noise) -> Check:
    """`GaussianProcess.check`."""
    x0, warnings = _start(data, paths, steps), []
    try:
        if (bad := _not_finite(process)) is not None:
            warnings.append(bad)
        alpha, sigma = (float(m) for m in process.moments(1.0))
        spread = process.prior_std
    except ValueError as failed:  # a user's coefficient failed inside (0, 1): there are no moments to speak of
        return Check(_title(process), (), 0.0, None, None, (str(failed),))
    error = process.quadrature_error if isinstance(process, LinearSDE) else 0.0
    rough = error > 1e-6
    if rough and not warnings:
        warnings.append(
            f"the integrals of drift and diffusion are known only to {error:.1g} relative: a coefficient "
            "is singular or too rough; make it smoother, or finite where it grows without bound"
        )
    if (still := _snr(process)) is not None:
        warnings.append(still)
    if not (math.isfinite(alpha) and math.isfinite(sigma) and sigma > 0 and spread > 0):
        warnings.append(f"at t=1 alpha={alpha:g} and sigma={sigma:g}: no law to start from; keep both finite, sigma above 0")
        return Check(_title(process), (), 0.0, None, None, tuple(warnings))
    gap = _end_gap(alpha, sigma, spread, float(x0.square().mean()))
    if not gap <= _SIGNAL:
        warnings.append(_end_warning(alpha, sigma, spread, float(x0.square().mean()), gap))
    measured: tuple[Measured, ...] = ()
    reached = 0.0
    try:
        measured, reached = _kernel(process, x0, steps, noise)
    except ValueError:  # the simulation meets the coefficient that was warned of
        if not warnings:
            raise
    if (off := [m for m in measured if not m.agrees]) and not rough:  # what cannot be integrated cannot be compared
        worst = off[0]
        warnings.append(
            f"{worst.quantity} at t={worst.t:.4g} is {worst.simulated:.5g} ± {worst.standard_error:.1g} by simulation but "
            f"{worst.expected:.5g} by the kernel ({len(off)} of {len(measured)} numbers differ): mean_variance and "
            "drift_diffusion do not belong together"
        )
    return Check(_title(process), measured, reached, alpha / sigma, gap, tuple(warnings))


def check_simulated(process: SimulatedSDE, data: Tensor | None, paths: int, steps: int, noise: Noise) -> Check:
    """`SimulatedSDE.check`."""
    x0 = _start(data, paths, steps)
    x = x0
    if process.initial_variance:
        x = x + math.sqrt(process.initial_variance) * noise.normal(x.shape, stream="check/start", dtype=x.dtype)
    measured: list[Measured] = []
    fine = x
    for t, fine, coarse in _paired(process, x, steps, noise, {round(mark * steps / 2) * 2 for mark in _MARKS}):
        if not bool(fine.isfinite().all()):
            warning = (
                f"paths leave all bounds before t={t:.4g} with {steps} steps: weaken the drift at large x or take more steps"
            )
            return Check(_title(process), tuple(measured), t, None, None, (warning,))
        for quantity, power in (("mean x", 1), ("mean x²", 2)):
            one, two = (v.pow(power).flatten(1).mean(1) for v in (fine, coarse))
            measured.append(_estimate(t, quantity, None, one, two))
    prior = process.prior(fine.shape, noise, dtype=torch.float64)
    gap, limit = _slices(fine, prior, noise)
    warnings = []
    if gap > limit:
        ends, named = (f"mean {float(v.mean()):.3g} and standard deviation {float(v.std()):.3g}" for v in (fine, prior))
        warnings.append(
            f"the end law is not the prior: they differ by {gap:.3f} in distribution where {limit:.3f} would be chance; x_1 has "
            f"{ends}, the prior {named}; name the law that the paths reach, or let them run longer (larger drift and diffusion)"
        )
    return Check(_title(process), tuple(measured), 1.0, None, gap, tuple(warnings))


def _title(process: Equation) -> str:
    text = repr(process)
    return text if len(text) <= 100 else type(process).__name__


def _start(data: Tensor | None, paths: int, steps: int) -> Tensor:
    if paths < 16 or steps < 4:
        raise ValueError(f"paths={paths}, steps={steps}: give at least 16 paths and 4 steps")
    if data is None:
        data = torch.tensor([[1.0], [-1.0]])
    if data.ndim < 2 or len(data) == 0 or not bool(data.isfinite().all()):
        raise ValueError(f"data of shape {tuple(data.shape)} must be (N, *), at least one datum, all finite")
    return data.to("cpu", torch.float64)[torch.arange(paths) % len(data)]


def _not_finite(process: GaussianProcess) -> str | None:
    """Which coefficient is not finite at which of 1001 times; an infinite rate where alpha = 0 belongs to every such process."""
    if isinstance(process, Chain):  # its betas are the coefficients, and were looked at when it was made
        return None
    times = torch.linspace(0, 1, 1001, dtype=torch.float64)
    try:
        f, squared = process.drift_diffusion(times)
    except ValueError as error:
        return str(error)
    silent = process.mean_variance(times)[0] == 0
    for name, value in (("drift", f), ("diffusion", squared)):
        if len(bad := (~value.isfinite() & ~silent).nonzero()):
            where = int(bad[0])
            return f"{name} is {float(value[where])} at t={float(times[where]):.6g}; make it finite on all of [0, 1]"
    return None


def _snr(process: GaussianProcess) -> str | None:
    """Where log(sigma/alpha) does not rise."""
    times = torch.linspace(process.t_min, 1, 1001, dtype=torch.float64)
    if isinstance(process, Chain):
        times = torch.arange(1, process.steps + 1, dtype=torch.float64) / process.steps
    rise = process.log_ratio(times).diff()
    flat = ~(rise > 1e-9)  # so written, NaN is flat
    if not bool(flat.any()):
        return None
    begin = int(flat.nonzero()[0])
    end = begin + int((~flat[begin:]).int().argmax()) if bool((~flat[begin:]).any()) else len(flat)
    between = f"between t={float(times[begin]):.4g} and t={float(times[end]):.4g}"
    if bool((rise[begin:end] < -1e-9).any()):
        return (
            f"the signal-to-noise ratio rises {between}: noise once added cannot be taken away, g² would be negative there; "
            "let sigma/alpha grow with t"
        )
    return (
        f"the signal-to-noise ratio stands still {between} (diffusion 0): samplers that go by it cannot tell these times apart; "
        "keep the diffusion above 0"
    )


def _end_gap(alpha: float, sigma: float, spread: float, power: float) -> float:
    """Mean KL(q(x_1|x_0) ‖ prior) in nats per number for data of mean square `power`."""
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    return float(gaussian_kl(zero, sigma**2 * one, zero, spread**2 * one)) + alpha**2 * power / (2 * spread**2)


def _end_warning(alpha: float, sigma: float, spread: float, power: float, gap: float) -> str:
    signal = alpha**2 * power / (2 * spread**2)
    if signal >= gap / 2:
        cause = f"alpha/sigma = {alpha / sigma:.3g} at t=1, so x_1 still shows the data"
        remedy = f"make the drift or the diffusion larger until it is below {math.sqrt(2 * _SIGNAL / max(power, 1e-300)):.2g}"
    else:
        cause = f"sigma = {sigma:.4g} at t=1 where prior_std = {spread:.4g}"
        remedy = "give prior_std=sigma(1), or leave it out"
    return f"the end law is not the prior: {cause} (KL {gap:.2g} nats per number, below {_SIGNAL:g} is harmless); {remedy}"


def _kernel(process: GaussianProcess, x0: Tensor, steps: int, noise: Noise) -> tuple[tuple[Measured, ...], float]:
    """alpha and sigma at several times by simulation and by the kernel, and how far the simulation went."""
    x = x0
    found: Iterator[tuple[float, Tensor, Tensor]]
    if isinstance(process, Chain):
        reached, marks = 1.0, {max(1, round(mark * process.steps)) for mark in _MARKS}
        found = _chain(process, x, noise, marks)
    else:
        used = _resolved(process, steps)
        reached, marks = used / steps, {round(mark * used / 2) * 2 for mark in _MARKS}
        begin = float(process.moments(0.0)[1])
        x = x + begin * noise.normal(x.shape, stream="check/start", dtype=x.dtype)
        found = _paired(process, x, steps, noise, marks - {0})
    measured = []
    power = x0.square().flatten(1).mean(1)
    for t, fine, coarse in found:
        alpha, sigma = (float(m) for m in process.moments(t))
        if bool((power > 0).any()):
            along = [(v * x0).flatten(1).mean(1) / power.mean() for v in (fine, coarse)]
            # x_t·x_0 also varies with x_0 itself, which is known: what is left of it is the noise
            known = alpha * (power / power.mean() - 1)
            measured.append(_estimate(t, "alpha", alpha, along[0] - known, along[1] - known))
        # about the mean of its own paths: an error of alpha would count x0² times here
        kept = [(v * x0).sum() / (x0.square().sum() + 1e-300) for v in (fine, coarse)]
        rest = [(v - a * x0).square().flatten(1).mean(1) for v, a in zip((fine, coarse), kept, strict=True)]
        measured.append(_estimate(t, "sigma²", sigma**2, rest[0], rest[1]))
    return tuple(measured), reached


def _estimate(t: float, quantity: str, expected: float | None, fine: Tensor, coarse: Tensor) -> Measured:
    """The mean of a quantity per path, (n,), extrapolated to steps of no length: twice the fine one less the coarse one."""
    extrapolated = 2 * fine - coarse
    error = float(extrapolated.std()) / math.sqrt(len(fine))
    return Measured(t, quantity, expected, float(extrapolated.mean()), error, float((fine - coarse).mean()))


def _resolved(process: GaussianProcess, steps: int) -> int:
    """How many of `steps` equal steps, an even number, Euler-Maruyama can take before |f|·h passes what it resolves."""
    times = torch.arange(steps, dtype=torch.float64) / steps
    f, squared = process.drift_diffusion(times)
    good = (f.abs() * (2 / steps) <= _RESOLVED) & (squared >= 0) & squared.isfinite()
    return (steps if bool(good.all()) else int((~good).int().argmax())) // 2 * 2


def _paired(process: Equation, x: Tensor, steps: int, noise: Noise, marks: set[int]) -> Iterator[tuple[float, Tensor, Tensor]]:
    """(t, x_t by steps of 1/N, x_t by steps of 2/N on the same Brownian path) at the marked steps, which are even."""
    h, fine, coarse = 1 / steps, x, x
    last = max(marks, default=0)
    for k in track(range(0, last, 2), last // 2, "simulating"):
        z1, z2 = (noise.normal(x.shape, stream="check", step=k + i, dtype=x.dtype) for i in (0, 1))
        fine = euler_maruyama(process, euler_maruyama(process, fine, k * h, h, z1), (k + 1) * h, h, z2)
        coarse = euler_maruyama(process, coarse, k * h, 2 * h, (z1 + z2) / math.sqrt(2))
        if k + 2 in marks:
            yield min((k + 2) * h, 1.0), fine, coarse


def _chain(process: Chain, x: Tensor, noise: Noise, marks: set[int]) -> Iterator[tuple[float, Tensor, Tensor]]:
    """The chain's own steps, from its betas alone: they need no discretisation, so both states are the same."""
    for k, beta in enumerate(process.betas, 1):
        z = noise.normal(x.shape, stream="check", step=k, dtype=x.dtype)
        x = math.sqrt(1 - beta) * x + math.sqrt(beta) * z
        if k in marks:
            yield k / process.steps, x, x


def _slices(x: Tensor, y: Tensor, noise: Noise) -> tuple[float, float]:
    """Largest two-sample Kolmogorov-Smirnov distance over 16 random directions, and what chance exceeds once in 10,000."""
    x, y = x.flatten(1), y.flatten(1)
    directions = noise.normal((x.shape[1], 16), stream="check/slice", dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    count = 1 if x.shape[1] == 1 else 16
    worst, n = 0.0, len(x)
    for along in directions.T[:count]:
        a, b = (x @ along).sort().values, (y @ along).sort().values
        both = torch.cat([a, b])
        gap = torch.searchsorted(a, both, right=True) - torch.searchsorted(b, both, right=True)
        worst = max(worst, float(gap.abs().max()) / n)
    # Smirnov's bound, divided over the directions
    return worst, math.sqrt(-math.log(1e-4 / (2 * count)) / n)
