"""What the notes' figures show is so: numbers in titles, arrows, clouds and curves are those of the laws they speak of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gallery_cases import MODES, arrows, cheap_scene, cosines, offsets, percents, two_modes
from ornstein import process
from ornstein.figures import canvas, gallery, vectors
from ornstein.figures.gallery import Scene
from ornstein.noise import Noise
from ornstein.process import VE, VP, Chain, Cosine, GaussianProcess, Rectified, chain
from ornstein.samplers import ALL, sample
from ornstein.testing import GaussianDenoiser, MixtureDenoiser


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return cheap_scene(monkeypatch)


# --- three rows


def test_three_rows_show_the_process_the_way_back_and_the_drift() -> None:
    law = two_modes(VP())
    data = law.sample(3000, Noise(1)).float()
    sigma_data = float(data.std())
    figure = vectors.three_rows(law, data, Noise(2), sigma_data=sigma_data, slices=4)
    grid = np.array(figure.axes).reshape(3, 5)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["forward →", "reverse ←", "drift of the reverse "]
    times = [None, *reversed(vectors.path_back(law, (1, 2), Noise(2), sigma_data, 4)[0])]
    titles = [axes.get_title() for axes in grid[0]]
    assert titles[0] == "data, t = 0"
    assert titles[-1] == "t = 1, noise"
    assert titles[1:-1] == [f"t = {t:.2g}" for t in times[1:-1]]
    for column, t in enumerate(times):
        alpha, sigma = (float(m) for m in law.process.moments(t))
        spread = math.hypot(alpha, sigma / sigma_data)
        noise = offsets(grid[0, column]) * spread - alpha * data.double()
        if t is None:
            assert float(noise.abs().max()) < 1e-6
            continue
        assert float(noise.mean(0).abs().max()) < 3 * sigma / math.sqrt(len(data))
        assert float(noise.square().mean()) == pytest.approx(sigma**2, rel=3 / math.sqrt(len(data)))
        assert abs(float(np.corrcoef(noise[:, 0], data[:, 0])[0, 1])) < 3 / math.sqrt(len(data))
        back = offsets(grid[1, column]) * spread
        mean, forward = float(back.mean()), alpha * float(data.mean())
        assert mean == pytest.approx(forward, abs=5 / math.sqrt(len(data)))
        assert float(back.square().mean()) == pytest.approx(float(((alpha * data) ** 2).mean()) + sigma**2, rel=0.1)
    ends = offsets(grid[1, 0])
    nearest = torch.cdist(ends, MODES)
    assert float(nearest.amin(1).max()) < 0.6
    assert float((nearest.argmin(1) == 0).double().mean()) == pytest.approx(0.4, abs=0.04)
    for axes in grid[2]:
        assert len(arrows(axes)[0]) > 200


@pytest.mark.parametrize("chosen", [VP(), VE(0.01, 30.0), Cosine(), Rectified()])
def test_the_way_back_is_the_exact_flow_at_times_even_to_the_eye(chosen: GaussianProcess) -> None:
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    law = GaussianDenoiser(torch.tensor([0.3, -0.2]), covariance, chosen)
    times, states = vectors.path_back(law, (50, 2), Noise(3), 0.9, 5)
    assert len(states) == 6
    assert times[0] == 1.0
    angles = [math.atan(float(chosen.log_ratio(t).exp()) / 0.9) for t in times]
    roots = np.sqrt(angles)
    assert np.diff(roots) == pytest.approx([-roots[0] / 5] * 4, rel=0.01)
    later = times[1]  # from the first time that has some signal on
    for t, x in zip((*times[1:], None), states[1:], strict=True):
        exact = law.flow(states[1], later, chosen.t_min if t is None else t)
        assert float((x - exact).abs().max()) < 0.06
    widest = float(chosen.moments(torch.tensor(1.0, dtype=torch.float64))[1])
    assert float(states[0].std()) == pytest.approx(widest, rel=0.3)


@pytest.mark.parametrize("chosen", [VP(), VE(0.01, 10.0), Rectified()])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_normal_data_have_no_drift(chosen: GaussianProcess, t: float) -> None:
    axes = canvas.blank(3, 3).subplots()
    normal = GaussianDenoiser(torch.zeros(2), 0.36 * torch.eye(2), chosen)
    vectors.drift(axes, normal, t, 0.6)
    places, _, size = arrows(axes)
    assert float(places.abs().max()) > 2
    assert size is not None
    assert float(size.max()) < 1e-6
    other = canvas.blank(3, 3).subplots()
    vectors.drift(other, normal, t, 0.8)  # told a deviation that is too large, normal data seem to drift inwards
    _, field, size = arrows(other)
    assert size is not None
    assert float(size.max()) > 1e-3
    assert float((field * places).sum(1).max()) < 1e-6


def test_the_drift_points_to_the_data() -> None:
    axes = canvas.blank(3, 3).subplots()
    law = two_modes(VP())
    vectors.drift(axes, law, 0.05, 1.0)
    places, field, size = arrows(axes)
    distance, nearest = torch.cdist(places, MODES).sort(1)
    clear = (distance[:, 0] > 0.4) & (distance[:, 1] - distance[:, 0] > 0.5)
    assert int(clear.sum()) > 150
    towards = MODES[nearest[:, 0]] - places
    assert float(cosines(field[clear], towards[clear]).min()) > 0.95
    assert size is not None
    x0 = law(places * vectors.deviation(law.process, 0.05, 1.0), 0.05).x0
    alpha = float(law.process.moments(0.05)[0])
    gone = x0 - alpha / vectors.deviation(law.process, 0.05, 1.0) * places
    assert torch.allclose(size, gone.norm(dim=1), rtol=1e-3, atol=1e-4)


def test_deviations_share_one_scale() -> None:
    assert vectors.deviation(VP(), None, 0.5) == 1
    for chosen in (VP(), VE(0.01, 10.0)):
        alpha, sigma = (float(m) for m in chosen.moments(0.6))
        assert vectors.deviation(chosen, 0.6, 0.5) == pytest.approx(math.sqrt(alpha**2 * 0.25 + sigma**2) / 0.5)


# --- what the others say


def test_shades_and_arrows_are_where_the_density_and_the_score_are(scene: Scene) -> None:
    figure = gallery.score_field(scene)
    for axes, sigma in zip(figure.axes, (0.1, 0.4, 1.2), strict=True):
        assert axes.get_title() == f"noise sigma = {sigma:g}"
        places, field, _ = arrows(axes)
        joint = math.log(0.4), math.log(0.6)
        variance = 0.01 + sigma**2
        away = places.unsqueeze(1) - MODES
        weight = (torch.tensor(joint) - away.square().sum(2) / (2 * variance)).softmax(1)
        score = -(weight.unsqueeze(2) * away).sum(1) / variance
        assert float(cosines(field, score).min()) > 0.999
        shade = np.asarray(axes.images[0].get_array())
        row, column = np.unravel_index(shade.argmax(), shade.shape)
        peak = torch.tensor([column, row]) / (len(shade) - 1) * 6.4 - 3.2
        if sigma < 1:
            assert float((peak - MODES[1]).norm()) < 0.1


def test_between_the_modes_the_score_says_nothing_of_their_weights(scene: Scene) -> None:
    law, plain, annealed = gallery.trap_runs(scene, 1500)
    assert law.weights.tolist() == [0.2, 0.8]
    assert (len(plain), len(annealed)) == (31, 302)
    left = [[float((x.sum(1) < 0).double().mean()) for x in runs] for runs in (plain, annealed)]
    assert left[0][0] == pytest.approx(0.5, abs=0.04)
    assert left[0][-1] == pytest.approx(0.5, abs=0.04)
    assert left[1][-1] == pytest.approx(0.2, abs=0.04)
    for runs in (plain, annealed):  # both have found the modes
        centres = torch.tensor([[-5.0, -5.0], [5.0, 5.0]], dtype=torch.float64)
        apart = torch.cdist(runs[-1].double(), centres).amin(1)
        assert float(apart.square().mean()) == pytest.approx(2, rel=0.25)
    figure = gallery.score_trap(scene)
    assert percents(figure.axes[1]) == [round(100 * left[0][-1]), round(100 * (1 - left[0][-1]))]
    assert percents(figure.axes[2]) == [round(100 * left[1][-1]), round(100 * (1 - left[1][-1]))]
    assert percents(figure.axes[0])[0] == pytest.approx(20, abs=4)
    curves = {line.get_label(): line for line in figure.axes[3].lines}
    assert list(curves["plain"].get_ydata()) == left[0]
    assert list(curves["annealed"].get_ydata()) == left[1]
    assert (max(curves["plain"].get_xdata()), max(curves["annealed"].get_xdata())) == (300, 301)
    assert list(curves["truth"].get_ydata()) == [0.2, 0.2]


def test_paths_of_the_flow_never_cross_and_those_of_the_equation_do(scene: Scene) -> None:
    figure = gallery.sde_and_flow(scene, paths=9)
    wander, flow = (np.stack([line.get_ydata() for line in axes.lines]) for axes in figure.axes)
    assert wander.shape == flow.shape == (9, 301)
    assert np.array_equal(wander[:, 0], flow[:, 0])
    for axes in figure.axes:
        times = np.asarray(axes.lines[0].get_xdata())
        assert (times[0], times[-1]) == (1, 0)
        assert bool((np.diff(times) < 0).all())
    assert bool((np.diff(flow, axis=0) > 0).all())
    assert not bool((np.diff(wander, axis=0) > 0).all())
    assert np.abs(np.diff(wander, axis=1)).mean() > 3 * np.abs(np.diff(flow, axis=1)).mean()


def test_the_distances_that_are_written_are_those_to_the_exact_flow(scene: Scene) -> None:
    figure = gallery.trajectories(scene, starts=10)
    panels = np.array(figure.axes).reshape(3, 5)
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["5 calls", "10 calls", "50 calls"]
    names = [axes.get_title().split(",")[0] for axes in panels[0]]
    angle = torch.arange(8) * (math.pi / 4)
    ring = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
    law = MixtureDenoiser(ring, torch.full((8,), 0.12), torch.full((8,), 0.125, dtype=torch.float64), VP())
    start = scene.noise.normal((10, 2), stream="prior", dtype=torch.float64)
    exact = law.flow(start, 1.0, None)
    for column, name in enumerate(names):
        written = []
        for row, calls in enumerate((5, 10, 50)):
            axes, plan = panels[row, column], ALL[name](VP(), calls)
            assert axes.get_title().endswith("draws its own noise") == plan.stochastic
            assert torch.allclose(offsets(axes), exact, atol=1e-3)  # the rings
            if not plan.stochastic:
                error = float((sample(law, plan, start=start, noise=scene.noise) - exact).square().sum(1).mean().sqrt())
                written.append(float(axes.get_title().split()[-1]))
                assert written[-1] == pytest.approx(error, rel=0.06)
        assert not written or written[2] < 0.3 * written[0]


def test_schedules_are_those_of_the_processes(scene: Scene) -> None:
    signal, noise, rate, ratio = gallery.schedules(scene).axes
    known: dict[str, GaussianProcess] = {"VP": VP(), "VE": VE(0.01, 50.0), "cosine": Cosine(), "rectified": Rectified(),
                                         "sub-VP": process.SubVP(), "chain, linear": chain("linear")}  # fmt: skip
    for name, chosen in known.items():
        lines = [next(line for line in axes.lines if line.get_label() == name) for axes in (signal, noise, rate, ratio)]
        assert len({line.get_color() for line in lines}) == 1
        t = torch.from_numpy(np.asarray(lines[0].get_xdata(), np.float64))
        alpha, sigma = chosen.moments(t)
        expected = [alpha, sigma, None if isinstance(chosen, Chain) else chosen.diffusion(t) ** 2, 2 * (alpha / sigma).log()]
        for line, values in zip(lines, expected, strict=True):
            if values is not None:
                assert np.asarray(line.get_ydata()) == pytest.approx(values.numpy(), rel=1e-6, abs=1e-9)
        if isinstance(chosen, Chain):
            assert np.asarray(lines[2].get_ydata()) == pytest.approx(1000 * np.linspace(1e-4, 0.02, 1000))
    assert len(signal.lines) == 7


def test_the_shares_of_annealing_are_those_of_its_runs(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, met, short = [], [], gallery.wells_runs

    def watched(*arguments: object) -> object:
        found, wells, grid = short(*arguments)  # type: ignore[arg-type]
        for kept, places in ((shares, found.states[-1]), (met, found.best)):
            kept.append(float((torch.cdist(places, wells).argmin(1) == 0).double().mean()))
        return found, wells, grid

    monkeypatch.setattr(gallery, "wells_runs", watched)
    figure = gallery.annealing(scene, runs=30)
    for axes, steps, share in ((figure.axes[0], "30", shares[0]), (figure.axes[1], "30,000", shares[-1])):
        assert axes.get_title() == f"{steps} steps of cooling: {100 * share:.0f} % end in the lowest well"
    curves = {line.get_label(): list(line.get_ydata()) for line in figure.axes[2].lines}
    assert curves == {"end in it": shares, "met it on the way": met}
    assert all(a <= b + 0.35 for a, b in zip(shares, met, strict=True))
    assert figure.axes[2].get_title() == "share of 30 runs, lowest well"
