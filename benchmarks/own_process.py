"""One's own process: `LinearSDE` beside the built-in classes, an oscillating beta trained and sampled, bad processes in words.

    python benchmarks/own_process.py --part equal --out equal.json
    python benchmarks/own_process.py --part own
    python benchmarks/own_process.py --part bad
    python benchmarks/own_process.py --part nonlinear

- equal: VP, VE and sub-VP given as f, g and initial variance: moments (target 1e-9 relative), samples by the same plans from the
  same start and noise, and log-likelihoods, on a mixture whose score is exact; then the same with the plans' own grids.
- own: beta(t) = 10 (1 + 0.8 sin 6πt) on the swiss roll (noise 0.05): an MLP trained for --seconds, sampled by DDIM, DPM-Solver++
  and Gotta Go Fast; distances of 5,000 draws to 5,000 fresh data, beside those of real draws and of the exact denoiser.
- bad: what `check` says of three bad processes.
- nonlinear: a double well, refused; then trained by sliced matching on simulated paths and run backwards.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ornstein as on
from ornstein.files import write_json
from ornstein.losses.matching import sliced
from ornstein.metrics import sliced_wasserstein
from ornstein.noise import Noise
from ornstein.process import SDE, VE, VP, GaussianProcess, LinearSDE, SubVP
from ornstein.samplers import GottaGoFast, ancestral, ddim, dpm_solver_pp, sample_adaptive
from ornstein.testing import MixtureDenoiser
from ornstein.vector.data import DISTRIBUTIONS, swiss_roll_law

Rows = list[dict[str, Any]]
DRAWS = 5000


def vp_beta(t: Tensor) -> Tensor:
    """VP's own, as the paper prints it."""
    return 0.1 + 19.9 * t


def lost(t: Tensor) -> Tensor:
    """1 - alpha⁴ of VP."""
    return -torch.expm1(-2 * (0.1 * t + 9.95 * t**2))


PAIRS: dict[str, tuple[GaussianProcess, LinearSDE]] = {
    "vp": (VP(), LinearSDE(lambda t: -0.5 * vp_beta(t), lambda t: vp_beta(t).sqrt(), prior_std=1.0)),
    "ve": (VE(), LinearSDE(lambda t: 0.0, lambda t: math.sqrt(2 * math.log(5000)) * 0.01 * 5000**t, 0.01**2, t_min=0.0)),
    "sub_vp": (SubVP(), LinearSDE(lambda t: -0.5 * vp_beta(t), lambda t: (vp_beta(t) * lost(t)).sqrt())),
}


def mixture(process: GaussianProcess) -> MixtureDenoiser:
    """Three modes of unequal width in the plane."""
    means = torch.tensor([[1.2, 0.3], [-0.8, 0.8], [-0.2, -1.1]])
    return MixtureDenoiser(means, torch.tensor([0.25, 0.1, 0.06]), torch.tensor([0.45, 0.25, 0.3]), process)


def equal(seconds: float) -> Rows:
    """Largest differences between a `LinearSDE` and the built-in class."""
    rows: Rows = []
    times = torch.cat([torch.logspace(-6, 0, 601, dtype=torch.float64), torch.linspace(0, 1, 1001, dtype=torch.float64)[1:]])
    print(f"{'process':<8}{'alpha':>9}{'sigma²':>9}{'stated':>9}   {'sample/log p':<28}{'same plan':>10}{'own plan':>10}")
    for name, (built, own) in PAIRS.items():
        off = [float((a / b - 1).abs().max()) for a, b in zip(own.mean_variance(times), built.mean_variance(times), strict=True)]
        row: dict[str, Any] = {"process": name, "alpha": off[0], "sigma2": off[1], "stated": own.quadrature_error}
        lead = f"{name:<8}{off[0]:>9.1e}{off[1]:>9.1e}{own.quadrature_error:>9.1e}   "
        start = built.prior((256, 2), Noise(0), dtype=torch.float64)
        plans: tuple[tuple[str, Callable[[GaussianProcess], on.Plan]], ...] = (
            ("ddim(50)", lambda p: ddim(p, 50)),
            ("dpm_solver_pp(20)", lambda p: dpm_solver_pp(p, 20)),
            ("ancestral(50)", lambda p: ancestral(p, 50)),
        )
        for title, plan in plans:
            truth = on.sample(mixture(built), plan(built), start=start, noise=Noise(1))
            found = [on.sample(mixture(own), plan(p), start=start, noise=Noise(1)) for p in (built, own)]
            same, own_plan = (float((x - truth).abs().max()) for x in found)
            print(f"{lead}{title:<28}{same:>10.1e}{own_plan:>10.1e}", flush=True)
            rows.append(row | {"what": title, "same_plan": same, "own_plan": own_plan})
            lead = " " * len(lead)
        x = mixture(built).sample(128, Noise(2))
        logs = [on.log_prob(mixture(p), x, divergence="exact").value for p in (built, own)]
        off_log = float((logs[0] - logs[1]).abs().max())
        print(f"{lead}{'log p, nats (rk45 at 1e-5)':<28}{off_log:>10.1e}", flush=True)
        rows.append(row | {"what": "log_prob", "same_plan": off_log})
    return rows


def oscillating() -> LinearSDE:
    """beta(t) = 10 (1 + 0.8 sin 6πt), variance preserving; plans stop at sigma = 0.01, below the roll's own noise."""

    def beta(t: Tensor) -> Tensor:
        return 10 * (1 + 0.8 * torch.sin(6 * math.pi * t))

    return LinearSDE(lambda t: -0.5 * beta(t), lambda t: beta(t).sqrt(), prior_std=1.0, t_min=1e-5)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| without bias: of equal laws it is below 0 as often as above."""
    n, m = len(x), len(y)
    inner = float(torch.pdist(x).sum()) * 2 / (n * (n - 1)) + float(torch.pdist(y).sum()) * 2 / (m * (m - 1))
    return 2 * float(torch.cdist(x, y).mean()) - inner


def distances(x: Tensor, data: Tensor) -> dict[str, float]:
    """Sliced Wasserstein-2 and (squared) energy distance."""
    return {"sliced_wasserstein": sliced_wasserstein(x, data), "energy": energy_distance(x.double(), data)}


def fit(parameters: Sequence[torch.nn.Parameter], loss: Callable[[int], Tensor], seconds: float, rate: float = 2e-3) -> int:
    """Adam for a number of seconds, the rate falling to nothing as they pass; the steps that were made."""
    optimiser = torch.optim.Adam(parameters, lr=rate)
    begun, step = time.perf_counter(), 0
    while (passed := (time.perf_counter() - begun) / seconds) < 1:
        optimiser.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * passed))
        optimiser.zero_grad()
        loss(step).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
    return step


def own(seconds: float) -> Rows:
    """An oscillating beta: train, sample, measure."""
    process, noise = oscillating(), Noise(0)
    print(process.check())
    torch.manual_seed(0)
    denoiser = on.Denoiser(on.MLP(2, width=128, depth=3), process, predicts="edm")
    objective = on.DenoisingLoss("edm", on.Times("log_normal", mean=-1.2, std=1.4))
    roll = DISTRIBUTIONS["swiss_roll"]
    training = roll(200_000, Noise(1), std=0.05).float()

    def loss(step: int) -> Tensor:
        places = (noise.uniform((512,), stream="row", step=step) * len(training)).long()
        return objective(denoiser, training[places], noise, step=step)

    steps = fit(list(denoiser.parameters()), loss, seconds)
    data = roll(DRAWS, Noise(2), std=0.05)
    print(f"\n{steps} steps of 512 in {seconds:.0f} s; {DRAWS} draws against {DRAWS} fresh data")
    print(f"{'denoiser':<10}{'sampler':<26}{'calls':>7}{'sliced W2':>11}{'energy':>9}")
    rows: Rows = []

    def report(who: str, name: str, calls: float | None, x: Tensor) -> None:
        found = distances(x, data)
        shown = "-" if calls is None else f"{calls:.0f}"
        print(f"{who:<10}{name:<26}{shown:>7}{found['sliced_wasserstein']:>11.4f}{found['energy']:>9.5f}", flush=True)
        rows.append({"denoiser": who, "sampler": name, "calls": calls, "training_steps": steps, **found})

    for seed in (3, 4):
        report("-", "real draws", None, roll(DRAWS, Noise(seed), std=0.05))
    for who, model in (("net", denoiser), ("exact", swiss_roll_law(process, components=1000))):
        start = process.prior((DRAWS, 2), Noise(5))
        for plan in (ddim(process, 50, "vp_time"), dpm_solver_pp(process, 20, "vp_time")):
            report(who, plan.name, plan.calls, on.sample(model, plan, start=start, noise=Noise(6)))
        drawn = sample_adaptive(model, GottaGoFast(0.05), start=start, noise=Noise(6))
        report(who, "gotta_go_fast(0.05)", float(drawn.calls.double().mean()), drawn.x0)
    return rows


def bad(seconds: float) -> Rows:
    """The sentences that `check` has for bad processes."""

    def held(t: Tensor) -> Tensor:
        return torch.where((t > 0.3) & (t < 0.5), 0.0, 12.0)

    cases = {
        "beta too small": LinearSDE(lambda t: -0.5, lambda t: 1.0),
        "diffusion off between 0.3 and 0.5": LinearSDE(lambda t: -0.5 * held(t), lambda t: held(t).sqrt()),
        "drift -1/(1-t)": LinearSDE(lambda t: -1 / (1 - t), lambda t: (2 * t / (1 - t)).sqrt()),
        "drift -sqrt(t - 0.1)": LinearSDE(lambda t: -5 * (t - 0.1).sqrt(), lambda t: 3.0),
    }
    rows: Rows = []
    for name, process in cases.items():
        warnings = process.check().warnings
        print(f"{name}:", *(f"\n  {warning}" for warning in warnings))
        rows.append({"process": name, "warnings": list(warnings)})
    return rows


STRENGTH = 6.0
"""g² of the double well."""


def double_well(x: Tensor, t: Tensor) -> Tensor:
    """-½ g² ∇U with U = Σ (x² - 1)², under which exp(-U) stays as it is."""
    return -2 * STRENGTH * x * (x**2 - 1)


def wells(shape: Sequence[int], noise: Noise) -> Tensor:
    """Draws of exp(-U)/Z by its inverse distribution function."""
    grid = np.linspace(-3.0, 3.0, 20_001)
    cumulated = np.cumsum(np.exp(-((grid**2 - 1) ** 2)))
    u = noise.uniform(shape, stream="prior").numpy()
    return torch.from_numpy(np.interp(u, cumulated / cumulated[-1], grid))


def nonlinear(seconds: float) -> Rows:
    """A double well: refused, then learned from its paths."""

    def diffusion(t: Tensor) -> float:
        return math.sqrt(STRENGTH)

    try:
        SDE(double_well, diffusion)
    except ValueError as error:
        print(f"refused: {error}")
        refused = str(error)
    process = SDE(double_well, diffusion, nonlinear="simulate", prior=wells, t_min=1e-3)
    assert not isinstance(process, LinearSDE)
    law, noise = DISTRIBUTIONS["eight_gaussians"], Noise(0)
    check = process.check(law(4096, Noise(9)))
    print(check)
    torch.manual_seed(0)
    net = on.MLP(2, width=128, depth=3)
    pool: dict[str, Tensor] = {}
    batch, reuse, many, draws = 512, 128, 16_384, 2000

    def spread(t: Tensor) -> Tensor:
        return (0.01 - torch.expm1(-STRENGTH * t)).float()  # about the variance by which the paths have spread

    def score(x: Tensor, t: Tensor) -> Tensor:
        # the net corrects the score of the end law: only so does the score grow like the drift far out, where there are no data
        # and the drift, run backwards, would drive paths to infinity
        return net(x, 0.5 * t.log().float()) / spread(t).sqrt()[:, None] - 4 * x * (x**2 - 1)

    def loss(step: int) -> Tensor:
        if step % reuse == 0:
            # 16,384 fresh paths serve 128 steps, four times each
            u = noise.uniform((many,), stream="time", step=step)
            pool["t"] = process.t_min ** (1 - u)
            pool["x"] = process.simulate(law(many, Noise(1000 + step)).float(), pool["t"], noise, steps=200, step=step)
        rows = (noise.uniform((batch,), stream="row", step=step) * many).long()
        t = pool["t"][rows]
        return spread(t) * sliced(lambda x: score(x, t), pool["x"][rows], noise, step=step)

    steps = fit(list(net.parameters()), loss, seconds)
    data = law(draws, Noise(2))
    rows: Rows = []
    print(f"\n{steps} steps of {batch} in {seconds:.0f} s; {draws} draws against {draws} fresh data")
    print(f"{'what':<34}{'sliced W2':>11}{'energy':>9}")
    with torch.no_grad():
        cases = {
            "real draws": law(draws, Noise(3)),
            "real draws, simulated to t_min": process.simulate(law(draws, Noise(3)), process.t_min, Noise(4), steps=20),
            "reverse equation, 500 steps": process.reverse(score, shape=(draws, 2), noise=Noise(5), steps=500),
            "probability flow, 500 steps": process.reverse(score, shape=(draws, 2), noise=Noise(5), steps=500, amount=0.0),
            "the prior itself": process.prior((draws, 2), Noise(5)),
        }
    for name, x in cases.items():
        found = distances(x.double(), data)
        print(f"{name:<34}{found['sliced_wasserstein']:>11.4f}{found['energy']:>9.5f}", flush=True)
        rows.append({"what": name, "refused": refused, "warnings": list(check.warnings), "training_steps": steps, **found})
    return rows


PARTS: dict[str, tuple[Callable[[float], Rows], float]] = {
    "equal": (equal, 0.0),
    "own": (own, 80.0),
    "bad": (bad, 0.0),
    "nonlinear": (nonlinear, 80.0),
}
"""Parts, and how many seconds each trains."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--seconds", type=float, help="of training, in place of the part's own")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run, seconds = PARTS[arguments.part]
    rows = run(arguments.seconds or seconds)
    if arguments.out:
        write_json(arguments.out, rows)


if __name__ == "__main__":
    main()
