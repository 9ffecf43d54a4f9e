"""Every parameterisation on every process: the exact target gives back x0, eps, score and v."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ornstein.denoiser import COEFFICIENTS, Clipped, Condition, Denoiser, DynamicThreshold, Prediction
from ornstein.noise import Noise
from ornstein.process import EDM, VE, VP, Chain, Cosine, GaussianProcess, Rectified, SubVP, chain

PROCESSES: dict[str, GaussianProcess] = {
    "vp": VP(),
    "cosine": Cosine(),
    "ve": VE(),
    "sub_vp": SubVP(),
    "edm": EDM(),
    "rectified": Rectified(),
    "chain": chain("linear", 50),
}
PAIRS = [(p, c) for p in PROCESSES for c in COEFFICIENTS if c != "mean" or p == "chain"]
SIGMA_DATA = 0.7


class Spy(nn.Module):
    """A network that answers with what it was given at birth and keeps what it was asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple[Tensor, Tensor, Condition]] = []

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        self.asked.append((x, c_noise, cond))
        return self.answer


def normal(*shape: int, stream: str = "x") -> Tensor:
    return Noise(0).normal(shape, stream=stream, dtype=torch.float64)


def target(predicts: str, p: GaussianProcess, t: float, x0: Tensor, eps: Tensor) -> Tensor:
    """What a perfect network would output, from x0 and eps by the papers' own definitions."""
    alpha, sigma = (float(m) for m in p.moments(t))
    x_t = alpha * x0 + sigma * eps
    if predicts == "mean":  # Bayes: q(x_s|x0) and q(x_t|x_s) weighed by their precisions
        assert isinstance(p, Chain)
        k = round(t * p.steps)
        beta = p.betas[k - 1]
        alpha_s, sigma_s = (float(m) for m in p.moments((k - 1) / p.steps))
        if sigma_s == 0:
            return x0
        near, far = 1 / sigma_s**2, (1 - beta) / beta
        return (near * alpha_s * x0 + far * x_t / math.sqrt(1 - beta)) / (near + far)
    if predicts == "edm":  # Karras et al. 2022, table 1, in y = x/alpha and the noise level sigma/alpha
        level = sigma / alpha
        c_skip = SIGMA_DATA**2 / (level**2 + SIGMA_DATA**2)
        c_out = level * SIGMA_DATA / math.sqrt(level**2 + SIGMA_DATA**2)
        return (x0 - c_skip * (x0 + level * eps)) / c_out
    return {
        "x0": x0,
        "eps": eps,
        "score": -eps / sigma,
        "v": (alpha * eps - sigma * x0) / math.hypot(alpha, sigma),
    }[predicts]


@pytest.mark.parametrize(("name", "predicts"), PAIRS)
@settings(max_examples=10)
@given(u=st.floats(0.001, 0.999))
def test_the_exact_target_gives_back_every_view(name: str, predicts: str, u: float) -> None:
    p = PROCESSES[name]
    t = max(math.ceil(u * 50) / 50, p.t_min) if name == "chain" else max(u, 0.02)
    x0, eps = normal(3, 2, 4), normal(3, 2, 4, stream="eps")
    alpha, sigma = p.moments(t)
    net = Spy(target(predicts, p, t, x0, eps))
    prediction = Denoiser(net, p, predicts, sigma_data=SIGMA_DATA)(alpha * x0 + sigma * eps, t)
    exact = {
        "x0": x0,
        "eps": eps,
        "score": -eps / sigma,
        "v": (alpha * eps - sigma * x0) / torch.sqrt(alpha**2 + sigma**2),
    }
    for view, value in exact.items():
        # relative to the view's own size: sigma runs from 1e-2 to 80
        gap = (getattr(prediction, view) - value).abs().max() / value.abs().max()
        assert gap < 1e-9, (view, float(gap))
        assert torch.equal(prediction.view(view), getattr(prediction, view))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_table_is_that_of_the_design(name: str) -> None:
    p = PROCESSES[name]
    t = torch.tensor([0.2, 0.5, 0.94], dtype=torch.float64)
    a, s = p.moments(t)
    d, n = SIGMA_DATA, torch.sqrt(a**2 + s**2)
    table = {
        "x0": (0 * a, a / a),
        "eps": (1 / a, -s / a),
        "score": (1 / a, s**2 / a),
        "v": (a / n**2, -s / n),
        "edm": (a * d**2 / (s**2 + (a * d) ** 2), s * d / torch.sqrt(s**2 + (a * d) ** 2)),
    }
    if isinstance(p, Chain):
        a_s, s_s = p.moments(t - 1 / p.steps)
        step = a / a_s
        on_x_t, on_x0 = step * s_s**2 / s**2, a_s * (s**2 - step**2 * s_s**2) / s**2
        table["mean"] = (-on_x_t / on_x0, 1 / on_x0)
        assert set(table) == set(COEFFICIENTS)
    for predicts, (skip, out) in table.items():
        found = Denoiser(nn.Identity(), p, predicts, sigma_data=d).coefficients(t)
        torch.testing.assert_close(torch.stack(found), torch.stack([a, s, skip, out]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_what_the_network_is_asked(name: str) -> None:
    p, x, cond = PROCESSES[name], normal(3, 2), {"label": torch.arange(3)}
    net = Spy(normal(3, 2))
    Denoiser(net, p, "x0", sigma_data=0.5)(x, 0.6, cond)
    asked, label, passed = net.asked[0]
    alpha, sigma = (float(m) for m in p.moments(0.6))
    torch.testing.assert_close(asked, x / math.sqrt(0.25 * alpha**2 + sigma**2))
    exact = {"chain": 30.0, "rectified": 600.0}.get(name, 0.5 * math.log(sigma / alpha))
    torch.testing.assert_close(label, torch.full((3,), exact, dtype=torch.float64))
    assert passed is cond


def test_a_chain_on_unit_data_passes_x_and_its_step() -> None:
    net, x = Spy(normal(4, 2).float()), normal(4, 2).float()
    denoiser = Denoiser(net, chain("linear"), "eps")
    denoiser(x, 0.25)
    denoiser(x, torch.tensor([0.001, 0.5, 0.731, 1.0], dtype=torch.float64))
    (first, label, _), (second, labels, _) = net.asked
    assert torch.equal(first, x)
    torch.testing.assert_close(second, x, rtol=1e-6, atol=0)
    assert label.tolist() == [250.0] * 4
    assert labels.tolist() == pytest.approx([1, 500, 731, 1000], rel=1e-6)
    assert labels.dtype == torch.float32


@pytest.mark.parametrize(("name", "predicts"), PAIRS)
def test_a_batch_of_times_agrees_with_numbers(name: str, predicts: str) -> None:
    p, x, raw = PROCESSES[name], normal(4, 2, 3), normal(4, 2, 3, stream="raw")
    times = torch.tensor([0.1, 0.34, 0.5, 0.98], dtype=torch.float64)
    together = Denoiser(Spy(raw), p, predicts)(x, times)
    for i, t in enumerate(times.tolist()):
        alone = Denoiser(Spy(raw[i : i + 1]), p, predicts)(x[i : i + 1], t)
        for view in ("x0", "eps", "score", "v"):
            torch.testing.assert_close(together.view(view)[i : i + 1], alone.view(view), rtol=1e-10, atol=1e-12)


def test_float32_stays_float32_and_is_not_changed() -> None:
    x, raw = normal(2, 3).float(), normal(2, 3).float()
    kept = x.clone(), raw.clone()
    for t in (0.3, torch.tensor([0.3, 0.4], dtype=torch.float64)):
        for predicts in COEFFICIENTS:
            prediction = Denoiser(Spy(raw), PROCESSES["chain"], predicts)(x, t)
            assert {prediction.view(view).dtype for view in ("x0", "eps", "score", "v")} == {torch.float32}
    assert torch.equal(x, kept[0])
    assert torch.equal(raw, kept[1])


@pytest.mark.parametrize("t", [1.0, torch.tensor([0.5, 1.0], dtype=torch.float64)])
def test_without_signal_only_x0_v_and_edm_are_defined(t: float | Tensor) -> None:
    p, x = chain("linear", zero_terminal=True), normal(2, 3)
    for predicts in ("eps", "score", "mean"):
        with pytest.raises(ValueError, match=f"predicts='{predicts}' cannot say what x0 is where alpha = 0"):
            Denoiser(Spy(x), p, predicts)(x, t)
    x0, eps = normal(2, 3, stream="x0"), normal(2, 3, stream="eps")
    for predicts, raw in (("x0", x0), ("v", -x0), ("edm", x0 / SIGMA_DATA)):
        prediction = Denoiser(Spy(raw), p, predicts, sigma_data=SIGMA_DATA)(eps, 1.0)
        for view, value in (("x0", x0), ("eps", eps), ("score", -eps), ("v", -x0)):
            torch.testing.assert_close(prediction.view(view), value, rtol=1e-12, atol=1e-14)


def test_learned_variance_is_the_second_half_of_the_channels() -> None:
    x, mean = normal(2, 3, 4), normal(2, 3, 4, stream="mean")
    extra = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 3, 4)
    denoiser = Denoiser(Spy(torch.cat([mean, extra], 1)), PROCESSES["chain"], "x0", learned_variance=True)
    prediction = denoiser(x, 0.5)
    assert torch.equal(prediction.x0, mean)
    torch.testing.assert_close(prediction.variance_fraction, torch.linspace(0, 1, 24, dtype=torch.float64).reshape(2, 3, 4))
    assert prediction.with_x0(x).variance_fraction is prediction.variance_fraction
    assert Denoiser(Spy(mean), PROCESSES["chain"])(x, 0.5).variance_fraction is None
    with pytest.raises(ValueError, match="needs 6 output channels, the net gives 3"):
        Denoiser(Spy(mean), PROCESSES["chain"], learned_variance=True)(x, 0.5)


def test_with_x0_moves_every_view() -> None:
    x0, eps = normal(2, 3), normal(2, 3, stream="eps")
    alpha, sigma = VP().moments(0.4)
    x_t = alpha * x0 + sigma * eps
    moved = Denoiser(Spy(normal(2, 3, stream="raw")), VP(), "v")(x_t, 0.4).with_x0(x0)
    assert torch.equal(moved.x0, x0)
    torch.testing.assert_close(moved.eps, eps)
    torch.testing.assert_close(moved.score, -eps / sigma)
    torch.testing.assert_close(moved.v, alpha * eps - sigma * x0)
    assert isinstance(moved, Prediction)


def test_clipped_clamps_x0_and_the_rest_follows() -> None:
    raw, x = torch.tensor([[-3.0, 0.2, 5.0]]), normal(1, 3).float()
    inner = Denoiser(Spy(raw), VP(), "x0")
    clipped = Clipped(inner, -1.0, 2.0)
    prediction = clipped(x, 0.5)
    assert torch.equal(prediction.x0, torch.tensor([[-1.0, 0.2, 2.0]]))
    alpha, sigma = VP().moments(0.5)
    torch.testing.assert_close(prediction.eps, ((x - alpha * prediction.x0) / sigma).float())
    assert clipped.process == VP()
    assert inner(x, 0.5).x0 is raw  # never unasked


def test_dynamic_threshold_works_sample_by_sample() -> None:
    quiet, loud = torch.linspace(-0.9, 0.8, 201), 5 * torch.linspace(-1, 1, 201)
    raw = torch.stack([quiet, loud])
    threshold = DynamicThreshold(Denoiser(Spy(raw), VP(), "x0"), bound=1.0, quantile=0.9)
    x0 = threshold(normal(2, 201).float(), 0.5).x0
    torch.testing.assert_close(x0[0], quiet)
    limit = loud.abs().sort().values[180]
    torch.testing.assert_close(x0[1], loud.clamp(-limit, limit) / limit)
    assert threshold.process == VP()


def test_wrong_arguments_are_refused() -> None:
    x = normal(2, 3)
    with pytest.raises(ValueError, match="predicts='noise' is not one of"):
        Denoiser(nn.Identity(), VP(), "noise")
    for sigma_data in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma_data="):
            Denoiser(nn.Identity(), VP(), sigma_data=sigma_data)
    with pytest.raises(ValueError, match="needs the steps of a Chain, not VP"):
        Denoiser(Spy(x), VP(), "mean")(x, 0.5)
    with pytest.raises(ValueError, match="the net returned shape"):
        Denoiser(Spy(normal(2, 4)), VP(), "x0")(x, 0.5)
