"""What a plan knows of its calibration: in files, in print, and where it does not fit."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ornstein.denoiser import Clipped, Denoiser, Denoises, DynamicThreshold, HalfPrecision, describe
from ornstein.files import InputError
from ornstein.guidance import ClassifierFree
from ornstein.nets import MLP
from ornstein.noise import Noise
from ornstein.process import EDM, VP, GaussianProcess
from ornstein.samplers import Plan, ancestral, ddim, sample
from ornstein.samplers.loop import misfit
from ornstein.samplers.plan import Calibration


def facts(process: GaussianProcess, plan: Plan, denoiser: str = "Denoiser(v)", **changed: Any) -> Calibration:
    levels = tuple((float(a), float(s)) for a, s in (process.moments(t) for t in plan.times))
    known = Calibration(
        error=0.01, start_error=0.04, gain_error=0.002, start="ddim", kept=False, measure="flow", samples=16, denoiser=denoiser,
        levels=levels, weights="ab" * 16, conditions=("label",), trajectories=32, evaluations=7, seed=3, fine_calls=64,
        fine_error=1e-4, seconds=1.5, version="0.1",
    )  # fmt: skip
    return replace(known, **changed)


def calibrated(process: GaussianProcess, denoiser: str = "Denoiser(v)", **changed: Any) -> Plan:
    plan = ddim(process, 3)
    return replace(plan, name="calibrated(3)", calibration=facts(process, plan, denoiser, **changed))


def network(process: GaussianProcess, predicts: str = "v") -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(MLP(2, width=16, depth=1, classes=3), process, predicts)


@pytest.mark.parametrize("changed", [{}, {"weights": None, "conditions": ()}, {"kept": True, "error": 0}])
def test_files_give_the_calibration_back_exactly(changed: dict[str, Any], tmp_path: Path) -> None:
    plan = calibrated(EDM(), **changed)
    plan.save(tmp_path / "plan-3.json")
    again = Plan.load(tmp_path / "plan-3.json")
    assert (again.rows, again.name) == (plan.rows, plan.name)
    assert again.calibration == plan.calibration
    ancestral(VP(), 3).save(tmp_path / "plain.json")
    assert Plan.load(tmp_path / "plain.json").calibration is None
    # a file from before there were calibrations
    content = json.loads((tmp_path / "plain.json").read_text())
    del content["calibration"]
    (tmp_path / "plain.json").write_text(json.dumps(content))
    assert Plan.load(tmp_path / "plain.json") == ancestral(VP(), 3)


WRONG: dict[str, tuple[Any, ...]] = {
    "float": ("0.1", None, True, False, [1]),
    "float | None": ("0.1", True, [1]),
    "int": ("3", None, True, False, 1.5),
    "bool": (0, None, "yes"),
    "str": (3, None, ["x"]),
    "str | None": (True, 3, ["x"]),
    "tuple[str, ...]": (3, None, True, "label"),
    "tuple[tuple[float, float], ...]": (3, None, [[1.0]], [[1.0, 0.5]], [1, 2, 3], [["a", 0.1]] * 3),
}
CASES = [(field.name, value) for field in fields(Calibration) for value in WRONG[str(field.type)]]


def broken(change: dict[str, Any], tmp_path: Path, *, without: str | None = None) -> None:
    path = tmp_path / "plan-3.json"
    calibrated(VP()).save(path)
    content = json.loads(path.read_text())
    content["calibration"].update(change)
    content["calibration"].pop(without, None)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        Plan.load(path)
    assert "plan-3.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}={value}" for name, value in CASES])
def test_a_wrong_field_is_one_line(name: str, value: Any, tmp_path: Path) -> None:
    broken({name: value}, tmp_path)


def test_a_plan_whose_fine_flow_was_not_measured_can_be_read_again(tmp_path: Path) -> None:
    calibrated(VP(), fine_error=None).save(tmp_path / "plan-3.json")
    assert Plan.load(tmp_path / "plan-3.json").rows == calibrated(VP()).rows


@pytest.mark.parametrize("name", [field.name for field in fields(Calibration)])
def test_a_missing_field_is_one_line(name: str, tmp_path: Path) -> None:
    broken({}, tmp_path, without=name)


def test_other_calibrations_are_one_line(tmp_path: Path) -> None:
    broken({"extra": 1}, tmp_path)
    path = tmp_path / "plan-3.json"
    calibrated(VP()).save(path)
    content = json.loads(path.read_text())
    for value in (3, "text", [1], True):
        path.write_text(json.dumps(content | {"calibration": value}))
        with pytest.raises(InputError, match=r"plan-3\.json"):
            Plan.load(path)


def test_it_says_what_was_gained() -> None:
    known = facts(VP(), ddim(VP(), 3))
    assert str(known) == "distance to the fine flow 0.01, 0.25 times that of ddim, 0.04 (16 unseen draws)"
    assert str(replace(known, measure="energy")).startswith("energy distance 0.01, that of ddim 0.04")
    assert str(replace(known, kept=True)) == "distance to the fine flow 0.04: nothing better was found, this is ddim"
    assert "\n" not in str(known)
    assert set(asdict(known)) == {field.name for field in fields(Calibration)}


def wrapped(name: str) -> Denoises:
    net = network(VP())
    table: dict[str, Denoises] = {
        "net": net,
        "other": network(VP(), "eps"),
        "guided": ClassifierFree(net, 2.0),
        "more": ClassifierFree(net, 2.5),
        "clipped": Clipped(net, -1, 1),
        "wider": Clipped(net, -2, 1),
        "threshold": DynamicThreshold(net),
        "half": HalfPrecision(net),
        "half guided": ClassifierFree(HalfPrecision(net), 2.0),
        "both": Clipped(ClassifierFree(net, 2.0), -1, 1),
        "turned": ClassifierFree(Clipped(net, -1, 1), 2.0),
    }
    return table[name]


NAMES = ("net", "other", "guided", "more", "clipped", "wider", "threshold", "half", "half guided", "both", "turned")
ALIKE = {"half": "net", "half guided": "guided"}


@pytest.mark.parametrize("own", ["net", "guided", "clipped", "both"])
def test_a_plan_calibrated_for_other_guidance_or_clipping_is_warned_about(own: str) -> None:
    plan = calibrated(VP(), describe(wrapped(own)))
    options: dict[str, Any] = {"shape": (2, 2), "noise": Noise(0), "cond": {"label": torch.tensor([0, 1])}}
    for name in NAMES:
        denoiser = wrapped(name)
        if ALIKE.get(name, name) == own:
            assert misfit(plan, denoiser) == ""
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                sample(denoiser, plan, **options)
            continue
        assert misfit(plan, denoiser).startswith(f"was calibrated for {describe(wrapped(own))}, and samples {describe(denoiser)}")
        with pytest.warns(UserWarning, match=r"'calibrated\(3\)' was calibrated for .* calibrate again"):
            sample(denoiser, plan, **options)


def test_a_plan_without_calibration_fits_everything() -> None:
    for name in NAMES:
        assert misfit(ddim(VP(), 3), wrapped(name)) == ""


@pytest.mark.parametrize("process", [EDM(), VP(beta_max=19.0)], ids=["edm", "other vp"])
def test_a_plan_calibrated_for_another_process_is_refused(process: GaussianProcess) -> None:
    plan = calibrated(VP())
    with pytest.raises(ValueError, match=r"'calibrated\(3\)' was calibrated where \(alpha, sigma\) at t=.*for this process"):
        sample(network(process), plan, shape=(2, 2), noise=Noise(0))
    # where the two agree to eleven digits they are one
    assert misfit(plan, network(VP(beta_max=20.0 + 1e-10))) == ""


def test_denoisers_are_described_from_the_outside_in() -> None:
    texts = {name: describe(wrapped(name)) for name in NAMES}
    assert texts["net"] == "Denoiser(v)"
    assert texts["other"] == "Denoiser(eps)"
    assert texts["both"] == "Clipped(low=-1, high=1) of ClassifierFree(scale=2) of Denoiser(v)"
    assert texts["turned"] == "ClassifierFree(scale=2) of Clipped(low=-1, high=1) of Denoiser(v)"
    assert texts["threshold"] == "DynamicThreshold(bound=1, quantile=0.995) of Denoiser(v)"
    for name, same in ALIKE.items():
        assert texts.pop(name) == texts[same]
    assert len(set(texts.values())) == len(texts)


def gradient(x: torch.Tensor) -> torch.Tensor:
    return x


@dataclass(frozen=True)
class Steered:
    """A wrapper as users write them: a function, an object and a number as options."""

    denoiser: Denoises
    how: Any
    scale: float = 1.0

    @property
    def process(self) -> GaussianProcess:
        return self.denoiser.process


def test_descriptions_hold_no_addresses() -> None:
    net = network(VP())
    assert describe(Steered(net, gradient)) == "Steered(how=gradient, scale=1) of Denoiser(v)"
    assert describe(Steered(net, "left", 0.5)) == "Steered(how=left, scale=0.5) of Denoiser(v)"
    for how in (gradient, lambda x: x, net.net, object(), torch.zeros(3), None):
        text = describe(Steered(net, how))
        assert "0x" not in text
        assert text == describe(Steered(network(VP()), how))
    assert describe(object()) == "object"
