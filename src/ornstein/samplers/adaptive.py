"""Samplers that choose their own steps, sample by sample: `sample_adaptive`, Gotta Go Fast, adaptive DPM-Solver (and `RK45`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ornstein.denoiser import Condition, Denoises
from ornstein.noise import Noise
from ornstein.process import align
from ornstein.progress import gauge
from ornstein.samplers.flow import RK45, Tick, condition_of
from ornstein.samplers.frame import Frame
from ornstein.samplers.loop import batches, evaluating
from ornstein.samplers.march import Control, Tensors, Tried, march, root_mean_square
from ornstein.samplers.singlestep import exponential_weights


class Adaptive(Protocol):
    """A sampler that finds its steps while it runs."""

    @property
    def name(self) -> str:
        """What progress bars and files call it."""

    def run(
        self, denoiser: Denoises, x: Tensor, *, noise: Noise, cond: Condition = None, first: int = 0, tick: Tick = None
    ) -> tuple[Tensor, Tensor]:
        """(x0, calls per sample) from x_T (n, *), whose first sample has the number `first`."""


class Draws(NamedTuple):
    """Samples x0 (n, *) and the network evaluations each took, (n,)."""

    x0: Tensor
    calls: Tensor


def sample_adaptive(
    denoiser: Denoises,
    solver: Adaptive,
    *,
    shape: Sequence[int] | None = None,
    noise: Noise,
    cond: Condition = None,
    start: Tensor | None = None,
    first: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Draws:
    """Draw samples of `shape` (samples, *) by a solver that chooses its steps for every sample: `.x0`, `.calls` per sample.

    Arguments are those of `sample`. A sample that has arrived leaves the batch and costs nothing more; its steps, noise and
    result do not depend on the samples beside it. Raises FloatingPointError where a tolerance cannot be met.
    """
    parts, empty = batches(denoiser, shape, start, noise, cond, first, batch_size, device, dtype)
    done: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad(), evaluating(denoiser), gauge(solver.name, enabled=progress) as tell:
        for k, part in enumerate(parts):

            def tick(fraction: float, k: int = k) -> None:
                tell((k + fraction) / len(parts))

            done.append(solver.run(denoiser, part.state(), noise=noise, cond=part.cond, first=part.first, tick=tick))
    if not done:
        return Draws(empty, torch.zeros(0, dtype=torch.long))
    return Draws(torch.cat([x0 for x0, _ in done]), torch.cat([calls for _, calls in done]))


@dataclass(frozen=True)
class GottaGoFast:
    """The reverse equation dx = (f x - g² score) dt + g dw̄ by improved Euler with adaptive steps in t; weak order 2.

        x'  = x  - h (f x - g² score)(x, t)        + g(t) dw
        x'' = ½ (x + x' - h (f x - g² score)(x', t - h) + g(t - h) dw)

    A step is accepted if the root mean square over a sample of (x' - x'')/max(atol, rtol·max(|x'|, |x' of the last step|)) is
    at most 1, and then ends in x''; a denoise at t_min ends the run. `atol` is half a grey level of 8-bit data on [-1, 1].
    An attempt costs 2 calls, and 1 after a rejection. Its increment dw is then bridged: what the next, shorter step sees is a
    part of the path that was already drawn. With `bridge=False` a new one is drawn instead, as the authors' code does: then
    increments that suit the tolerance are favoured, and the samples are biased (docs/results.md).
    Source: Jolicoeur-Martineau et al. 2021, arXiv 2105.14080.
    """

    rtol: float = 0.05
    atol: float = 0.0078
    bridge: bool = True
    first_step: float = 0.01
    safety: float = 0.9
    exponent: float = 0.9

    @property
    def name(self) -> str:
        """What progress bars and files call it."""
        return f"gotta_go_fast(rtol={self.rtol:g})"

    def run(
        self, denoiser: Denoises, x: Tensor, *, noise: Noise, cond: Condition = None, first: int = 0, tick: Tick = None
    ) -> tuple[Tensor, Tensor]:
        """(x0, calls per sample) from x_T (n, *); the noise of attempt k of sample i is keyed by (k, first + i)."""
        _check(self.rtol, self.atol)
        process, n, shape, attempts = denoiser.process, len(x), x.shape, 0
        if not bool(torch.stack(process.drift_diffusion(torch.ones((), dtype=torch.float64))).isfinite().all()):
            raise ValueError(f"{type(process).__name__} has no finite f and g at t = 1, which this equation needs; take RK45")

        def drift(rows: Tensor, state: Tensor, t: Tensor) -> Tensor:
            f, squared = process.drift_diffusion(t)
            score = denoiser(state, t, condition_of(cond, rows)).score
            return align(f, state) * state - align(squared, state) * score

        def attempt(rows: Tensor, state: Tensors, memory: Tensors, t: Tensor, h: Tensor) -> Tried:
            nonlocal attempts
            (x,), (last, slope, known, lengths, increments) = state, memory
            fresh = noise.normal(shape, stream="step", step=attempts, first=first, dtype=x.dtype, device=x.device)
            attempts += 1
            step, dw, lengths, increments = _increment(-h, fresh[rows.to(x.device)], lengths, increments)
            if bool((~known).any()):
                slope = slope.clone()
                slope[~known] = drift(rows[~known.cpu()], x[~known], t[~known.cpu()])
            h, s = align(step, x), t - step
            ahead = x - h * slope + align(process.diffusion(t), x) * dw
            again = x - h * drift(rows, ahead, s) + align(process.diffusion(s), x) * dw
            better = (ahead + again) / 2
            allowed = (self.rtol * torch.maximum(ahead.abs(), last.abs())).clamp(min=self.atol)
            error = root_mean_square((ahead - better) / allowed)
            # both of one shape, for the loop to choose from sample by sample
            after = (_wider(lengths), _wider(increments))
            back = (torch.cat([step[:, None], lengths], 1), torch.cat([dw.unsqueeze(1), increments], 1)) if self.bridge else after
            no, yes = torch.zeros_like(known), torch.ones_like(known)
            calls = 1 + (~known).cpu().long()
            return Tried((better,), error, -step, calls, (ahead, slope, no, *after), (last, slope, yes, *back))

        none = torch.zeros(n, dtype=torch.bool, device=x.device)
        memory = (x, torch.zeros_like(x), none, torch.zeros(n, 0, dtype=torch.float64), x.new_zeros(n, 0, *shape[1:]))
        steps = torch.full((n,), self.first_step, dtype=torch.float64)
        control = Control(self.exponent, self.safety)
        marched = march(attempt, (x,), memory, 1.0, process.t_min, steps, control, tick)
        return denoiser(marched.state[0], process.t_min, cond).x0, marched.calls + 1


def _increment(h: Tensor, z: Tensor, lengths: Tensor, increments: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(step, increment, what is still known) for steps h (m,) and normals z (m, *).

    `lengths` (m, K) and `increments` (m, K, *) are the stretches of the path ahead that rejected steps have drawn, the nearest
    first, 0 long where none is. A step does not reach beyond the nearest one: it takes a part of it by a Brownian bridge.
    Source: Rackauckas and Nie 2017, arXiv 1804.04344 (rejection sampling with memory).
    """
    depth = int((lengths > 0).sum(1).amax()) if lengths.shape[1] else 0
    if depth == 0:
        return h, align(h.sqrt(), z) * z, lengths[:, :0], increments[:, :0]
    lengths, increments = lengths[:, :depth], increments[:, :depth].clone()
    nearest = lengths[:, 0]
    known = nearest > 0
    h = torch.where(known, torch.minimum(h, nearest), h)
    share = torch.where(known, h / nearest.where(known, 1.0), 0.0)
    dw = align(share, z) * increments[:, 0] + align((h * (1 - share)).sqrt(), z) * z
    rest = torch.where(known, nearest - h, 0.0)
    increments[:, 0] -= dw
    lengths = torch.cat([rest[:, None], lengths[:, 1:]], 1)
    spent = known & (rest <= 1e-12 * nearest)
    if bool(spent.any()):
        there = spent.to(z.device)
        lengths[spent] = torch.cat([lengths[spent, 1:], torch.zeros_like(lengths[spent, :1])], 1)
        increments[there] = torch.cat([increments[there, 1:], torch.zeros_like(increments[there, :1])], 1)
    return h, dw, lengths, increments


def _wider(known: Tensor) -> Tensor:
    return torch.cat([known, known.new_zeros(len(known), 1, *known.shape[2:])], 1)


@dataclass(frozen=True)
class AdaptiveDPMSolver:
    """DPM-Solver-12 (`order` 2) or -23 (`order` 3) with adaptive steps in lambda = log(alpha/sigma), on eps.

    The step of the higher order is taken, the one of the lower order, which needs no calls of its own, says how far off it may
    be: accepted if the root mean square over a sample of their difference/max(atol, rtol·max(|x'|, |x' of the last step|)) is at
    most 1, x' being the lower one. An attempt costs `order` calls, one less after a rejection; a denoise at t_min ends the run.
    Source: Lu et al. 2022, arXiv 2206.00927, appendix C.
    """

    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    first_step: float = 0.05
    safety: float = 0.9

    @property
    def name(self) -> str:
        """What progress bars and files call it."""
        return f"dpm_solver_{self.order - 1}{self.order}(rtol={self.rtol:g})"

    def run(
        self, denoiser: Denoises, x: Tensor, *, noise: Noise, cond: Condition = None, first: int = 0, tick: Tick = None
    ) -> tuple[Tensor, Tensor]:
        """(x0, calls per sample) from x_T (n, *); deterministic: `noise` and `first` are what every sampler takes."""
        _check(self.rtol, self.atol)
        if self.order not in (2, 3):
            raise ValueError(f"order={self.order} is not one of 2, 3")
        process, frame, n = denoiser.process, Frame(denoiser.process, "eps"), len(x)

        def place(position: Tensor) -> tuple[Tensor, Tensor]:
            t = process.time_of(-position)
            return t, process.moments(t)[0]

        def moved(to: Tensor, scaled: Tensor, weights: Sequence[object], views: list[Tensor]) -> Tensor:
            total = scaled
            for w, view in zip(weights, views, strict=False):
                total = total + align(torch.as_tensor(w, dtype=torch.float64), scaled) * view
            return align(to, scaled) * total

        def attempt(rows: Tensor, state: Tensors, memory: Tensors, at: Tensor, h: Tensor) -> Tried:
            (x,), (last, eps, known) = state, memory
            t, alpha = place(at)
            if bool((~known).any()):
                eps = eps.clone()
                eps[~known] = denoiser(x[~known], t[~known.cpu()], condition_of(cond, rows[~known.cpu()])).eps
            ratio, change, scaled, views = (-at).exp().numpy(), (-h).numpy(), x / align(alpha, x), [eps]
            inner, upper = exponential_weights(ratio, change, self.order)
            _, lower = exponential_weights(ratio, change, self.order - 1, node=inner[1][0])
            for part, weights in inner[1:]:
                u, scale = place(at + part * h)
                views.append(denoiser(moved(scale, scaled, weights, views), u, condition_of(cond, rows)).eps)
            scale = place(at + h)[1]
            less, more = moved(scale, scaled, lower, views), moved(scale, scaled, upper, views)
            allowed = (self.rtol * torch.maximum(less.abs(), last.abs())).clamp(min=self.atol)
            error = root_mean_square((less - more) / allowed)
            calls = self.order - known.cpu().long()
            return Tried((more,), error, h, calls, (less, eps, torch.zeros_like(known)), (last, eps, torch.ones_like(known)))

        memory = (x, torch.zeros_like(x), torch.zeros(n, dtype=torch.bool, device=x.device))
        steps = torch.full((n,), self.first_step, dtype=torch.float64)
        start, end = frame.log_snr(frame.start), frame.log_snr(process.t_min)
        marched = march(attempt, (x,), memory, start, end, steps, Control(1 / self.order, self.safety), tick)
        return denoiser(marched.state[0], process.t_min, cond).x0, marched.calls + 1


def _check(rtol: float, atol: float) -> None:
    if not (rtol >= 0 and atol > 0):
        raise ValueError(f"rtol={rtol}, atol={atol}: rtol must not be negative, and atol must be above 0")


ADAPTIVE: dict[str, Callable[..., Adaptive]] = {
    "rk45": RK45,
    "gotta_go_fast": GottaGoFast,
    "dpm_solver_adaptive": AdaptiveDPMSolver,
}
"""Names that the command line knows; all take `rtol`."""
