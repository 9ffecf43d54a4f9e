"""A trained system: its samples depend on seed and index alone, its conditions are checked, its loss is keyed by sample."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from ornstein import model, samplers
from ornstein.denoiser import Clipped, DynamicThreshold
from ornstein.files import InputError
from ornstein.noise import Noise
from ornstein.samplers import Step, default_plan
from ornstein.system import System


@pytest.fixture(scope="module")
def system(tiny_model: Path) -> System:
    return model.load(tiny_model)


@pytest.mark.parametrize("name", ["ddim", "ancestral", "heun"])
def test_a_sample_does_not_depend_on_its_batch(system: System, name: str) -> None:
    plan = samplers.ALL[name](system.denoiser.process, calls=5)
    cond = {"label": [i % 10 for i in range(64)]}
    whole = system.sample(64, cond=cond, sampler=plan, noise=Noise(3), batch_size=64)
    span = float(whole.max() - whole.min())
    for size in (1, 7):
        parts = system.sample(64, cond=cond, sampler=plan, noise=Noise(3), batch_size=size)
        assert float((parts - whole).abs().max()) < 1e-4 * max(span, 1)
    later = system.sample(9, cond={"label": cond["label"][40:49]}, sampler=plan, noise=Noise(3), first=40)
    assert float((later - whole[40:49]).abs().max()) < 1e-4 * max(span, 1)
    assert float((whole[1:] - whole[:-1]).abs().amax((1, 2, 3)).min()) > 1e-3 * span


@given(size=st.integers(1, 30), first=st.integers(0, 50))
@settings(max_examples=5)
def test_any_chunking_gives_the_same_samples(tiny_model: Path, size: int, first: int) -> None:
    system = model.load(tiny_model)
    whole = system.sample(80, sampler=2, noise=Noise(0))
    part = system.sample(20, sampler=2, noise=Noise(0), first=first, batch_size=size)
    assert float((part - whole[first : first + 20]).abs().max()) < 1e-4 * float(whole.std())


def test_seeds_differ_and_repeat(system: System) -> None:
    first, again, other = (system.sample(2, noise=Noise(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert float((first - other).abs().max()) > 0.1


def test_sampler_may_be_a_plan_a_number_or_the_default(system: System) -> None:
    assert system.plan is not None
    default = system.sample(2, noise=Noise(0))
    assert torch.equal(default, system.sample(2, sampler=system.plan, noise=Noise(0)))
    by_number = system.sample(2, sampler=7, noise=Noise(0))
    assert torch.equal(by_number, system.sample(2, sampler=default_plan(system.denoiser.process, 7), noise=Noise(0)))
    assert not torch.equal(default, by_number)


def test_conditions_by_number_name_list_and_tensor(system: System) -> None:
    same = [{"label": 3}, {"label": "3"}, {"label": [3, 3]}, {"label": torch.tensor([3, 3])}, {"label": ("3", 3)}]
    results = [system.sample(2, cond=cond, sampler=2, noise=Noise(0)) for cond in same]
    assert all(torch.equal(results[0], r) for r in results)
    free = system.sample(2, sampler=2, noise=Noise(0))
    mixed = system.sample(2, cond={"label": [3, 4]}, sampler=2, noise=Noise(0))
    assert not torch.equal(results[0], free)
    assert torch.allclose(mixed[0], results[0][0], atol=1e-4)
    assert not torch.allclose(mixed[1], results[0][1], atol=1e-4)


def test_classes_are_found_by_name_before_number(system: System) -> None:
    names = (*"abcdefghi", "0")
    named = replace(system, contract=replace(system.contract, classes=names))
    conditions = named.conditions({"label": ["a", "0", 0, "1"]}, 4)
    assert conditions is not None
    assert conditions["label"].tolist() == [0, 9, 0, 1]


@pytest.mark.parametrize(
    ("cond", "words"),
    [
        ({"label": 10}, "label=10 is not one of the 10 classes"),
        ({"label": -1}, "label=-1"),
        ({"label": "seven"}, "label='seven'"),
        ({"label": [1, 2, 3]}, "3 values for n=2"),
        ({"colour": 1}, "takes only 'label'"),
        ({"label": [None, 1]}, "label=None"),
        ({"label": float("nan")}, "label=nan"),
    ],
)
def test_wrong_conditions(system: System, cond: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        system.sample(2, cond=cond, noise=Noise(0))  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_model_without_condition_takes_none(system: System) -> None:
    with pytest.raises(InputError, match="trained without a condition"):
        replace(system, condition=None).sample(2, cond={"label": 1}, noise=Noise(0))


def test_samples_come_back_in_the_data_range(system: System) -> None:
    x = system.sample(50, noise=Noise(0))
    assert x.shape == (50, 1, 8, 8)
    assert x.dtype == torch.float32
    encoded = system.contract.encode(x)
    assert torch.allclose(encoded * 8 + 8, x, atol=1e-4)
    assert float(x.mean()) == pytest.approx(4.9, abs=4)


def test_the_hook_sees_every_row_and_may_change_the_state(system: System) -> None:
    seen: list[int] = []

    def zero(x: torch.Tensor, step: Step) -> torch.Tensor:
        seen.append(step.index)
        return torch.zeros_like(x)

    x = system.sample(1, sampler=3, noise=Noise(0), after=zero)
    assert seen == list(range(len(default_plan(system.denoiser.process, 3).rows)))
    assert torch.equal(system.contract.encode(x), torch.zeros_like(x))


def test_predictions_are_clipped_only_if_the_recipe_asks(system: System, tmp_path: Path) -> None:
    training, _ = tiny.digits(tiny.recipe())
    plain = model.build(tiny.recipe(), training.contract)
    clipped = model.build(tiny.recipe("sampler.clip=true"), training.contract)
    threshold = model.build(tiny.recipe("sampler.threshold=0.9"), training.contract)
    assert plain.shaped_denoiser() is plain.denoiser
    assert isinstance(clipped.shaped_denoiser(), Clipped)
    assert isinstance(threshold.shaped_denoiser(), DynamicThreshold)
    assert float(clipped.sample(8, noise=Noise(0)).max()) <= 16 + 1e-3
    assert float(plain.sample(8, sampler=1, noise=Noise(0)).abs().max()) > 0


@pytest.mark.parametrize(("flip", "dropout"), [(False, 0.0), (True, 0.0), (False, 0.5)])
def test_the_loss_is_keyed_by_sample(flip: bool, dropout: float, tiny_model: Path) -> None:
    system = replace(model.load(tiny_model), flip=flip, condition_dropout=dropout)
    training, _ = tiny.digits(tiny.recipe())
    whole = system.loss(training.batch(range(12)), Noise(0), step=5, total=12)
    parts = [system.loss(training.batch(range(a, a + 4)), Noise(0), step=5, first=a, total=12) for a in (0, 4, 8)]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-4)
    other = system.loss(training.batch(range(12)), Noise(0), step=6, total=12)
    assert not torch.allclose(other, whole, rtol=1e-2)


def test_flip_mirrors_half_of_the_images(system: System) -> None:
    training, _ = tiny.digits(tiny.recipe())
    batch = training.batch(range(200))
    mirror = {**batch, "x": batch["x"].flip(-1)}
    plain, flipped = (replace(system, flip=flip).loss(batch, Noise(0)) for flip in (False, True))
    back = system.loss(mirror, Noise(0))
    same, turned = torch.isclose(flipped, plain, rtol=1e-4), torch.isclose(flipped, back, rtol=1e-4)
    assert bool((same | turned).all())
    assert 0.35 < float(turned.double().mean()) < 0.65


def test_the_condition_is_dropped_as_often_as_asked(system: System) -> None:
    training, _ = tiny.digits(tiny.recipe())
    batch = training.batch(range(300))
    kept, half, none = (replace(system, condition_dropout=p).loss(batch, Noise(0)) for p in (0.0, 0.5, 1.0))
    distinct = ~torch.isclose(kept, none, rtol=1e-5)
    is_none = torch.isclose(half, none, rtol=1e-5) & distinct
    is_kept = torch.isclose(half, kept, rtol=1e-5) & distinct
    assert bool((is_none ^ is_kept)[distinct].all())
    assert 0.4 < float(is_none.sum() / distinct.sum()) < 0.6


def test_the_bound_is_a_number_of_bits_that_all_steps_confirm(system: System) -> None:
    _, held = tiny.digits(tiny.recipe())
    batch = held.batch(range(8))
    cond = {"label": batch["label"]}
    every = system.bound(batch["x"], Noise(0), cond=cond, levels=40, samples=None)
    some = system.bound(batch["x"], Noise(0), cond=cond, levels=40, samples=8)
    assert every.dimensions == 64
    bits, _ = every.per_dimension()
    sampled, error = some.per_dimension()
    assert math.log2(17) * 0.2 < bits < 20
    assert abs(sampled - bits) < 6 * max(error, 0.05)
    parts = [
        system.bound(batch["x"][a : a + 4], Noise(0), cond={"label": batch["label"][a : a + 4]}, levels=40, first=a)
        for a in (0, 4)
    ]
    whole = system.bound(batch["x"], Noise(0), cond=cond, levels=40)
    assert torch.allclose(torch.cat([p.total for p in parts]), whole.total, rtol=1e-3)
