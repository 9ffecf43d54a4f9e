"""`ornstein calibrate` and what the other commands make of its plans, as users call them."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein import model
from ornstein.files import read_tensors, write_tensors
from ornstein.noise import Noise
from ornstein.samplers import Plan, ddim, default_plan, dpm_solver_pp, sample
from tiny import Ended, Run

SMALL = ("--trajectories", 8, "--steps", 2, "--quiet")
PLANS = ("plan-3.json", "plan-4.json", "plan-3.png", "plan-4.png", "calibration.png")


def refused(ended: Ended, words: str) -> None:
    assert ended.code == 2, ended
    assert ended.err.startswith("ornstein: error: ")
    assert ended.err.count("\n") == 1
    assert words in ended.err


@pytest.fixture(scope="module")
def fitted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model directory with the plans of 3 and 4 calls, without guidance and with, and what the first command printed."""
    import contextlib
    import io

    from ornstein.cli.calibrate import calibrate

    folder = tmp_path_factory.mktemp("calibrated") / "model"
    shutil.copytree(tiny_model, folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        calibrate(folder, calls="3,4", trajectories=8, steps=2, quiet=True)
    with contextlib.redirect_stdout(io.StringIO()):
        calibrate(folder, calls="3", guidance=2.0, trajectories=8, steps=2, quiet=True)
        calibrate(folder, calls="3", sampler="ancestral", trajectories=8, steps=2, quiet=True)
    return folder, said.getvalue()


@pytest.fixture
def own(fitted: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(fitted[0], tmp_path / "own")
    return tmp_path / "own"


def drawn(path: str = "x.npz") -> np.ndarray:
    with np.load(path, allow_pickle=False) as loaded:
        return np.asarray(loaded["samples"])


def test_plans_and_pictures_are_written_beside_the_weights(fitted: tuple[Path, str]) -> None:
    folder, said = fitted
    assert {path.name for path in folder.iterdir()} >= set(PLANS)
    for name in PLANS:
        if name.endswith(".png"):
            with Image.open(folder / name) as picture:
                assert picture.size[0] > 50
    with Image.open(folder / "calibration.png") as picture:  # eight draws; two starts, their plans, and the fine flow
        assert picture.size[0] / picture.size[1] == pytest.approx(8 / 5, rel=0.05)
    for calls in (3, 4):
        plan = Plan.load(folder / f"plan-{calls}.json")
        facts = plan.calibration
        assert facts is not None
        assert plan.calls == calls
        assert facts.error <= facts.start_error
        assert (facts.trajectories, facts.conditions, facts.denoiser) == (8, ("label",), "Denoiser(edm)")
        assert f"plan-{calls}.json: {facts}" in said
        assert "nothing better" in said or f"of {default_plan(model.load(folder).denoiser.process, calls).name}" in said
    lines = said.splitlines()
    assert lines[0].startswith("fine flow: ")
    assert len(lines) == 4
    assert lines[-1].startswith(f"{folder / 'calibration.png'}: ")


def test_the_command_is_the_function(fitted: tuple[Path, str], own: Path, run: Run) -> None:
    ended = run("calibrate", own, "--calls", "3,3", *SMALL, "--seed", 1)
    assert ended.code == 0, ended.err
    assert ended.out.count("plan-3.json") == 1
    plan = Plan.load(own / "plan-3.json")
    assert plan.calibration is not None
    assert plan.calibration.seed == 1
    assert plan.rows != Plan.load(fitted[0] / "plan-3.json").rows
    assert ended.err == ""


def test_a_number_of_calls_takes_the_plan_fitted_for_it(fitted: tuple[Path, str], run: Run) -> None:
    folder = fitted[0]
    asked = ("sample", folder, "-n", 3, "--cond", "label=1,2", "--out", "x.npz", "--quiet")
    ended = run(*asked, "--calls", 3)
    assert ended.code == 0, ended.err
    plan = Plan.load(folder / "plan-3.json")
    assert ended.out == f"x.npz: 3 samples, {plan.name}, 3 calls each\n"
    system = model.load(folder)
    cond = {"label": [1, 2, 1]}
    expected = system.sample(3, cond=cond, sampler=plan, noise=Noise(0))
    assert np.array_equal(drawn(), system.contract.quantise(expected))
    # from Python, by number too, and only by number
    assert torch.equal(system.sample(3, cond=cond, sampler=3, noise=Noise(0)), expected)
    assert torch.equal(system.sample(3, cond=cond, sampler=plan, noise=Noise(0)), expected)
    assert system.plan_for(5) is None
    assert system.plan is not None
    assert system.plan.calibration is None
    assert "heun" in run(*asked).out
    assert "ddim" in run(*asked, "--calls", 3, "--sampler", "ddim").out
    assert "calibrated" not in run(*asked, "--calls", 5).out


def test_a_plan_for_guidance_is_taken_under_that_guidance_alone(fitted: tuple[Path, str], run: Run) -> None:
    folder = fitted[0]
    guided = Plan.load(folder / "plan-3-guidance-2.json")
    assert guided.calibration is not None
    assert guided.calibration.denoiser == "ClassifierFree(scale=2) of Denoiser(edm)"
    system = model.load(folder)
    assert system.plan_for(3, guidance=2.0) == guided
    assert system.plan_for(3) == Plan.load(folder / "plan-3.json")
    assert system.plan_for(3, guidance=1.5) is None
    asked = ("sample", folder, "-n", 2, "--cond", "label=1", "--calls", 3, "--out", "x.npz", "--quiet")
    assert run(*asked, "--guidance", 2).code == 0
    expected = system.sample(2, cond={"label": 1}, guidance=2.0, sampler=guided, noise=Noise(0))
    assert np.array_equal(drawn(), system.contract.quantise(expected))
    assert "calibrated" not in run(*asked, "--guidance", 1.5).out


def test_a_plan_under_other_guidance_is_refused(fitted: tuple[Path, str], run: Run) -> None:
    folder = fitted[0]
    asked = ("sample", folder, "-n", 2, "--cond", "label=1", "--quiet", "--out", "x.npz")
    for name, guidance in (("plan-3.json", 2), ("plan-3-guidance-2.json", 1), ("plan-3-guidance-2.json", 3)):
        plan = folder / name
        refused(run(*asked, "--sampler", plan, "--guidance", guidance), f"--sampler {plan} was calibrated for ")
    assert not Path("x.npz").exists()
    assert run(*asked, "--sampler", folder / "plan-3-guidance-2.json", "--guidance", 2).code == 0
    refused(run("sample", folder, "-n", 2, "--quiet", "--guidance", 2), "needs a condition")


def test_guidance_needs_a_model_trained_for_it(own: Path, run: Run) -> None:
    text = (own / model.CONFIG).read_text()
    assert "condition_dropout: 0.1" in text
    (own / model.CONFIG).write_text(text.replace("condition_dropout: 0.1", "condition_dropout: 0.0"))
    for command in (("calibrate", own, "--calls", 3, *SMALL), ("sample", own, "-n", 2, "--cond", "label=1", "--quiet")):
        refused(run(*command, "--guidance", 2), "guidance=2 needs a model trained with condition_dropout above 0")
    assert run("sample", own, "-n", 2, "--cond", "label=1", "--quiet").code == 0


def test_a_plan_of_another_process_is_refused(fitted: tuple[Path, str], run: Run) -> None:
    folder = fitted[0]
    content = json.loads((folder / "plan-3.json").read_text())
    content["calibration"]["levels"][0][1] *= 1.01
    Path("moved.json").write_text(json.dumps(content))
    refused(run("sample", folder, "-n", 2, "--sampler", "moved.json", "--quiet"), "calibrate it for this process")


def test_a_noisy_plan_is_saved_apart_and_not_taken_unasked(own: Path, run: Run) -> None:
    path = own / "plan-3-noise.json"
    plan = Plan.load(path)
    assert plan.stochastic
    assert plan.calibration is not None
    assert plan.calibration.measure == "energy"
    assert model.load(own).plan_for(3) == Plan.load(own / "plan-3.json")
    # not even where there is no other
    (own / "plan-3.json").unlink()
    assert model.load(own).plan_for(3) is None
    assert plan.name not in run("sample", own, "-n", 2, "--calls", 3, "--quiet").out
    assert plan.name in run("sample", own, "-n", 2, "--sampler", path, "--quiet").out


def test_stale_plans_are_not_used_and_warned_about(own: Path, run: Run) -> None:
    weights = read_tensors(own / model.WEIGHTS)
    name = next(iter(weights))
    weights[name] = weights[name] + 1e-3
    write_tensors(own / model.WEIGHTS, weights)
    with pytest.warns(UserWarning, match="was calibrated to other weights and is not used; calibrate again") as caught:
        system = model.load(own)
    assert {Path(str(one.message).split(" was")[0]).name for one in caught} == {
        "plan-3.json", "plan-4.json", "plan-3-guidance-2.json", "plan-3-noise.json",
    }  # fmt: skip
    assert system.calibrated == ()
    assert system.plan_for(3) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "calibrated" not in run("sample", own, "-n", 2, "--calls", 3, "--quiet").out
    # plans that were fitted to nothing belong to any weights
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in own.glob("plan-*.json"):
            path.unlink()
        model.save_plan(own, ddim(system.denoiser.process, 3))
        assert model.load(own).calibrated == ()


def test_info_tells_of_calibrations(fitted: tuple[Path, str], run: Run) -> None:
    folder = fitted[0]
    said = run("info", folder).out
    for name in ("3", "4", "3-guidance-2", "3-noise"):
        assert f"plan: {name}, {Plan.load(folder / f'plan-{name}.json').calibration}" in said
    ended = run("info", folder / "plan-3.json", "--out", "x.png")
    assert ended.code == 0, ended.err
    plan = Plan.load(folder / "plan-3.json")
    facts = plan.calibration
    assert facts is not None
    assert str(plan) in ended.out
    assert str(facts) in ended.out
    assert f"calibrated for Denoiser(edm), weights {facts.weights}, conditions label" in ended.out
    assert "8 trajectories of seed 0" in ended.out
    beside = [line for line in ended.out.splitlines() if "dpm_solver_pp" in line]
    assert len(beside) == 1
    assert plan.name in beside[0]
    with Image.open("x.png") as picture:
        assert picture.size[0] > picture.size[1]
    # a plan on its own has no process to be compared in
    shutil.copy(folder / "plan-3.json", "alone.json")
    ended = run("info", "alone.json")
    assert ended.code == 0
    assert "dpm_solver_pp" not in ended.out
    refused(run("info", "alone.json", "--out", "y.png"), "keep alone.json in its model directory")
    refused(run("info", folder, "--out", "y.png"), "give its JSON file")
    assert not Path("y.png").exists()


def test_info_compares_what_can_be_compared(own: Path, run: Run) -> None:
    process = model.load(own).denoiser.process
    for plan in (ddim(process, 2), dpm_solver_pp(process, 2)):
        plan.save(own / "plan-2.json")
        ended = run("info", own / "plan-2.json", "--out", "x.png")
        assert ended.code == 0, ended.err
        assert "calibrated for" not in ended.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--calls", "x"], "--calls 'x' is not a list of numbers"),
        (["--calls", ""], "--calls"),
        (["--calls", "3,,4"], "--calls '3,,4'"),
        (["--calls", "0"], "--calls 0 must be at least 1"),
        (["--calls", "4,-1"], "--calls -1 must be at least 1"),
        ([], "calls"),
        (["--calls", "3", "--memory", "0"], "--memory 0 must be above 0"),
        (["--calls", "3", "--memory", "nan"], "--memory nan must be above 0"),
        (["--calls", "3", "--trajectories", "2"], "--trajectories 2 must be at least 8"),
        (["--calls", "3", "--steps", "-1"], "--steps -1 must be at least 0"),
        (["--calls", "3", "--batch", "0"], "--batch 0 must be at least 1"),
        (["--calls", "3", "--sampler", "rk45"], "--sampler rk45 is not the name of a sampler with a fixed number of calls"),
        (["--calls", "3", "--sampler", "plan-3.json"], "--sampler plan-3.json is not the name"),
        (["--calls", "3", "--sampler", "magic"], "magic"),
        (["--calls", "3", "--grid", "magic"], "magic"),
        (["--calls", "3", "--max-time", "soon"], "--max-time 'soon' is not a time"),
        (["--calls", "3", "--cond", "label=99"], "'99'"),
        (["--calls", "3", "--cond", "color=1"], "color"),
        (["--calls", "6", "--sampler", "sa_solver", *map(str, SMALL[:2])], "--sampler sa_solver"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_one_line(arguments: list[str], words: str, run: Run, tiny_model: Path) -> None:
    before = sorted(path.name for path in tiny_model.iterdir())
    refused(run("calibrate", tiny_model, *arguments, "--quiet"), words)
    assert sorted(path.name for path in tiny_model.iterdir()) == before


@pytest.mark.parametrize("command", ["calibrate", "sample"])
def test_a_scale_that_is_not_finite_is_one_line(command: str, run: Run, tiny_model: Path) -> None:
    refused(run(command, tiny_model, "--calls", 3, "--cond", "label=1", "--guidance", "nan", "--quiet"), "nan")


def test_no_model_is_one_line(run: Run) -> None:
    refused(run("calibrate", "nowhere", "--calls", "3"), "'nowhere' is not a directory")


@pytest.mark.parametrize("content", ["{", '{"format": 1}', "[]", ""])
def test_a_broken_plan_is_one_line(content: str, own: Path, run: Run) -> None:
    (own / "plan-3.json").write_text(content)
    refused(run("sample", own, "-n", 2, "--calls", 3, "--quiet"), "plan-3.json")
    refused(run("info", own / "plan-3.json"), "plan-3.json")
    refused(run("calibrate", own, "--calls", 4, "--quiet"), "plan-3.json")


def test_the_calls_asked_for_are_those_of_the_plan_or_refused(own: Path, run: Run) -> None:
    before = (own / "plan-3.json").read_text()
    (own / "plan-4.json").unlink()
    ended = run("calibrate", own, "--calls", 4, "--sampler", "heun", *SMALL)
    assert ended.code == 2 or (own / "plan-4.json").exists()
    assert (own / "plan-3.json").read_text() == before


def test_options_reach_the_fit(own: Path, run: Run) -> None:
    ended = run(
        "calibrate", own, "--calls", 3, "--sampler", "ddim", "--grid", "uniform", "--cond", "label=3,1", "--max-time", "20s",
        "--trajectories", 9, "--steps", 0, "--batch", 4, "--memory", 0.1, "--quiet",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    facts = Plan.load(own / "plan-3.json").calibration
    assert facts is not None
    assert facts.start.startswith("ddim")
    assert (facts.trajectories, facts.evaluations) == (9, 0)
    # the start is the sampler on that grid: its error is that of samples by it
    assert "ddim" in ended.out
    assert facts.start_error > facts.error > 0


def test_the_figure_is_what_fresh_samples_have(fitted: tuple[Path, str]) -> None:
    system = model.load(fitted[0])
    process, cond = system.denoiser.process, {"label": torch.arange(40) % 10}
    options: dict[str, Any] = {"shape": (40, 1, 8, 8), "noise": Noise(5), "cond": cond}
    fine = sample(system.denoiser, default_plan(process, 100), **options)
    for name in ("3", "4"):
        plan = Plan.load(fitted[0] / f"plan-{name}.json")
        off = sample(system.denoiser, plan, **options) - fine
        assert plan.calibration is not None
        assert float(off.flatten(1).square().mean(1).sqrt().mean()) == pytest.approx(plan.calibration.error, rel=0.5)
