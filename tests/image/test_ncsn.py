"""NCSNv2's choices solve what they say they solve, a recipe says them aloud, and a level-free network is told no level."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr
from torch import Tensor, nn

import tiny
from ornstein import config, model
from ornstein.config import Recipe
from ornstein.denoiser import Denoiser
from ornstein.files import InputError
from ornstein.image import ncsn
from ornstein.kinds import KINDS
from ornstein.nets import MLP, LevelFree
from ornstein.noise import Noise
from ornstein.process import VE, VP
from ornstein.samplers import annealed_langevin, sample
from ornstein.samplers.langevin import best_rate, steady_variance
from tiny import Ended, Run

NET = "net.options={width: 8, multipliers: [1], blocks: 1, attention: [false]}"
QUICK = ("--set", "train={steps: 6, batch: 16, warmup: 2, validate_every: 3}", "--set", NET)


def recipe(*settings: str) -> Recipe:
    """The bundled ncsn-digits with a tiny network and six steps of training, changed."""
    return config.override(config.load_recipe("ncsn-digits"), [*QUICK[1::2], *settings])


# --- the five techniques


@given(n=st.integers(2, 1100), seed=st.integers(0, 9))
def test_the_first_level_is_the_largest_distance(n: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, 1, 2, 3)).astype(np.float32)
    rows = x.reshape(n, -1).astype(np.float64)
    largest = max(float(np.linalg.norm(rows - row, axis=1).max()) for row in rows)
    found = ncsn.first_level(torch.from_numpy(x), seed=seed)
    assert found.value == pytest.approx(largest, rel=1e-5)
    assert f"sigma_max {largest:.3g}" in found.why


def test_of_many_data_a_random_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ncsn, "PAIRED", 50)
    x = torch.cat([torch.zeros(500, 2), torch.full((500, 2), 3.0)])
    assert ncsn.first_level(x).value == pytest.approx(3 * math.sqrt(2), rel=1e-6)
    line = torch.arange(1000.0).unsqueeze(1)
    values = {ncsn.first_level(line, seed=seed).value for seed in range(6)}
    assert len(values) > 2
    assert all(800 < value < 1000 for value in values)
    assert ncsn.first_level(line, seed=1).value == ncsn.first_level(line, seed=1).value


def overlap_of(gamma: float, dimensions: int) -> float:
    """The share by technique 2's formula."""
    centre = math.sqrt(2 * dimensions) * (gamma - 1)
    return float(ndtr(centre + 3 * gamma) - ndtr(centre - 3 * gamma))


@given(dimensions=st.integers(30, 200_000), overlap=st.floats(0.1, 0.95))
def test_the_ratio_solves_its_equation(dimensions: int, overlap: float) -> None:
    found = ncsn.level_ratio(dimensions, overlap)
    assert 1 < found.value < 2
    assert overlap_of(found.value, dimensions) == pytest.approx(overlap, abs=1e-8)
    assert f"ratio {found.value:.3g}" in found.why
    assert ncsn.level_ratio(dimensions, overlap + 0.02).value < found.value


def test_more_dimensions_need_closer_levels() -> None:
    ratios = [ncsn.level_ratio(d).value for d in (1, 2, 8, 30, 64, 784, 3072, 10**6)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[:3] == [2.0, 2.0, 2.0]
    assert ratios[-1] > 1
    overlaps = [overlap_of(1.2, d) for d in (30, 64, 200, 784)]
    assert overlaps == sorted(overlaps, reverse=True)
    # Song and Ermon 2020 find about 232 levels from 50 to 0.01 for CIFAR-10's 3072 dimensions
    assert ncsn.number_of_levels(50, 0.01, ncsn.level_ratio(3072).value) == pytest.approx(232, abs=20)


@pytest.mark.parametrize(("dimensions", "overlap"), [(64, 0.3), (64, 0.5), (64, 0.8), (784, 0.5)])
def test_the_shells_of_neighbouring_levels_overlap_so_far(dimensions: int, overlap: float) -> None:
    gamma = ncsn.level_ratio(dimensions, overlap).value
    norms = Noise(0).normal((20_000, dimensions)).norm(dim=1)  # of the quieter level, sigma = 1
    within = (norms - math.sqrt(dimensions) * gamma).abs() < 3 * gamma / math.sqrt(2)
    # that a norm is normal, which the formula says, is wrong by about 1/(4 sqrt(D)) standard deviations
    assert float(within.double().mean()) == pytest.approx(overlap, abs=0.3 / math.sqrt(dimensions))


@pytest.mark.parametrize("overlap", [0.0, 0.99, -1.0, math.nan])
def test_an_overlap_that_cannot_be(overlap: float) -> None:
    with pytest.raises(ValueError, match=r"overlap=.* must lie in \(0, 0.99\)"):
        ncsn.level_ratio(64, overlap)


@given(last=st.floats(1e-3, 0.1), factor=st.floats(2, 1e4), ratio=st.floats(1.02, 2))
def test_so_many_levels_are_needed_and_no_more(last: float, factor: float, ratio: float) -> None:
    n = ncsn.number_of_levels(last * factor, last, ratio)
    assert factor ** (1 / (n - 1)) <= ratio * (1 + 1e-6)
    assert n == 2 or factor ** (1 / (n - 2)) > ratio * (1 - 1e-6)


def test_whole_numbers_of_levels() -> None:
    assert [ncsn.number_of_levels(8, last, 2) for last in (4, 2, 1, 0.99)] == [2, 3, 4, 5]
    for first, last in ((1, 1), (1, 2), (1, 0), (1, -1), (math.nan, 1)):
        with pytest.raises(InputError, match=r"sigma_max .* must lie above sigma_min"):
            ncsn.number_of_levels(first, last, 2)


def test_steps_per_level_are_what_the_calls_allow() -> None:
    for calls, levels, steps in ((101, 20, 5), (100, 20, 4), (21, 20, 1), (5, 20, 1)):
        found = ncsn.steps_per_level(calls, levels, 1.3)
        assert found.value == steps
        rate = best_rate(1.3, steps)
        assert f"{steps} steps per level with step size {rate:.3g} sigma²" in found.why
        assert f"{100 * (steady_variance(rate, 1.3, steps) - 1):.0f} %" in found.why
        assert all(
            steady_variance(rate, 1.3, steps) <= steady_variance(r, 1.3, steps) for r in torch.linspace(0.05, 0.95, 19).tolist()
        )


# --- the recipe


def test_prepare_fills_only_what_is_open() -> None:
    data, _ = tiny.digits(recipe())
    encoded = data.contract.encode(data.batch(range(len(data)))["x"])
    whole, reasons = ncsn.prepare(recipe("sampler.calls=300"), data)
    first = ncsn.first_level(encoded).value
    ratio = ncsn.level_ratio(64).value
    levels = ncsn.number_of_levels(first, 0.02, ratio)
    assert whole.process.options == {"sigma_min": 0.02, "sigma_max": pytest.approx(first, abs=1e-4)}
    assert whole.sampler.options == {"steps": 299 // levels}
    assert whole.sampler.calls == levels * (299 // levels) + 1 <= 300
    assert f"{levels} levels, {whole.sampler.calls} calls" in reasons
    text = "\n".join(reasons)
    for words in (f"sigma_max {first:.3g}", f"ratio {ratio:.3g}", "steps per level", "not told the level", "decay 0.999"):
        assert words in text
    given_first, reasons = ncsn.prepare(recipe("process.options.sigma_max=7"), data)
    assert given_first.process.options["sigma_max"] == 7
    assert "largest distance" not in "\n".join(reasons)
    given_steps, reasons = ncsn.prepare(recipe("sampler.options.steps=3", "sampler.calls=50", "net.level_free=false"), data)
    assert (given_steps.sampler.options, given_steps.sampler.calls) == ({"steps": 3}, 50)
    assert "steps per level" not in "\n".join(reasons)
    assert "not told" not in "\n".join(reasons)
    # a second time nothing is left to decide, so that a resumed run goes on with the same levels
    again, _ = ncsn.prepare(whole, data)
    assert again == whole


@pytest.mark.parametrize("changes", [["process={name: vp}"], ["sampler.name=ddim"]])
def test_what_ncsn_does_not_go_with(changes: list[str], run: Run) -> None:
    data, _ = tiny.digits(recipe())
    with pytest.raises(InputError, match=r"goes with process: \{name: ve\} and sampler: \{name: annealed_langevin\}"):
        KINDS["ncsn"].prepare(recipe(*changes), data)
    ended = run("train", "ncsn-digits", *QUICK, *[part for change in changes for part in ("--set", change)], "--out", "w")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "system='ncsn'" in ended.err
    with pytest.raises(InputError, match=r"sigma_max 0\.01 must lie above sigma_min 0\.02"):
        ncsn.prepare(recipe("process.options.sigma_max=0.01"), data)


def levels(ended: Ended) -> list[str]:
    return [line for line in ended.err.splitlines() if "levels," in line]


def test_training_says_its_choices_and_writes_them_down(run: Run) -> None:
    ended = run("train", "ncsn-digits", *QUICK, "--set", "sampler.calls=50", "--out", "m")
    assert ended.code == 0, ended.err
    for words in ("the largest distance", "about half of a level's samples", "2 steps per level", "weights averaged"):
        assert words in ended.err
    written = model.read_recipe("m")
    assert written.process.options["sigma_max"] == pytest.approx(9.6, abs=0.2)
    assert written.sampler.options == {"steps": 2}
    assert levels(ended) == [f"{(written.sampler.calls - 1) // 2} levels, {written.sampler.calls} calls"]
    system = model.load("m")
    process = VE(0.02, float(str(written.process.options["sigma_max"])))
    assert system.denoiser.process == process
    assert system.plan == annealed_langevin(process, written.sampler.calls, steps=2)
    assert isinstance(system.net, LevelFree)
    assert system.denoiser.scale_input is False
    sigmas = [float(process.moments(torch.tensor(row.t, dtype=torch.float64))[1]) for row in system.plan.rows]
    assert sigmas[0] == pytest.approx(process.prior_std, rel=1e-3)
    assert sigmas == sorted(sigmas, reverse=True)
    drawn = system.sample(3, noise=Noise(5))
    assert torch.equal(model.load("m").sample(3, noise=Noise(5)), drawn)
    direct = sample(system.shaped_denoiser(), system.plan, shape=(3, 1, 8, 8), noise=Noise(5))
    assert torch.allclose(system.contract.decode(direct), drawn, atol=1e-4)
    ended = run("sample", "m", "-n", 3, "--seed", 5, "--out", "x.npz", "--quiet")
    assert "annealed_langevin" in ended.out
    with np.load("x.npz") as arrays:
        assert np.abs(arrays["samples"] - drawn.clamp(0, 16).round().numpy()).max() == 0
    ended = run("train", "--resume", "--out", "m", "--set", "train.steps=8")
    assert ended.code == 0, ended.err
    assert model.read_recipe("m").process == written.process
    assert model.read_recipe("m").sampler == written.sampler
    assert "the largest distance" not in ended.err
    assert run("train", "ncsn-digits", *QUICK, "--set", "sampler.calls=50", "--out", "q", "--quiet").err == ""


def test_the_recipe_for_mnist_is_that_of_digits_with_another_network(tmp_path: Path) -> None:
    small, large = config.load_recipe("ncsn-digits"), config.load_recipe("ncsn-mnist")
    assert (small.system, small.process, small.predicts) == (large.system, large.process, large.predicts)
    assert large.net.level_free
    assert small.net.level_free
    assert (large.sampler.name, large.data.held_out_last) == ("annealed_langevin", 10000)
    assert large.net.options == config.load_recipe("mnist").net.options


# --- level-free networks


class Heard(nn.Module):
    """Keeps what it was given, and returns x."""

    def __init__(self) -> None:
        super().__init__()
        self.given: tuple[Tensor, Tensor, object] | None = None

    def forward(self, x: Tensor, c_noise: Tensor, cond: object) -> Tensor:
        self.given = x, c_noise, cond
        return x


def test_a_level_free_network_hears_no_level() -> None:
    inner = MLP(3, 16, 1)
    for parameter in inner.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    free, x = LevelFree(inner), Noise(0).normal((5, 3))
    told = [inner(x, torch.full((5,), c), None) for c in (-2.0, 3.0)]
    assert not torch.allclose(*told)
    assert torch.equal(*(free(x, torch.full((5,), c), None) for c in (-2.0, 3.0)))
    assert torch.equal(free(x, torch.ones(5), None), inner(x, torch.zeros(5), None))
    heard, cond = Heard(), {"label": torch.zeros(5)}
    LevelFree(heard)(x, torch.linspace(-1, 1, 5), cond)
    assert heard.given is not None
    assert heard.given[0] is x
    assert heard.given[1].tolist() == [0.0] * 5
    assert heard.given[2] is cond


@pytest.mark.parametrize("process", [VE(0.02, 9.6), VP()])
@pytest.mark.parametrize("t", [0.2, 0.7, torch.linspace(0.1, 0.9, 4, dtype=torch.float64)])
def test_only_a_scaled_input_is_scaled(process: VE | VP, t: float | Tensor) -> None:
    x, heard = Noise(1).normal((4, 3)), Heard()
    bare = Denoiser(heard, process, "eps", sigma_data=0.5, scale_input=False)(x, t)
    assert heard.given is not None
    assert torch.equal(heard.given[0], x)
    assert torch.equal(bare.raw, x)
    Denoiser(heard, process, "eps", sigma_data=0.5)(x, t)
    alpha, sigma = process.moments(torch.as_tensor(t, dtype=torch.float64))
    scale = (alpha**2 * 0.25 + sigma**2).rsqrt().float()
    assert torch.allclose(heard.given[0], x * (scale.unsqueeze(-1) if scale.ndim else scale), rtol=1e-5)
    # eps = net(x): the score is the network's output over sigma
    column = sigma.unsqueeze(-1) if sigma.ndim else sigma
    assert torch.allclose(bare.score.double(), -x.double() / column, rtol=1e-4)
