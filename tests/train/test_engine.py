"""Training: averages, accumulation, data order, precision, logs, and refusals."""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import tiny
from ornstein import model
from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.train import callbacks, engine
from ornstein.train.callbacks import read_log
from ornstein.train.engine import Order


def current(out: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's state that are not averaged."""
    held = tiny.state(out)["current_model_state"]
    assert isinstance(held, dict)
    return {name.removeprefix("net."): value for name, value in held.items() if name.startswith("net.")}


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of weights."""
    assert set(first) == set(second)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 5))
def test_each_epoch_has_every_datum_once(n: int, batch: int, seed: int) -> None:
    order = Order(n, batch, Noise(seed))
    steps = -(-4 * n // batch)
    stream = torch.cat([order.indices(step) for step in range(steps)])
    assert all(len(order.indices(step)) == batch for step in range(steps))
    for epoch in range(4):
        assert stream[epoch * n : (epoch + 1) * n].sort().values.tolist() == list(range(n))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first = [Order(100, 100, Noise(seed)).indices(step).tolist() for seed in (0, 1) for step in (0, 1)]
    assert Counter(map(tuple, first)).most_common(1)[0][1] == 1


def test_averaged_weights_follow_the_warm_up_formula(tmp_path: Path) -> None:
    runs = {}
    for steps in (1, 2, 3, 4):
        chosen = tiny.recipe(f"train.steps={steps}", "train.ema=0.25")
        tiny.trained(chosen, tmp_path / str(steps))
        runs[steps] = load_file(tmp_path / str(steps) / model.WEIGHTS), current(tmp_path / str(steps))
    average = runs[1][1]
    assert distance(average, runs[1][0]) == 0
    for k in (1, 2, 3):
        decay = min(0.25, (1 + k) / (10 + k))
        weights = runs[k + 1][1]
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in weights}
        assert distance(average, runs[k + 1][0]) < 1e-6
    assert [min(0.25, (1 + k) / (10 + k)) for k in (1, 2, 3)] == [2 / 11, 0.25, 0.25]


def test_average_and_current_weights_both_move_and_differ(tiny_model: Path) -> None:
    averaged, now = load_file(tiny_model / model.WEIGHTS), current(tiny_model)
    training, _ = tiny.digits(tiny.recipe())
    start = {name: value.clone() for name, value in model.build(tiny.recipe(), training.contract).net.state_dict().items()}
    assert distance(averaged, now) > 1e-4
    assert distance(averaged, start) > 1e-3
    assert distance(now, start) > distance(averaged, start) * 0.9


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_whole_batch(parts: int, tmp_path: Path) -> None:
    for accumulate in (1, parts):
        chosen = tiny.recipe("train.steps=6", f"train.accumulate={accumulate}", "train.ema=0")
        tiny.trained(chosen, tmp_path / str(accumulate))
    whole, split = (current(tmp_path / str(a)) for a in (1, parts))
    assert distance(whole, split) < 1e-5
    assert tiny.state(tmp_path / str(parts))["global_step"] == 6


def test_the_learning_rate_warms_up_and_falls(tmp_path: Path) -> None:
    tiny.trained(tiny.recipe("train.steps=40", "train.warmup=19", "train.schedule=cosine"), tmp_path)
    rates = {int(row["step"]): float(row["learning_rate"]) for row in read_log(tmp_path) if row["learning_rate"]}
    assert rates[10] == pytest.approx(1e-3 * 11 / 20 * 0.5 * (1 + np.cos(np.pi * 10 / 40)))
    assert rates[20] == pytest.approx(1e-3 * 0.5)
    assert rates[40] == pytest.approx(0, abs=1e-12)


def test_the_loss_falls_and_is_logged(tmp_path: Path) -> None:
    tiny.trained(tiny.recipe("train.steps=200", "train.learning_rate=0.01", "train.validate_every=100"), tmp_path)
    rows = read_log(tmp_path)
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert [int(row["step"]) for row in rows if row["loss"]] == list(range(10, 201, 10))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    held = [(int(row["step"]), float(row["validation"])) for row in rows if row["validation"]]
    assert [step for step, _ in held] == [100, 200]
    assert held[1][1] < held[0][1]
    assert list((tmp_path / "logs").glob("events.*"))


@pytest.mark.parametrize(
    "settings",
    [
        ("train.precision=bf16",),
        ("train.workers=1",),
        ("train.channels_last=false", "data.flip=true", "data.held_out=0.0"),
        ("train.clip_norm=0", "train.weight_decay=0.1"),
        (*tiny.CHAIN, "loss={weighting: simple, times: discrete}"),
        (*tiny.CHAIN, "learned_variance=true", "loss={weighting: simple, times: discrete, hybrid: 0.001}"),
        (*tiny.CHAIN, "loss={weighting: simple, loss_aware: true}"),
        ("process.name=vp", "predicts=v", "loss={weighting: min_snr, times: uniform}"),
    ],
    ids=lambda settings: settings[0] if len(settings) < 4 else settings[-1],
)
def test_variants_run_and_can_be_loaded(settings: tuple[str, ...], tmp_path: Path) -> None:
    chosen = tiny.recipe("train.steps=4", *settings)
    training, held = tiny.digits(tiny.recipe())
    system = engine.train(
        chosen, training, held if chosen.data.held_out else None, training.contract, tmp_path, device="cpu", progress=False
    )
    assert bool(system.sample(2, cond={"label": 1}, noise=Noise(0)).isfinite().all())
    assert all(value.dtype == torch.float32 for value in load_file(tmp_path / model.WEIGHTS).values())
    assert model.read_recipe(tmp_path) == chosen


def test_bf16_differs_from_float32_but_not_much(tmp_path: Path) -> None:
    for precision in ("float32", "bf16"):
        tiny.trained(tiny.recipe("train.steps=5", f"train.precision={precision}", "train.ema=0"), tmp_path / precision)
    gap = distance(current(tmp_path / "float32"), current(tmp_path / "bf16"))
    assert 0 < gap < 0.02


def test_two_runs_are_the_same_and_another_seed_is_not(tiny_model: Path, tmp_path: Path) -> None:
    tiny.trained(tiny.recipe(), tmp_path / "again")
    tiny.trained(tiny.recipe("train.seed=1"), tmp_path / "other")
    assert (tmp_path / "again" / model.WEIGHTS).read_bytes() == (tiny_model / model.WEIGHTS).read_bytes()
    assert (tmp_path / "other" / model.WEIGHTS).read_bytes() != (tiny_model / model.WEIGHTS).read_bytes()


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny.trained(tiny.recipe("train.steps=2", "net.options.dropout=0.2"), tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_has_a_key_for_every_share_of_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    real = Noise.key

    def key(self: Noise, stream: str, step: int = 0) -> int:
        asked.extend([(stream, step)] * stream.startswith("dropout"))
        return real(self, stream, step)

    monkeypatch.setattr(Noise, "key", key)
    tiny.trained(tiny.recipe("train.steps=3", "train.accumulate=2", "net.options.dropout=0.5"), tmp_path)
    assert asked == [(f"dropout/{first}", step) for step in range(3) for first in (0, 16)]


def test_dropout_does_not_depend_on_the_default_generator(tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.rand(3)  # the state of the default generator must not matter
        tiny.trained(tiny.recipe("train.steps=3", "net.options.dropout=0.5"), tmp_path / name)
    assert (tmp_path / "one" / model.WEIGHTS).read_bytes() == (tmp_path / "two" / model.WEIGHTS).read_bytes()
    tiny.trained(tiny.recipe("train.steps=3"), tmp_path / "none")
    assert (tmp_path / "one" / model.WEIGHTS).read_bytes() != (tmp_path / "none" / model.WEIGHTS).read_bytes()


def test_validation_teaches_the_loss_aware_sampler_nothing(tmp_path: Path) -> None:
    for every in (2, 100):
        settings = ("loss={weighting: simple, loss_aware: true}", "train.steps=6", f"train.validate_every={every}")
        tiny.trained(tiny.recipe(*tiny.CHAIN, *settings), tmp_path / str(every))
    first, second = (tiny.state(tmp_path / str(every)) for every in (2, 100))
    assert torch.equal(first["times"]["counts"], second["times"]["counts"])  # type: ignore[index]
    assert torch.equal(first["times"]["history"], second["times"]["history"])  # type: ignore[index]
    assert int(first["times"]["counts"].sum()) >= 6 * 32  # type: ignore[index]


def test_fine_tuning_starts_from_the_given_weights(tiny_model: Path, tmp_path: Path) -> None:
    settings = ("train.steps=1", "train.learning_rate=1.0e-9", "train.warmup=0", "train.clip_norm=0")
    tiny.trained(tiny.recipe(*settings), tmp_path / "tuned", init=tiny_model)
    assert distance(load_file(tmp_path / "tuned" / model.WEIGHTS), load_file(tiny_model / model.WEIGHTS)) < 1e-7
    with pytest.raises(InputError, match=r"--init .* use the same net"):
        tiny.trained(tiny.recipe("net.options.width=16"), tmp_path / "wide", init=tiny_model)
    assert not (tmp_path / "wide").exists()


def test_resume_goes_on_and_refuses_another_system(tiny_model: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (out / ".data.0123abcd.tmp.json").write_text("cut short by a ki")
    tiny.trained(tiny.recipe("train.steps=35"), out, resume=True)
    assert not list(out.glob(".*"))
    tiny.trained(tiny.recipe("train.steps=35"), tmp_path / "whole")
    assert (out / model.WEIGHTS).read_bytes() == (tmp_path / "whole" / model.WEIGHTS).read_bytes()
    for settings, words in (
        (["net.options.width=16"], "net is"),
        (["predicts=x0"], "predicts is"),
        (["process.name=vp"], "process is"),
        (["data.seed=7"], "data are not those"),
    ):
        before = (out / model.WEIGHTS).read_bytes()
        with pytest.raises(InputError, match=f"--resume: .*{words}"):
            tiny.trained(tiny.recipe(*settings), out, resume=True)
        assert (out / model.WEIGHTS).read_bytes() == before
    with pytest.raises(InputError, match="holds no training state"):
        tiny.trained(tiny.recipe(), tmp_path / "nowhere", resume=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.accumulate=3"], "train.batch=32 cannot be shared"),
        (["train.precision=fp16"], "needs a CUDA device"),
    ],
)
def test_recipes_that_cannot_be_trained_here(settings: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        tiny.trained(tiny.recipe(*settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_diverged_loss_ends_the_run_and_keeps_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.System.loss

    def broken(self: engine.System, *arguments: object, step: int = 0, **rest: object) -> torch.Tensor:
        return real(self, *arguments, step=step, **rest) * (torch.nan if step == 7 else 1)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.System, "loss", broken)
    with pytest.raises(FloatingPointError, match="loss is nan at step 8"):
        tiny.trained(tiny.recipe("train.checkpoint_steps=3"), tmp_path)
    assert tiny.state(tmp_path)["global_step"] == 6
    assert model.load(tmp_path).contract.shape == (1, 8, 8)


@pytest.mark.parametrize("victim", ["state", "model"])
def test_a_full_disk_ends_the_run_and_leaves_the_last_state_whole(
    victim: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(tiny_model, tmp_path / "model"))

    def full(*arguments: object, **rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place = (callbacks.lightning.Trainer, "save_checkpoint") if victim == "state" else (callbacks.model, "save")
    with monkeypatch.context() as patch:
        patch.setattr(*place, full)
        with pytest.raises(OSError, match="No space left"):
            tiny.trained(tiny.recipe("train.steps=40", "train.checkpoint_steps=5"), out, resume=True)
    assert (out / model.WEIGHTS).read_bytes() == (tiny_model / model.WEIGHTS).read_bytes()
    tiny.trained(tiny.recipe("train.steps=40"), out, resume=True)
    tiny.trained(tiny.recipe("train.steps=40"), tmp_path / "whole")
    assert (out / model.WEIGHTS).read_bytes() == (tmp_path / "whole" / model.WEIGHTS).read_bytes()


def test_pictures_are_drawn_while_training(tmp_path: Path) -> None:
    tiny.trained(tiny.recipe("train.steps=3", "train.sample_minutes=1.0e-9"), tmp_path)
    assert len(list((tmp_path / "samples").glob("step-*.png"))) == 3
