"""Ornstein's samplers beside those of diffusers and azula: the same start noise, the same denoiser, calls counted.

    python benchmarks/solvers.py --part mixtures --out judged.json
    python benchmarks/solvers.py --part mixtures --family validation --seeds 20 21 22 23 --out tuning.json
    python benchmarks/solvers.py --part net --model runs/mnist --out net.json

The truth is the probability-flow map itself: errors are means over samples of |x - truth|/sqrt(dimensions). "Best peer" is
the lowest error, per problem and number of calls, of all peer configurations. Exit code 1 if a target is missed.

- mixtures, judged: those of shared/bench/peer_envelope.json, which holds the best peer; the peers run here too, to show that
  they reproduce it. Geometric mean of default over best peer at most 1.4.
- mixtures, validation: others, the best peer measured here. Rules are tuned on these, never on the judged ones.
- net: a trained network on an EDM process. Default at most 1.05 times the best peer at every number of calls.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import random
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

import peer_samplers as peers
from ornstein import model
from ornstein.denoiser import Condition, Denoises, Prediction
from ornstein.files import InputError, read_json, write_json
from ornstein.grid import GRIDS
from ornstein.noise import Noise
from ornstein.process import GaussianProcess, chain
from ornstein.process.gaussian import Time
from ornstein.samplers import ALL, sample
from ornstein.testing import MixtureDenoiser

MIXTURE_CALLS = (5, 6, 8, 10, 15, 20, 30, 50)
NET_CALLS = (5, 8, 10, 15)
MIXTURE_TARGET, NET_TARGET = 1.4, 1.05
START = 157.4
"""x/alpha of the mixtures' start noise."""
LEVELS, DEFAULT = 1000, "default"
DIMENSIONS, MODES, STDS = (2, 8, 32, 64), (6, 24), (0.08, 0.3)

Options = dict[str, Any]

PLANS: tuple[tuple[str, Options], ...] = (
    ("ddim", {}),
    *(("dpm_solver_pp", {"order": order}) for order in (2, 3)),
    ("dpm_solver_pp", {"order": 3, "starts": "single_step"}),
    *(("dpm_solver_multistep", {"order": order}) for order in (2, 3)),
    *(("unipc", {"order": order, "variant": variant}) for order, variant in product((1, 2, 3), ("bh1", "bh2"))),
    *(("sa_solver", {"predictor": order, "corrector": order, "tau": 0.0}) for order in (2, 3)),
    *(("deis", {"degree": degree, "variable": variable}) for variable, degree in product(("t", "rho"), (1, 2, 3))),
    *(("lms", {"order": order}) for order in (2, 3, 4)),
    *(("ipndm", {"order": order}) for order in (2, 3, 4)),
    *(("adams", {"variable": v, "order": k, "correct": c}) for v, k, c in product(("lambda", "growth"), (2, 3), (True, False))),
    ("pndm", {}),
    *(("dpm_solver", {"order": order}) for order in (2, 3)),
    *(("dpm_solver_pp_single", {"order": order}) for order in (2, 3)),
    ("deis_rho_rk", {"method": "kutta3"}),
    ("heun", {}),
    ("midpoint", {}),
)
"""Names in `samplers.ALL` and options; every one is tried on every grid of `grid.GRIDS`."""

Errors = dict[str, dict[int, float]]
"""Solver -> calls -> error; missing where a method does not exist for so few calls, took more, or left the finite numbers."""
Envelope = dict[int, tuple[float, str]]
"""Calls -> the best peer's error and name."""


@dataclass
class Counted:
    """A denoiser asked in float32 or float64 (`dtype`) with a fixed condition, that counts its calls; states stay float64."""

    denoiser: Denoises
    dtype: torch.dtype = torch.float64
    fixed: Condition = None
    calls: int = 0

    @property
    def process(self) -> GaussianProcess:
        """The wrapped denoiser's process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        """The wrapped prediction, its x0 in float64."""
        self.calls += 1
        asked = self.denoiser(x_t.to(self.dtype), t, self.fixed)
        return Prediction.from_x0(x_t, asked.alpha, asked.sigma, asked.x0.to(torch.float64))


@dataclass(frozen=True)
class Problem:
    """A denoiser, start noise y = x_T/alpha, and where the flow takes it; float64. `facts` say how it was made."""

    name: str
    denoiser: Counted
    start: Tensor
    truth: Tensor
    facts: dict[str, Any]

    def flow(self, linear: bool = False) -> peers.Flow:
        """The same denoiser as the peers see it: in y = x/alpha and rho = sigma/alpha, on a chain of `LEVELS` levels.

        Their spacings are even in the index of a level: the levels are the process's own, or those of the linear chain.
        """
        process = self.denoiser.process
        times = torch.linspace(process.t_min, 1, LEVELS, dtype=torch.float64)
        levels = process.log_ratio(times).exp()
        if linear:
            betas = chain("linear")
            usual = betas.log_ratio(torch.arange(1, betas.steps + 1, dtype=torch.float64) / betas.steps).exp()
            levels = torch.cat([usual[usual < levels[-1]], levels[-1:]])

        def denoise(y: Tensor, rho: float) -> Tensor:
            t = float(process.time_of(torch.tensor(math.log(rho), dtype=torch.float64)))
            return self.denoiser(y.to(torch.float64) * process.moments(t)[0], t).x0

        return peers.Flow(denoise, tuple(levels.tolist()))


Solve = Callable[[Problem, int], Tensor | None]
"""(problem, calls) -> samples, or None where the method does not exist for so few calls."""


def distance(x: Tensor, truth: Tensor) -> float:
    """Mean over samples of the root mean square over dimensions."""
    return float((x - truth).flatten(1).square().mean(1).sqrt().mean())


def ours(sampler: str, options: Options, grid: str) -> Solve:
    """A named plan."""

    def solve(problem: Problem, calls: int) -> Tensor | None:
        try:
            plan = ALL[sampler](problem.denoiser.process, calls, grid, **options)
        except ValueError:  # so many calls, or this grid, are refused
            return None
        return sample(problem.denoiser, plan, start=problem.start * problem.denoiser.process.moments(1.0)[0], noise=Noise(0))

    return solve


def by_default(problem: Problem, calls: int) -> Tensor:
    """What a user gets who names a number of calls only."""
    return sample(problem.denoiser, calls=calls, start=problem.start * problem.denoiser.process.moments(1.0)[0], noise=Noise(0))


def theirs(part: str) -> dict[str, Solve]:
    """The peers; on a net, whose process is not a chain, on both kinds of levels."""
    kinds = {"": False, "on linear levels: ": True} if part == "net" else {"": False}
    return {
        f"{label}{name}": lambda problem, calls, peer=peer, linear=linear: peer(problem.flow(linear), problem.start, calls)
        for (label, linear), (name, peer) in product(kinds.items(), peers.everyone().items())
    }


def all_ours(pattern: str) -> dict[str, Solve]:
    """The default, and the named plans that match a regular expression."""
    found: dict[str, Solve] = {DEFAULT: by_default}
    for (sampler, options), grid in product(PLANS, GRIDS):
        name = f"{sampler}({', '.join(f'{key}={value}' for key, value in options.items())}) {grid}"
        if re.search(pattern, name):
            found[name] = ours(sampler, options, grid)
    return found


def measure(problem: Problem, solvers: Mapping[str, Solve], budgets: Sequence[int]) -> Errors:
    """Errors of all solvers that kept to the calls they were given."""
    found: Errors = {name: {} for name in solvers}
    with torch.no_grad():
        for (name, solve), calls in product(solvers.items(), budgets):
            problem.denoiser.calls = 0
            x = solve(problem, calls)
            if x is not None and problem.denoiser.calls <= calls and bool(x.isfinite().all()):
                found[name][calls] = distance(x, problem.truth)
    return found


def envelope_of(errors: Errors, budgets: Sequence[int]) -> Envelope:
    """The best of these errors at every number of calls."""
    return {calls: min((by[calls], name) for name, by in errors.items() if calls in by) for calls in budgets}


def import_mixture(bench: Path) -> ModuleType:
    """bench/mixture.py, which is no part of this project."""
    path = bench / "mixture.py"
    spec = importlib.util.spec_from_file_location("mixture", path)
    if spec is None or spec.loader is None or not path.exists():
        raise InputError(f"--bench {str(bench)!r} holds no mixture.py; give the folder that does")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mixture_problem(bench: ModuleType, facts: dict[str, Any], start_seed: int) -> Problem:
    """One mixture under the linear chain, its truth by the bench's own solver."""
    gmm = bench.GMM(facts["dim"], facts["modes"], facts["std"], facts["seed"])
    oracle = MixtureDenoiser(means=gmm.mu, stds=gmm.s, weights=gmm.logw.exp(), process=chain("linear"))
    generator = torch.Generator().manual_seed(start_seed)
    start = START * torch.randn(256, facts["dim"], generator=generator, dtype=torch.float64)
    name = facts.get("row", f"{facts['dim']}D seed {facts['seed']}")
    return Problem(name, Counted(oracle), start, gmm.reference(start, START), {**facts, "start_seed": start_seed})


def validation(seed: int) -> tuple[dict[str, Any], int]:
    """(facts, start seed) of another mixture: dimensions take turns, modes and std are drawn by the seed."""
    draw = random.Random(seed)
    facts = {"dim": DIMENSIONS[seed % 4], "modes": draw.randint(*MODES), "std": round(draw.uniform(*STDS), 3), "seed": seed}
    return facts, 180 + seed


def net_problem(directory: Path, n: int, fine: int) -> Problem:
    """A trained model's flow from n draws of its prior; the truth is a single-step plan of `fine` calls.

    `facts` hold its distance from the plan of half as many calls: about eight times its own error, the plan being of order 3.
    """
    system = model.load(directory)
    cond = system.conditions({system.condition: [k % 10 for k in range(n)]}, n) if system.condition else None
    denoiser = Counted(system.denoiser, torch.float32, cond)
    process = denoiser.process
    start = process.prior((n, *system.contract.shape), Noise(0), dtype=torch.float64) / process.moments(1.0)[0]
    solve = ours("dpm_solver_pp_single", {"order": 3}, "log_snr")
    bare = Problem("net", denoiser, start, start, {})
    rough, truth = solve(bare, fine // 2), solve(bare, fine)
    if rough is None or truth is None:
        raise InputError(f"--fine {fine} calls are too few for the truth; give at least 16")
    facts = {"model": str(directory), "n": n, "fine_calls": fine, "fine_against_half": distance(rough, truth)}
    print(f"truth: {fine} calls, {facts['fine_against_half']:.1e} from {fine // 2} calls", flush=True)
    return Problem(directory.name, denoiser, start, truth, facts)


@dataclass(frozen=True)
class Result:
    """Everything measured on one problem, and the envelope it is held against."""

    problem: str
    facts: dict[str, Any]
    ours: Errors
    peers: Errors
    envelope: Envelope

    def ratio(self, name: str, calls: int) -> float | None:
        """Our solver over the best peer."""
        error = self.ours[name].get(calls)
        return None if error is None else error / self.envelope[calls][0]


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(float(np.mean(np.log(values))))


def ranking(results: Sequence[Result], budgets: Sequence[int]) -> list[tuple[float, str]]:
    """Our solvers that exist at all these numbers of calls, by geometric mean ratio over all problems, best first."""
    found = []
    for name in results[0].ours:
        ratios = [result.ratio(name, calls) for result, calls in product(results, budgets)]
        if None not in ratios:
            found.append((geometric_mean([ratio for ratio in ratios if ratio is not None]), name))
    return sorted(found)


def reproduced(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The envelope's entries beside what the adapters here make of the same configurations, printed.

    The envelope says "timestep_spacing" without its value: the nearest of ours that begin so is taken.
    """
    rows = []
    print(f"\n{'problem':<8} {'calls':>5} {'envelope':>10} {'here':>10} {'best here':>10}  the envelope's configuration")
    for result in results:
        for calls, (error, name) in result.envelope.items():
            same = [by[calls] for other, by in result.peers.items() if other.startswith(name) and calls in by]
            here = min(same, key=lambda value: abs(math.log(value / error)), default=None)
            best = envelope_of(result.peers, [calls])[calls]
            rows.append({"problem": result.problem, "calls": calls, "name": name, "envelope": error, "here": here, "best": best})
            print(f"{result.problem:<8} {calls:>5} {error:>10.3e} {here or math.nan:>10.3e} {best[0]:>10.3e}  {name}")
    return rows


def report(results: Sequence[Result], budgets: Sequence[int]) -> dict[str, Any]:
    """Print the tables; the summary that goes into the JSON."""
    width = max(len(result.problem) for result in results)
    print(f"\ndefault\n{'problem':<{width}} {'calls':>5} {'default':>10} {'best peer':>10} {'ratio':>7}  best peer's name")
    for result, calls in product(results, budgets):
        ratio, (error, name) = result.ratio(DEFAULT, calls), result.envelope[calls]
        mine = result.ours[DEFAULT].get(calls, math.nan)
        print(f"{result.problem:<{width}} {calls:>5} {mine:>10.3e} {error:>10.3e} {ratio or math.nan:>7.2f}  {name}")
    by_calls = {f"{calls}": ranking(results, [calls]) for calls in budgets}
    by_calls["all"] = ranking(results, budgets)
    print(f"\n{'calls':>5} {'default':>8}   best of our named plans, by geometric mean ratio to the best peer")
    for label, ranks in by_calls.items():
        by_name = {name: ratio for ratio, name in ranks}
        best = [f"{ratio:.2f} {name}" for name, ratio in by_name.items() if name != DEFAULT][:4]
        print(f"{label:>5} {by_name.get(DEFAULT, math.nan):>8.2f}   {'   '.join(best)}")
    return {"ranking": by_calls}


def verdict(results: Sequence[Result], budgets: Sequence[int], part: str) -> tuple[list[dict[str, Any]], bool]:
    """The targets with their figures, printed, and whether all are met."""
    groups, limit = [(f"net, {calls} calls", [calls]) for calls in budgets], NET_TARGET
    if part == "mixtures":
        groups, limit = [(part, list(budgets))], MIXTURE_TARGET
    found = []
    for name, group in groups:
        ratios = [result.ratio(DEFAULT, calls) for result, calls in product(results, group)]
        value = math.nan if None in ratios else geometric_mean([ratio for ratio in ratios if ratio is not None])
        check = {"name": f"{name}: default over best peer", "value": value, "limit": limit, "met": value <= limit}
        print(f"{check['name']:<44}{value:9.3f}  at most {limit:g}: {'met' if check['met'] else 'MISSED'}")
        found.append(check)
    return found, all(check["met"] for check in found)


def problems(arguments: argparse.Namespace, protocol: Mapping[str, Any]) -> Iterator[Problem]:
    """The problems asked for, each made when its turn comes."""
    if arguments.part == "net":
        yield net_problem(arguments.model, arguments.number, arguments.fine)
        return
    bench = import_mixture(arguments.bench)
    judged = [(facts, 100 + k) for k, facts in enumerate(protocol.get("mixtures", ()))]
    for facts, start_seed in judged or map(validation, arguments.seeds):
        yield mixture_problem(bench, facts, start_seed)


def run(arguments: argparse.Namespace) -> bool:
    """Measure, report, and write the JSON; whether the targets are met."""
    mixtures = arguments.part == "mixtures"
    by_file = mixtures and arguments.family == "judged"
    budgets = MIXTURE_CALLS if mixtures else NET_CALLS
    known: Any = read_json(arguments.bench / "peer_envelope.json") if by_file else {"protocol": {}}
    earlier: Any = read_json(arguments.reuse_peers) if arguments.reuse_peers else {"results": []}
    kept = {item["problem"]: item["peers"] for item in earlier["results"]}
    named = all_ours(arguments.plans)
    others = {} if by_file and arguments.skip_peers else theirs(arguments.part)
    results = []
    for problem in problems(arguments, known["protocol"]):
        start = time.perf_counter()
        if problem.name in kept:
            peer_errors = {name: {int(calls): e for calls, e in by.items()} for name, by in kept[problem.name].items()}
        else:
            peer_errors = measure(problem, others, budgets)
        if by_file:
            best = {int(calls): (entry[0], entry[1]) for calls, entry in known[problem.name].items()}
        else:
            best = envelope_of(peer_errors, budgets)
        results.append(Result(problem.name, problem.facts, measure(problem, named, budgets), peer_errors, best))
        print(f"{problem.name}: {len(named)} of ours, {len(peer_errors)} peers, {time.perf_counter() - start:.0f} s", flush=True)
    summary = report(results, budgets)
    rows = reproduced(results) if by_file and results[0].peers else []
    checks, met = verdict(results, budgets, arguments.part)
    if arguments.out is not None:
        record = {"part": arguments.part, "family": arguments.family if mixtures else None, "checks": checks, **summary}
        write_json(arguments.out, {**record, "reproduced": rows, "results": [asdict(result) for result in results]})
    return met


def main() -> int:
    """Run the benchmark; return 0, 1 if a target is missed, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("mixtures", "net"), required=True)
    parser.add_argument("--family", choices=("judged", "validation"), default="judged", help="which mixtures")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(20, 30)), help="of the validation mixtures")
    parser.add_argument("--bench", type=Path, default=Path("../shared/bench"), help="has mixture.py and peer_envelope.json")
    parser.add_argument("--model", type=Path, default=Path("runs/mnist"), help="a trained model directory")
    parser.add_argument("-n", "--number", type=int, default=64, help="samples drawn from the net")
    parser.add_argument("--fine", type=int, default=512, help="calls of the net's truth")
    parser.add_argument("--plans", default="", help="only our named plans that match this regular expression")
    parser.add_argument("--skip-peers", action="store_true", help="judged mixtures only: trust the envelope as it is")
    parser.add_argument("--reuse-peers", type=Path, help="peers' errors from an earlier --out of the same problems")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write every error here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    diffusers.utils.logging.set_verbosity_error()
    try:
        return 0 if run(arguments) else 1
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
