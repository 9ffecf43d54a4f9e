"""The condition "grid": what the network is shown, against exact posteriors of Gaussian data, and what users may ask of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from ornstein import EDM, Contract, Denoiser, DenoisingLoss, Noise, Times, config, model, samplers
from ornstein.condition import GridCondition
from ornstein.evaluate import evaluate
from ornstein.files import InputError
from ornstein.operator import Matrix, Nonlinear, parse
from ornstein.system import System

F64 = torch.float64
SHAPE, D = (1, 4, 4), 16
CONTRACT = Contract(SHAPE, ("grey",), ("",), None, None, None, (3.0,), (2.0,), False, 1.0)
PROCESS = EDM(sigma_min=0.02, sigma_max=15.0)
PLACES = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
COVARIANCE = (-torch.cdist(PLACES, PLACES).square() / 4).exp() + 0.05 * torch.eye(D, dtype=F64)
MEAN = torch.linspace(-0.5, 0.5, D, dtype=F64)


def operator_of(text: str) -> Tensor:
    """The matrix (M, D) of an operator on the data, without what it does not measure."""
    matrix = parse(text, SHAPE, Noise(0)).matrix
    return matrix[matrix.any(1)]


def given_y(a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Gain K (U, D, M) and covariance (U, D, D) of x given y = A x + s·z for s (U,): mean m + K (y - A m); s = ∞ is no y."""
    silent = s.isinf()
    inner = a @ COVARIANCE @ a.T + torch.where(silent, 1.0, s)[:, None, None] ** 2 * torch.eye(len(a), dtype=F64)
    gain = torch.linalg.solve(inner, (a @ COVARIANCE).expand(len(s), *a.shape)).mT
    gain = torch.where(silent[:, None, None], 0.0, gain)
    return gain, COVARIANCE - gain @ a @ COVARIANCE


def smoother(covariance: Tensor, sigma: Tensor) -> Tensor:
    """C (C + σ² I)⁻¹ (U, D, D): the gain of x_t = x + σ·eps."""
    return torch.linalg.solve(covariance + sigma[:, None, None] ** 2 * torch.eye(D, dtype=F64), covariance).mT


class Exact(nn.Module):
    """The network of the exact E[x0 | x_t, y]: it reads y off the grid it is shown, and the level of its noise off `values`."""

    def __init__(self, a: Tensor, augmentation: float) -> None:
        super().__init__()
        self.a, self.augmentation = a, augmentation
        self.dummy = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
        sigma = (2 * c_noise.double()).exp()
        x_t = x.flatten(1).double() * (1 + sigma[:, None] ** 2).sqrt()
        assert cond is not None
        y = cond["grid"].flatten(1)[:, :D].double() @ self.a.T
        s = cond["values"][:, 0].double() * self.augmentation if "values" in cond else torch.zeros(len(x), dtype=F64)
        s = torch.where(cond.get("null", torch.zeros(len(x), dtype=torch.bool)), math.inf, s)
        levels, which = torch.stack([sigma, s], 1).unique(dim=0, return_inverse=True)
        gain, covariance = given_y(self.a, levels[:, 1])
        mean = MEAN + torch.einsum("bdm,bm->bd", gain[which], y - self.a @ MEAN)
        x0 = mean + torch.einsum("bde,be->bd", smoother(covariance, levels[:, 0])[which], x_t - mean)
        return x0.reshape(x.shape).to(x) + 0 * self.dummy


@pytest.mark.parametrize("text", ["down:2", "blur:gaussian,std=1"])
def test_half_precision_around_it_changes_nothing(text: str) -> None:
    """A network may train in bfloat16; what it is shown is what it will be shown in float32."""
    condition = GridCondition(CONTRACT, parse(text, SHAPE, Noise(0)), 0.5)
    x = Noise(0).normal((4, *SHAPE))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        shown = condition.training(x, Noise(1))["grid"]
    assert torch.equal(shown, condition.training(x, Noise(1))["grid"])


def system_of(text: str, augmentation: float = 0.0, dropout: float = 0.0) -> System:
    """A system of the Gaussian data with the exact network."""
    grid = GridCondition(CONTRACT, parse(text, SHAPE, Noise(0)), augmentation)
    return System(
        contract=CONTRACT,
        denoiser=Denoiser(Exact(operator_of(text), augmentation), PROCESS, predicts="x0"),
        loss_function=DenoisingLoss("x0", times=Times("log_normal", mean=0.0, std=1.0)),
        condition="grid",
        condition_dropout=dropout,
        grid=grid,
    )


def data(n: int, seed: int = 0) -> Tensor:
    """Gaussian data in their own units, (n, 1, 4, 4)."""
    z = Noise(seed).normal((n, D), stream="data", dtype=F64)
    return CONTRACT.decode((MEAN + z @ torch.linalg.cholesky(COVARIANCE).T).reshape(n, *SHAPE).float())


def optimum(a: Tensor, sigma: Tensor, s: Tensor) -> Tensor:
    """tr Var[x0 | x_t, y]/D for every sample: the least loss there is, (B,)."""
    _, covariance = given_y(a, s)
    return (covariance - smoother(covariance, sigma) @ covariance).diagonal(dim1=1, dim2=2).mean(1)


@pytest.mark.parametrize(
    ("text", "augmentation", "dropout"),
    [("down:2", 0.0, 1.0), ("down:4", 0.0, 0.0), ("down:2", 0.0, 0.0), ("mask:half", 0.0, 0.0), ("down:2", 1.0, 0.0),
     ("mask:half", 1.0, 0.0)],
)  # fmt: skip
def test_the_loss_is_the_posterior_variance(text: str, augmentation: float, dropout: float) -> None:
    n, system = 2500, system_of(text, augmentation, dropout)
    x = data(n)
    losses = system.loss({"x": x}, Noise(1), step=3).detach().double()
    t, _ = system.loss_function.times.draw(PROCESS, n, Noise(1), step=3, first=0, total=None)
    assert system.grid is not None
    told = system.grid.training(x, Noise(1), step=3)
    s = told["values"][:, 0].double() * augmentation if augmentation else torch.zeros(n, dtype=F64)
    s = torch.full_like(s, math.inf) if dropout else s
    exact = optimum(operator_of(text), PROCESS.moments(t)[1], s)
    assert float((losses / exact).mean()) == pytest.approx(1, abs=0.05)
    # the level matters where there is one: it must be the level that was added, sample by sample
    if augmentation:
        noisy = s > 0.5 * augmentation
        for part in (noisy, ~noisy):
            assert float((losses / exact)[part].mean()) == pytest.approx(1, abs=0.08)


def test_a_stronger_condition_lowers_the_loss() -> None:
    x = data(1000)
    losses = [
        float(system_of(text, s, dropout).loss({"x": x}, Noise(1)).detach().mean())
        for text, s, dropout in (("down:4", 0, 1.0), ("down:4", 0, 0), ("down:2", 1.0, 0), ("down:2", 0, 0), ("down:1", 0, 0))
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1.3 * losses[1] > 1.3 * losses[-2]
    assert losses[-1] < 1e-6


@pytest.mark.parametrize(("text", "level"), [("down:2", 0.0), ("down:2", 0.5), ("mask:half", 0.0)])
def test_draws_are_those_of_the_exact_posterior(text: str, level: float) -> None:
    cases, draws = 80, 20
    system = system_of(text, 0.5 if level else 0.0)
    assert system.grid is not None
    x, plan = data(cases, seed=5), samplers.dpm_solver_pp(PROCESS, calls=24, grid="karras")
    y = system.grid.measure(x)
    y = y + level * 2.0 * Noise(6).normal(y.shape)
    drawn = system.predict(y, draws=draws, noise_std=level * 2.0, sampler=plan, noise=Noise(7), batch_size=960)
    assert drawn.draws.shape == (cases, draws, *SHAPE)
    a = operator_of(text)
    own = y.flatten(1).double()[:, parse(text, SHAPE, Noise(0)).matrix.any(1)]
    model_y = (own - 3.0 * a.sum(1)) / 2.0
    gain, covariance = given_y(a, torch.tensor([level], dtype=F64))
    mean = MEAN + (model_y - a @ MEAN) @ gain[0].T
    exact = CONTRACT.decode(mean.reshape(cases, *SHAPE))
    variance = 4 * float(covariance.diagonal(dim1=1, dim2=2).mean())
    assert float((drawn.mean - exact).double().square().mean()) == pytest.approx(variance / draws, rel=0.25)
    assert drawn.spread() ** 2 == pytest.approx(variance, rel=0.06)
    # of the same data, so that little is left to chance
    expected = math.sqrt(float((exact - x).double().square().mean()) + variance / draws)
    assert drawn.skill(x) * math.sqrt(1 + 1 / draws) == pytest.approx(expected, rel=0.03)
    assert drawn.spread() / drawn.skill(x) == pytest.approx(1, abs=0.15)
    if text != "mask:half":  # what a mask keeps is known, and has no interval
        assert drawn.coverage(x) == pytest.approx(0.9, abs=0.035)
    # the mean of the draws beats one draw by sqrt(2/(1 + 1/n))
    single = float((drawn.draws[:, 0] - x).double().square().mean().sqrt())
    mean_error = float((drawn.mean - x).double().square().mean().sqrt())
    assert single / mean_error == pytest.approx(math.sqrt(2 / (1 + 1 / draws)), rel=0.1)


def test_a_case_is_the_same_alone() -> None:
    system = system_of("down:2", 0.5)
    assert system.grid is not None
    y = system.grid.measure(data(5))
    whole = system.predict(y, draws=3, sampler=4, noise=Noise(0)).draws
    alone = system.predict(y[2:4], draws=3, sampler=4, noise=Noise(0), first=2, batch_size=2).draws
    assert torch.allclose(whole[2:4], alone, atol=1e-4)
    assert float((whole[:, 0] - whole[:, 1]).abs().amax((1, 2, 3)).min()) > 0.05


def colour(shape: tuple[int, ...]) -> Contract:
    """The contract of three channels of 0 to 255."""
    return Contract(shape, ("r", "g", "b"), ("",) * 3, 0.0, 255.0, 256, (127.5,) * 3, (127.5,) * 3, True, 0.5)


@pytest.mark.parametrize("text", ["down:2", "down:4,method=bicubic", "blur:gaussian,std=1", "mask:box,size=4", "grey"])
@pytest.mark.parametrize("augmentation", [0.0, 0.4])
def test_training_and_sampling_show_the_same(text: str, augmentation: float) -> None:
    shape = (3, 8, 8)
    grid = GridCondition(colour(shape), parse(text, shape, Noise(0)), augmentation)
    x = 255 * Noise(3).uniform((6, *shape)).float()
    y = grid.measure(x)
    clean = grid.rows({"grid": y}, 6)
    assert clean["grid"].shape == (6, grid.channels, 8, 8)
    assert grid.channels == (6 if "mask" in text else 3)
    trained = grid.training(x, Noise(1), step=2, first=4)
    assert trained.keys() == clean.keys() == ({"grid", "values"} if augmentation else {"grid"})
    assert trained["grid"].shape == clean["grid"].shape
    if not augmentation:
        assert torch.equal(trained["grid"], clean["grid"])
        return
    level = trained["values"][:, 0] * augmentation
    assert bool((clean["values"] == 0).all())
    assert 0 < float(level.min()) < float(level.max()) < augmentation
    added = (trained["grid"] - clean["grid"]) / level.reshape(-1, 1, 1, 1)
    z = Noise(1).normal(y.shape, stream="augmentation", step=2, first=4)
    assert torch.allclose(added[:, :3], grid.lift(z), atol=1e-3)
    # what a user adds in the data's own units and tells is what training added
    told = grid.rows({"grid": y + 127.5 * level.reshape(-1, 1, 1, 1) * z, "noise_std": 127.5 * level}, 6)
    assert torch.allclose(told["grid"], trained["grid"], atol=1e-4)
    assert torch.allclose(told["values"], trained["values"], atol=1e-5)
    later = grid.training(x[2:], Noise(1), step=2, first=6)
    assert all(torch.allclose(later[name], trained[name][2:], atol=1e-6) for name in trained)
    assert not torch.allclose(grid.training(x, Noise(1), step=3, first=4)["values"], trained["values"])


def test_what_is_shown_of_what_has_no_grid() -> None:
    contract = colour((3, 4, 4))
    matrix = Matrix(Noise(0).normal((5, 48), dtype=F64), (3, 4, 4))
    shown = GridCondition(contract, matrix).rows({"grid": torch.ones(5)}, 2)["grid"]
    assert torch.allclose(matrix(contract.decode(shown)), torch.ones(2, 5), atol=1e-3)
    with pytest.raises(InputError, match="not linear"):
        GridCondition(contract, Nonlinear((3, 4, 4), lambda x: x.flatten(1)))
    with pytest.raises(InputError, match="is made for data of shape"):
        GridCondition(contract, parse("down:2", (3, 8, 8), Noise(0)))
    table = replace(contract, shape=(3,))
    with pytest.raises(InputError, match="have no grid"):
        GridCondition(table, Matrix(torch.eye(3)))


def test_levels_fill_their_range() -> None:
    grid = GridCondition(CONTRACT, parse("down:2", SHAPE, Noise(0)), 0.8)
    values = grid.training(data(2000), Noise(0))["values"][:, 0]
    assert float(values.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(values.std()) == pytest.approx(12**-0.5, abs=0.02)


@pytest.mark.parametrize(
    ("cond", "words"),
    [
        ({"grid": torch.zeros(1, 3, 3)}, "measures data of shape (1, 4, 4) as (samples, 1, 2, 2)"),
        ({"grid": torch.zeros(3, 1, 2, 2)}, "cond['grid'] has 3 values for n=2 samples"),
        ({"grid": torch.full((1, 2, 2), math.nan)}, "4 NaN or infinite"),
        ({"grid": "low"}, "cond['grid']='low' is not numbers"),
        ({"grid": [[1.0], [1.0, 2.0]]}, "is not numbers of one shape"),
        ({"label": 1}, "cond has 'label', but this model takes 'grid'"),
        ({"noise_std": 0.1}, "cond lacks 'grid'"),
        ({"grid": torch.zeros(1, 2, 2), "noise_std": -0.1}, "noise_std=-0.1"),
        ({"grid": torch.zeros(1, 2, 2), "noise_std": math.nan}, "noise_std=nan"),
        ({"grid": torch.zeros(1, 2, 2), "noise_std": [0.1, 3.0]}, "noise_std=3 is more noise than this model was trained"),
        ({"grid": torch.zeros(1, 2, 2), "noise_std": "much"}, "cond['noise_std']='much' is not numbers"),
    ],
)  # fmt: skip
def test_wrong_conditions(cond: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        system_of("down:2", 0.5).sample(2, cond=cond, noise=Noise(0))  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_noise_that_cannot_be_told() -> None:
    with pytest.raises(InputError, match="trained to bear: 0;"):
        system_of("down:2").sample(1, cond={"grid": torch.zeros(1, 2, 2), "noise_std": 0.1}, noise=Noise(0))
    winds = Contract((2, 4, 4), ("u", "v"), ("", ""), None, None, None, (0.0, 0.0), (1.0, 2.0), False, 1.0)
    grid = GridCondition(winds, parse("down:2", (2, 4, 4), Noise(0)), 0.5)
    with pytest.raises(InputError, match="channels of different units"):
        grid.rows({"grid": torch.zeros(2, 2, 2), "noise_std": 0.1}, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["condition=grid"], "condition: grid and grid: {operator: …} go together"),
        (["grid={operator: 'down:2'}"], "go together"),
        (["condition=grid", "grid={operator: 'down:3'}"], "must divide the sides"),
        (["condition=grid", "grid={operator: 'up:2'}"], "operator='up:2'"),
        (["condition=grid", "grid={operator: 'down:2', augmentation: -1}"], "augmentation"),
    ],
)
def test_wrong_recipes(settings: list[str], words: str) -> None:
    contract = replace(colour((1, 8, 8)), channels=("grey",), units=("",), shift=(127.5,), scale=(127.5,))

    def build() -> None:
        model.build(tiny.recipe("condition=null", *settings), contract)

    with pytest.raises(InputError) as caught:
        build()
    assert words in str(caught.value)


def test_the_network_takes_what_the_recipe_says() -> None:
    contract = replace(colour((1, 8, 8)), channels=("grey",), units=("",), shift=(127.5,), scale=(127.5,))
    for setting, accepted in (("0.5", ("values", "grid", "null")), ("0", ("grid", "null"))):
        recipe = config.override(config.load_recipe("superres-digits"), [f"grid.augmentation={setting}"])
        system = model.build(recipe, contract)
        assert system.net.condition.accepted == accepted  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny model of digits given their 4x4 means."""
    out = tmp_path_factory.mktemp("grid") / "model"
    tiny.trained(tiny.recipe("condition=grid", "grid={operator: 'down:2', augmentation: 0.5}"), out)
    return out


def test_a_saved_model_is_the_same_and_sees_its_condition(trained: Path) -> None:
    system = model.load(trained)
    assert isinstance(system, System)
    training, held = tiny.digits(model.read_recipe(trained))
    x = held.batch(range(6))["x"]
    y = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    assert system.grid is not None
    assert torch.allclose(system.grid.measure(x), y, atol=1e-4)
    one = system.predict(y, draws=2, sampler=3, noise=Noise(0)).draws
    other = system.predict(y.flip(0), draws=2, sampler=3, noise=Noise(0)).draws
    noisy = system.predict(y, draws=2, sampler=3, noise=Noise(0), noise_std=2.0).draws
    assert float((one - other).abs().max()) > 0.1
    assert float((one - noisy).abs().max()) > 1e-3
    again = model.load(trained)
    assert isinstance(again, System)
    assert torch.equal(one, again.predict(y, draws=2, sampler=3, noise=Noise(0)).draws)
    records = evaluate(system, training, held, n=20, sampler=2)
    assert {"frechet_distance", "recall"} <= {record.metric for record in records}
    guided = system.predict(y, draws=1, sampler=3, noise=Noise(0), guidance=2.0)
    assert float((guided.draws[:, 0] - one[:, 0]).abs().max()) > 1e-3


def test_predict_is_for_models_that_are_shown_measurements(tiny_model: Path) -> None:
    system = model.load(tiny_model)
    assert isinstance(system, System)
    with pytest.raises(InputError, match="condition: grid"):
        system.predict(torch.zeros(1, 1, 4, 4), noise=Noise(0))
    with pytest.raises(InputError, match="draws=0"):
        system_of("down:2").predict(torch.zeros(1, 1, 2, 2), draws=0, noise=Noise(0))


def test_the_command_line_takes_a_measurement(trained: Path, run: tiny.Run, tmp_path: Path) -> None:
    from PIL import Image

    low = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(low).save(tmp_path / "low.png")
    np.save(tmp_path / "two.npy", np.stack([low, low[::-1]]).astype(np.float32))
    ended = run("sample", trained, "-n", 3, "--cond", "grid=low.png", "--out", "a.npz", "--quiet")
    assert ended.code == 0, ended.err
    with np.load(tmp_path / "a.npz") as found:
        assert found["samples"].shape == (3, 1, 8, 8)
        assert np.array_equal(found["grid"], np.broadcast_to(low, (3, 1, 4, 4)))
    both = ["--cond", "grid=two.npy", "--cond", "noise_std=1.5"]
    assert run("sample", trained, "-n", 4, *both, "--calls", 3, "--out", "b.npz", "--quiet").code == 0
    with np.load(tmp_path / "b.npz") as found:
        assert np.array_equal(found["grid"][1:3, 0], np.stack([low[::-1], low]))
    system = model.load(trained)
    assert isinstance(system, System)
    y = torch.from_numpy(low).float()[None]
    expected = system.sample(3, cond={"grid": y}, noise=Noise(0))
    with np.load(tmp_path / "a.npz") as found:
        assert np.array_equal(found["samples"], system.contract.quantise(expected))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("grid=wide.png", "measures data of shape (1, 8, 8) as (samples, 1, 4, 4)"),
        ("grid=nan.npy", "NaN"),
        ("grid=text.png", "text.png"),
        ("grid=absent.png", "absent.png"),
        ("label=3", "takes 'grid'"),
    ],
)
def test_wrong_measurements_on_the_command_line(trained: Path, run: tiny.Run, tmp_path: Path, value: str, words: str) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "wide.png")
    np.save(tmp_path / "nan.npy", np.full((1, 4, 4), np.nan, np.float32))
    (tmp_path / "text.png").write_text("no picture")
    ended = run("sample", trained, "-n", 2, "--cond", value, "--calls", 2, "--out", "x.npz", "--quiet")
    assert ended.code == 2
    assert words in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not (tmp_path / "x.npz").exists()
