"""What `verify` found, as a table for the terminal and as the page "How to choose a sampler"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ornstein.files import write_atomic
from ornstein.verify.measure import BIAS_CALLS, CALLS, FINE, POINTS, Result

_SHOWN = ("ddim", "heun", "deis(tAB3)", "dpm_solver(3S)", "dpm_solver_pp(2M)", "unipc(3, bh2)", "ipndm(4)", "adams(v, 2)")
"""Deterministic samplers in the picture, one of each kind."""

_ADVICE = """# How to choose a sampler

*This page is written by `ornstein verify --page docs/samplers.md`: every number on it was measured against exact answers.*

- **Do not choose**: `ornstein.sample(denoiser, calls=n, …)` takes `samplers.default_plan(process, n)`; its name says what it is.
- **5 to 50 calls, deterministic**: multistep plans, where n calls are n steps. The grid matters more than the method: on
  `vp_time` the errors of all are several times smaller than on `karras` or `log_snr`. `ipndm` and `adams` in the v view lead
  there; `unipc` (order 3), `dpm_solver_pp` and `deis` follow.
- **A small error, many calls**: `deis_rho_rk` (RK4), `dpm_solver` of order 3, `unipc` of order 3 with `starts="single_step"`.
- **Noise in the loop** (an imperfect network forgives its early errors): `dpm_solver_pp_sde`, `sa_solver`, `heun` with churn.
  They need more calls for the same law; `ancestral` and `euler_maruyama` need hundreds.
- **A network with a learned variance**: `ancestral` with `variance="learned"`.
- **alpha(1) = 0 or nearly** (rectified flow, zero terminal SNR, cosine): plans of the x0 and v views (DDIM, ancestral,
  DPM-Solver++, UniPC, SA-Solver, Adams) start there; plans of the eps view start where log(sigma/alpha) = 7, which changes the
  law by 4e-7 nats per dimension. What works in t promises no order there, for the drift f explodes.
- **A chain of T steps**: methods whose polynomials or stages are in t (DEIS tAB, PNDM, Runge-Kutta in t) promise no order,
  since the log-SNR of a chain has a kink at each level; methods in lambda or in sigma/alpha do not see it.

A plan says what it does: `print(ornstein.samplers.unipc(process, 8))`. Your own function is checked by
`ornstein verify --sampler my_module:my_plan`, your own process by `--process my_module:my_process`.
"""


def table(results: Sequence[Result]) -> str:
    """One line per result: declared and measured order, bias, errors at 5 … 50 calls, seconds, and what failed."""
    head = ("sampler", "process", "order", "mixture", "Gaussian", "mean bias", "std bias", *(f"{n} calls" for n in CALLS), "s")
    lines = [head, *(_cells(result) for result in results)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    shown.insert(1, "  ".join("-" * width for width in widths))
    failed = [f"FAILED {r.sampler} on {r.process}: {'; '.join(r.failures)}" for r in results if r.failures]
    seconds = sum(result.seconds for result in results)
    closing = (
        f"{len(results)} checked in {seconds:.0f} s, {len(failed)} failed; bias at {BIAS_CALLS} calls, order between {_pairs()}"
    )
    return "\n".join([*shown, *failed, closing])


def _pairs() -> str:
    first, second = (f"{low} and {high}" for low, high in FINE)
    return f"{first} calls, or where that falls short {second}"


def _cells(result: Result) -> tuple[str, ...]:
    return (
        result.sampler,
        result.process,
        f"{result.declared:g}",
        *(_order(order) for order in result.orders),
        f"{100 * result.mean_bias:+.2f} %",
        f"{100 * result.std_bias:+.2f} %",
        *(f"{result.errors[n]:.1e}" if n in result.errors else "-" for n in CALLS),
        f"{result.seconds:.1f}",
    )


def _order(value: float) -> str:
    return "-" if math.isnan(value) else "exact" if math.isinf(value) else f"{value:.2f}"


def page(results: Sequence[Result], path: Path) -> None:
    """Write the Markdown page, and its pictures into images/ beside it."""
    processes = list(dict.fromkeys(result.process for result in results))
    first = "vp" if "vp" in processes else processes[0]
    own = [result for result in results if result.process == first]
    images = path.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    _error_picture([r for r in own if not r.stochastic], images / "samplers-error.png", first)
    _error_picture([r for r in own if r.stochastic], images / "samplers-law.png", first)
    parts = [
        _ADVICE,
        f"## Error against calls ({first})\n",
        f"Deterministic plans: distance to the end of the exact probability flow, {POINTS} starts, a ring of six Gaussians.\n",
        "![Error of deterministic samplers against calls](images/samplers-error.png)\n",
        "Stochastic plans: 2-Wasserstein distance of their exact law to the data, a correlated Gaussian.\n",
        "![Error in law of stochastic samplers against calls](images/samplers-law.png)\n",
        _markdown(("sampler", "order", *(f"{n} calls" for n in CALLS), f"std bias, {BIAS_CALLS} calls"), _errors(own)),
        f"## Measured order\n\nBetween {_pairs()}; the smaller of the slopes on the mixture and on the "
        "Gaussian; in brackets where none is promised.\n",
        _markdown(("sampler", "declared", *processes), _orders(results, processes)),
    ]
    with write_atomic(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def _errors(results: Sequence[Result]) -> list[tuple[str, ...]]:
    rows = []
    for r in results:
        errors = [f"{r.errors[n]:.1e}" if n in r.errors else "–" for n in CALLS]
        rows.append((f"`{r.sampler}`", f"{r.declared:g}", *errors, f"{100 * r.std_bias:+.2f} %"))
    return rows


def _orders(results: Sequence[Result], processes: Sequence[str]) -> list[tuple[str, ...]]:
    found = {(r.sampler, r.process): r for r in results}
    rows = []
    for sampler in dict.fromkeys(r.sampler for r in results):
        cells = []
        for process in processes:
            result = found.get((sampler, process))
            orders = [o for o in result.orders if not math.isnan(o)] if result else []
            text = _order(min(orders)) if orders else "–"
            cells.append(text if result and result.promised else f"({text})")
        rows.append((f"`{sampler}`", f"{next(r.declared for r in results if r.sampler == sampler):g}", *cells))
    return rows


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def _error_picture(results: Sequence[Result], path: Path, process: str) -> None:
    """Errors against calls, on logarithmic axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = [r for r in results if r.sampler in _SHOWN or r.stochastic]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, result in enumerate(chosen or results):
        calls = [n for n in CALLS if n in result.errors]
        axes.plot(calls, [result.errors[n] for n in calls], marker="osD^v<>P*X"[index % 10], markersize=4, label=result.sampler)
    axes.set(xscale="log", yscale="log", xlabel="network calls", ylabel="error", title=f"process: {process}")
    axes.set_xticks(CALLS, [str(n) for n in CALLS], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    with write_atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
