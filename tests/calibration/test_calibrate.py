"""A calibrated plan serves its model better than the plan it came from, on unseen noise; or it says that it is that plan."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from calibration_cases import F64, PROCESSES, Watched, by_table, coarse, f64, mixture, normal
from torch import Tensor, nn

from chosen import Chosen
from ornstein.calibration import calibrate, table_of, weights_digest
from ornstein.calibration.fit import EnergyDistance
from ornstein.calibration.reference import rms
from ornstein.denoiser import Clipped, Denoiser, Denoises
from ornstein.nets import MLP, UNet
from ornstein.noise import Noise
from ornstein.process import EDM, VP
from ornstein.samplers import Plan, adams, ancestral, ddim, default_plan, sample
from ornstein.samplers.plan import Calibration
from ornstein.testing import GaussianDenoiser

NOISE = Noise(0)


def fitted(denoiser: Denoises, **options: Any) -> Plan:
    """Eight gradients on the coarse reference, unless told otherwise."""
    shape = options.get("shape", (2,))
    if "reference" not in options:
        options["reference"] = coarse(
            denoiser, shape=shape, trajectories=options.pop("trajectories", 32), cond=options.get("cond")
        )
    return calibrate(denoiser, **{"shape": shape, "noise": NOISE, "steps": 8, **options})


def facts(plan: Plan) -> Calibration:
    assert plan.calibration is not None
    return plan.calibration


@pytest.mark.parametrize("process", [VP(), EDM()], ids=["vp", "edm"])
def test_fresh_samples_are_nearer_to_the_exact_flow(process: Any) -> None:
    oracle = mixture(process)
    plan = fitted(oracle, calls=5, trajectories=64, steps=15)
    start, low = process.prior((200, 2), Noise(77), dtype=F64), process.t_min
    exact = oracle(oracle.flow(start, 1.0, low), low).x0 if low else oracle.flow(start, 1.0, None)
    mine, before = (
        float(rms(sample(oracle, p, start=start, noise=NOISE), exact).mean()) for p in (plan, default_plan(process, 5))
    )
    assert mine < 0.5 * before
    assert (plan.name, plan.view, plan.calls, plan.stochastic) == ("calibrated(5)", "x0", 5, False)
    # what it promises of itself holds for these too
    assert facts(plan).error == pytest.approx(mine, rel=0.5)
    assert facts(plan).start_error == pytest.approx(before, rel=0.5)
    assert not facts(plan).kept


@pytest.mark.parametrize("process", PROCESSES)
def test_it_is_never_worse_than_its_start(process: str) -> None:
    oracle = mixture(PROCESSES[process])
    reference = coarse(oracle)
    plan = fitted(oracle, calls=4, reference=reference)
    start = default_plan(oracle.process, 4)
    errors = [
        float(reference.judge.error(sample(oracle, p, start=reference.judge.start, noise=NOISE)).mean()) for p in (plan, start)
    ]
    assert errors[0] <= errors[1]
    assert facts(plan).error == pytest.approx(errors[0], rel=1e-9)
    assert facts(plan).start_error == pytest.approx(errors[1], rel=1e-9)
    assert errors[0] < 0.8 * errors[1]  # and in fact better, on all of these
    assert plan.times[-1] >= oracle.process.t_min


def test_more_gradients_are_no_worse_than_least_squares_alone() -> None:
    oracle = mixture(VP())
    reference = coarse(oracle, trajectories=64)
    alone, both = (fitted(oracle, calls=5, reference=reference, steps=steps) for steps in (0, 15))
    assert facts(alone).evaluations == 0 < facts(both).evaluations <= 16
    assert facts(alone).error < facts(alone).start_error
    assert facts(both).error < 0.9 * facts(alone).error


def test_what_is_written_down_is_what_was_done() -> None:
    oracle = Clipped(mixture(VP()), -2, 2)
    reference = coarse(oracle, seed=3)
    start = ddim(VP(), 4)
    plan = fitted(oracle, start=start, reference=reference, noise=Noise(3), steps=2)
    known = facts(plan)
    assert (known.start, known.measure, known.samples, known.trajectories) == (start.name, "flow", 16, 32)
    assert (known.seed, known.fine_calls, known.weights, known.conditions) == (3, 64, None, ())
    assert known.denoiser == "Clipped(low=-2, high=2) of MixtureDenoiser"
    assert len(known.levels) == 4
    for t, (alpha, sigma) in zip(plan.times, known.levels, strict=True):
        assert (alpha, sigma) == tuple(float(m) for m in VP().moments(t))
    drawn = [sample(oracle, p, start=reference.judge.start, noise=NOISE) for p in (start, plan)]
    gain = reference.judge.error(drawn[0]) - reference.judge.error(drawn[1])
    assert known.gain_error == pytest.approx(float(gain.std()) / 4, rel=1e-9)
    assert known.seconds > 0
    assert f"{known.error / known.start_error:.2f} times that of ddim" in str(known)


def test_conditions_are_fitted_with_their_samples() -> None:
    oracles = (mixture(VP()), mixture(VP(), shift=1.5))
    oracle = Chosen(oracles)
    cond = {"label": torch.tensor([0, 1])}
    plan = fitted(oracle, calls=4, cond=cond)
    assert facts(plan).conditions == ("label",)
    start = VP().prior((60, 2), Noise(5), dtype=F64)
    label = torch.arange(60) % 2
    ends = [one.flow(start, 1.0, VP().t_min) for one in oracles]
    low = torch.where((label == 0)[:, None], ends[0], ends[1])
    exact = oracle(low, VP().t_min, {"label": label}).x0
    options: dict[str, Any] = {"start": start, "noise": NOISE, "cond": {"label": label}}
    mine, before = (float(rms(sample(oracle, p, **options), exact).mean()) for p in (plan, default_plan(VP(), 4)))
    assert mine < 0.8 * before


def test_shapes_are_those_of_the_data() -> None:
    oracle = mixture(VP(), 16)
    plan = fitted(oracle, calls=4, shape=(4, 2, 2), trajectories=16)
    flat = fitted(oracle, calls=4, shape=(16,), trajectories=16)
    assert facts(plan).error < facts(plan).start_error
    assert sample(oracle, plan, shape=(3, 4, 2, 2), noise=NOISE).shape == (3, 4, 2, 2)
    assert plan.times == pytest.approx(flat.times, rel=1e-6)


def network(kind: str) -> Denoiser:
    torch.manual_seed(1)
    net: nn.Module = (
        MLP(3, width=16, depth=1, classes=3) if kind == "mlp"
        else UNet(width=8, multipliers=(1,), blocks=1, attention=(False,), dropout=0.5)
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return Denoiser(net, VP(), "v")


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_a_network_is_left_as_it_was(kind: str) -> None:
    denoiser = network(kind)
    denoiser.net.train()
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    digest = weights_digest(denoiser)
    shape = (3,) if kind == "mlp" else (1, 4, 4)
    cond = {"label": torch.tensor([0, 2, 1])} if kind == "mlp" else None
    plan = calibrate(denoiser, calls=3, shape=shape, noise=NOISE, cond=cond, trajectories=8, steps=3)
    assert facts(plan).error <= facts(plan).start_error
    assert facts(plan).weights == digest is not None
    assert facts(plan).denoiser == "Denoiser(v)"
    assert all(torch.equal(tensor, before[name]) for name, tensor in denoiser.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in denoiser.parameters())
    assert all(module.training for module in denoiser.net.modules())
    # nor does the fit see dropout
    quiet = calibrate(denoiser.eval(), calls=3, shape=shape, noise=NOISE, cond=cond, trajectories=8, steps=3)
    assert quiet.rows == plan.rows
    options: dict[str, Any] = {"shape": (2, *shape), "noise": NOISE, "cond": cond and {"label": torch.tensor([0, 1])}}
    assert sample(denoiser, plan, **options).dtype == torch.float32


def rows_of(plan: Plan) -> Tensor:
    return torch.cat([torch.tensor([row.t, row.a, row.c, *(w for _, w in row.b)], dtype=F64) for row in plan.rows])


def test_a_seed_gives_one_plan_in_any_batches() -> None:
    oracle = mixture(VP())
    plan = fitted(oracle, calls=4, steps=4)
    assert fitted(oracle, calls=4, steps=4).rows == plan.rows
    torch.testing.assert_close(rows_of(fitted(oracle, calls=4, steps=4, batch_size=5)), rows_of(plan), rtol=1e-5, atol=1e-7)
    other = fitted(oracle, calls=4, steps=4, reference=coarse(oracle, seed=1))
    assert float((rows_of(other) - rows_of(plan)).abs().max()) > 1e-4


def test_the_last_set_is_seen_by_no_fit() -> None:
    oracle = mixture(VP())
    reference = coarse(oracle)
    plan = fitted(oracle, calls=4, reference=reference)
    # other draws, of another law even: the same plan with other errors
    judge = replace(reference.judge, start=1.1 * reference.judge.start, end=reference.judge.end + 0.01)
    judged = fitted(oracle, calls=4, reference=replace(reference, judge=judge))
    assert not facts(judged).kept
    assert judged.rows == plan.rows
    assert facts(judged).error != facts(plan).error
    chosen = replace(reference.choose, end=-reference.choose.end)
    assert fitted(oracle, calls=4, reference=replace(reference, choose=chosen)).rows != plan.rows


@pytest.mark.parametrize("part", ["choose", "judge"])
def test_a_start_that_is_better_on_either_set_is_kept(part: str) -> None:
    oracle = mixture(VP())
    reference, start = coarse(oracle), default_plan(VP(), 4)
    draws = getattr(reference, part)
    # where the start itself made the ends, nothing can be better
    ends = sample(oracle, start, start=draws.start, noise=NOISE)
    ends = by_table(oracle, table_of(start, VP()), draws.start)[-1] if part == "choose" else ends
    plan = fitted(oracle, start=start, reference=replace(reference, **{part: replace(draws, end=ends)}))
    assert facts(plan).kept
    assert plan.rows == start.rows
    assert (plan.name, plan.view) == (start.name, start.view)
    assert facts(plan).error == facts(plan).start_error
    assert facts(plan).gain_error == 0
    assert str(facts(plan)).endswith(f"nothing better was found, this is {start.name}")
    assert len(facts(plan).levels) == 4


def test_an_exact_plan_is_kept_without_noise_in_the_fit() -> None:
    # data of one point: every consistent step ends there, and the errors are roundings
    oracle = GaussianDenoiser(f64(0.5, -1.0), torch.zeros(2, 2), VP())
    plan = fitted(oracle, start=ddim(VP(), 3), steps=3)
    assert facts(plan).error < 1e-9
    start = VP().prior((9, 2), Noise(4), dtype=F64)
    torch.testing.assert_close(sample(oracle, plan, start=start, noise=NOISE), f64(0.5, -1.0).expand(9, 2), rtol=0, atol=1e-9)


@pytest.mark.parametrize("start", [ancestral(VP(), 4), ddim(VP(), 4, eta=1.0)], ids=lambda plan: plan.name)
def test_a_stochastic_start_is_fitted_by_its_law(start: Plan) -> None:
    oracle = mixture(VP())
    reference = coarse(oracle, trajectories=64)
    plan = fitted(oracle, start=start, reference=reference, steps=24)
    known = facts(plan)
    assert known.measure == "energy"
    assert not known.kept
    assert known.error < 0.5 * known.start_error
    assert "energy distance" in str(known)
    assert [row.c > 0 for row in plan.rows] == [row.c > 0 for row in start.rows]
    moved = [abs(a.c / b.c - 1) for a, b in zip(plan.rows, start.rows, strict=True) if b.c]
    assert max(moved) > 1e-2
    # draws with other noise are nearer to the law too
    truth = oracle.sample(300, Noise(8))
    law = [
        float(EnergyDistance()(sample(oracle, p, shape=(300, 2), noise=Noise(9), dtype=F64), truth).mean()) for p in (plan, start)
    ]
    assert law[0] < law[1]


def test_a_stochastic_start_without_gradients_is_what_it_was() -> None:
    oracle = mixture(VP())
    plan = fitted(oracle, start=ancestral(VP(), 3), steps=0)
    assert facts(plan).kept
    assert plan.rows == ancestral(VP(), 3).rows


def test_time_runs_out() -> None:
    oracle = mixture(VP())
    reference = coarse(oracle)
    began = time.monotonic()
    plan = fitted(oracle, calls=4, reference=reference, steps=2000, minutes=1e-4)
    assert time.monotonic() - began < 10
    assert 0 < facts(plan).evaluations < 100
    assert facts(plan).error <= facts(plan).start_error


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_no_more_gradients_are_taken_than_asked_for(steps: int) -> None:
    assert facts(fitted(mixture(VP()), calls=3, steps=steps, trajectories=8)).evaluations <= steps


def test_a_fit_that_found_nothing_says_so() -> None:
    start = ddim(VP(), 4, eta=1.0)
    plan = fitted(mixture(VP()), start=start, steps=1, trajectories=64)
    assert facts(plan).kept or facts(plan).error < 0.999 * facts(plan).start_error
    assert facts(plan).kept == (plan.rows == start.rows)


def test_the_conditions_are_those_of_the_reference() -> None:
    oracle, cond = Chosen((mixture(VP()), mixture(VP(), shift=1.5))), {"label": torch.tensor([0, 1])}
    reference = coarse(oracle, cond=cond, trajectories=8)
    try:
        plan = fitted(oracle, calls=3, reference=reference, steps=0)
    except ValueError:
        return  # or that a contradiction is refused
    assert facts(plan).conditions == ("label",)


def test_the_last_iterations_are_looked_at() -> None:
    plan = fitted(mixture(VP()), start=ancestral(VP(), 4), steps=10, trajectories=64)
    assert facts(plan).error < 0.9 * facts(plan).start_error


def test_the_calls_are_those_of_the_start() -> None:
    oracle = mixture(VP())
    plan = fitted(oracle, start=adams(VP(), 6), steps=1)
    seen = Watched(oracle)
    sample(seen, replace(plan, calibration=None), shape=(3, 2), noise=NOISE, dtype=F64)
    assert len(seen.asked) == plan.calls == 6
    one = fitted(oracle, calls=1, steps=3)
    assert one.calls == 1
    assert facts(one).error <= facts(one).start_error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give one of calls=None and start=None"),
        ({"calls": 4, "start": ddim(VP(), 4)}, "give one of calls=4 and start=ddim"),
        ({"calls": 0}, "calls=0 must be at least 1"),
        ({"calls": 4, "steps": -1}, "steps=-1 must be at least 0"),
        ({"calls": 4, "memory": 0.0}, "memory=0"),
        ({"calls": 4, "memory": float("nan")}, "memory=nan"),
        ({"calls": 4, "batch_size": 0}, "batch_size=0"),
        ({"calls": 4, "shape": (3,), "reference": True}, r"shape=\(3,\) is not that of the reference, \(2,\)"),
        ({"calls": 4, "trajectories": 7}, "trajectories=7 must be at least 8"),
        ({"calls": 4, "cond": {"label": torch.zeros(0)}}, r"cond\['label'\] has no rows"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_wrong_arguments_are_refused(options: dict[str, Any], words: str) -> None:
    oracle = mixture(VP())
    if "reference" in options:
        options = options | {"reference": coarse(oracle, trajectories=8, fine_calls=8)}
    with pytest.raises(ValueError, match=words):
        calibrate(oracle, **{"shape": (2,), "noise": NOISE, **options})


def test_a_digest_is_that_of_the_weights_alone() -> None:
    denoiser = network("mlp")
    digest = weights_digest(denoiser)
    assert digest is not None
    assert len(digest) == 32
    assert weights_digest(Clipped(denoiser, -1, 1)) == digest
    assert weights_digest(network("mlp")) == digest
    assert weights_digest(mixture(VP())) is None
    images = network("unet")
    first = weights_digest(images)
    images.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert weights_digest(images) == first
    with torch.no_grad():
        next(denoiser.parameters()).view(-1)[0].add_(1e-6)
    assert weights_digest(denoiser) != digest
    assert normal(2).shape == (2,)
