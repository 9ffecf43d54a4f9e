"""Cold diffusion: what algorithm 2 promises for any restorer; a system that trains, resumes, restores and generates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tiny
from ornstein import config, model
from ornstein.config import Recipe
from ornstein.files import InputError
from ornstein.image.cold import RULES, SAMPLERS, ColdSystem, Restoration, restoration, restore
from ornstein.image.data import from_arrays
from ornstein.noise import Noise
from ornstein.process import VP
from ornstein.process.cold import COLD, Custom, Degradation, Noising, Snow
from ornstein.samplers import ddim, sample
from ornstein.testing import MixtureDenoiser
from ornstein.train import train
from tiny import Ended, Run

F64 = torch.float64
SMALL = (
    "net.options={width: 8, multipliers: [1], blocks: 1, attention: [false]}", "process.options={steps: 4, size: 3, std: 1.0}",
    "sampler={name: improved, calls: 4, options: {components: 2, dimensions: 20}}",
    "train={steps: 24, batch: 32, learning_rate: 1.0e-3, warmup: 4, ema: 0.9, validate_every: 12}",
)  # fmt: skip


def recipe(*settings: str) -> Recipe:
    return config.override(config.load_recipe("cold-digits"), [*SMALL, *settings])


def end(process: Degradation, x: Tensor, restorer: Callable[[Tensor, Tensor], Tensor], sampler: Restoration) -> Tensor:
    """What a sampler makes of data degraded with states of their own."""
    eps = process.state(x.shape, Noise(1))
    eps = None if eps is None else eps.double()
    return list(restore(restorer, process, process.degrade(x, sampler.levels[0], eps), sampler, eps))[-1][1]


# --- identities


def test_improved_returns_x0_for_any_restorer_and_naive_what_it_says_last() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(2, 2, 3, padding=1, dtype=F64)
    said: list[Tensor] = []

    def restorer(x: Tensor, s: Tensor) -> Tensor:
        said.append(net(x).detach() * (1 + s.reshape(-1, 1, 1, 1)))
        return said[-1]

    x = Noise(0).normal((3, 2, 5, 6), dtype=F64)
    process = Custom(12, lambda x0, s, e: x0 + s * e, random=True)
    for calls in (12, 5, 1):
        found = end(process, x, restorer, restoration("improved", 12, calls))
        assert float((found - x).abs().max()) < 1e-11
        assert float((said[-1] - x).abs().max()) > 0.5  # which was not the restorer's merit
    for calls in (12, 5):
        found = end(process, x, restorer, restoration("naive", 12, calls))
        assert torch.equal(found, said[-1])
        assert float((found - x).abs().max()) > 0.5
    direct = end(process, x, restorer, restoration("direct", 12))
    eps = process.state(x.shape, Noise(1)).double()  # type: ignore[union-attr]
    assert torch.equal(direct, restorer(x + 12 * eps, torch.full((3,), 12)))


@pytest.mark.parametrize("calls", [10, 4])
def test_improved_is_ddim_for_gaussian_noise(calls: int) -> None:
    law, process = VP(), Noising(10, VP())
    oracle = MixtureDenoiser(torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), torch.tensor([0.3, 0.1]), torch.tensor([0.4, 0.6]), law)
    sampler = restoration("improved", 10, calls)
    start = Noise(2).normal((6, 2), dtype=F64)
    times = tuple(s / 10 for s in sampler.levels[:-1])
    seen: list[Tensor] = []
    truth = sample(oracle, ddim(law, len(times), times), start=start, noise=Noise(0), after=lambda x, step: seen.append(x) or x)
    states = list(restore(lambda x, s: oracle(x, float(s[0]) / 10).x0, process, start, sampler))
    assert [s for s, _ in states] == list(sampler.levels)
    for (_, ours), theirs in zip(states[1:], seen, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-12
    assert torch.allclose(states[-1][1], truth, rtol=0, atol=1e-12)
    if calls == 10:  # noise that is not inferred but kept is another sampler
        kept = Custom(10, lambda x0, s, e: law.corrupt(x0, s / 10, e), random=True)
        other = list(restore(lambda x, s: oracle(x, float(s[0]) / 10).x0, kept, start, sampler, start))[-1][1]
        assert float((other - truth).abs().max()) > 1e-3


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("degradation", COLD)
def test_a_perfect_restorer_reconstructs(degradation: str, name: str) -> None:
    process = COLD[degradation]()
    x = Noise(0).uniform((2, 3, 16, 16)) * 2 - 1
    for calls in (None, 2):
        found = end(process, x, lambda state, s: x, restoration(name, process.steps, calls))
        assert float((found - x).abs().max()) < 1e-11


def test_the_states_on_the_way_are_the_degraded_data() -> None:
    process, x = Snow(6), Noise(0).uniform((2, 1, 8, 8)) * 2 - 1
    eps = Noise(1).normal(x.shape, dtype=F64)
    for rule in RULES:
        states = restore(lambda state, s: x, process, process.degrade(x, 6, eps), Restoration(rule, (6, 4, 1, 0)), eps)
        for s, state in states:
            assert torch.allclose(state, process.degrade(x, s, eps), rtol=0, atol=1e-12)


def test_samplers_are_values() -> None:
    assert restoration("improved", 7, 3) == Restoration("improved", (7, 5, 2, 0))
    assert restoration("naive", 3, 9).levels == (3, 2, 1, 0)
    assert restoration("direct", 9) == Restoration("naive", (9, 0))
    assert [restoration(name, 4).name for name in SAMPLERS] == ["improved, 4 steps", "naive, 4 steps", "direct"]
    for levels in ((3, 2, 1), (3, 3, 0), (1, 2, 0), ()):
        with pytest.raises(ValueError, match="must fall strictly, down to 0"):
            Restoration("naive", levels)
    with pytest.raises(ValueError, match="rule='best' is not one of"):
        Restoration("best", (1, 0))


# --- the system


def made(*settings: str, process: Degradation | None = None, channels: int = 1) -> ColdSystem:
    """A fresh system on random images, with its network's last layer awake."""
    images = np.random.default_rng(0).integers(0, 256, (40, channels, 8, 8)).astype(np.uint8)
    data = from_arrays(images)
    system = model.build(recipe(*settings), data.contract, process)
    assert isinstance(system, ColdSystem)
    torch.manual_seed(1)
    nn.init.normal_(system.net.net.head.weight, std=0.1)  # type: ignore[union-attr]
    system.begin(data.batch(range(40))["x"], Noise(0))
    return system


def batch(n: int, channels: int = 1) -> dict[str, Tensor]:
    return {"x": Noise(5).uniform((n, channels, 8, 8)).float() * 255}


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_loss_by_hand(norm: str) -> None:
    system = made(f"loss.objective={norm}", "process={name: snow, options: {steps: 4}}")
    data = batch(8)
    losses = system.loss(data, Noise(3), step=7).detach()
    x0 = system.contract.encode(data["x"])
    seen = []
    for i in range(8):
        u = (float(Noise(3).uniform((1,), stream="time", step=7)) + i / 8) % 1
        s = 1 + int(u * 4)
        seen.append(s)
        x_s = system.process.degrade(x0[i : i + 1], s, Noise(3).normal((1, 1, 8, 8), stream="state", step=7, first=i))
        off = system.net(x_s, torch.tensor([s])).detach() - x0[i : i + 1]
        want = off.abs().mean() if norm == "l1" else off.square().mean()
        assert float(losses[i].detach()) == pytest.approx(float(want), rel=1e-5)
    assert sorted(seen) == [1, 1, 2, 2, 3, 3, 4, 4]  # every severity its share, 0 never
    parts = [system.loss({"x": data["x"][k : k + 4]}, Noise(3), step=7, first=k, total=8) for k in (0, 4)]
    assert torch.allclose(torch.cat(parts), losses, rtol=1e-5)


@pytest.mark.parametrize("name", COLD)
def test_every_degradation_learns_saves_restores_and_generates(name: str, tmp_path: Path) -> None:
    channels = 3 if name == "desaturate" else 1
    chosen = recipe(f"process={{name: {name}, options: {{steps: 3}}}}" if name != "blur" else "train.seed=0")
    system = made(f"process={{name: {name}, options: {{steps: 3}}}}" if name != "blur" else "train.seed=0", channels=channels)
    model.save(tmp_path / "m", chosen, system)
    loaded = model.load(tmp_path / "m")
    assert isinstance(loaded, ColdSystem)
    assert loaded.process == system.process
    assert model.read_recipe(tmp_path / "m").process.name == name
    x = batch(5, channels)["x"]
    degraded, eps = loaded.degrade(x, Noise(4))
    for sampler in (*SAMPLERS, 2, None):
        whole = loaded.restore(degraded, sampler=sampler, eps=eps)
        assert whole.shape == x.shape
        parts = loaded.restore(degraded, sampler=sampler, eps=eps, batch_size=2)
        assert torch.allclose(parts, whole, atol=1e-2)  # of 255
        assert torch.allclose(system.restore(degraded, sampler=sampler, eps=eps), whole, atol=1e-2)
        assert not torch.allclose(whole, degraded, atol=1.0)
    drawn = loaded.draw(5, noise=Noise(6))
    assert drawn.calls.tolist() == [min(4, loaded.process.steps)] * 5
    assert torch.allclose(loaded.sample(5, noise=Noise(6), batch_size=2), drawn.x0, atol=1e-2)
    assert torch.allclose(loaded.sample(2, noise=Noise(6), first=3), drawn.x0[3:], atol=1e-2)
    assert not torch.allclose(loaded.sample(5, noise=Noise(7)), drawn.x0, atol=1.0)


def test_end_states_are_learned_from_data_with_a_state_each(monkeypatch: pytest.MonkeyPatch) -> None:
    system, x = made("process={name: snow, options: {steps: 4}}"), batch(70)["x"]  # more than one chunk
    seen: list[Tensor] = []
    monkeypatch.setattr(system.net.start, "fit", lambda ends, seed: seen.append(ends))
    system.begin(x, Noise(0))
    eps = system.process.state(x.shape, Noise(0))
    assert torch.allclose(seen[0], system.process.degrade(system.contract.encode(x), 4, eps), atol=1e-6)


def test_a_lower_level_is_restored_from_there() -> None:
    system = made()
    x = batch(3)["x"]
    degraded, eps = system.degrade(x, Noise(0), level=2)
    assert eps is None
    assert torch.allclose(system.contract.encode(degraded), system.process.degrade(system.contract.encode(x), 2), atol=1e-5)
    states = restore(system.net, system.process, system.contract.encode(degraded), restoration("improved", 2))
    with torch.no_grad():
        want = system.contract.decode(list(states)[-1][1])
    assert torch.allclose(system.restore(degraded, level=2), want, atol=1e-2)
    assert not torch.allclose(system.restore(degraded), want, atol=0.1)


def test_grey_levels_that_drown_what_is_left_are_refused() -> None:
    fine, images = made("sampler.options.noise_std=1.0e-6"), batch(3)["x"]
    degraded, _ = fine.degrade(images, Noise(0))
    assert fine.restore(degraded).shape == images.shape
    with pytest.raises(InputError, match=r"whole grey levels, rounded by 0\.0023.*down to noise_std=1e-06.*noise_std=0\.005"):
        fine.restore(degraded.round())
    assert made("sampler.options.noise_std=0.002").restore(degraded.round()).shape == images.shape
    masked = made("process={name: mask, options: {steps: 3}}", "sampler.options.noise_std=0")
    hidden, eps = masked.degrade(images.round(), Noise(0))
    assert masked.restore(hidden.round(), eps=eps).shape == images.shape


def test_states_are_kept_in_double_precision() -> None:
    """What a step rounds in float32 the inverse of the blur enlarges; samples are float32 again."""
    system = made()
    seen: list[torch.dtype] = []
    system.net.register_forward_pre_hook(lambda net, arguments: seen.append(arguments[0].dtype))
    assert system.sample(2, noise=Noise(0)).dtype == torch.float32
    assert seen == [F64] * 4


def test_ones_own_degradation_is_given_again_on_loading(tmp_path: Path) -> None:
    own = Custom(4, lambda x, s, eps: x * (1 - s / 4))
    system = made(process=own)
    model.save(tmp_path / "m", recipe(), system)
    with pytest.raises(InputError, match="degradation of its author's own"):
        model.load(tmp_path / "m")
    loaded = model.load(tmp_path / "m", process=own)
    assert torch.allclose(loaded.sample(3, noise=Noise(0)), system.sample(3, noise=Noise(0)), atol=1e-2)
    with pytest.raises(InputError, match="VP is no degradation"):
        model.load(tmp_path / "m", process=VP())


def test_without_training_the_residual_restorer_says_what_its_input_says_by_itself() -> None:
    system = model.build(recipe(), made().contract)
    assert isinstance(system, ColdSystem)
    x = batch(2)["x"]
    undone = system.process.undo(system.contract.encode(x), system.process.steps, system.net.start.noise_std)
    assert torch.allclose(system.restore(x, sampler="direct"), system.contract.decode(undone), atol=1e-3)
    plain = model.build(recipe("predicts=x0"), system.contract)
    assert isinstance(plain, ColdSystem)
    assert torch.allclose(plain.restore(x, sampler="direct"), torch.full_like(x, 127.5), atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["process.name=edm", "process.options={}"], "process.name='edm' is not one of blur, mask"),
        (["process.options.foo=1"], "process.options of blur"),
        (["process.options.std=-1"], "process.options of blur: std=-1 must be positive"),
        (["process={name: desaturate, options: {}}"], "process.options: weights='luma' is for red, green and blue"),
        (["process={name: downsample, options: {steps: 9}}"], "process.options: steps=9 is more than the 3 halvings"),
        (["predicts=eps"], "predicts='eps' is not one of x0, residual"),
        (["loss.objective=denoising"], "loss.objective='denoising' is not one of l1, l2"),
        (["loss.weighting=edm"], "loss says more"),
        (["sampler.name=ddim"], "sampler='ddim' is not one of improved, naive, direct"),
        (["sampler.clip=true"], "sampler says more"),
        (["sampler.options.components=0"], "sampler.options: components=0"),
        (["sampler.options.foo=0"], "sampler.options"),
        (["condition=label"], "condition='label' is not for cold diffusion"),
        (["learned_variance=true"], "learned_variance=True is not for cold diffusion"),
        (["data.flip=true"], "data.flip=True is not for cold diffusion"),
        (["net.name=mlp"], "net.name='mlp' is not for images"),
    ],
)
def test_a_recipe_that_cannot_be_built_is_refused_in_one_line(settings: list[str], words: str) -> None:
    contract = from_arrays(np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8)).astype(np.uint8)).contract
    with pytest.raises(InputError) as caught:
        model.build(recipe(*settings), contract)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_requests_are_refused() -> None:
    system, x = made(), batch(2)["x"]
    broken = x.clone()
    broken[0, 0, 3, 3] = torch.nan
    requests: dict[str, Callable[[], object]] = {
        "level=5 must be from 1 to 4": lambda: system.restore(x, level=5),
        "level=0 must be from 1 to 4": lambda: system.degrade(x, Noise(0), level=0),
        "sampler='ddim' is not one of": lambda: system.restore(x, sampler="ddim"),
        "x holds 1 NaN": lambda: system.restore(broken),
        "x has shape": lambda: system.restore(x.expand(-1, 3, -1, -1)),
        "starts at level 3, the data are at 4": lambda: system.restore(x, sampler=restoration("naive", 3)),
        "calls=0 must be at least 1": lambda: system.restore(x, sampler=0),
        "batch_size=0": lambda: system.restore(x, batch_size=0),
        "guidance does not go with a cold model": lambda: system.sample(1, guidance=2.0, noise=Noise(0)),
        "cond does not go with a cold model": lambda: system.sample(1, cond={"label": 0}, noise=Noise(0)),
        "sampler ddim is not for a cold model": lambda: system.sample(1, sampler=ddim(VP(), 3), noise=Noise(0)),
    }
    for words, request in requests.items():
        with pytest.raises(InputError, match=words):
            request()
    snow = made("process={name: snow, options: {steps: 4}}")
    with pytest.raises(InputError, match="eps is missing"):
        snow.restore(x)
    assert snow.restore(x, sampler="direct").shape == x.shape
    assert made("process={name: noise, options: {steps: 4}}").restore(x).shape == x.shape


def trained(chosen: Recipe, out: Path, resume: bool = False) -> ColdSystem:
    training, held = tiny.digits(chosen)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        system = train(chosen, training, held, training.contract, out, resume=resume, device="cpu", progress=False)
    finally:
        torch.set_num_threads(threads)
    assert isinstance(system, ColdSystem)
    return system


def test_training_learns_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = trained(recipe(), tmp_path / "whole")
    trained(recipe("train.steps=12"), tmp_path / "cut")
    cut = trained(recipe(), tmp_path / "cut", resume=True)
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, cut.net.state_dict()[name]), name
    _, held = tiny.digits(recipe())
    x = held.batch(range(100))["x"]
    fresh = model.build(recipe(), held.contract)
    before = float(fresh.loss({"x": x}, Noise(0)).mean().detach())
    assert float(whole.loss({"x": x}, Noise(0)).mean()) < 0.9 * before
    # the end states are those of the data
    ends = whole.process.degrade(held.contract.encode(held.batch(range(359))["x"]), 4)
    drawn = whole.net.start.sample(2000, Noise(0))
    assert float((drawn.mean(0) - ends.mean(0)).abs().max()) < 0.15
    assert float(drawn.flatten(1).std(0).mean()) == pytest.approx(float(ends.flatten(1).std(0).mean()), rel=0.15)


def refused(ended: Ended, *words: str) -> None:
    assert (ended.code, ended.out) == (2, ""), ended
    assert ended.err.count("\n") == 1
    for word in words:
        assert word in ended.err


def test_the_command_line(run: Run, tmp_path: Path) -> None:
    settings = [part for text in (*SMALL, "train.steps=12") for part in ("--set", text)]
    ended = run("train", "cold-digits", *settings, "--out", "m", "--quiet")
    assert ended.code == 0, ended.err
    assert ended.out.strip() == "m: model, loss.png, samples.png, strip.png, card.md"
    assert "degradation: blur, 4 severities" in Path("m/card.md").read_text()
    ended = run("sample", "m", "-n", 9, "--out", "s.png", "--quiet")
    assert ended.out.strip() == "s.png: 9 samples, improved, 4 steps, 4 calls each"
    ended = run("sample", "m", "-n", 9, "--sampler", "naive", "--calls", 2, "--out", "s.npz", "--quiet")
    assert ended.out.strip() == "s.npz: 9 samples, naive, 2 steps, 2 calls each"
    with np.load("s.npz") as arrays:
        assert arrays["samples"].shape == (9, 1, 8, 8)
    with Image.open("s.png") as picture:
        assert np.asarray(picture).std() > 5
    ended = run("evaluate", "m", "-n", 24, "--quiet")
    assert ended.code == 0, ended.err
    refused(run("sample", "m", "--sampler", "ddim", "--quiet"), "sampler='ddim' is not one of improved")
    refused(run("sample", "m", "--tol", 0.01, "--quiet"), "a cold model undoes a degradation without noise")
    refused(run("sample", "m", "--cond", "label=3", "--quiet"), "cond does not go with a cold model")
    refused(run("nll", "m", "-n", 4, "--quiet"), "a cold model undoes a degradation without noise")
    refused(run("train", "cold-digits", "--set", "process.name=blurr", "--out", "n", "--quiet"), "process.name='blurr'")
