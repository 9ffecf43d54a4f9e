"""The one loop: same samples for any batch size, hooks, conditions, given starts, modes, errors."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ornstein.denoiser import Condition, Denoiser
from ornstein.noise import Noise
from ornstein.process import EDM, VP
from ornstein.samplers import (
    Plan,
    Row,
    Sampler,
    Step,
    Trajectory,
    ancestral,
    ddim,
    default_plan,
    deis,
    dpm_solver,
    dpm_solver_pp,
    dpm_solver_pp_sde,
    euler_maruyama,
    heun,
    pndm,
    sa_solver,
    sample,
)
from ornstein.testing import MixtureDenoiser

PLANS = {
    "ddim": (VP(), ddim(VP(), 6, eta=0.6)),
    "ancestral": (VP(), ancestral(VP(), 6)),
    "euler_maruyama": (VP(), euler_maruyama(VP(), 40)),
    "heun": (EDM(), heun(EDM(), 11, churn=8.0)),
    "dpm_solver_pp": (EDM(), dpm_solver_pp(EDM(), 6)),
    "sa_solver": (VP(), sa_solver(VP(), 6)),
    "pndm": (VP(), pndm(VP(), 14)),
    "dpm_solver_pp_sde to an end": (VP(), dpm_solver_pp_sde(VP(), 6, end=0.2)),
}


def oracle(name: str) -> MixtureDenoiser:
    means = Noise(1).normal((3, 6), dtype=torch.float64)
    return MixtureDenoiser(means, torch.tensor([0.1, 0.4, 0.2]), torch.tensor([0.25, 0.25, 0.5]), PLANS[name][0])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("name", PLANS)
def test_samples_do_not_depend_on_the_batch_size(name: str, batch_size: int) -> None:
    shape = (65, 2, 3)
    whole = sample(oracle(name), PLANS[name][1], shape=shape, noise=Noise(0), dtype=torch.float64)
    parts = sample(oracle(name), PLANS[name][1], shape=shape, noise=Noise(0), dtype=torch.float64, batch_size=batch_size)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    assert whole.std() > 0.1


@settings(max_examples=15)
@given(name=st.sampled_from(sorted(PLANS)), cut=st.integers(1, 19), first=st.integers(0, 10**6), batch=st.integers(1, 25))
def test_any_chunk_is_a_slice_of_the_whole(name: str, cut: int, first: int, batch: int) -> None:
    o, plan = oracle(name), PLANS[name][1]
    whole = sample(o, plan, shape=(20, 6), noise=Noise(0), dtype=torch.float64, first=first)
    tail = sample(o, plan, shape=(20 - cut, 6), noise=Noise(0), dtype=torch.float64, first=first + cut, batch_size=batch)
    torch.testing.assert_close(tail, whole[cut:], rtol=1e-12, atol=1e-12)


def test_samples_differ_from_each_other_and_by_seed() -> None:
    x = sample(oracle("ancestral"), PLANS["ancestral"][1], shape=(10, 6), noise=Noise(0))
    assert len({tuple(row) for row in x.tolist()}) == 10
    other = sample(oracle("ancestral"), PLANS["ancestral"][1], shape=(10, 6), noise=Noise(1))
    assert not torch.equal(x, other)
    assert x.dtype == torch.float32


@pytest.mark.parametrize("name", PLANS)
def test_a_given_start_is_used_and_kept(name: str) -> None:
    o, plan = oracle(name), PLANS[name][1]
    start = o.process.prior((9, 6), Noise(0), dtype=torch.float64)
    kept = start.clone()
    found = sample(o, plan, start=start, noise=Noise(0), batch_size=4)
    assert torch.equal(start, kept)
    torch.testing.assert_close(found, sample(o, plan, shape=(9, 6), noise=Noise(0), dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert sample(o, plan, start=start.float(), noise=Noise(0)).dtype == torch.float32


def test_the_prior_of_the_process_starts_the_run() -> None:
    o = oracle("heun")
    only = Plan("identity", "eps", (Row(1.0, None, 1.0),))
    x = sample(o, only, shape=(2000, 6), noise=Noise(0))
    assert float(x.std()) == pytest.approx(80, rel=0.05)
    assert torch.equal(x, o.process.prior((2000, 6), Noise(0)))


@pytest.mark.parametrize(
    ("sampler", "stages", "options"), [(ddim, 1, {}), (heun, 2, {}), (dpm_solver, 3, {"fast": False}), (deis, 1, {"degree": 0})]
)
def test_another_plan_takes_up_where_one_stopped(sampler: Sampler, stages: int, options: dict[str, object]) -> None:
    p = VP()
    o, x = MixtureDenoiser(torch.eye(2), torch.ones(2) / 4, torch.ones(2) / 2, p), p.prior((5, 2), Noise(2), dtype=torch.float64)
    whole = sample(o, sampler(p, 4 * stages + 1, (1.0, 0.8, 0.5, 0.3, 0.1), **options), start=x, noise=Noise(0))
    half = sample(o, sampler(p, 2 * stages, (1.0, 0.8), end=0.5, **options), start=x, noise=Noise(0))
    rest = sample(o, sampler(p, 2 * stages + 1, (0.5, 0.3, 0.1), **options), start=half, noise=Noise(0))
    torch.testing.assert_close(rest, whole, rtol=1e-12, atol=1e-12)
    assert float((half - whole).abs().min()) > 1e-3


def test_no_samples_is_no_error() -> None:
    assert sample(oracle("ddim"), PLANS["ddim"][1], shape=(0, 6), noise=Noise(0)).shape == (0, 6)
    empty = torch.zeros(0, 6, dtype=torch.float64)
    assert sample(oracle("ddim"), PLANS["ddim"][1], start=empty, noise=Noise(0)).dtype == torch.float64


def test_calls_run_the_default_plan(caplog: pytest.LogCaptureFixture) -> None:
    o = oracle("heun")
    with caplog.at_level(logging.INFO, logger="ornstein"):
        found = sample(o, calls=7, shape=(3, 6), noise=Noise(0))
    plan = default_plan(o.process, 7)
    assert torch.equal(found, sample(o, plan, shape=(3, 6), noise=Noise(0)))
    assert f"calls=7: {plan.name}" in caplog.text
    with pytest.raises(ValueError, match="calls=0 must be at least 1"):
        sample(o, calls=0, shape=(3, 6), noise=Noise(0))


@pytest.mark.parametrize("name", PLANS)
def test_a_trajectory_records_and_changes_nothing(name: str) -> None:
    plan, seen = PLANS[name][1], Trajectory()
    found = sample(oracle(name), plan, shape=(4, 6), noise=Noise(0), after=seen)
    assert torch.equal(found, sample(oracle(name), plan, shape=(4, 6), noise=Noise(0)))
    assert seen.times == [row.s for row in plan.rows]
    assert len(seen.states) == len(seen.predictions) == plan.calls
    assert torch.equal(seen.states[-1], found)
    assert torch.equal(seen.predictions[-1], found) or plan.view == "eps" or plan.rows[-1].s is not None
    # states were not overwritten by later rows
    again = Trajectory()
    sample(oracle(name), Plan("head", plan.view, plan.rows[:2]), shape=(4, 6), noise=Noise(0), after=again)
    assert torch.equal(again.states[0], seen.states[0])
    assert torch.equal(again.states[1], seen.states[1])


def test_a_hook_sees_the_row_and_changes_the_state() -> None:
    (p, plan), steps, cond = PLANS["ddim"], [], {"label": torch.arange(5)}
    denoiser = Denoiser(Conditional(), p, "x0")

    def after(x: Tensor, step: Step) -> Tensor:
        steps.append(step)
        return torch.full_like(x, 3.0) if step.s is None else x

    found = sample(denoiser, plan, shape=(5, 6), noise=Noise(0), cond=cond, after=after, batch_size=3, first=10)
    assert bool((found == 3).all())
    assert [step.index for step in steps] == [*range(6), *range(6)]
    assert [(step.t, step.s) for step in steps[:6]] == [(row.t, row.s) for row in plan.rows]
    assert [step.first for step in steps] == [10] * 6 + [13] * 6
    assert all(step.noise == Noise(0) for step in steps)
    assert steps[6].cond is not None
    assert steps[6].cond["label"].tolist() == [3, 4]
    assert steps[0].prediction.x_t.shape == (3, 6)


class Conditional(nn.Module):
    """x0 = label, and noise in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5)
        self.frozen.eval()
        self.weight = nn.Parameter(torch.ones(()))
        self.modes: list[tuple[bool, bool, bool]] = []

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        self.modes.append((self.training, self.dropout.training, torch.is_grad_enabled()))
        label = 0.0 if cond is None else cond["label"].to(x).unsqueeze(1)
        return self.dropout(torch.ones_like(x)) * label * self.weight


@pytest.mark.parametrize("batch_size", [None, 1, 2, 7])
def test_conditions_are_cut_with_the_samples(batch_size: int | None) -> None:
    denoiser = Denoiser(Conditional(), VP(), "x0")
    found = sample(denoiser, calls=3, shape=(7, 2), noise=Noise(0), cond={"label": torch.arange(7)}, batch_size=batch_size)
    torch.testing.assert_close(found, torch.arange(7.0).unsqueeze(1).expand(7, 2), rtol=1e-6, atol=1e-6)


def test_networks_are_evaluated_without_gradients_and_put_back() -> None:
    net = Conditional()
    denoiser = Denoiser(net, VP(), "x0").train()
    net.frozen.eval()
    found = sample(denoiser, calls=2, shape=(2, 2), noise=Noise(0), cond={"label": torch.arange(2)})
    assert net.modes == [(False, False, False)] * 2
    assert (denoiser.training, net.training, net.dropout.training, net.frozen.training) == (True, True, True, False)
    assert not found.requires_grad

    def broken(x: Tensor, step: Step) -> Tensor:
        raise RuntimeError("hook")

    with pytest.raises(RuntimeError, match="hook"):
        sample(denoiser, calls=2, shape=(2, 2), noise=Noise(0), after=broken)
    assert (net.training, net.frozen.training) == (True, False)
    assert torch.is_grad_enabled()


def test_wrong_arguments_are_refused() -> None:
    o, plan = oracle("ddim"), PLANS["ddim"][1]
    with pytest.raises(ValueError, match="give one of shape="):
        sample(o, plan, noise=Noise(0))
    with pytest.raises(ValueError, match="give one of shape="):
        sample(o, plan, shape=(2, 6), start=torch.zeros(2, 6), noise=Noise(0))
    with pytest.raises(ValueError, match="give one of plan="):
        sample(o, shape=(2, 6), noise=Noise(0))
    with pytest.raises(ValueError, match="give one of plan="):
        sample(o, plan, calls=3, shape=(2, 6), noise=Noise(0))
    with pytest.raises(ValueError, match="batch_size=0"):
        sample(o, plan, shape=(2, 6), noise=Noise(0), batch_size=0)
    with pytest.raises(ValueError, match=r"cond\['label'\] has 3 rows for 2 samples"):
        sample(o, plan, shape=(2, 6), noise=Noise(0), cond={"label": torch.zeros(3)})
