"""The divergence of the flow against whole Jacobians, and its estimates from random probes against both."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likelihood_cases import F64, PROCESSES, gaussian, mixture, net, normal
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.likelihood import log_prob
from ornstein.likelihood.density import _Dense, _probes
from ornstein.noise import Noise
from ornstein.process import VP
from ornstein.samplers import RK45, FixedSteps
from ornstein.samplers.flow import Velocity, angle
from ornstein.testing import GaussianDenoiser

STEPS = FixedSteps(65)


def trace(denoiser: Denoises, x: Tensor, theta: Tensor) -> Tensor:
    """tr dv/dX of every datum from whole Jacobians, (n,)."""
    rows = torch.arange(1)

    def one(i: int) -> Tensor:
        def slope(y: Tensor) -> Tensor:
            return Velocity(denoiser)(rows, (y,), theta[i : i + 1])[0].flatten()

        return torch.autograd.functional.jacobian(slope, x[i : i + 1]).reshape(x[i].numel(), -1).trace()

    return torch.stack([one(i) for i in range(len(x))])


@pytest.mark.parametrize("kind", ["mixture", "net"])
@given(name=st.sampled_from(list(PROCESSES)), seed=st.integers(0, 99), t=st.floats(0.02, 0.98))
def test_exact_divergence_is_the_trace_of_the_jacobian(kind: str, name: str, seed: int, t: float) -> None:
    process = PROCESSES[name]
    denoiser = mixture(process, 4) if kind == "mixture" else net(process, 4)
    x = Noise(seed).normal((3, 2, 2), dtype=F64)
    theta = angle(process, torch.tensor([t, t / 2, (1 + t) / 2], dtype=F64))
    v, found = _Dense(Velocity(denoiser), None)(torch.arange(3), (x, torch.zeros(3, 1)), theta)
    torch.testing.assert_close(found[:, 0], trace(denoiser, x, theta) / 4, rtol=1e-9, atol=1e-9)
    assert torch.equal(v, Velocity(denoiser)(torch.arange(3), (x,), theta)[0].detach())


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_estimates_are_unbiased(name: str, kind: str) -> None:
    process, copies, count = PROCESSES[name], 4000, 4
    denoiser = net(process, 5)
    for k, x in enumerate(normal(3, 1, 5)):
        theta = angle(process, 0.2 + 0.3 * k)
        many = x.expand(copies, 5)
        dense = _Dense(Velocity(denoiser), _probes(Noise(k), kind, count, many, 0))
        found = dense(torch.arange(copies), (many, torch.zeros(copies, count)), theta)[1]
        error = found.std() / math.sqrt(found.numel())
        assert float(error) > 0
        assert abs(found.mean() - trace(denoiser, x, theta[None])[0] / 5) < 4 * error


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_probes_are_white_and_keyed(kind: str) -> None:
    n = 5000
    z = _probes(Noise(0), kind, 3, torch.zeros(n, 2, 2, dtype=F64), 0)
    assert z.shape == (3, n, 2, 2)
    flat = z.permute(1, 0, 2, 3).reshape(n, 12)  # no probe knows of another
    assert float((flat.T @ flat / n - torch.eye(12)).abs().max()) < 5 * math.sqrt(2 / n)
    assert float(flat.mean(0).abs().max()) < 5 / math.sqrt(n)
    assert (float(z.abs().max()) == 1) == (kind == "rademacher")
    assert torch.equal(_probes(Noise(0), kind, 2, torch.zeros(7, 2, 2, dtype=F64), 40), z[:2, 40:47])
    assert not torch.equal(_probes(Noise(1), kind, 3, torch.zeros(n, 2, 2, dtype=F64), 0), z)


def test_rademacher_is_exact_where_the_flow_is_diagonal() -> None:
    o = GaussianDenoiser(torch.zeros(6), torch.diag(torch.arange(1, 7) / 3.5), VP())
    x = o.sample(20, Noise(5))
    exact, rademacher, normals = (log_prob(o, x, divergence=kind, probes=3) for kind in ("exact", "rademacher", "gaussian"))
    torch.testing.assert_close(rademacher.value, exact.value, rtol=0, atol=1e-3)  # each meets the tolerance with steps of its own
    assert float(rademacher.standard_error.max()) < 1e-10
    assert float(normals.standard_error.min()) > 0.01


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_as_many_probes_as_dimensions_are_exact(kind: str) -> None:
    o = mixture(VP(), 4)
    x = o.sample(8, Noise(5)).reshape(8, 1, 2, 2)
    exact = log_prob(o, x, divergence="exact", probes=1, solver=STEPS)
    for probes in (4, 9):
        found = log_prob(o, x, divergence=kind, probes=probes, solver=STEPS)
        assert torch.equal(found.value, exact.value)
        assert found.standard_error.tolist() == [0.0] * 8
        assert found.products == 4
    chance = log_prob(o, x, divergence=kind, probes=3, solver=STEPS)
    assert chance.products == 3
    assert float(chance.standard_error.min()) > 0
    assert not torch.allclose(chance.value, exact.value)
    single = log_prob(o, x, divergence=kind, probes=1, solver=STEPS)
    assert bool(single.standard_error.isnan().all())
    assert bool(single.value.isfinite().all())


# z'Jz of a mixture is near that of few directions: with Rademacher probes a squared normal, whose skewness eight probes feel
@pytest.mark.parametrize(
    ("data", "kind", "covered"),
    [
        ("mixture", "rademacher", 0.87),
        ("mixture", "gaussian", 0.95),
        ("gaussian", "rademacher", 0.95),
        ("gaussian", "gaussian", 0.95),
    ],
)
def test_standard_errors_are_calibrated(data: str, kind: str, covered: float) -> None:
    o = (mixture if data == "mixture" else gaussian)(VP(), 16)
    x, solver = o.sample(200, Noise(6)), FixedSteps(33)
    # the same steps in the same states: the estimates differ from the exact answer by chance alone
    exact = log_prob(o, x, divergence="exact", solver=solver)
    runs = [log_prob(o, x, divergence=kind, probes=8, noise=Noise(7 + seed), solver=solver) for seed in range(4)]
    miss = torch.stack([run.value - exact.value for run in runs])
    error = torch.stack([run.standard_error for run in runs])
    assert float((miss.abs() < 3 * error).double().mean()) >= covered  # 0.98 by Student's law with 7 degrees of freedom
    assert 0.75 < float((miss**2).mean() / (error**2).mean()) < 1.35  # 1 whatever the law of the estimates
    assert abs(float(miss.mean())) < 4 * float(miss.std()) / math.sqrt(miss.numel())
    assert len({float(value) for value in miss[:, 0]}) == 4  # seeds differ


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_a_probe_is_kept_along_the_way(kind: str) -> None:
    # other probes at every call would leave the solvers no equation to agree on
    o = gaussian(VP(), 5)
    x = o.sample(20, Noise(8))
    a, b = (log_prob(o, x, divergence=kind, probes=1, solver=FixedSteps(calls)).value for calls in (65, 129))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    adaptive = log_prob(o, x, divergence=kind, probes=1, solver=RK45(1e-6)).value
    torch.testing.assert_close(adaptive, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", [RK45(1e-5), FixedSteps(33)])
@pytest.mark.parametrize("kind", ["exact", "rademacher", "gaussian"])
def test_chunks_do_not_change_the_result(kind: str, solver: RK45 | FixedSteps) -> None:
    o = mixture(VP(), 5)
    x = o.sample(9, Noise(9))
    whole = log_prob(o, x, divergence=kind, probes=2, solver=solver)
    for size in (1, 7):
        parts = log_prob(o, x, divergence=kind, probes=2, solver=solver, batch_size=size)
        torch.testing.assert_close(parts.value, whole.value, rtol=0, atol=1e-10)
        torch.testing.assert_close(parts.latent, whole.latent, rtol=0, atol=1e-10)
        assert torch.equal(parts.calls, whole.calls)
    later = log_prob(o, x[6:], divergence=kind, probes=2, solver=solver, first=6)
    torch.testing.assert_close(later.value, whole.value[6:], rtol=0, atol=1e-10)
