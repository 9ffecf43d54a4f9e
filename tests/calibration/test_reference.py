"""Fine trajectories: as fine as promised, kept apart, and the same in any batch."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from calibration_cases import F64, PROCESSES, Watched, coarse, correlated, mixture, normal
from torch import Tensor

from chosen import Chosen
from ornstein.calibration import Pairs, fine_flow
from ornstein.calibration.reference import FIRST, Path, rms
from ornstein.noise import Noise
from ornstein.process import VP
from ornstein.samplers import default_plan, sample

SMOOTH = ("vp", "cosine", "edm", "ve", "sub_vp")


def at_worst(path: Path, start: Tensor, times: list[float]) -> float:
    """The largest distance from the exact flow, over the size of a state there."""
    oracle = correlated(path.process)
    off = []
    for t in times:
        exact = oracle.flow(start, 1.0, t)
        off.append(float(rms(path.at(t), exact).mean() / rms(exact, torch.zeros_like(exact)).mean()))
    return max(off)


@pytest.mark.parametrize("process", SMOOTH)
def test_a_path_is_the_flow_at_all_times(process: str) -> None:
    p = PROCESSES[process]
    oracle = correlated(p)
    times = [1.0, *(p.t_min + (1 - p.t_min) * float(u) for u in Noise(5).uniform((12,), stream="times"))]
    errors = []
    for calls in (32, 64, 128):
        found = coarse(oracle, trajectories=8, fine_calls=calls)
        errors.append(at_worst(found.path, found.fit.start, times))
        assert found.calls == calls
    # of order 3, as its Adams steps; less where the first ones, of lower order, still count
    assert errors[0] > 4 * errors[1] > 20 * errors[2], errors
    assert errors[2] < 2e-4, errors
    end = oracle.flow(found.fit.start, 1.0, p.t_min if p.t_min else 1e-6)
    assert float(rms(found.path.at(None), end).mean()) < 0.02
    torch.testing.assert_close(found.path.at(None), found.fit.end, rtol=0, atol=1e-12)


def test_a_path_goes_through_its_states() -> None:
    oracle = mixture(VP())
    seen = Watched(oracle)
    found = coarse(seen, trajectories=8, fine_calls=16)
    times = [t for _, t in seen.asked[:16]]
    assert times == sorted(times, reverse=True)
    assert found.path.states.shape == (17, 8, 2)
    for k in (0, 3, 15):
        torch.testing.assert_close(found.path.at(times[k]), found.path.states[k], rtol=0, atol=1e-12)  # vp: norm 1
        answer = oracle(found.path.states[k], times[k])
        torch.testing.assert_close(found.path.slopes[k], answer.v, rtol=1e-10, atol=1e-10)


def test_the_three_sets_are_apart() -> None:
    process = VP()
    found = coarse(mixture(process), trajectories=20, fine_calls=16)
    sets = (found.fit, found.choose, found.judge)
    assert [len(part) for part in sets] == [20, 10, 10]
    users = Pairs(process.prior((20, 2), Noise(0), dtype=F64), normal(20, 2), None, 0)
    for one, other in combinations((*sets, users), 2):
        assert float(torch.cdist(one.start, other.start).min()) > 0
        assert not set(range(one.first, one.first + len(one))) & set(range(other.first, other.first + len(other)))
    for part in sets:
        assert part.first >= FIRST > 2**40
        again = process.prior((len(part), 2), Noise(0), first=part.first, dtype=F64)
        assert torch.equal(part.start, again)
    assert found.seed == 0
    assert not torch.equal(coarse(mixture(process), seed=1, trajectories=20, fine_calls=16).fit.start, found.fit.start)


def test_batches_change_nothing() -> None:
    oracle = Chosen((mixture(VP()), mixture(VP(), shift=1.0)))
    cond = {"label": torch.tensor([0, 1, 1])}
    one, other = (coarse(oracle, trajectories=20, fine_calls=16, cond=cond, batch_size=size) for size in (3, 64))
    for name in ("fit", "choose", "judge"):
        a, b = getattr(one, name), getattr(other, name)
        assert torch.equal(a.start, b.start)
        assert torch.equal(a.cond["label"], b.cond["label"])
        torch.testing.assert_close(a.end, b.end, rtol=0, atol=1e-12)
    torch.testing.assert_close(one.path.at(0.4), other.path.at(0.4), rtol=0, atol=1e-12)


def test_conditions_are_dealt_in_turn() -> None:
    oracles = (mixture(VP()), mixture(VP(), shift=2.0), mixture(VP(), shift=-2.0))
    found = coarse(Chosen(oracles), trajectories=16, fine_calls=32, cond={"label": torch.arange(3)}, batch_size=5)
    for part in (found.fit, found.choose, found.judge):
        assert part.cond is not None
        assert part.cond["label"].tolist() == [k % 3 for k in range(len(part))]
    for k, oracle in enumerate(oracles):
        alone = coarse(oracle, trajectories=16, fine_calls=32)
        torch.testing.assert_close(found.fit.end[k::3], alone.fit.end[k::3], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.path.at(0.3)[k::3], alone.path.at(0.3)[k::3], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("process", "calls", "doubled"), [("vp", 5, False), ("vp", 14, False), ("chain", 20, True)])
def test_the_promised_resolution_is_reached(process: str, calls: int, doubled: bool) -> None:
    oracle = mixture(PROCESSES[process])
    found = fine_flow(oracle, shape=(2,), noise=Noise(0), calls=calls, trajectories=48, dtype=F64)
    low = oracle.process.t_min  # whence all plans denoise
    exact = oracle(oracle.flow(found.fit.start, 1.0, low), low).x0
    own = float(found.fit.error(exact).mean())
    default = sample(oracle, default_plan(oracle.process, calls), start=found.fit.start, noise=Noise(0))
    assert own < 0.05 * float(rms(default, exact).mean())
    assert own < 2 * found.error < 0.2 * float(rms(default, exact).mean())
    assert found.calls >= max(64, 6 * calls)
    assert (found.calls > max(64, 6 * calls)) == doubled  # the first number is not always enough


def test_a_given_number_of_calls_measures_nothing() -> None:
    seen = Watched(mixture(VP()))
    found = coarse(seen, trajectories=8, fine_calls=12)
    assert len(seen.asked) == 3 * 12
    assert found.error is None


@pytest.mark.parametrize("fine_calls", [16, None])
def test_a_denoiser_that_leaves_the_numbers_is_told(fine_calls: int | None) -> None:
    broken = Watched(mixture(VP()), lambda prediction: prediction.with_x0(prediction.x0 / 0))
    with pytest.raises(FloatingPointError, match="is not finite: the denoiser returns NaN or infinity"):
        coarse(broken, trajectories=8, fine_calls=fine_calls)


def test_few_trajectories_and_empty_conditions_are_refused() -> None:
    oracle = mixture(VP())
    with pytest.raises(ValueError, match="trajectories=7 must be at least 8"):
        coarse(oracle, trajectories=7)
    with pytest.raises(ValueError, match=r"cond\['label'\] has no rows"):
        coarse(oracle, cond={"label": torch.zeros(0, dtype=torch.long)})
    # half of eight would be too few to choose or to judge by
    assert [len(part) for part in (coarse(oracle, trajectories=8).choose, coarse(oracle, trajectories=8).judge)] == [8, 8]
