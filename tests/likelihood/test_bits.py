"""Bits per dimension of data whose law on the levels is known: both bounds against direct integrals and the entropy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from likelihood_cases import F64, PROCESSES, Counted, f64, net
from scipy import special, stats
from torch import Tensor

from chosen import Chosen
from ornstein.likelihood import DEQUANTISATIONS, BitsPerDim, bits_per_dim, log_prob
from ornstein.losses import Discretised
from ornstein.noise import Noise
from ornstein.process import EDM, VP, GaussianProcess
from ornstein.samplers import RK45, FixedSteps
from ornstein.testing import GaussianDenoiser, MixtureDenoiser

COARSE = Discretised(4, -1.5, 1.5)
LAWS = (np.array([0.1, 0.4, 0.3, 0.2]), np.array([0.25, 0.05, 0.3, 0.4]))
"""Probabilities of the four levels, one row per coordinate."""
FINE = Discretised(65, -1.0, 1.0)
SPREAD = 8 / 32
"""Eight levels."""


def places(q: Discretised) -> np.ndarray:
    return np.linspace(q.low, q.high, q.levels)


def lattice(process: GaussianProcess, q: Discretised = COARSE, laws: tuple[np.ndarray, ...] = LAWS) -> MixtureDenoiser:
    """Independent coordinates on the levels, each by its law."""
    means = np.array(list(itertools.product(places(q), repeat=len(laws))))
    weights = np.array([math.prod(w) for w in itertools.product(*laws)])
    return MixtureDenoiser(torch.tensor(means), torch.zeros(len(means)), torch.tensor(weights), process)


def entropy(laws: tuple[np.ndarray, ...] = LAWS) -> float:
    """Bits per dimension."""
    return float(sum(special.entr(p).sum() for p in laws)) / len(laws) / math.log(2)


def fine_law() -> np.ndarray:
    """A normal rounded to the 65 levels, with what lies beyond in the outermost."""
    edges = np.concatenate([[-np.inf], places(FINE)[:-1] + FINE.width / 2, [np.inf]])
    return np.diff(stats.norm(0, SPREAD).cdf(edges))


def level_noise(process: GaussianProcess, q: Discretised, kind: str) -> float:
    """The noise sigma/alpha at which the density is taken."""
    return max(q.width / math.sqrt(12) if kind == "uniform" else q.width / 6, float(process.log_ratio(process.t_min).exp()))


def expected(kind: str, process: GaussianProcess, q: Discretised, law: np.ndarray, smooth: float | None = None) -> float:
    """The mean of the bound in bits for one coordinate, by quadrature; a `smooth` model says N(0, smooth²) of the data."""
    x, size = places(q), level_noise(process, q, kind)
    if kind == "uniform":
        nodes, weights = np.polynomial.legendre.leggauss(200)
        shift, weights = q.width * nodes / 2, weights / 2
    else:
        nodes, weights = np.polynomial.hermite_e.hermegauss(200)
        shift, weights = size * nodes, weights / math.sqrt(2 * math.pi)
    y = x[:, None] + shift  # (levels, nodes)
    if smooth is None:
        parts = stats.norm.logpdf(y[..., None], x, size) + np.log(law)
        log_p, mean = special.logsumexp(parts, -1), special.softmax(parts, -1) @ x
    else:
        log_p, mean = stats.norm.logpdf(y, 0, math.hypot(smooth, size)), y * smooth**2 / (smooth**2 + size**2)
    if kind == "uniform":
        nats = -log_p - math.log(q.width)
    else:
        sigma = float(process.moments(process.time_of(torch.tensor(math.log(size), dtype=F64)))[1])
        upper = np.where(x == q.high, np.inf, x + q.width / 2)[:, None]
        lower = np.where(x == q.low, -np.inf, x - q.width / 2)[:, None]
        mass = stats.norm.cdf((upper - mean) / sigma) - stats.norm.cdf((lower - mean) / sigma)
        nats = stats.norm.logpdf(shift, 0, size) - log_p - np.log(np.maximum(mass, 1e-300))
    return float(law @ (nats @ weights)) / math.log(2)


def drawn(q: Discretised, laws: tuple[np.ndarray, ...], n: int) -> Tensor:
    u = Noise(11).uniform((n, len(laws)))
    columns = [np.searchsorted(p.cumsum()[:-1], u[:, k].numpy()) for k, p in enumerate(laws)]
    return torch.tensor(places(q)[np.stack(columns, 1)])


@pytest.mark.parametrize("name", PROCESSES)
def test_bounds_of_a_known_law(name: str) -> None:
    process = PROCESSES[name]
    x = drawn(COARSE, LAWS, 1500)
    # the sampled data's own cross-entropy takes their chance away
    own = -sum(np.log2(p)[(x[:, k] + 1.5).round().long().numpy()] for k, p in enumerate(LAWS)) / 2
    found = {kind: bits_per_dim(lattice(process), x, COARSE, dequantisation=kind, noise=Noise(0)) for kind in DEQUANTISATIONS}
    for kind, bits in found.items():
        exact = np.mean([expected(kind, process, COARSE, p) for p in LAWS])
        gap = bits.value.numpy() - own
        error = gap.std() / math.sqrt(len(gap))
        assert abs(gap.mean() - (exact - entropy())) < 4 * error + 1e-3
        assert bits.mean >= entropy() - 3 * bits.standard_error
        assert exact > entropy()
        assert bits.noise_std == pytest.approx(level_noise(process, COARSE, kind), rel=1e-9)
        assert bits.start == pytest.approx(float(process.time_of(torch.tensor(math.log(bits.noise_std), dtype=F64))), abs=1e-9)
    tight, loose = (float(found[kind].value.mean()) - own.mean() for kind in ("gaussian", "uniform"))
    assert -0.02 < tight < 0.1
    assert loose > tight + 0.1


@pytest.mark.parametrize(("process", "smooth", "kind"), [
    (EDM(), True, "uniform"), (EDM(), True, "gaussian"), (EDM(), False, "gaussian"), (EDM(), False, "uniform"),
    (VP(), True, "uniform"), (VP(), True, "gaussian"), (VP(), False, "gaussian"),
])  # fmt: skip
def test_bounds_of_a_rounded_normal(process: GaussianProcess, smooth: bool, kind: str) -> None:
    law, n = fine_law(), 2000
    x = drawn(FINE, (law,), n)
    own = -np.log2(law)[((x[:, 0] + 1) / FINE.width).round().long().numpy()]
    of = GaussianDenoiser(torch.zeros(1), f64(SPREAD**2)[:, None], process) if smooth else lattice(process, FINE, (law,))
    gap = bits_per_dim(of, x, FINE, dequantisation=kind, noise=Noise(1)).value.numpy() - own
    exact = expected(kind, process, FINE, law, SPREAD if smooth else None) - entropy((law,))
    assert abs(gap.mean() - exact) < 4 * gap.std() / math.sqrt(n) + 1e-3
    assert exact > 0
    if (smooth and kind == "uniform") or (not smooth and kind == "gaussian" and isinstance(process, EDM)):
        assert abs(gap.mean()) < 0.02
    elif smooth and isinstance(process, EDM):
        # who does not know that data lie on levels pays for log q(y|x) what the noise takes: log(6/sqrt(2πe)) nats
        assert gap.mean() == pytest.approx(math.log2(6 / math.sqrt(2 * math.pi * math.e)), abs=0.1)


@pytest.mark.parametrize("kind", DEQUANTISATIONS)
@pytest.mark.parametrize("name", ["vp", "edm"])
def test_any_network_gives_a_bound(name: str, kind: str) -> None:
    # -log P(x) <= E[bound], so the probabilities that the bounds of all levels stand for cannot sum to more than 1
    q, draws = Discretised(25, -6.0, 6.0), 200
    x = torch.tensor(places(q)).repeat_interleave(draws)[:, None]
    found = bits_per_dim(net(PROCESSES[name], 1), x, q, dequantisation=kind, noise=Noise(2))
    nats = math.log(2) * found.value.reshape(q.levels, draws)
    p = (-nats.mean(1)).exp()
    error = float((p**2 * nats.var(1) / draws).sum().sqrt())
    assert float(p.sum()) < 1 + 4 * error
    assert float(p.sum()) > (0.9 if kind == "uniform" else 0.5)  # the levels hold nearly all of it


@pytest.mark.parametrize("kind", DEQUANTISATIONS)
def test_each_datum_is_the_density_at_its_noise(kind: str) -> None:
    process, n = PROCESSES["cosine"], 40
    x, o, width = drawn(COARSE, LAWS, n), lattice(PROCESSES["cosine"]), 1.0
    found = bits_per_dim(o, x, COARSE, dequantisation=kind, noise=Noise(3), first=5)
    alpha, sigma = process.moments(found.start)
    size = float(sigma / alpha)
    if kind == "uniform":
        y = x + width * (Noise(3).uniform((n, 2), stream="dequantise", first=5) - 0.5)
        nats = -math.log(width) * 2 * torch.ones(n)
    else:
        eps = Noise(3).normal((n, 2), stream="dequantise", first=5, dtype=F64)
        y = x + size * eps
        seen = o(alpha * y, found.start).x0
        nats = torch.distributions.Normal(x, size).log_prob(y).sum(1) - COARSE.log_prob(x, seen, sigma**2).sum(1)
    nats = nats - (o.log_prob(alpha * y, found.start) + 2 * alpha.log())
    torch.testing.assert_close(found.value, nats / (2 * math.log(2)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", DEQUANTISATIONS)
def test_chunks_and_shapes_do_not_change_it_and_calls_are_counted(kind: str) -> None:
    x, o = drawn(COARSE, LAWS, 8), lattice(VP())
    options = {"dequantisation": kind, "divergence": "gaussian", "probes": 1, "solver": RK45(1e-3)}
    whole = bits_per_dim(o, x, COARSE, noise=Noise(4), **options)
    for size in (1, 5):
        counted = Counted(o)
        parts = bits_per_dim(counted, x.reshape(8, 1, 2, 1), COARSE, noise=Noise(4), batch_size=size, **options)
        torch.testing.assert_close(parts.value, whole.value, rtol=0, atol=1e-9)
        assert torch.equal(parts.calls, whole.calls)
        assert sum(counted.rows) == int(parts.calls.sum())
        assert max(counted.rows) == size
    later = bits_per_dim(o, x[5:], COARSE, noise=Noise(4), first=5, **options)
    torch.testing.assert_close(later.value, whole.value[5:], rtol=0, atol=1e-9)
    other = bits_per_dim(o, x, COARSE, noise=Noise(5), **options)
    assert float((other.value - whole.value).abs().min()) > 0
    fixed = bits_per_dim(o, x, COARSE, noise=Noise(4), **options | {"solver": FixedSteps(33)})
    assert fixed.calls.tolist() == [33 + (kind == "gaussian")] * 8


@pytest.mark.parametrize("kind", DEQUANTISATIONS)
def test_the_seed_is_that_of_the_probes_too(kind: str) -> None:
    x, o = drawn(COARSE, LAWS, 6), lattice(VP())
    options = {"divergence": "gaussian", "probes": 1, "solver": FixedSteps(33)}
    found = bits_per_dim(o, x, COARSE, dequantisation=kind, noise=Noise(8), **options)
    exact = bits_per_dim(o, x, COARSE, dequantisation=kind, noise=Noise(8), **options | {"divergence": "exact"})
    # with the noise that is added to the data put in by hand, what is left of the seed are the probes
    if kind == "uniform":
        y = x + Noise(8).uniform((6, 2), stream="dequantise") - 0.5
    else:
        y = x + found.noise_std * Noise(8).normal((6, 2), stream="dequantise", dtype=F64)
    same, other = (log_prob(o, y, start=found.start, noise=Noise(seed), **options).value for seed in (8, 9))
    true = log_prob(o, y, start=found.start, **options | {"divergence": "exact"}).value
    torch.testing.assert_close((exact.value - found.value) * 2 * math.log(2), same - true, rtol=0, atol=1e-9)
    assert float((same - other).abs().min()) > 1e-3


@pytest.mark.parametrize("kind", DEQUANTISATIONS)
def test_conditions_go_with_their_data(kind: str) -> None:
    pair = Chosen((lattice(VP()), lattice(VP(), laws=LAWS[::-1])))
    x, label = drawn(COARSE, LAWS, 12), torch.tensor([0, 1, 1] * 4)
    options = {"dequantisation": kind, "solver": FixedSteps(33), "noise": Noise(6)}
    found = bits_per_dim(pair, x, COARSE, cond={"label": label}, batch_size=5, **options)
    for k, own in enumerate(pair.denoisers):
        alone = bits_per_dim(own, x, COARSE, **options)
        torch.testing.assert_close(found.value[label == k], alone.value[label == k], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", DEQUANTISATIONS)
def test_float32_networks(kind: str) -> None:
    x = drawn(COARSE, LAWS, 10)
    double = bits_per_dim(net(VP(), 2), x, COARSE, dequantisation=kind, noise=Noise(7))
    denoiser = net(VP(), 2, dropout=0.5, dtype=torch.float32).train()
    single = bits_per_dim(denoiser, x.float(), COARSE, dequantisation=kind, noise=Noise(7))
    assert single.value.dtype == F64
    assert not single.value.requires_grad
    torch.testing.assert_close(single.value, double.value, rtol=0, atol=1e-4)
    assert all(module.training for module in denoiser.modules())
    assert all(p.grad is None for p in denoiser.parameters())


def test_statistics() -> None:
    bits = BitsPerDim(f64(1, 2, 6), torch.tensor([3, 3, 3]), 0.1, 0.2)
    assert bits.mean == pytest.approx(3)
    assert bits.standard_error == pytest.approx(math.sqrt(7 / 3))  # variance 7 over 3 data


def test_errors_name_argument_and_remedy() -> None:
    o, x = lattice(VP()), drawn(COARSE, LAWS, 4)

    def moved(value: float) -> Tensor:
        other = x.clone()
        other[1, 1] += value
        return other

    label = {"label": torch.zeros(3, dtype=torch.long)}
    for kind in DEQUANTISATIONS:
        for data, options, words in (
            (moved(0.02), {}, "x lies off the 4 levels between -1.5 and 1.5"),
            (moved(-0.5), {}, "off the 4 levels"),
            (moved(10), {}, "off the 4 levels"),
            (moved(math.inf), {}, "off the 4 levels"),
            (moved(math.nan), {}, "1 numbers that are NaN"),
            (x[:0], {}, "no data"),
            (x, {"divergence": "trace"}, "divergence='trace'"),
            (x, {"probes": 0}, "probes=0"),
            (x, {"cond": label}, "3 rows for 4"),
        ):
            with pytest.raises(ValueError, match=words):
                bits_per_dim(o, data, COARSE, dequantisation=kind, noise=Noise(0), **options)
    with pytest.raises(ValueError, match=r"dequantisation='flow'.*uniform, gaussian"):
        bits_per_dim(o, x, COARSE, dequantisation="flow", noise=Noise(0))
    rounding = bits_per_dim(o, moved(1e-3), COARSE, noise=Noise(0))  # float32 data are off by rounding
    assert bool(rounding.value.isfinite().all())
