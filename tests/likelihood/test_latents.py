"""Latents against the exact flow and the law they must have; the way back; and what lies between two of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from likelihood_cases import F64, KINDS, PROCESSES, Counted, f64, gaussian, mixture, net, normal, oracle
from scipy import stats
from torch import Tensor

from chosen import Chosen
from ornstein.likelihood import decode, encode, log_prob, slerp
from ornstein.noise import Noise
from ornstein.process import VE, VP, Rectified
from ornstein.samplers import RK45, FixedSteps


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_decode_undoes_encode(name: str, kind: str) -> None:
    o = oracle(kind, PROCESSES[name])
    x = o.sample(200, Noise(3))
    for solver, start in ((None, None), (RK45(1e-6), 0.05), (FixedSteps(257), None)):
        back = decode(o, encode(o, x, solver=solver, start=start).latent, solver=solver, start=start)
        assert rms(back - x) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_both_ways_are_the_exact_flow(name: str, kind: str) -> None:
    process, solver = PROCESSES[name], RK45(1e-6)
    o = oracle(kind, process)
    x = o.sample(60, Noise(4))
    for start in (None, 0.2):
        begin = process.t_min if start is None else start
        alpha = process.moments(begin)[0]
        latent = encode(o, x, solver=solver, start=start).latent
        assert rms(latent - o.flow(alpha * x, begin, 1.0)) / process.prior_std < 1e-4
        z = process.prior_std * normal(60, 3, stream="latent")
        assert rms(decode(o, z, solver=solver, start=start) - o.flow(z, 1.0, begin) / alpha) < 1e-5


@pytest.mark.parametrize("name", PROCESSES)
def test_latents_of_noisy_data_are_standard_normals(name: str) -> None:
    process, n = PROCESSES[name], 4000
    o = mixture(process)
    x = o.sample(n, Noise(5)) + process.log_ratio(process.t_min).exp() * normal(n, 3, stream="noise")
    z = encode(o, x, solver=RK45(1e-4)).latent / process.prior_std
    assert float(z.mean(0).abs().max()) < 4 / math.sqrt(n)
    assert float((z.std(0) - 1).abs().max()) < 4 / math.sqrt(2 * n)
    assert float((z.T @ z / n - torch.eye(3)).abs().max()) < 4 * math.sqrt(2 / n)
    directions = torch.linalg.qr(normal(3, 3, stream="directions")).Q
    for direction in directions:
        assert stats.kstest((z @ direction).numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(z.square().sum(1).numpy(), "chi2", args=(3,)).pvalue > 1e-3


def test_conditions_go_with_their_data() -> None:
    pair = Chosen((mixture(VP()), gaussian(VP())))
    label = torch.tensor([0, 1, 0, 0, 1] * 6)
    x = mixture(VP()).sample(30, Noise(3))
    found = encode(pair, x, cond={"label": label}, batch_size=13)
    assert len(found.calls.unique()) > 2
    for k, own in enumerate(pair.denoisers):
        alone = encode(own, x[label == k])
        torch.testing.assert_close(found.latent[label == k], alone.latent, rtol=0, atol=1e-10)
        assert torch.equal(found.calls[label == k], alone.calls)
    assert rms(decode(pair, found.latent, cond={"label": label}, batch_size=13) - x) < 1e-4
    assert rms(decode(pair, found.latent, cond={"label": 1 - label}) - x) > 0.1


@pytest.mark.parametrize("solver", [RK45(1e-5), FixedSteps(33)])
def test_chunks_change_nothing_and_calls_are_counted(solver: RK45 | FixedSteps) -> None:
    o = mixture(VE())
    x = o.sample(12, Noise(6))
    whole, counted = encode(o, x, solver=solver), Counted(o)
    for size in (1, 7):
        part = encode(counted, x, solver=solver, batch_size=size)
        torch.testing.assert_close(part.latent / 50, whole.latent / 50, rtol=0, atol=1e-10)
        assert torch.equal(part.calls, whole.calls)
        back = decode(o, whole.latent, solver=solver, batch_size=size)
        torch.testing.assert_close(back, decode(o, whole.latent, solver=solver), rtol=0, atol=1e-10)
    assert sum(counted.rows) == 2 * int(whole.calls.sum())


@pytest.mark.parametrize("name", PROCESSES)
def test_they_are_the_latents_of_log_prob(name: str) -> None:
    o = mixture(PROCESSES[name])
    x, steps = o.sample(10, Noise(7)), FixedSteps(65)
    found = log_prob(o, x, solver=steps, divergence="exact")
    torch.testing.assert_close(encode(o, x, solver=steps).latent, found.latent, rtol=1e-10, atol=1e-10)


def test_networks_images_and_float32() -> None:
    denoiser = net(VP(), 4, dropout=0.5, dtype=torch.float32).train()
    x = normal(9, 1, 2, 2).float().requires_grad_()
    found = encode(denoiser, x)
    assert found.latent.shape == x.shape
    assert found.latent.dtype == torch.float32
    back = decode(denoiser, found.latent)
    assert back.dtype == torch.float32
    assert rms(back - x.detach()) < 1e-3
    assert not found.latent.requires_grad
    assert not back.requires_grad
    assert all(p.requires_grad and p.grad is None for p in denoiser.parameters())
    assert all(module.training for module in denoiser.modules())
    torch.testing.assert_close(encode(denoiser.eval(), x).latent, found.latent, rtol=0, atol=0)


def test_errors_name_argument_and_remedy() -> None:
    o, x = mixture(VP()), normal(4, 3)
    broken = x.clone()
    broken[2, 1] = math.nan
    label = {"label": torch.zeros(5, dtype=torch.long)}
    for way in (encode, decode):
        for call, words in (
            (lambda way=way: way(o, broken), "1 numbers that are NaN"),
            (lambda way=way: way(o, x[:0]), r"\(0, 3\).*no data"),
            (lambda way=way: way(o, x, start=0.0), r"start=0.0 .*0.001"),
            (lambda way=way: way(o, x, start=1.0), "start=1.0"),
            (lambda way=way: way(mixture(Rectified()), x, start=0.0), "start=0.0"),
            (lambda way=way: way(Chosen((o,)), x, cond=label), r"cond\['label'\] has 5 rows for 4"),
            (lambda way=way: way(o, x, batch_size=0), "batch_size=0"),
        ):
            with pytest.raises(ValueError, match=words):
                call()


# --- between latents


def pair(seed: int, n: int, dimensions: int) -> tuple[Tensor, Tensor]:
    return tuple(Noise(seed).normal((n, dimensions), stream=stream, dtype=F64) for stream in "ab")  # type: ignore[return-value]


VECTORS = {"seed": st.integers(0, 9999), "dimensions": st.integers(2, 9)}


@given(**VECTORS)
def test_weights_0_and_1_are_the_ends(seed: int, dimensions: int) -> None:
    a, b = pair(seed, 3, dimensions)
    for weight, end in ((0, a), (1, b), (torch.zeros(3), a), (torch.ones(3), b)):
        torch.testing.assert_close(slerp(a, b, weight), end, rtol=1e-9, atol=1e-9)


@given(**VECTORS, weight=st.floats(0, 1), length=st.floats(0.01, 100))
def test_vectors_of_one_length_are_turned(seed: int, dimensions: int, weight: float, length: float) -> None:
    a, b = (length * x / x.norm(dim=1, keepdim=True) for x in pair(seed, 4, dimensions))
    between = slerp(a, b, weight)
    torch.testing.assert_close(between.norm(dim=1), torch.full((4,), length, dtype=F64), rtol=1e-7, atol=0)
    # in the plane of a and b, at the part `weight` of the angle between them; the mirrored one from the other side
    whole = torch.acos(((a * b).sum(1) / length**2).clamp(-1, 1))
    for end, part in ((a, weight), (b, 1 - weight)):
        cosine = (between * end).sum(1) / length**2
        torch.testing.assert_close(cosine, torch.cos(part * whole), rtol=0, atol=1e-7)
    torch.testing.assert_close(between, slerp(b, a, 1 - weight), rtol=1e-9, atol=1e-9 * length)


@given(seed=st.integers(0, 9999), weights=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_every_sample_has_its_weight(seed: int, weights: list[float]) -> None:
    a, b = (x.reshape(4, 1, 3, 2) for x in pair(seed, 4, 6))
    together = slerp(a, b, f64(*weights))
    assert together.shape == a.shape
    for i, weight in enumerate(weights):
        torch.testing.assert_close(together[i : i + 1], slerp(a[i : i + 1], b[i : i + 1], weight), rtol=1e-12, atol=1e-12)


@given(**VECTORS, weight=st.floats(0, 1), times=st.floats(0.1, 10), tilt=st.sampled_from([0.0, 1e-12, 1e-6]))
def test_between_parallel_vectors_runs_a_straight_line(
    seed: int, dimensions: int, weight: float, times: float, tilt: float
) -> None:
    a, other = pair(seed, 2, dimensions)
    b = times * a + tilt * other
    torch.testing.assert_close(slerp(a, b, weight), (1 - weight) * a + weight * b, rtol=0, atol=1e-9 * (1 + times))


@given(angle=st.floats(5e-5, 2e-4), weight=st.floats(0, 1))
def test_the_straight_line_meets_the_arc(angle: float, weight: float) -> None:
    a, b = f64(1, 0)[None], f64(math.cos(angle), math.sin(angle))[None]
    arc = f64(math.cos(weight * angle), math.sin(weight * angle))[None]
    torch.testing.assert_close(slerp(a, b, weight), arc, rtol=0, atol=2e-8)


@given(**VECTORS, times=st.floats(0.1, 10))
def test_opposite_vectors_are_refused(seed: int, dimensions: int, times: float) -> None:
    a, b = pair(seed, 3, dimensions)
    b[1] = -times * a[1]
    with pytest.raises(ValueError, match="opposite directions"):
        slerp(a, b, 0.5)
    assume(float(torch.cosine_similarity(a, b)[[0, 2]].min()) > -0.99)
    assert bool(slerp(a[[0, 2]], b[[0, 2]], 0.5).isfinite().all())


def test_a_zero_vector_and_float32() -> None:
    a, b = torch.zeros(1, 3), torch.tensor([[0.0, 3.0, 4.0]])
    assert bool(slerp(a, b, 0.5).isfinite().all())
    assert slerp(a, b, 0.5).dtype == torch.float32
    single = slerp(*(x.float() for x in pair(0, 5, 4)), 0.3)
    torch.testing.assert_close(single.double(), slerp(*pair(0, 5, 4), 0.3), rtol=1e-5, atol=1e-6)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"a \(2, 3\) and b \(2, 4\)"):
        slerp(normal(2, 3), normal(2, 4), 0.5)
    with pytest.raises(ValueError, match=r"a \(2, 3\) and b \(1, 3\)"):
        slerp(normal(2, 3), normal(1, 3), 0.5)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.7])
def test_between_normals_lies_nearly_a_normal(weight: float) -> None:
    n, dimensions = 300, 1000
    a, b = pair(0, n, dimensions)
    between = slerp(a, b, weight)
    # |a|, |b| and their cosine spread by 1/sqrt(D), so a length squared is D (1 + O(1/sqrt(D))) and its mean D (1 + O(1/D))
    size = between.square().mean(1)
    assert float(size.mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / (n * dimensions)) + 1 / dimensions)
    assert float((size - 1).abs().max()) < 5 * math.sqrt(2 / dimensions)
    assert stats.kstest(between[:, :10].flatten().numpy(), "norm").pvalue > 1e-3
    straight = ((1 - weight) * a + weight * b).square().mean(1)
    assert float(straight.max()) < 0.95  # what it is for
