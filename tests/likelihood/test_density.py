"""log p by the flow against exact densities; what it costs, and what it refuses."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likelihood_cases import (
    F64,
    KINDS,
    MLP,
    PROCESSES,
    Counted,
    gaussian,
    mixture,
    net,
    normal,
    oracle,
)
from torch import Tensor, nn

from chosen import Chosen
from ornstein.denoiser import Condition, Denoiser, Denoises, Prediction
from ornstein.likelihood import LogProb, log_prob
from ornstein.noise import Noise
from ornstein.process import VE, VP, GaussianProcess, Rectified
from ornstein.process.gaussian import Time
from ornstein.samplers import RK45, FixedSteps
from ornstein.testing import GaussianDenoiser, MixtureDenoiser

D, START = 3, 1e-5
STEPS = FixedSteps(65)


def log_prior(process: GaussianProcess, latent: Tensor) -> Tensor:
    return torch.distributions.Normal(torch.zeros((), dtype=F64), process.prior_std).log_prob(latent).flatten(1).sum(1)


@cache
def solved(kind: str, name: str) -> tuple[Tensor, LogProb]:
    x = oracle(kind, PROCESSES[name]).sample(200, Noise(3))
    return x, log_prob(oracle(kind, PROCESSES[name]), x, divergence="exact", start=START, solver=RK45(1e-6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "most"), [("vp", 1e-4), ("sub_vp", 1e-4), ("cosine", 1e-4), ("edm", 1e-4), ("ve", 1e-3)])
def test_log_prob_is_that_of_the_data(kind: str, name: str, most: float) -> None:
    x, found = solved(kind, name)
    error = (found.per_dimension() - oracle(kind, PROCESSES[name]).log_prob(x) / D).mean()
    assert abs(float(error)) < most  # the prior in place of p_1, and the noise at the start, which is largest for VE
    assert found.value.dtype == F64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_solvers_own_error(kind: str, name: str) -> None:
    # with the true density of the latents in place of the prior, and that of noisy data as the target, nothing else is left
    process, (x, found) = PROCESSES[name], solved(kind, name)
    exact, alpha = oracle(kind, process), process.moments(START)[0]
    value = found.value - log_prior(process, found.latent) + exact.log_prob(found.latent, 1.0)
    target = exact.log_prob(alpha * x, START) + D * alpha.log()
    assert float((value - target).abs().max()) / D < 1e-5


@pytest.mark.parametrize("name", PROCESSES)
def test_the_density_is_that_of_data_with_the_noise_it_names(name: str) -> None:
    process, start = PROCESSES[name], 0.3
    exact = gaussian(process)
    x = exact.sample(50, Noise(4))
    found = log_prob(exact, x, divergence="exact", start=start, solver=RK45(1e-6))
    noisy = GaussianDenoiser(exact.mean, exact.covariance + found.noise_std**2 * torch.eye(D), process)
    assert float((found.value - noisy.log_prob(x)).mean().abs()) < 1e-3
    assert found.start == start
    alpha, sigma = process.moments(start)
    assert found.noise_std == pytest.approx(float(sigma / alpha), rel=1e-12)
    unasked = log_prob(exact, x, divergence="exact")
    assert unasked.start == process.t_min
    assert unasked.noise_std == pytest.approx(float(process.log_ratio(process.t_min).exp()), rel=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_density_of_an_oracle_sums_to_one(name: str) -> None:
    o = mixture(PROCESSES[name], 1)
    x = torch.linspace(-6, 6, 1201, dtype=F64)
    found = log_prob(o, x[:, None], divergence="exact", solver=RK45(1e-6))
    assert float(torch.trapezoid(found.value.exp(), x)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_density_of_a_random_network_sums_to_one(name: str) -> None:
    # whatever the network says, it defines a density
    x = torch.linspace(-12, 12, 1201, dtype=F64)
    found = log_prob(net(PROCESSES[name], 1), x[:, None], divergence="exact", solver=RK45(1e-5))
    assert float(torch.trapezoid(found.value.exp(), x)) == pytest.approx(1, abs=1e-3)


# --- what it costs, and what it leaves behind


@pytest.mark.parametrize("solver", [None, RK45(1e-4), FixedSteps(33), FixedSteps(32, method="heun")])
@pytest.mark.parametrize("divergence", ["exact", "rademacher"])
def test_calls_are_those_made(divergence: str, solver: RK45 | FixedSteps | None) -> None:
    counted = Counted(mixture(VP()))
    x = mixture(VP()).sample(40, Noise(3))
    found = log_prob(counted, x, divergence=divergence, probes=2, solver=solver, batch_size=25)
    assert int(found.calls.sum()) == sum(counted.rows)
    if isinstance(solver, FixedSteps):
        assert found.calls.tolist() == [33 if solver.method == "rk4" else 31] * 40
    else:
        assert len(found.calls.unique()) > 2  # data leave as they arrive
        assert min(counted.rows) < 15


@pytest.mark.parametrize("divergence", ["exact", "rademacher"])
def test_nothing_of_the_graph_is_kept(divergence: str) -> None:
    denoiser = net(VP(), 4, dropout=0.5)
    denoiser.net.last.weight.requires_grad_(False)
    denoiser.net.last.bias.grad = torch.ones(4, dtype=F64)
    wanted = [p.requires_grad for p in denoiser.parameters()]
    denoiser.train()
    alive: list[int] = []
    outputs: list[weakref.ref[Tensor]] = []

    def watch(module: nn.Module, args: tuple[object, ...], out: Tensor) -> None:
        alive.append(sum(output() is not None for output in outputs))
        outputs.append(weakref.ref(out))

    denoiser.net.register_forward_hook(watch)
    found = log_prob(denoiser, normal(10, 4), divergence=divergence, probes=2)
    assert len(alive) > 60
    assert max(alive) <= 1
    for tensor in (found.value, found.standard_error, found.latent):
        assert tensor.grad_fn is None
        assert not tensor.requires_grad
    assert [p.requires_grad for p in denoiser.parameters()] == wanted
    for p in denoiser.parameters():
        if p is denoiser.net.last.bias:
            assert p.grad is not None
            assert p.grad.tolist() == [1.0] * 4
        else:
            assert p.grad is None
    assert all(module.training for module in denoiser.modules())
    denoiser.eval()
    again = log_prob(denoiser, normal(10, 4), divergence=divergence, probes=2)
    assert torch.equal(again.value, found.value)  # dropout was off
    assert not any(module.training for module in denoiser.modules())
    with torch.no_grad():
        assert torch.equal(log_prob(denoiser, normal(10, 4), divergence=divergence, probes=2).value, found.value)


class Failing(MLP):
    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        raise RuntimeError("out of memory")


def test_training_mode_comes_back_after_a_failure() -> None:
    denoiser = Denoiser(Failing(2), VP()).to(F64).train()
    with pytest.raises(RuntimeError, match="out of memory"):
        log_prob(denoiser, normal(3, 2))
    assert all(module.training for module in denoiser.modules())


@pytest.mark.parametrize("name", PROCESSES)
def test_fixed_steps_agree_with_rk45(name: str) -> None:
    o = mixture(PROCESSES[name])
    x = o.sample(30, Noise(10))
    a, b = (log_prob(o, x, divergence="exact", solver=solver) for solver in (RK45(1e-6), FixedSteps(257)))
    torch.testing.assert_close(a.value, b.value, rtol=0, atol=1e-4)
    torch.testing.assert_close(a.latent / PROCESSES[name].prior_std, b.latent / PROCESSES[name].prior_std, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", PROCESSES)
def test_float32_agrees_with_float64(name: str) -> None:
    x = normal(12, 1, 2, 2)
    double = log_prob(net(PROCESSES[name], 4), x, probes=2)
    single = log_prob(net(PROCESSES[name], 4, dtype=torch.float32), x.float(), probes=2)
    assert single.latent.dtype == torch.float32
    assert single.value.dtype == single.standard_error.dtype == F64
    assert single.latent.shape == x.shape
    assert single.value.shape == single.standard_error.shape == single.calls.shape == (12,)
    torch.testing.assert_close(single.value, double.value, rtol=0, atol=1e-4)


def test_each_datum_keeps_its_condition_while_others_leave() -> None:
    pair = (mixture(VP()), gaussian(VP()))
    label = torch.tensor([0, 1, 0, 0, 1] * 5)
    x = torch.where((label == 0)[:, None], pair[0].sample(25, Noise(3)), pair[1].sample(25, Noise(3)))
    for size in (None, 11):
        found = log_prob(Chosen(pair), x, cond={"label": label}, divergence="exact", batch_size=size)
        assert len(found.calls.unique()) > 2
        for k, own in enumerate(pair):
            alone = log_prob(own, x[label == k], divergence="exact")
            torch.testing.assert_close(found.value[label == k], alone.value, rtol=0, atol=1e-9)
            assert torch.equal(found.calls[label == k], alone.calls)


def test_images_are_their_flattened_numbers() -> None:
    o = MixtureDenoiser(normal(2, 6), torch.full((2,), 0.4), torch.full((2,), 0.5), VE())
    x = o.sample(5, Noise(0))
    for kind in ("exact", "rademacher"):
        flat, image = (log_prob(o, y, divergence=kind, probes=2, noise=Noise(1)) for y in (x, x.reshape(5, 1, 3, 2)))
        torch.testing.assert_close(image.value, flat.value, rtol=0, atol=1e-9)
        torch.testing.assert_close(image.per_dimension(), flat.value / 6, rtol=1e-9, atol=0)
        assert image.latent.shape == (5, 1, 3, 2)


@dataclass(frozen=True)
class Breaking:
    """Says NaN where x > 3 at t > 0.5."""

    denoiser: Denoises

    @property
    def process(self) -> GaussianProcess:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        found = self.denoiser(x_t, t)
        bad = (torch.as_tensor(t) > 0.5)[:, None] & (x_t > 3)
        return found.with_x0(found.x0.where(~bad, math.nan))


def test_a_denoiser_that_breaks_down_is_named_with_the_datum() -> None:
    still = GaussianDenoiser(torch.zeros(2), torch.eye(2), VP())  # under its flow no datum moves
    x = torch.tensor([[0.0, 1.0], [1.0, 4.0], [2.0, -4.0]], dtype=F64)
    with pytest.raises(FloatingPointError, match=r"sample 1 .*NaN"):
        log_prob(Breaking(still), x)


@settings(max_examples=8)
@given(bad=st.sampled_from([math.nan, math.inf, -math.inf]), place=st.integers(0, 5))
def test_what_is_not_a_number_is_refused(bad: float, place: int) -> None:
    x = normal(3, 2)
    x[place // 2, place % 2] = bad
    with pytest.raises(ValueError, match="1 numbers that are NaN or infinite"):
        log_prob(mixture(VP(), 2), x)


def test_errors_name_argument_and_remedy() -> None:
    o, x = mixture(VP(), 2), normal(3, 2)
    label = {"label": torch.zeros(2, dtype=torch.long)}
    for call, words in (
        (lambda: log_prob(o, x, divergence="trace"), "divergence='trace'.*exact.*rademacher.*gaussian"),
        (lambda: log_prob(o, x, probes=0), "probes=0"),
        (lambda: log_prob(o, x[:0]), r"\(0, 2\)"),
        (lambda: log_prob(o, x, start=0.0), r"start=0.0 .*0.001"),
        (lambda: log_prob(o, x, start=1.0), "start=1.0"),
        (lambda: log_prob(o, x, start=-0.1), "start=-0.1"),
        (lambda: log_prob(mixture(Rectified(), 2), x, start=0.0), "start=0.0"),
        (lambda: log_prob(Chosen((o,)), x, cond=label), r"cond\['label'\] has 2 rows for 3"),
        (lambda: log_prob(o, x, batch_size=0), "batch_size=0"),
        (lambda: log_prob(o, x.float(), solver=RK45(1e-8)), "rtol=1e-08.*float64"),
        (lambda: log_prob(o, x, solver=FixedSteps(4)), "calls=4.*5"),
        (lambda: log_prob(o, x, solver=FixedSteps(9, method="euler2")), "method='euler2'"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert bool(log_prob(mixture(VE(), 2), x, start=0.0).value.isfinite().all())  # VE holds noise even there
