"""`verify` passes what is right and catches what is wrong: sixteen samplers with one slip each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ornstein import samplers
from ornstein.process import VP, GaussianProcess
from ornstein.samplers import Plan, Row, Sampler
from ornstein.samplers.frame import Frame, floats
from ornstein.samplers.plan import Terms
from ornstein.verify import CLAIMS, Bench, Claim, examine, measure, page, table, verify
from tiny import Run


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.of("vp", VP())


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders measured between 96 and 192 calls alone, where every sampler below has its order unless it is edited."""
    monkeypatch.setattr(measure, "FINE", ((96, 192),))


Edit = Callable[[GaussianProcess, int, Row, Plan], Row]


def edited(make: Sampler, edit: Edit, **options: object) -> Sampler:
    """A sampler whose rows are changed one by one; the final denoise is left as it is."""

    def wrong(process: GaussianProcess, calls: int, grid: object, *, end: float | None = None) -> Plan:
        plan = make(process, calls, grid, end=end, **options)
        rows = [row if row.s is None else edit(process, k, row, plan) for k, row in enumerate(plan.rows)]
        return Plan("wrong", plan.view, tuple(rows))

    return wrong


def scaled(terms: Terms, factors: dict[int, float]) -> Terms:
    return tuple((j, w * factors.get(j, 1.0)) for j, w in terms)


def flipped_correction(process: GaussianProcess, k: int, row: Row, plan: Plan) -> Row:
    b = dict(row.b)
    return replace(row, b=((0, b[0] + 2 * b[1]), (1, -b[1]))) if 1 in b else row


def equal_steps_assumed(process: GaussianProcess, k: int, row: Row, plan: Plan) -> Row:
    whole = sum(w for _, w in row.b)
    return replace(row, b=((0, 1.5 * whole), (1, -0.5 * whole))) if len(row.b) == 2 else row


def copied_weights(process: GaussianProcess, k: int, row: Row, plan: Plan) -> Row:
    """The third-order update as it is widely copied: half the second difference's weight."""
    if len(row.b) < 3:
        return row
    frame = Frame(process, "x0")
    assert row.s is not None
    exact = [frame.scale(row.s) * w for w in frame.integrals("lambda", [row.t, plan.rows[k - 1].t], row.t, row.s)]
    return replace(row, b=tuple((j, 0.5 * (w + (exact[j] if j < 2 else 0.0))) for j, w in row.b))


def older(process: GaussianProcess, k: int, row: Row, plan: Plan) -> Row:
    return replace(row, b=tuple((j + 1 if j and k > 1 else j, w) for j, w in row.b))


def first_slope_only(process: GaussianProcess, k: int, row: Row, plan: Plan) -> Row:
    return replace(row, b=((1, 2 * row.b[1][1]),)) if len(row.b) == 2 else row


def score_times_g(process: GaussianProcess, k: int, row: Row, plan: Plan) -> Row:
    return replace(row, b=scaled(row.b, {0: 1 / float(process.diffusion(row.t))}))


def early_time(process: GaussianProcess, k: int, row: Row, plan: Plan) -> Row:
    return replace(row, t=row.s if row.s else row.t)


def sigma_of_t(process: GaussianProcess, k: int, row: Row, plan: Plan) -> Row:
    (alpha_t, sigma_t), (alpha_s, _) = floats(process, row.t), floats(process, row.s)
    sigma = math.sqrt(max(1 - alpha_s**2, 0)) * 0.5 + 0.5 * sigma_t
    return replace(row, a=sigma / sigma_t, b=((0, alpha_s - alpha_t * sigma / sigma_t),))


def equal_weights(process: GaussianProcess, k: int, row: Row, plan: Plan) -> Row:
    total = sum(w for _, w in row.b)
    return replace(row, b=tuple((j, total / 4) for j, _ in row.b)) if len(row.b) == 4 else row


def whole_corrector(process: GaussianProcess, k: int, row: Row, plan: Plan) -> Row:
    b = dict(row.b)
    return replace(row, b=((0, b[0] + b[1]),)) if row.prior and len(b) == 2 else row


def half_way_to_the_middle(process: GaussianProcess, k: int, row: Row, plan: Plan) -> Row:
    return replace(row, t=(plan.rows[k - 1].t + row.t) / 2) if row.prior else row


def one_call_more(process: GaussianProcess, calls: int, grid: object, *, end: float | None = None) -> Plan:
    return samplers.dpm_solver_pp(process, calls + 1, grid, end=end)  # type: ignore[arg-type]


def noised(change: Callable[[GaussianProcess, Row], float]) -> Edit:
    return lambda process, k, row, plan: replace(row, c=change(process, row)) if row.c else row


def half_exponent(process: GaussianProcess, row: Row) -> float:
    h = float(process.log_ratio(row.t) - process.log_ratio(row.s))
    return floats(process, row.s)[1] * math.sqrt(-math.expm1(-h))


WRONG: dict[str, Claim] = {
    "sign of eps": Claim(
        edited(samplers.euler_maruyama, lambda p, k, r, plan: replace(r, b=scaled(r.b, {0: -1.0}))), 1, "uniform"
    ),
    "sign of the correction": Claim(edited(samplers.dpm_solver_pp, flipped_correction), 2),
    "ratio of steps left out": Claim(edited(samplers.dpm_solver_pp, equal_steps_assumed), 2),
    "copied third-order weights": Claim(edited(samplers.dpm_solver_pp, copied_weights, order=3), 3),
    "lag off by one": Claim(edited(samplers.deis, older, degree=1), 2, "quadratic"),
    "Heun without its average": Claim(edited(samplers.heun, first_slope_only), 2, "karras"),
    "g for g²": Claim(edited(samplers.euler_maruyama, score_times_g), 1, "uniform"),
    "variance for deviation": Claim(edited(samplers.ancestral, noised(lambda p, row: row.c**2)), 1),
    "noise of half the step": Claim(edited(samplers.dpm_solver_pp_sde, noised(half_exponent)), 1),
    "time off by one": Claim(edited(samplers.ddim, early_time), 1, constants=True),
    "sigma of the wrong time": Claim(edited(samplers.ddim, sigma_of_t), 1),
    "equal Runge-Kutta weights": Claim(edited(samplers.deis_rho_rk, equal_weights, method="rk4"), 4, "karras"),
    "corrector without its half": Claim(edited(samplers.unipc, whole_corrector, order=1), 2),
    "middle of the middle": Claim(edited(samplers.dpm_solver, half_way_to_the_middle, order=2, fast=False), 2),
    "a call too many": Claim(one_call_more, 2),
    "no number at all": Claim(edited(samplers.ddim, lambda p, k, r, plan: replace(r, a=1e300, b=scaled(r.b, {0: 1e300}))), 1),
}


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_sampler_is_caught(name: str, bench: Bench) -> None:
    assert examine(name, WRONG[name], bench).failures


@pytest.mark.usefixtures("coarse")
def test_the_edits_alone_change_nothing(bench: Bench) -> None:
    same = edited(samplers.dpm_solver_pp, lambda process, k, row, plan: row)
    assert not examine("same", Claim(same, 2, constants=True), bench).failures


def test_every_sampler_makes_a_claim() -> None:
    assert {claim.sampler for claim in CLAIMS.values()} == set(samplers.ALL.values())


@pytest.mark.parametrize(
    "name", ["ddim", "unipc(3, bh2)", "dpm_solver_pp(3M)", "euler_maruyama", "dpm_solver_pp_sde(2M)", "pndm"]
)
def test_claims_hold(name: str, bench: Bench) -> None:
    found = examine(name, CLAIMS[name], bench)
    assert found.failures == ()
    assert found.stochastic == (name in ("euler_maruyama", "dpm_solver_pp_sde(2M)"))
    assert found.errors[50] < found.errors[20]
    assert set(found.errors) == ({20, 50} if name == "pndm" else {5, 10, 20, 50})


@pytest.mark.usefixtures("coarse")
def test_known_bias_of_the_two_variances(bench: Bench) -> None:
    # β̃ is too small and β too large for data that are neither a point nor wide
    assert examine("a", CLAIMS["ancestral(posterior)"], bench).std_bias < 0
    assert examine("b", CLAIMS["ancestral(transition)"], bench).std_bias > 0


@pytest.mark.usefixtures("coarse")
def test_table_and_page(tmp_path: Path) -> None:
    results = verify({name: CLAIMS[name] for name in ("ddim", "ddim(1)")}, {"vp": VP()})
    text = table(results)
    assert text.splitlines()[-1].startswith("2 checked in")
    assert "FAILED" not in text
    bad = replace(results[0], failures=("order 0.10 on the mixture, declared 1",))
    assert "FAILED ddim on vp: order 0.10" in table([bad])
    page(results, tmp_path / "samplers.md")
    written = (tmp_path / "samplers.md").read_text()
    assert "# How to choose a sampler" in written
    assert f"| `ddim` | 1 | {results[0].errors[5]:.1e} |" in written
    for name in ("samplers-error.png", "samplers-law.png"):
        assert (tmp_path / "images" / name).read_bytes().startswith(b"\x89PNG")


MODULE = """
from ornstein.process import VP
from ornstein.samplers import ddim, dpm_solver_pp
def good(process, calls, grid, *, end=None):
    return dpm_solver_pp(process, calls, grid, end=end)
good.order = 2
def no_end(process, calls, grid):
    return ddim(process, calls, grid)
short = VP(0.1, 10.0)
number = 3
"""


@pytest.mark.usefixtures("coarse")
def test_the_command_checks_ones_own(run: Run) -> None:
    Path("my_module.py").write_text(MODULE)
    base = ["verify", "--quiet", "--process", "my_module:short"]
    done = run(*base, "--sampler", "my_module:good", "--out", "found.json")
    assert done.code == 0, done.err
    assert json.loads(Path("found.json").read_text())[0]["declared"] == 2
    failed = run(*base, "--sampler", "my_module:good", "--order", "3")
    assert failed.code == 1
    assert "FAILED my_module:good on my_module:short: orders" in failed.out
    for wrong, message in (
        (["--sampler", "my_module:no_end"], "must take (process, calls, grid, end=time)"),
        (["--sampler", "my_module:number"], "is no function"),
        (["--sampler", "my_module:absent"], "cannot be imported"),
        (["--sampler", "euler"], "is not one of ddim"),
        (["--process", "my_module:number"], "is no GaussianProcess"),
        (["--process", "vpp"], "is not one of vp"),
        (["--grid", "linear"], "is not one of uniform"),
    ):
        refused = run("verify", "--quiet", *wrong)
        assert refused.code == 2, wrong
        assert message in refused.err
