"""`ornstein figure`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ornstein.cli.app import app

if TYPE_CHECKING:
    from ornstein.figures import Scene
    from ornstein.noise import Noise


@app.command
def figure(name: str, *, data: str = "swiss_roll", model: Path | None = None, out: Path | None = None, seed: int = 0) -> None:
    """Make a figure of the lecture notes by running code: swiss_roll, score_field, score_trap, sde_and_flow, trajectories,
    schedules, annealing, guidance.

    Parameters
    ----------
    name
        The figure (see `ornstein list`).
    data
        Two-dimensional data for swiss_roll and score_field: a law by name (swiss_roll, eight_gaussians, moons, pinwheel,
        checkerboard) or a CSV. Its exact scores are used; a CSV's are those of its points blurred by 0.05 deviations.
    model
        A trained two-dimensional model for the figure swiss_roll, in place of exact scores.
    out
        A .png, .pdf or .svg, or a .gif for swiss_roll, score_trap and annealing; NAME.png unless given.
    seed
        Seed of every draw.
    """
    from ornstein import figures
    from ornstein.files import InputError
    from ornstein.noise import Noise

    if name not in figures.GALLERY:
        raise InputError(f"figure {name!r} is not one of {', '.join(figures.GALLERY)}")
    target = out or Path(f"{name}.png")
    if target.suffix not in (".png", ".pdf", ".svg", ".gif"):
        raise InputError(f"--out {str(target)!r} must end in .png, .pdf, .svg or .gif")
    if target.suffix == ".gif" and name not in figures.ANIMATIONS:
        raise InputError(f"--out {str(target)!r}: only {', '.join(figures.ANIMATIONS)} move; give a .png")
    if data != "swiss_roll" and name not in ("swiss_roll", "score_field"):
        raise InputError(f"--data {data} goes with swiss_roll and score_field; {name} has a law of its own")
    if model is not None and name != "swiss_roll":
        raise InputError(f"--model goes with the figure swiss_roll, not with {name}")
    scene = _scene(data, model, Noise(seed))
    if target.suffix == ".gif":
        figures.write_gif(figures.ANIMATIONS[name](scene), target)
    else:
        figures.save(figures.GALLERY[name](scene), target)
    print(f"{target}: {(figures.GALLERY[name].__doc__ or name).splitlines()[0]}")


def _scene(data: str, model: Path | None, noise: Noise) -> Scene:
    from ornstein import model as models
    from ornstein.figures import POINTS, Scene
    from ornstein.files import InputError
    from ornstein.kinds import load_data, with_denoiser
    from ornstein.vector import Table, law_of

    law = law_of(data, noise)
    if model is None:
        return Scene(law, noise)
    system = with_denoiser(models.load(model), "the figure")
    if system.contract.shape != (2,):
        raise InputError(f"--model {str(model)!r} has data of shape {system.contract.shape}; the figure needs two columns")
    rows = load_data(models.read_recipe(model))
    assert isinstance(rows, Table)
    return Scene(law, noise, system.denoiser, system.contract.encode(rows.batch(range(min(POINTS, len(rows))))["x"]))
