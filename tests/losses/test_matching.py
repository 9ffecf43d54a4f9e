"""Score matching against exact answers: normal data with a full covariance, linear scores, and Jacobians by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ornstein.denoiser import Condition, Denoiser, Prediction
from ornstein.losses import DenoisingLoss, LossAware, MatchingLoss, Times, score_at
from ornstein.losses.matching import (
    CHUNK,
    DIRECTIONS,
    OBJECTIVES,
    WEIGHTS,
    Score,
    denoising,
    explicit,
    finite_difference,
    implicit,
    sliced,
)
from ornstein.nets import MLP
from ornstein.noise import Noise
from ornstein.process import VE, VP, GaussianProcess, Rectified, SubVP, chain
from ornstein.process.gaussian import Time
from ornstein.testing import GaussianDenoiser

F64 = torch.float64
SIGMA = torch.tensor([[1.5, 0.5, -0.2], [0.5, 1.0, 0.3], [-0.2, 0.3, 0.8]], dtype=F64)
P = torch.linalg.inv(SIGMA)
D, LEVEL, N = 3, 0.6, 15_000
NOISED = torch.linalg.inv(SIGMA + LEVEL**2 * torch.eye(D, dtype=F64))
EXACT = [name for name in DIRECTIONS if name != "unit_sphere"]
X = Noise(0).normal((N, D), stream="data", dtype=F64) @ torch.linalg.cholesky(SIGMA).T
EPS = Noise(1).normal((N, D), stream="eps", dtype=F64)


def linear(a: Tensor) -> Score:
    return lambda x: -x @ a.T


Objective = Callable[[Tensor], Tensor]
"""A -> the objective of s(x) = -Ax on the data, (N,)."""
CASES: dict[str, tuple[Objective, Tensor, float]] = {
    "explicit": (lambda a: explicit(linear(a), X, -X @ P), P, 0.0),
    "implicit": (lambda a: implicit(linear(a), X), P, -0.5 * float(P.trace())),
    "denoising": (lambda a: denoising(linear(a), X, LEVEL, EPS), NOISED, 0.5 * (D / LEVEL**2 - float(NOISED.trace()))),
    **{
        f"{name}-{directions}": (partial(call, directions), P, -0.5 * float(P.trace()))
        for directions in EXACT
        for name, call in {
            "sliced": lambda v, a: sliced(linear(a), X, Noise(2), directions=v, variance_reduced=False),
            "sliced_vr": lambda v, a: sliced(linear(a), X, Noise(2), directions=v),
            "finite_difference": lambda v, a: finite_difference(linear(a), X, Noise(2), directions=v),
        }.items()
    },
    "sliced-unit_sphere": (
        lambda a: sliced(linear(a), X, Noise(2), directions="unit_sphere", variance_reduced=False),
        P,
        -0.5 * float(P.trace()) / D,
    ),
}


def gradients(objective: Objective, a: Tensor) -> Tensor:
    """Each datum's gradient in A, (N, D, D): an objective quadratic in A has it exactly by central differences."""
    rows = []
    for k in range(D * D):
        shift = torch.zeros(D * D, dtype=F64)
        shift[k] = 0.5
        rows.append(objective(a + shift.reshape(D, D)) - objective(a - shift.reshape(D, D)))
    return torch.stack(rows, 1).reshape(-1, D, D)


def within(values: Tensor, truth: Tensor | float, errors: float = 3.0) -> bool:
    """Whether the mean over the first axis is the truth, to so many standard errors (and rounding)."""
    spread = values.std(0) / math.sqrt(len(values))
    return bool(((values.mean(0) - truth).abs() <= errors * spread + 1e-10).all())


@pytest.mark.parametrize("name", CASES)
def test_minimum_and_value_of_normal_data(name: str) -> None:
    objective, minimiser, value = CASES[name]
    assert within(objective(minimiser), value)
    # nine correlated entries: 4 standard errors each
    assert within(gradients(objective, minimiser), torch.zeros((), dtype=F64), 4.0)
    for wrong in (minimiser / D, minimiser + 0.3 * torch.eye(D, dtype=F64)):
        assert not within(gradients(objective, wrong), torch.zeros((), dtype=F64), 4.0)
        assert float(objective(wrong).mean()) > float(objective(minimiser).mean())


def test_unit_sphere_spoils_the_reduced_form_and_is_refused() -> None:
    v = DIRECTIONS["unit_sphere"](Noise(2).normal((N, D), stream="raw", dtype=F64))

    def raw(a: Tensor) -> Tensor:
        return 0.5 * (X @ a.T).square().sum(1) - ((v @ a.T) * v).sum(1)

    zero = torch.zeros((), dtype=F64)
    assert within(gradients(raw, P / D), zero, 4.0)
    assert not within(gradients(raw, P), zero, 4.0)
    for call in (
        lambda: sliced(linear(P), X, Noise(2), directions="unit_sphere"),
        lambda: finite_difference(linear(P), X, Noise(2), directions="unit_sphere"),
        lambda: MatchingLoss("sliced_vr", directions="unit_sphere"),
        lambda: MatchingLoss("finite_difference", directions="unit_sphere"),
    ):
        with pytest.raises(ValueError, match=r"unit_sphere.*I/d.*'sphere'"):
            call()
    MatchingLoss("sliced", directions="unit_sphere")


@pytest.mark.parametrize("name", DIRECTIONS)
def test_second_moments_of_directions(name: str) -> None:
    v = DIRECTIONS[name](Noise(3).normal((N, 4), dtype=F64))
    outer = v[:, :, None] * v[:, None]
    assert within(outer, torch.eye(4, dtype=F64) / (4 if name == "unit_sphere" else 1), 4.0)
    length = {"rademacher": 2.0, "sphere": 2.0, "unit_sphere": 1.0}.get(name)
    assert length is None or float((v.norm(dim=1) - length).abs().max()) < 1e-12


def test_rademacher_has_no_zero() -> None:
    assert DIRECTIONS["rademacher"](torch.tensor([[0.0, -0.0, -1.0]])).tolist() == [[1.0, 1.0, -1.0]]


class Curved(nn.Module):
    """A smooth net on any shape, with the layer whose forward-mode gradient PyTorch has wrong."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = F64) -> None:
        super().__init__()
        d = math.prod(shape)
        generator = torch.Generator().manual_seed(d)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(d, 12), nn.Tanh(), nn.LayerNorm(12), nn.SiLU(), nn.Linear(12, d), nn.Unflatten(1, shape)
        ).to(dtype)
        for p in self.parameters():
            p.data = 0.7 * torch.randn(p.shape, generator=generator, dtype=F64).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def by_autograd(score: Score, x: Tensor) -> Tensor:
    """½|s|² + tr ∇s, one datum and one number after the other."""
    values = []
    for datum in x:
        point = datum[None].clone().requires_grad_()
        s = score(point).flatten()
        rows = [torch.autograd.grad(s[k], point, create_graph=True)[0].flatten()[k] for k in range(len(s))]
        values.append(0.5 * s.square().sum() + torch.stack(rows).sum())
    return torch.stack(values)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3, 3), (CHUNK + 5,)], ids=str)
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_implicit_is_the_jacobians_trace_with_its_gradient(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    net = Curved(shape, dtype)
    x = Noise(4).normal((4, *shape), dtype=dtype)
    found, truth = implicit(net, x), by_autograd(net, x)
    tolerance = {"rtol": 1e-11, "atol": 1e-11} if dtype == F64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found, truth, **tolerance)
    parameters = list(net.parameters())
    for one, other in zip(
        torch.autograd.grad(found.sum(), parameters, allow_unused=True),
        torch.autograd.grad(truth.sum(), parameters, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **tolerance)
    with torch.inference_mode():
        torch.testing.assert_close(implicit(net, x.clone()), truth.detach(), **tolerance)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("directions", EXACT)
@pytest.mark.parametrize("reduced", [False, True])
def test_sliced_is_unbiased_for_implicit(shape: tuple[int, ...], directions: str, reduced: bool) -> None:
    net, n = Curved(shape), 4000
    datum = Noise(5).normal((1, *shape), dtype=F64)
    with torch.no_grad():
        truth = implicit(net, datum)
        x = datum.expand(n, *shape)
        values = sliced(net, x, Noise(6), directions=directions, slices=3, variance_reduced=reduced)
        assert within(values, truth, 3.5)
        one = sliced(net, x, Noise(6), directions=directions, variance_reduced=reduced)
    # three slices, averaged: a third of the variance
    assert float(values.var() / one.var()) == pytest.approx(1 / 3, rel=0.15)


def test_finite_difference_is_exact_for_linear_and_second_order_else() -> None:
    a = P + 0.1
    x = X[:50]
    same = {"directions": "gaussian", "slices": 2}
    torch.testing.assert_close(
        finite_difference(linear(a), x, Noise(7), **same),  # type: ignore[arg-type]
        sliced(linear(a), x, Noise(7), **same),  # type: ignore[arg-type]
        rtol=1e-11,
        atol=1e-11,
    )
    net = Curved((3,))
    with torch.no_grad():
        truth = sliced(net, x, Noise(7), slices=2)
        off = [float((finite_difference(net, x, Noise(7), slices=2, width=w) - truth).abs().mean()) for w in (0.02, 0.01)]
    assert off[0] / off[1] == pytest.approx(4, rel=0.05)


def test_finite_difference_takes_a_width_per_sample_and_one_call() -> None:
    net, x, calls = Curved((3,)), X[:6], []

    def counted(y: Tensor) -> Tensor:
        calls.append(y.shape)
        return net(y)

    width = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3], dtype=F64)
    together = finite_difference(counted, x, Noise(8), slices=3, width=width)
    assert len(calls) == 1
    for i, w in enumerate(width.tolist()):
        alone = finite_difference(net, x[i : i + 1], Noise(8), slices=3, width=w, first=i)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=1e-10)


def test_denoising_by_levels_and_weights() -> None:
    net, x, eps = Curved((3,)), X[:4], EPS[:4]
    sigma = torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=F64)
    found = denoising(net, x, sigma, eps, weight=sigma**2)
    for i, level in enumerate(sigma.tolist()):
        s = net(x[i : i + 1] + level * eps[i : i + 1])
        truth = level**2 * 0.5 * (s + eps[i : i + 1] / level).square().sum()
        torch.testing.assert_close(found[i], truth)


CALLS: dict[str, Callable[[Score, Tensor, int], Tensor]] = {
    "explicit": lambda s, x, first: explicit(s, x, torch.cos(x)),
    "implicit": lambda s, x, first: implicit(s, x),
    "sliced": lambda s, x, first: sliced(s, x, Noise(9), slices=2, variance_reduced=False, step=3, first=first),
    "sliced_vr": lambda s, x, first: sliced(s, x, Noise(9), directions="gaussian", step=3, first=first),
    "finite_difference": lambda s, x, first: finite_difference(s, x, Noise(9), directions="sphere", step=3, first=first),
    "denoising": lambda s, x, first: denoising(s, x, 0.5, torch.sin(3 * x)),
}


def check_gradient(value: Callable[[], Tensor], net: nn.Module) -> None:
    """The gradient along a random direction of the parameters equals a central difference."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(value(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(2)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    expected = sum(float((g * a).sum()) for g, a in zip(slopes, along, strict=True) if g is not None)
    ends, h = [], 1e-5
    for sign in (1, -2):
        for p, a in zip(parameters, along, strict=True):
            p.data += sign * h * a
        ends.append(float(value().detach()))
    for p, a in zip(parameters, along, strict=True):
        p.data += h * a
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert abs(expected) > 1e-3


@pytest.mark.parametrize("name", CALLS)
def test_gradients_equal_differences(name: str) -> None:
    net = Curved((2, 2))
    x = Noise(10).normal((5, 2, 2), dtype=F64)
    check_gradient(lambda: CALLS[name](net, x, 0).mean(), net)


@given(cut=st.integers(1, 6), name=st.sampled_from(sorted(CALLS)))
def test_a_sample_does_not_depend_on_its_batch(cut: int, name: str) -> None:
    net, x = Curved((2, 2)), Noise(10).normal((7, 2, 2), dtype=F64)
    whole = CALLS[name](net, x, 0)
    parts = torch.cat([CALLS[name](net, x[:cut], 0), CALLS[name](net, x[cut:], cut)])
    torch.testing.assert_close(whole, parts, rtol=1e-10, atol=1e-10)


def test_directions_are_keyed_by_step() -> None:
    net, x = Curved((3,)), X[:5]
    one, other = (sliced(net, x, Noise(9), directions="gaussian", step=k) for k in (0, 1))
    assert float((one - other).detach().abs().min()) > 1e-6


# --- at many noise levels


def tiny(process: GaussianProcess, predicts: str = "eps", dtype: torch.dtype = torch.float32) -> Denoiser:
    """A small untrained perceptron with random weights."""
    net = MLP(D, width=16, depth=1).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator, dtype=F64).to(dtype)
    return Denoiser(net, process, predicts)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_matching_loss_is_the_objective_at_its_level(objective: str) -> None:
    process, x0, noise, n = VE(0.1, 5.0), X[:6].clone(), Noise(11), 6
    denoiser = tiny(process, dtype=F64)
    loss = MatchingLoss(objective, directions="rademacher", slices=2, width=0.2)
    found = loss(denoiser, x0, noise, step=4, first=2, total=20)
    t, _ = Times().draw(process, n, noise, step=4, first=2, total=20)
    sigma = process.moments(t)[1]
    eps = noise.normal((n, D), stream="train", step=4, first=2, dtype=F64)
    x = x0 + sigma[:, None] * eps
    score, key = score_at(denoiser, t), {"slices": 2, "step": 4, "first": 2}
    value = {
        "implicit": lambda: by_each(denoiser, x, t),
        "sliced": lambda: sliced(score, x, noise, variance_reduced=False, **key),  # type: ignore[arg-type]
        "sliced_vr": lambda: sliced(score, x, noise, **key),  # type: ignore[arg-type]
        "finite_difference": lambda: finite_difference(score, x, noise, width=0.2 * sigma, **key),  # type: ignore[arg-type]
        "denoising": lambda: 0.5 * (score(x) + eps / sigma[:, None]).square().sum(1),
    }[objective]()
    torch.testing.assert_close(found, sigma**2 / D * value, rtol=1e-9, atol=1e-9)
    plain = MatchingLoss(objective, "none", slices=2, width=0.2)(denoiser, x0, noise, step=4, first=2, total=20)
    torch.testing.assert_close(plain, value, rtol=1e-9, atol=1e-9)
    likely = MatchingLoss(objective, "likelihood", slices=2, width=0.2)(denoiser, x0, noise, step=4, first=2, total=20)
    torch.testing.assert_close(likely, process.diffusion(t) ** 2 * value, rtol=1e-9, atol=1e-9)


def by_each(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """The implicit objective of each sample at its own time."""
    return torch.cat([by_autograd(score_at(denoiser, float(t[i])), x[i : i + 1]) for i in range(len(x))])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("process", [VP(), SubVP(), Rectified(), chain("linear", 20)], ids=lambda p: type(p).__name__)
def test_a_float32_net_has_finite_losses_and_the_right_gradient(objective: str, process: GaussianProcess) -> None:
    times = Times("discrete") if not isinstance(process, VP | SubVP | Rectified) else Times()
    loss = MatchingLoss(objective, times=times)
    values = loss(tiny(process, "v"), X[:16].float(), Noise(12))
    assert values.dtype == torch.float32
    assert bool(values.isfinite().all())
    double = tiny(process, "v", F64)
    # the normals of float32 and float64 differ by up to 2.5e-4, and 1/sigma may be large: only a coarse comparison
    torch.testing.assert_close(values.double(), loss(double, X[:16], Noise(12)), rtol=2e-2, atol=2e-2)
    check_gradient(lambda: loss(double, X[:16], Noise(12)).mean(), double)


def test_denoising_is_half_of_the_denoising_loss() -> None:
    for process in (VP(), VE(), Rectified()):
        denoiser = tiny(process, "v", F64)
        half = MatchingLoss("denoising")(denoiser, X[:20], Noise(13), step=2)
        torch.testing.assert_close(2 * half, DenoisingLoss("eps")(denoiser, X[:20], Noise(13), step=2), rtol=1e-7, atol=1e-9)


def test_oracle_is_the_minimum_at_every_level() -> None:
    """With the exact score s_t the weighted implicit value is -½ E lambda(t) tr Σ_t⁻¹, and the sliced ones agree."""
    process = VP()
    oracle = GaussianDenoiser(torch.zeros(D), SIGMA, process)
    t, _ = Times().draw(process, 4000, Noise(14))
    alpha, sigma = process.moments(t)
    traces = (1 / (alpha[:, None] ** 2 * torch.linalg.eigvalsh(SIGMA) + sigma[:, None] ** 2)).sum(1)
    truth = -0.5 * sigma**2 / D * traces
    for objective in ("implicit", "sliced", "sliced_vr", "finite_difference"):
        assert within(MatchingLoss(objective)(oracle, X[:4000], Noise(14)) - truth, 0.0, 3.5), objective


def test_a_step_of_training_lowers_every_objective_towards_the_oracle() -> None:
    process = VE(0.3, 3.0)
    oracle = GaussianDenoiser(torch.zeros(D), SIGMA, process)
    for objective in OBJECTIVES:
        torch.manual_seed(0)
        denoiser = Denoiser(MLP(D, width=32, depth=1), process, "edm")
        loss = MatchingLoss(objective)
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=5e-3)
        errors = []
        for step in range(81):
            x0 = X[step * 128 : (step + 1) * 128].float()
            if step in (0, 80):
                x_t, t = X[-2000:].float() + EPS[-2000:].float(), float(process.time_of(torch.zeros((), dtype=F64)))
                with torch.no_grad():
                    errors.append(float((denoiser(x_t, t).score - oracle(x_t, t).score).square().mean()))
            optimizer.zero_grad()
            loss(denoiser, x0, Noise(15), step=step).mean().backward()
            optimizer.step()
        assert errors[1] < 0.4 * errors[0], (objective, errors)


class Spy:
    """Keeps the times it is asked for."""

    def __init__(self, process: GaussianProcess) -> None:
        self.process, self.inner, self.times = process, GaussianDenoiser(torch.zeros(D), SIGMA, process), [1.0]

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        self.times += torch.as_tensor(t).tolist()
        return self.inner(x_t, t)


@pytest.mark.parametrize("times", [Times(), Times("log_normal", -9.0), LossAware()], ids=["uniform", "log_normal", "aware"])
def test_times_stay_above_the_lowest(times: Times | LossAware) -> None:
    spy = Spy(VP())
    loss = MatchingLoss("denoising", times=times)
    loss(spy, X[:500], Noise(16))
    assert VP().t_min <= min(spy.times) < 0.01
    assert len(spy.times) == 501


class Doubled(Times):
    """Uniform times of weight 2 that keep the losses they are told."""

    def draw(
        self, process: GaussianProcess, n: int, noise: Noise, *, step: int = 0, first: int = 0, total: int | None = None
    ) -> tuple[Tensor, Tensor]:
        t, weight = super().draw(process, n, noise, step=step, first=first, total=total)
        return t, 2 * weight

    def update(self, process: GaussianProcess, t: Tensor, loss: Tensor) -> None:
        told.append(loss)


told: list[Tensor] = []


def test_importance_weighs_the_loss_and_times_learn_the_unweighted_one() -> None:
    denoiser, x = tiny(VP()), X[:64].float()
    plain = MatchingLoss("sliced_vr")(denoiser, x, Noise(17))
    weighted = MatchingLoss("sliced_vr", times=Doubled())(denoiser, x, Noise(17))
    torch.testing.assert_close(weighted, 2 * plain)
    torch.testing.assert_close(told.pop(), plain.detach())
    aware = LossAware(bins=4, memory=1)
    MatchingLoss("sliced_vr", times=aware)(denoiser, x, Noise(17))
    assert int(aware.counts.min()) > 0


@given(cut=st.integers(1, 7), objective=st.sampled_from(sorted(OBJECTIVES)))
def test_matching_loss_does_not_depend_on_the_batch(cut: int, objective: str) -> None:
    denoiser, x0 = tiny(VP(), dtype=F64), X[:8]
    loss = MatchingLoss(objective, directions="unit_sphere" if objective == "sliced" else "gaussian")
    whole = loss(denoiser, x0, Noise(18), step=1)
    left = loss(denoiser, x0[:cut], Noise(18), step=1, total=8)
    right = loss(denoiser, x0[cut:], Noise(18), step=1, first=cut, total=8)
    torch.testing.assert_close(whole, torch.cat([left, right]), rtol=1e-9, atol=1e-9)


def test_conditions_reach_the_net() -> None:
    net = MLP(D, width=16, depth=1, classes=3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(0))
    denoiser, x = Denoiser(net, VP()), X[:4].float()
    for objective in OBJECTIVES:
        one, other = (MatchingLoss(objective)(denoiser, x, Noise(19), cond={"label": torch.full((4,), k)}) for k in (0, 1))
        assert float((one - other).detach().abs().min()) > 1e-6


def test_errors_name_argument_and_remedy() -> None:
    net, x = Curved((3,)), X[:2]
    for make, words in (
        (lambda: MatchingLoss("ssm"), "objective='ssm'.*sliced_vr"),
        (lambda: MatchingLoss(weighting="edm"), "weighting='edm'.*sigma2"),
        (lambda: MatchingLoss(directions="cube"), "directions='cube'.*rademacher"),
        (lambda: MatchingLoss(slices=0), "slices=0.*at least 1"),
        (lambda: MatchingLoss(width=0.0), "width=0.0.*positive"),
        (lambda: sliced(net, x, Noise(0), slices=0), "slices=0"),
        (lambda: finite_difference(net, x, Noise(0), width=-1.0), "width=-1.0"),
        (lambda: denoising(net, x, 0.0, x), "sigma=0.0.*positive"),
        (lambda: implicit(lambda y: y[:, :1], x), r"score has shape \(2, 1\)"),
        (lambda: finite_difference(lambda y: y[:, :1], x, Noise(0)), r"score has shape \(2, 1\)"),
        (lambda: explicit(net, x, x[:1]), r"truth has shape \(1, 3\)"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    assert set(WEIGHTS) == {"sigma2", "likelihood", "none"}
