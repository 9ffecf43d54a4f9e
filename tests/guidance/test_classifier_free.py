"""Classifier-free guidance: its two branches, the line through them, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ornstein.denoiser import Clipped, Condition, Denoiser, HalfPrecision, Prediction, describe
from ornstein.guidance import Autoguidance, ClassifierFree, evaluations
from ornstein.nets import MLP
from ornstein.noise import Noise
from ornstein.process import EDM, VP, GaussianProcess
from ornstein.process.gaussian import Time
from ornstein.samplers import ancestral, ddim, sample

LABEL = torch.tensor([0, 1, 2, 1])
NONE = torch.ones(4, dtype=torch.bool)
TIMES = torch.tensor([0.2, 0.9, 0.5, 0.05], dtype=torch.float64)


@dataclass
class Counted:
    """A denoiser that keeps the rows and the `null` of every evaluation."""

    denoiser: Denoiser
    rows: list[int] = field(default_factory=list)
    withheld: list[list[bool] | None] = field(default_factory=list)

    @property
    def process(self) -> GaussianProcess:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = None) -> Prediction:
        self.rows.append(len(x_t))
        self.withheld.append(None if cond is None or "null" not in cond else cond["null"].tolist())
        return self.denoiser(x_t, t, cond)


def network(process: GaussianProcess, predicts: str = "v") -> Denoiser:
    torch.manual_seed(0)
    net = MLP(2, width=16, depth=2, classes=3).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return Denoiser(net, process, predicts)


def states(n: int = 4) -> Tensor:
    return Noise(1).normal((n, 2), dtype=torch.float64)


@pytest.mark.parametrize(("scale", "rows", "withheld"), [
    (1, [4], [None]), (0, [4], [[True] * 4]), (2.5, [8], [[False] * 4 + [True] * 4]), (-0.5, [8], [[False] * 4 + [True] * 4]),
])  # fmt: skip
def test_one_evaluation_each_and_both_in_one_batch(scale: float, rows: list[int], withheld: list[list[bool] | None]) -> None:
    counted = Counted(network(VP()))
    prediction = ClassifierFree(counted, scale)(states(), 0.4, {"label": LABEL})
    assert (counted.rows, counted.withheld) == (rows, withheld)
    assert prediction.x0.shape == (4, 2)


@pytest.mark.parametrize("time", [0.4, torch.tensor(0.4, dtype=torch.float64), TIMES], ids=["number", "scalar", "per sample"])
@pytest.mark.parametrize("predicts", ["v", "eps", "x0", "edm"])
@pytest.mark.parametrize("process", [VP(), EDM()], ids=["vp", "edm"])
def test_every_view_is_on_the_line_through_the_branches(process: GaussianProcess, predicts: str, time: Time) -> None:
    denoiser, x = network(process, predicts), states()
    given, free = denoiser(x, time, {"label": LABEL}), denoiser(x, time, {"label": LABEL, "null": NONE})
    assert not torch.allclose(given.x0, free.x0)
    for scale in (-0.5, 0.0, 0.3, 1.0, 2.0, 7.5):
        guided = ClassifierFree(denoiser, scale)(x, time, {"label": LABEL})
        assert guided.x_t.shape == guided.x0.shape == (4, 2)
        for view in ("x0", "eps", "score", "v"):
            a, b = given.view(view), free.view(view)
            torch.testing.assert_close(
                guided.view(view), b + scale * (a - b), rtol=1e-9, atol=1e-9 * float(a.detach().abs().max())
            )
        assert torch.equal(guided.alpha, given.alpha)
        assert torch.equal(guided.sigma, given.sigma)
    # (1 + w)·eps(cond) - w·eps(∅) of the paper, w = 1
    guided = ClassifierFree(denoiser, 2.0)(x, time, {"label": LABEL})
    torch.testing.assert_close(guided.eps, 2 * given.eps - free.eps, rtol=1e-9, atol=1e-9 * float(given.eps.detach().abs().max()))


@pytest.mark.parametrize("time", [0.4, TIMES], ids=["number", "per sample"])
def test_samples_do_not_couple(time: Time) -> None:
    guided, x = ClassifierFree(network(VP()), 3.0), states()
    whole = guided(x, time, {"label": LABEL}).x0
    for k in range(4):
        own = time[k : k + 1] if isinstance(time, Tensor) else time
        torch.testing.assert_close(
            whole[k : k + 1], guided(x[k : k + 1], own, {"label": LABEL[k : k + 1]}).x0, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_without_a_condition_nothing_is_guided(scale: float) -> None:
    counted = Counted(network(VP()))
    found = ClassifierFree(counted, scale)(states(), 0.3)
    assert torch.equal(found.x0, network(VP())(states(), 0.3).x0)
    assert (counted.rows, counted.withheld) == ([4], [None])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rows_whose_condition_is_withheld_stay_unguided(scale: float) -> None:
    denoiser, x = network(VP()), states()
    null = torch.tensor([False, True, False, True])
    guided = ClassifierFree(denoiser, scale)(x, 0.3, {"label": LABEL, "null": null}).x0
    free = denoiser(x, 0.3, {"label": LABEL, "null": NONE}).x0
    plain = ClassifierFree(denoiser, scale)(x, 0.3, {"label": LABEL}).x0
    torch.testing.assert_close(guided[null], free[null], rtol=0, atol=1e-12)
    torch.testing.assert_close(guided[~null], plain[~null], rtol=0, atol=1e-12)
    assert not torch.allclose(guided[~null], free[~null])


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale={scale} must be a finite number"):
        ClassifierFree(network(VP()), scale)


class Learned(nn.Module):
    """A network with a learned variance that depends on the class, or on its absence."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor] | None) -> Tensor:
        assert cond is not None
        level = torch.where(cond.get("null", torch.zeros(len(x), dtype=torch.bool)), -1.0, cond["label"].to(x) / 2)
        return torch.cat([x + level[:, None], level[:, None].expand_as(x)], 1)


def test_the_variance_is_that_of_the_conditional_branch() -> None:
    denoiser = Denoiser(Learned(), VP(), "x0", learned_variance=True)
    x, cond = states(), {"label": torch.tensor([0, 1, 2, 1])}
    given = denoiser(x, 0.5, cond).variance_fraction
    assert given is not None
    for scale, expected in ((2.0, given), (1.0, given), (0.0, torch.zeros_like(given))):
        found = ClassifierFree(denoiser, scale)(x, 0.5, cond)
        assert found.variance_fraction is not None
        torch.testing.assert_close(found.variance_fraction, expected)
    plan = ancestral(VP(), 3, variance="learned")
    assert bool(sample(ClassifierFree(denoiser, 2.0), plan, shape=(4, 2), noise=Noise(0), cond=cond).isfinite().all())


def test_it_samples_as_any_denoiser() -> None:
    denoiser, cond = network(VP()), {"label": LABEL}
    options: dict[str, Any] = {"shape": (4, 2), "noise": Noise(2), "dtype": torch.float64}
    plan = ddim(VP(), 4)
    one = sample(ClassifierFree(denoiser, 1.0), plan, cond=cond, **options)
    assert torch.equal(one, sample(denoiser, plan, cond=cond, **options))
    guided = sample(ClassifierFree(denoiser, 2.0), plan, cond=cond, **options)
    chunked = sample(ClassifierFree(denoiser, 2.0), plan, cond=cond, batch_size=3, **options)
    torch.testing.assert_close(guided, chunked, rtol=0, atol=1e-12)
    assert not torch.allclose(guided, one)
    clipped = Clipped(ClassifierFree(denoiser, 2.0), -0.1, 0.1)(states(), 0.5, cond)
    assert float(clipped.x0.detach().abs().max()) <= 0.1
    # networks under a guide are put in evaluation mode, and back
    denoiser.net.train()
    sample(ClassifierFree(denoiser, 2.0), plan, cond=cond, **options)
    assert denoiser.net.training


# --- functions of t, the interval, rescaling, negative conditions


def level(process: GaussianProcess, ratio: float) -> float:
    return float(process.time_of(torch.tensor(math.log(ratio), dtype=torch.float64)))


def rising(t: float) -> float:
    return 1 + 3 * t


def test_a_scale_may_follow_t() -> None:
    denoiser, x = network(VP()), states()
    guided = ClassifierFree(denoiser, rising)
    for t in (0.2, 0.9):
        expected = ClassifierFree(denoiser, rising(t))(x, t, {"label": LABEL}).x0
        torch.testing.assert_close(guided(x, t, {"label": LABEL}).x0, expected)
    whole = guided(x, TIMES, {"label": LABEL}).x0
    for k, t in enumerate(TIMES.tolist()):
        own = ClassifierFree(denoiser, rising(t))(x[k : k + 1], t, {"label": LABEL[k : k + 1]}).x0
        torch.testing.assert_close(whole[k : k + 1], own, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"scale gives nan at t=0.5"):
        ClassifierFree(denoiser, lambda t: math.nan)(x, 0.5, {"label": LABEL})


def test_from_w_is_the_papers_convention() -> None:
    denoiser = network(VP())
    assert ClassifierFree.from_w(denoiser, 0.3) == ClassifierFree(denoiser, 1.3)
    assert ClassifierFree.from_w(denoiser, 0.5, rescale=0.7, interval=(0.1, 2)) == ClassifierFree(denoiser, 1.5, (0.1, 2), 0.7)


@pytest.mark.parametrize("process", [VP(), EDM()], ids=["vp", "edm"])
def test_the_interval_is_in_noise_to_signal_and_costs_nothing_outside(process: GaussianProcess) -> None:
    counted, x = Counted(network(process)), states()
    guided = ClassifierFree(counted, 2.0, interval=(0.3, 5.0))
    for ratio, rows in ((0.1, 4), (0.299, 4), (0.301, 8), (4.99, 8), (5.01, 4)):
        counted.rows.clear()
        t = level(process, ratio)
        found = guided(x, t, {"label": LABEL})
        assert counted.rows == [rows], ratio
        assert evaluations(guided, t) == rows // 4
        expected = ClassifierFree(network(process), 2.0 if rows == 8 else 1.0)(x, t, {"label": LABEL})
        assert torch.equal(found.x0, expected.x0)
    # samples at several times: only those inside are evaluated twice, whichever they are
    counted.rows.clear()
    times = torch.tensor([level(process, r) for r in (0.1, 1.0, 10.0, 2.0)], dtype=torch.float64)
    whole = guided(x, times, {"label": LABEL}).x0
    assert counted.rows == [6]
    assert counted.withheld[-1] == [False] * 4 + [True] * 2
    for k in range(4):
        own = guided(x[k : k + 1], float(times[k]), {"label": LABEL[k : k + 1]}).x0
        torch.testing.assert_close(whole[k : k + 1], own, rtol=0, atol=1e-12)
    counted.rows.clear()
    guided(x, times[[0, 2, 0, 2]], {"label": LABEL})
    assert counted.rows == [4]
    plan = ddim(process, 12)
    cost = sum(evaluations(guided, t) for t in plan.times)
    counted.rows.clear()
    sample(guided, plan, shape=(4, 2), noise=Noise(0), cond={"label": LABEL}, dtype=torch.float64)
    assert sum(counted.rows) == 4 * cost
    assert 12 < cost < 24


@pytest.mark.parametrize("phi", [0.3, 1.0])
@pytest.mark.parametrize("time", [0.4, TIMES], ids=["number", "per sample"])
def test_rescaling_restores_the_spread_of_each_sample(phi: float, time: Time) -> None:
    denoiser, x = network(VP()), states()
    given = denoiser(x, time, {"label": LABEL}).x0
    plain = ClassifierFree(denoiser, 3.0)(x, time, {"label": LABEL}).x0
    found = ClassifierFree(denoiser, 3.0, rescale=phi)(x, time, {"label": LABEL}).x0
    expected = phi * given.std(1) + (1 - phi) * plain.std(1)
    torch.testing.assert_close(found.std(1), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found / found.norm(dim=1, keepdim=True), plain / plain.norm(dim=1, keepdim=True))
    own = time[2:3] if isinstance(time, Tensor) else time
    alone = ClassifierFree(denoiser, 3.0, rescale=phi)(x[2:3], own, {"label": LABEL[2:3]}).x0
    torch.testing.assert_close(found[2:3], alone, rtol=0, atol=1e-12)


def test_rescaling_at_the_ends() -> None:
    counted, x = Counted(network(VP())), states()
    one = ClassifierFree(counted, 1.0, rescale=0.7)
    assert torch.equal(one(x, 0.4, {"label": LABEL}).x0, network(VP())(x, 0.4, {"label": LABEL}).x0)
    # at 0 the spread that is restored is the conditional one's: both are needed, and counted
    none = ClassifierFree(counted, 0.0, rescale=1.0)
    found = none(x, 0.4, {"label": LABEL}).x0
    assert counted.rows == [4, 8]
    assert [evaluations(guide, 0.4) for guide in (one, none, ClassifierFree(counted, 0.0))] == [1, 2, 1]
    torch.testing.assert_close(found.std(1), network(VP())(x, 0.4, {"label": LABEL}).x0.std(1))
    with pytest.raises(ValueError, match="needs data of several numbers"):
        ClassifierFree(Denoiser(MLP(1, width=4, depth=1, classes=3), VP(), "v"), 2.0, rescale=0.5)(
            torch.zeros(4, 1), 0.5, {"label": LABEL}
        )


def test_a_negative_condition_takes_the_place_of_none() -> None:
    counted, x = Counted(network(VP())), states()
    away = {"label": torch.tensor([2])}
    negative = network(VP())(x, 0.4, {"label": torch.full((4,), 2)}).x0
    given = network(VP())(x, 0.4, {"label": LABEL}).x0
    free = network(VP())(x, 0.4, {"label": LABEL, "null": NONE}).x0
    guided = ClassifierFree(counted, 3.0, negative=away)
    torch.testing.assert_close(guided(x, 0.4, {"label": LABEL}).x0, negative + 3 * (given - negative), rtol=1e-9, atol=1e-12)
    assert (counted.rows, counted.withheld) == ([8], [[False] * 8])
    # the class itself as the negative one leaves it as it is
    torch.testing.assert_close(guided(x, 0.4, {"label": LABEL}).x0[2], given[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(ClassifierFree(counted, 0.0, negative=away)(x, 0.4, {"label": LABEL}).x0, negative)
    # without a condition, and in rows where it is withheld: from no class away from this one
    torch.testing.assert_close(guided(x, 0.4).x0, negative + 3 * (free - negative), rtol=1e-9, atol=1e-12)
    null = {"label": LABEL, "null": torch.tensor([True, False, False, True])}
    mixed = guided(x, 0.4, null).x0
    torch.testing.assert_close(mixed[0], (negative + 3 * (free - negative))[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mixed[1], (negative + 3 * (given - negative))[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("options", "words"), [
    ({"interval": (5.0, 0.3)}, r"interval=\(5.0, 0.3\)"), ({"interval": (-1.0, 0.3)}, "interval="),
    ({"interval": (math.nan, 0.3)}, "interval="), ({"rescale": 0.0}, "rescale=0.0 must"), ({"rescale": 1.5}, "rescale=1.5"),
    ({"rescale": math.nan}, "rescale=nan"), ({"negative": {"label": torch.tensor([1, 2])}}, "negative.* has 2 rows"),
])  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClassifierFree(network(VP()), 2.0, **options)


def test_a_negative_of_another_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="negative has 'values'"):
        ClassifierFree(network(VP()), 2.0, negative={"values": torch.zeros(1, 3)})(states(), 0.5, {"label": LABEL})


# --- autoguidance


def other(process: GaussianProcess) -> Denoiser:
    denoiser = network(process, "eps")
    with torch.no_grad():
        for parameter in denoiser.net.parameters():
            parameter.mul_(0.6)
    return denoiser


@pytest.mark.parametrize("time", [0.4, TIMES], ids=["number", "per sample"])
def test_autoguidance_is_the_line_from_the_weaker_model(time: Time) -> None:
    strong, weak = Counted(network(VP())), Counted(other(VP()))
    x, cond = states(), {"label": LABEL}
    a, b = network(VP())(x, time, cond).x0, other(VP())(x, time, cond).x0
    for scale, counts in ((1.0, (1, 0)), (0.0, (0, 1)), (2.5, (1, 1))):
        strong.rows.clear()
        weak.rows.clear()
        guided = Autoguidance(strong, weak, scale)
        torch.testing.assert_close(guided(x, time, cond).x0, b + scale * (a - b), rtol=1e-9, atol=1e-11)
        assert (len(strong.rows), len(weak.rows)) == counts
        assert evaluations(guided, 0.4) == sum(counts)
    free = Autoguidance(strong, weak, 2.0)(x, time)
    torch.testing.assert_close(free.x0, 2 * network(VP())(x, time).x0 - other(VP())(x, time).x0, rtol=1e-9, atol=1e-11)


def test_autoguidance_within_an_interval_and_rescaled() -> None:
    strong, weak, x = Counted(network(EDM())), Counted(other(EDM())), states()
    guided = Autoguidance(strong, weak, 2.0, interval=(0.3, 5.0), rescale=1.0)
    times = torch.tensor([level(EDM(), r) for r in (0.1, 1.0, 10.0, 2.0)], dtype=torch.float64)
    found, given = guided(x, times, {"label": LABEL}).x0, network(EDM())(x, times, {"label": LABEL}).x0
    assert (strong.rows, weak.rows) == ([4], [2])
    assert torch.equal(found[[0, 2]], given[[0, 2]])
    assert not torch.allclose(found[[1, 3]], given[[1, 3]])
    torch.testing.assert_close(found.std(1), given.std(1))
    guided(x, times[[0, 0, 2, 2]])
    assert weak.rows == [2]
    with pytest.raises(ValueError, match="another process"):
        Autoguidance(network(EDM()), network(VP()), 2.0)
    with pytest.raises(ValueError, match=r"scale=inf"):
        Autoguidance(network(EDM()), other(EDM()), math.inf)


def test_both_networks_are_put_in_evaluation_mode() -> None:
    strong, weak = network(VP()), other(VP())
    modes: list[bool] = []
    strong.net.train(), weak.net.train()
    hook = weak.net.register_forward_hook(lambda *_: modes.append(weak.net.training))
    sample(Autoguidance(HalfPrecision(strong), weak, 2.0), ddim(VP(), 2), shape=(2, 2), noise=Noise(0), dtype=torch.float64)
    hook.remove()
    assert modes == [False, False]
    assert strong.net.training
    assert weak.net.training


def test_guided_denoisers_are_told_apart() -> None:
    net, weak = network(VP()), other(VP())
    assert describe(ClassifierFree(net, 2.0)) == "ClassifierFree(scale=2) of Denoiser(v)"
    assert describe(ClassifierFree(net, rising)) == "ClassifierFree(scale=rising) of Denoiser(v)"
    assert describe(ClassifierFree(net, 2.0, (0.3, 5.0), 0.7, {"label": torch.tensor([5])})) == (
        "ClassifierFree(scale=2, interval=(0.3, 5), rescale=0.7, negative=label [5]) of Denoiser(v)"
    )
    assert describe(Autoguidance(net, weak, 2.0)).startswith("Autoguidance(weaker=Denoiser(eps) ")
    table = [
        ClassifierFree(net, 2.0), ClassifierFree(net, rising), ClassifierFree(net, 2.0, (0.3, 5.0)),
        ClassifierFree(net, 2.0, (0.3, 4.0)), ClassifierFree(net, 2.0, rescale=0.7), ClassifierFree(net, 2.0, rescale=0.5),
        ClassifierFree(net, 2.0, negative={"label": torch.tensor([5])}), Autoguidance(net, weak, 2.0),
        ClassifierFree(net, 2.0, negative={"label": torch.tensor([4])}), Autoguidance(net, network(VP(), "eps"), 2.0),
    ]  # fmt: skip
    texts = [describe(denoiser) for denoiser in table]
    assert len(set(texts)) == len(texts)
    assert describe(Autoguidance(net, other(VP()), 2.0)) == texts[7]
