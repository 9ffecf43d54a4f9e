"""Deliberate mutations of the core: each one is made on a copy of the tree, and the tests named beside it must fail.

    python benchmarks/mutations.py [--only SUBSTRING] [--out FILE.json]

Prints one line per mutation and a JSON summary. Exit code 1 when a mutation survives, 2 when the list no longer fits the source
or the tests fail without any mutation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutation:
    """In `file` (under src/ornstein) the one occurrence of `old` becomes `new`; `tests` (under tests) must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation("sample index ignored", "noise.py", "counter=first * blocks", "counter=0", "test_noise.py"),
    Mutation("dropped square root of the radius", "noise.py",
             "    np.sqrt(radius, out=radius)\n", "", "test_noise.py"),
    Mutation("stream left out of the key", "noise.py",
             "{self.seed}/{stream}/{step}", "{self.seed}/{step}", "test_noise.py"),
    Mutation("bridge variance doubled", "noise.py",
             "math.sqrt(width) / 2 * z", "math.sqrt(width / 2) * z", "test_noise.py"),
    Mutation("sign in g²", "process/gaussian.py", "slope_variance - 2 * f", "slope_variance + 2 * f", "process"),
    Mutation("variance for standard deviation", "process/gaussian.py",
             "sigma = variance.sqrt()", "sigma = variance", "process"),
    Mutation("posterior with sigma_t", "process/gaussian.py", "sigma_s**2 * lost,", "sigma_t**2 * lost,", "process"),
    Mutation("signal lost without the square", "process/gaussian.py",
             "-torch.expm1(2 * (self", "-torch.expm1((self", "process"),
    Mutation("sign in the divergence", "process/gaussian.py",
             "excess - torch.log1p", "excess + torch.log1p", "process"),
    Mutation("sub-VP with a square root", "process/continuous.py",
             "return alpha, variance**2", "return alpha, variance", "process"),
    Mutation("chain one level off", "process/chain.py",
             "self._log_alpha2[nearest.long()]", "self._log_alpha2[nearest.long() - 1]",
             "process"),
    Mutation("sign of eps", "denoiser.py", '"eps": lambda a, s, d, process, t: (1 / a, -s / a)',
             '"eps": lambda a, s, d, process, t: (1 / a, s / a)', "test_denoiser.py"),
    Mutation("v without its norm", "denoiser.py",
             "-s / (a**2 + s**2).sqrt()),\n    \"edm\"", "-s / (a**2 + s**2)),\n    \"edm\"",
             "test_denoiser.py"),
    Mutation("score view with sigma", "denoiser.py", '"score": lambda a, s: (-1 / s**2, a / s**2)',
             '"score": lambda a, s: (-1 / s, a / s)', "test_denoiser.py"),
    Mutation("c_in without sigma_data", "denoiser.py", "(alpha**2 * sigma_data**2 + sigma**2).rsqrt()",
             "(alpha**2 + sigma**2).rsqrt()", "test_denoiser.py"),
    Mutation("learned fraction not shifted", "denoiser.py",
             "fraction.to(x_t.dtype) + 1) / 2", "fraction.to(x_t.dtype)) / 2",
             "test_denoiser.py"),
    Mutation("mean of the mixture not scaled", "testing/mixture.py",
             "x_t - alpha * (pulled @", "x_t - (pulled @", "test_oracles.py"),
    Mutation("bound without the uncertainty", "testing/gaussian.py",
             "+ uncertain / (2 * tau)).sum(-1)", ").sum(-1)", "test_oracles.py"),
    Mutation("karras without the power", "grid.py", "** rho\n", "\n", "test_grid.py"),
    Mutation("DDIM without eta²", "samplers/onestep.py", "eta**2 * float", "eta * float", "samplers"),
    Mutation("DDIM with the variance as its std", "samplers/onestep.py",
             "ratio),), math.sqrt(variance)))", "ratio),), variance))",
             "samplers"),
    Mutation("Euler-Maruyama, sign of the drift", "samplers/onestep.py", "1 - h * f", "1 + h * f", "samplers"),
    Mutation("Euler-Maruyama, h for sqrt(h)", "samplers/onestep.py", "g * math.sqrt(h)", "g * h", "samplers"),
    Mutation("Heun without its second slope", "samplers/singlestep.py",
             '((), (1.0,)), (0.5, 0.5), 2)', '((), (1.0,)), (1.0, 0.0), 2)', "samplers"),
    Mutation("churn without S_noise", "samplers/singlestep.py",
             "math.sqrt(raised) * noise_scale", "math.sqrt(raised)", "samplers"),
    Mutation("2M without its half", "samplers/multistep.py", "extra = 0.5 * (frame", "extra = (frame", "samplers"),
    Mutation("one call too many", "samplers/singlestep.py",
             "(calls - (end is None)) // stages", "(calls + 1 - (end is None)) // stages", "samplers"),
    Mutation("frame of v, slope without its half", "samplers/frame.py", "-0.5 / np.cosh(u)", "-1.0 / np.cosh(u)", "samplers"),
    Mutation("SDE noise of half the step", "samplers/frame.py", "-math.expm1(-2 * tau**2 * h)", "-math.expm1(-(tau**2) * h)",
             "samplers"),
    Mutation("UniPC, predictor's difference upside down", "samplers/corrected.py", "b / ratio if", "b * ratio if", "samplers"),
    Mutation("corrector sees the wrong step", "samplers/corrected.py", "before = times[k - 1]", "before = times[max(k - 2, 0)]",
             "samplers"),
    Mutation("DPM-Solver-3, third for two thirds", "samplers/singlestep.py", "np.expm1(2 * k / 3) - bend",
             "np.expm1(k / 3) - bend", "samplers"),
    Mutation("reverse diffusion without its 2", "samplers/onestep.py", "2 - float(forward.alpha)", "1 / float(forward.alpha)",
             "samplers"),
    Mutation("loop, lag one off", "samplers/loop.py", "[(w, history[j]) for j, w in row.b]",
             "[(w, history[max(j - 1, 0)]) for j, w in row.b]", "samplers"),
    Mutation("loop, chunk forgets its first sample", "samplers/loop.py",
             "Batch(partial(state, places), own, first + offset, places)", "Batch(partial(state, places), own, first, places)",
             "samplers"),
    Mutation("learned std without the half", "samplers/loop.py",
             "torch.exp(0.5 * (low", "torch.exp((low", "samplers"),
)  # fmt: skip

LOSSES = (
    Mutation("bound weight without the square", "losses/denoising.py",
             "q.on_x0**2 / (2 * variance)", "q.on_x0 / (2 * variance)",
             "losses"),
    Mutation("target, sign of eps", "losses/denoising.py",
             "/ p.out, -p.skip * p.sigma / p.out", "/ p.out, p.skip * p.sigma / p.out",
             "losses"),
    Mutation("mean not detached", "losses/denoising.py", "prediction.x0.detach()", "prediction.x0", "losses"),
    Mutation("decoder bins of half a level", "losses/bound.py",
             "(x0 - mean + self.width / 2) / std", "(x0 - mean) / std", "losses"),
    Mutation("step term without its half", "losses/bound.py", "0.5 * mean_gap**2", "mean_gap**2", "losses"),
    Mutation("loss-aware weight upside down", "losses/times.py",
             "1 / (self.bins * p[b])", "self.bins * p[b]", "losses"),
)  # fmt: skip

CALIBRATION = (
    Mutation("weights in the order of the calls", "calibration/student.py", "[1 : k + 2].flip(0)", "[1 : k + 2]",
             "calibration/test_student.py"),
    Mutation("coefficients left behind by their times", "calibration/student.py", "before[1:] * grown", "before[1:]",
             "calibration/test_student.py"),
    Mutation("times not pulled back", "calibration/trace.py",
             "times.insert(0, torch.zeros_like(call.time) if on_time is None else on_time)",
             "times.insert(0, torch.zeros_like(call.time))", "calibration/test_trace.py"),
    Mutation("pullback without the way through x", "calibration/trace.py", "on_x.add(on_y, alpha=row[0])", "on_x",
             "calibration/test_trace.py"),
    Mutation("the three sets share their noise", "calibration/reference.py", "first = FIRST + k * APART + low",
             "first = FIRST + low", "calibration/test_reference.py"),
    Mutation("samples that meet themselves", "calibration/fit.py", "0).sum(1) / (n - 1)", "0).sum(1) / n",
             "calibration/test_fit.py"),
    Mutation("judged on what was fitted", "calibration/calibrate.py", "_judged(denoiser, plan, reference.judge,",
             "_judged(denoiser, plan, reference.fit,", "calibration/test_calibrate.py"),
    Mutation("a plan of other guidance is taken", "samplers/loop.py", 'return "" if mine == facts.denoiser else',
             'return "" if mine else', "test_plan_calibration.py"),
    Mutation("guidance towards the free branch", "guidance/line.py", "torch.lerp(other, x0, align",
             "torch.lerp(x0, other, align", "guidance/test_classifier_free.py"),
)  # fmt: skip


FLOW = (
    Mutation("rejected state taken", "samplers/march.py", "state = _either(good, tried.state, state)", "state = tried.state",
             "samplers/test_march.py"),
    Mutation("one error for the whole batch", "samplers/flow.py", "torch.stack(error).amax(0), h",
             "torch.stack(error).amax(0).amax().expand(len(rows)), h", "samplers/test_adaptive.py"),
    Mutation("conditions left behind", "samplers/flow.py", "value[rows.to(value.device)]", "value[: len(rows)]",
             "samplers/test_adaptive.py"),
    Mutation("a weight of Dormand and Prince", "samplers/singlestep.py", "(35 / 384, 0.0", "(36 / 384, 0.0",
             "samplers/test_flow.py"),
    Mutation("rejected noise redrawn", "samplers/adaptive.py", " if self.bridge else after", " if False else after",
             "samplers/test_adaptive.py"),
    Mutation("bridge without its spread", "samplers/adaptive.py", "(h * (1 - share)).sqrt()", "h.sqrt()",
             "samplers/test_adaptive.py"),
    Mutation("improved Euler of order 1", "samplers/adaptive.py", "better = (ahead + again) / 2", "better = ahead",
             "samplers/test_adaptive.py"),
    Mutation("plain Langevin drift", "samplers/langevin.py", "(1 - (1 - 2 * part).sqrt())", "part", "samplers/test_langevin.py"),
    Mutation("corrector in a stage", "samplers/langevin.py", " or step.s >= step.before", "", "samplers/test_langevin.py"),
    Mutation("divergence upside down", "likelihood/density.py", "dimensions * gained", "-dimensions * gained",
             "likelihood/test_density.py"),
    Mutation("density of x_t for that of x0", "likelihood/density.py", " + angle(process, begin).cos().log()", "",
             "likelihood/test_density.py"),
    Mutation("probes of the place in the chunk", "likelihood/density.py", 'stream="probe", step=k, first=first) < 0.5',
             'stream="probe", step=k) < 0.5', "likelihood/test_divergence.py"),
    Mutation("decode with the final denoise", "likelihood/latents.py", "angle(process, end).cos(), x", "norm(process, end), x",
             "likelihood/test_latents.py"),
    Mutation("grey levels without their width", "likelihood/bits.py", "bits = bits - dimensions * math.log(width)", "bits = bits",
             "likelihood/test_bits.py"),
    Mutation("pilot with the samples' own noise", "samplers/budget.py", "PILOT = 2**40", "PILOT = 0", "samplers/test_budget.py"),
)  # fmt: skip


CONDITIONS = (
    Mutation("prior variance left out of r²", "guidance/inverse.py", "(alpha2 * self.data_variance + sigma2)",
             "(alpha2 + sigma2)", "guidance/test_inverse.py"),
    Mutation("reconstruction without its half", "guidance/inverse.py", "align(self.weight * prediction.alpha",
             "align(2 * self.weight * prediction.alpha", "guidance/test_inverse.py"),
    Mutation("measurement not noised forward", "guidance/observed.py", "alpha * operator.pseudo_inverse(given.values)",
             "operator.pseudo_inverse(given.values)", "guidance/test_observed.py"),
    Mutation("projection with the level before the row", "guidance/observed.py", "self.process.moments(step.s)",
             "self.process.moments(step.t)", "guidance/test_observed.py"),
    Mutation("step not in x over its size", "guidance/observed.py", "for time in (step.t, step.s)", "for time in (step.t,)",
             "guidance/test_observed.py"),
    Mutation("cases mixed", "guidance/restore.py", "torch.arange(cases).repeat_interleave(draws)",
             "torch.arange(cases).repeat(draws)", "guidance/test_restore.py"),
    Mutation("DDRM, eta_b without its noise", "guidance/ddrm.py", "(after**2 - (eta_b * spread) ** 2)", "(after**2 - 0 * spread)",
             "guidance/test_ddrm.py"),
    Mutation("RePaint without the way back", "guidance/repaint.py", "            k -= jump\n", "", "guidance/test_repaint.py"),
    Mutation("own class forgotten", "guidance/classifier.py", "logits.log_softmax(1).gather", "logits.gather",
             "guidance/test_classifier.py"),
    Mutation("mean shift by the standard deviation", "guidance/classifier.py", "step.std**2", "step.std",
             "guidance/test_classifier.py"),
    Mutation("guided outside the interval", "guidance/line.py", "            return 1.0\n", "            pass\n",
             "guidance/test_classifier_free.py"),
    Mutation("cold: algorithm 2 is algorithm 1", "image/cold.py", "x - degrade(s) + degrade(r)", "degrade(r)",
             "image/test_cold.py"),
    Mutation("ensemble forgets its size", "metrics/ensemble.py", "error / math.sqrt(1 + 1 / self.draws.shape[1])", "error",
             "metrics/test_ensemble.py"),
    Mutation("measured offset kept", "measured.py", "values = values - operator(constant)",
             "values = values + operator(constant)", "test_cli_restore.py"),
    Mutation("shown measurement without its noise", "condition.py", " * self.lift(z)", " * 0 * self.lift(z)",
             "test_condition.py"),
)  # fmt: skip


SERIES = (
    Mutation("a step is told of itself", "sequence/timegrad.py", "before = self.z[..., first - 1 : stop - 1]",
             "before = self.z[..., first - 1 : stop - 1].roll(-1, -1)", "sequence/test_timegrad.py"),
    Mutation("lag one too short", "sequence/timegrad.py", "earlier = self.z[..., first - lag : stop - lag]",
             "earlier = self.z[..., first - lag + 1 : stop - lag + 1]", "sequence/test_timegrad.py"),
    Mutation("changes in units of the level", "sequence/timegrad.py", "return self.z[..., -1] + drawn / self.ratio[..., 0] if",
             "return self.z[..., -1] + drawn if", "sequence/test_timegrad.py"),
    Mutation("same draws at every step", "sequence/timegrad.py", 'noise.key("forecast", step)', 'noise.key("forecast", 0)',
             "sequence/test_timegrad.py"),
    Mutation("missing numbers count in the loss", "sequence/timegrad.py", "weight=rows(seen[..., begin:].to(target))",
             "weight=None", "sequence/test_timegrad.py"),
    Mutation("units from what is asked for", "sequence/timegrad.py", 'self._steps(x[..., : self.windowing.context], features)',
             "self._steps(x, features)", "sequence/test_timegrad.py"),
    Mutation("measured numbers drawn anew", "sequence/imputer.py", "torch.where(mask[:, None], values[:, None].cpu(), x)", "x",
             "sequence/test_imputer.py"),
    Mutation("loss on what is shown", "sequence/imputer.py", "cond=cond, weight=asked.to(target)", "cond=cond",
             "sequence/test_imputer.py"),
    Mutation("hidden numbers shown", "sequence/imputer.py", "else torch.where(shown, z, torch.zeros_like(z))",
             "else z.nan_to_num()", "sequence/test_imputer.py"),
    Mutation("lines through hidden numbers", "sequence/imputer.py", "scaling.interpolated(z, shown)",
             "scaling.interpolated(z, z.isfinite())", "sequence/test_imputer.py"),
    Mutation("departures in other units than lines", "sequence/imputer.py", "self._unit(told) * drawn.cpu()", "drawn.cpu()",
             "sequence/test_imputer.py"),
    Mutation("lines that lean the wrong way", "sequence/scaling.py", "share = (places - left)", "share = (right - places)",
             "sequence/test_scaling.py"),
    Mutation("a stretch one step short", "sequence/masks.py", "size = (share * length).round()",
             "size = (share * length - 1).round()", "sequence/test_masks.py"),
    Mutation("share hidden and kept exchanged", "sequence/masks.py", '>= share[:, None, None]', '< share[:, None, None]',
             "sequence/test_masks.py"),
    Mutation("units from what is hidden", "sequence/scaling.py", "torch.where(seen, x, torch.zeros_like(x))", "x.nan_to_num()",
             "sequence/test_scaling.py"),
    Mutation("held-out steps trained on", "sequence/windows.py", "one.head(cut) for one, cut", "one.head(cut + 1) for one, cut",
             "sequence/test_windows.py"),
    Mutation("origins one row late", "sequence/windows.py", "begin = length - horizon - (windows - 1) * step if",
             "begin = length - horizon - (windows - 1) * step + 1 if", "sequence/test_windows.py"),
    Mutation("a mask for all", "guidance/given.py", "Given(values, mask=self.mask[case]", "Given(values, mask=self.mask[0]",
             "guidance/test_given.py"),
)  # fmt: skip


def run_tests(tree: Path, tests: str) -> tuple[bool, float, str]:
    """Whether `tests` pass in `tree`, the seconds they took, and the line of pytest that says most."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", f"tests/{tests}", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "--tb=no"]
    begun = time.monotonic()
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: tests failed; anything else says nothing about the mutation
        raise RuntimeError(f"pytest tests/{tests} ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
    lines = done.stdout.strip().splitlines() or [""]
    telling = next((line for line in lines if line.startswith("FAILED")), lines[-1])
    return done.returncode == 0, time.monotonic() - begun, telling


def copy_tree(target: Path) -> None:
    """The source, the tests and the settings, without caches."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", target)


def main() -> int:
    """Run every mutation; the exit code says whether all were caught."""
    parser = argparse.ArgumentParser(description="Are deliberate mistakes caught by the tests?")
    parser.add_argument("--only", default="", help="mutations whose name, file or tests contain this")
    parser.add_argument("--out", type=Path, help="write the JSON summary here as well")
    arguments = parser.parse_args()
    candidates = [*MUTATIONS, *LOSSES, *FLOW, *CALIBRATION, *CONDITIONS, *SERIES]
    chosen = [m for m in candidates if arguments.only in f"{m.name} {m.file} {m.tests}"]
    records = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        for tests in sorted({m.tests for m in chosen}):
            passed, seconds, line = run_tests(tree, tests)
            print(f"unmutated  {tests:<20} {seconds:5.1f} s  {line}", flush=True)
            if not passed:
                return 2
        for mutation in chosen:
            path = tree / "src" / "ornstein" / mutation.file
            original = path.read_text()
            if original.count(mutation.old) != 1:
                print(f"{mutation.name}: {mutation.old!r} occurs {original.count(mutation.old)} times in {mutation.file}")
                return 2
            path.write_text(original.replace(mutation.old, mutation.new))
            try:
                passed, seconds, line = run_tests(tree, mutation.tests)
            finally:
                path.write_text(original)
            records.append({**asdict(mutation), "caught": not passed, "seconds": round(seconds, 1)})
            verdict = "MISSED" if passed else "caught"
            print(f"{verdict}  {mutation.name:<38} {mutation.file:<24} {seconds:5.1f} s  {line}", flush=True)
    missed = [record["name"] for record in records if not record["caught"]]
    summary = json.dumps({"mutations": len(records), "caught": len(records) - len(missed), "missed": missed, "records": records})
    print(summary)
    if arguments.out:
        arguments.out.write_text(summary)
    return 1 if missed or not records else 0


if __name__ == "__main__":
    sys.exit(main())
