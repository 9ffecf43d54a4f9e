"""`ornstein encode`, `decode` and `interpolate`: data to latents along the probability flow, back, and between."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ornstein.cli.app import Cond, Count, app, at_least
from ornstein.cli.inputs import chosen, conditions_of, picture, references, samples_of, write_npz

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.cli.inputs import Conditions
    from ornstein.kinds import Dataset
    from ornstein.samplers import RK45
    from ornstein.system import System

Rows = Annotated[list[int] | None, Parameter(name="--rows", consume_multiple=True, help="Places of data in the file, from 0.")]


@app.command
def encode(
    directory: Path,
    *,
    data: str | None = None,
    number: Count = 1000,
    cond: Cond = None,
    rtol: float = 1e-4,
    out: Path = Path("latents.npz"),
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Map data to latents, about normal, by the probability flow; `ornstein decode` maps them back.

    Parameters
    ----------
    directory
        A model directory.
    data
        Data to encode; the held-out part of the training data unless given.
    number
        At most so many data, from the first on.
    cond
        Condition, name=value, in place of the data's own labels.
    rtol
        Tolerance of the solver.
    out
        A .npz with the array `latent`, divided by the prior's standard deviation, and the condition.
    device
        cpu, cuda or mps.
    quiet
        No progress line.
    """
    from ornstein import model
    from ornstein.files import InputError
    from ornstein.kinds import with_denoiser
    from ornstein.parallel import shares

    if out.suffix != ".npz":
        raise InputError(f"--out {str(out)!r} must end in .npz")
    at_least("-n", number)
    system, solver = with_denoiser(model.load(directory, device=device), "encoding and decoding"), _solver(rtol)
    _, held = references(model.read_recipe(directory), system, data)
    count = min(number, len(held))
    conditions: Conditions = conditions_of(cond, count) or _labels(system, held, list(range(count)))
    with shares(count) as share:
        rows = list(range(share.first, share.first + share.count)) or [0]  # no data of its own: one that it does not count
        found = system.encode(held.batch(rows)["x"], cond=chosen(conditions, rows), solver=solver, progress=not quiet)
        latent, calls = (share.gather(part[: share.count].cpu()) for part in found)
        if not share.main:
            return
    latent = latent / system.denoiser.process.prior_std
    write_npz(out, system, {"latent": latent.numpy()}, conditions)
    print(f"{out}: {count} latents, standard deviation {float(latent.std()):.3f}, {float(calls.double().mean()):.0f} calls each")


@app.command
def decode(
    directory: Path,
    latents: Path,
    *,
    cond: Cond = None,
    rtol: float = 1e-4,
    out: Path = Path("decoded.png"),
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Map latents back to data by the probability flow.

    Parameters
    ----------
    directory
        A model directory.
    latents
        A .npz with the array `latent`, of `ornstein encode` or your own, about standard normal.
    cond
        Condition, name=value, in place of the one in the file.
    rtol
        Tolerance of the solver.
    out
        A .png (a grid), or a .npz whose array `samples` is in the data's own range.
    device
        cpu, cuda or mps.
    quiet
        No progress line.
    """
    import torch

    from ornstein import model
    from ornstein.files import InputError, read_arrays
    from ornstein.kinds import with_denoiser

    system, solver = with_denoiser(model.load(directory, device=device), "encoding and decoding"), _solver(rtol)
    arrays = read_arrays(latents)
    if "latent" not in arrays or arrays["latent"].shape[1:] != system.contract.shape:
        found = {name: array.shape for name, array in arrays.items()}
        raise InputError(
            f"{latents} holds {found}, not an array 'latent' of shape (n, {', '.join(map(str, system.contract.shape))})"
        )
    latent = torch.from_numpy(arrays["latent"]).float()
    conditions: Conditions = conditions_of(cond, len(latent))
    if conditions is None and system.condition in arrays:
        conditions = {str(system.condition): arrays[str(system.condition)].tolist()}
    x = system.decode(latent * system.denoiser.process.prior_std, cond=conditions, solver=solver, progress=not quiet)
    _write(out, system, x.cpu(), conditions)
    print(f"{out}: {len(latent)} data")


@app.command
def interpolate(
    directory: Path,
    *,
    data: str | None = None,
    rows: Rows = None,
    steps: int = 8,
    pairs: int = 4,
    cond: Cond = None,
    seed: int = 0,
    rtol: float = 1e-4,
    out: Path = Path("interpolation.png"),
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Walk from one sample to another, or from one datum to another, by spherical interpolation of their latents.

    Parameters
    ----------
    directory
        A model directory.
    data
        Data to walk between, with --rows; the held-out part of the training data unless given.
    rows
        Places of the data, from 0: the first is joined to the second, the third to the fourth. Without them, samples are joined.
    steps
        Pictures of a walk, both ends included.
    pairs
        How many pairs of samples, without --rows.
    cond
        Condition, name=value; several values by commas are dealt to the pairs in turn.
    seed
        Seed of the samples' latents.
    rtol
        Tolerance of the solver.
    out
        A .png with one walk per line, or a .npz whose array `samples` is in the data's own range, walk after walk.
    device
        cpu, cuda or mps.
    quiet
        No progress line.
    """
    import torch

    from ornstein import model
    from ornstein.files import InputError
    from ornstein.kinds import with_denoiser
    from ornstein.likelihood import slerp
    from ornstein.noise import Noise

    at_least("--steps", steps, 2)
    at_least("--pairs", pairs)
    system, solver = with_denoiser(model.load(directory, device=device), "encoding and decoding"), _solver(rtol)
    if rows is not None:
        if len(rows) < 2 or len(rows) % 2:
            raise InputError(f"--rows {' '.join(map(str, rows))} must name pairs of data")
        _, held = references(model.read_recipe(directory), system, data)
        if bad := [row for row in rows if not 0 <= row < len(held)]:
            raise InputError(f"--rows {bad[0]} is not one of the {len(held)} data, 0 … {len(held) - 1}")
        labels: Conditions = conditions_of(cond, len(rows)) or _labels(system, held, rows)
        ends = system.encode(held.batch(rows)["x"], cond=labels, solver=solver, progress=not quiet).latent
    else:
        if data is not None:
            raise InputError("--data needs --rows, the places of the data to walk between")
        shape = (2 * pairs, *system.contract.shape)
        ends = system.denoiser.process.prior(shape, Noise(seed)).to(system.device)
        labels = chosen(conditions_of(cond, pairs), [pair for pair in range(pairs) for _ in "ab"])
    weights = torch.linspace(0, 1, steps, dtype=torch.float64)
    first, second = (ends[k::2].repeat_interleave(steps, 0) for k in range(2))
    walks = slerp(first, second, weights.repeat(len(ends) // 2))
    # the nearer end lends its condition
    along = chosen(labels, [2 * pair + (step >= steps / 2) for pair in range(len(ends) // 2) for step in range(steps)])
    x = system.decode(walks, cond=along, solver=solver, progress=not quiet)
    _write(out, system, x.cpu(), along, columns=steps)
    print(f"{out}: {len(walks) // steps} walks of {steps}")


def _solver(rtol: float) -> RK45:
    from ornstein.files import InputError
    from ornstein.samplers import RK45

    if not 1.2e-6 <= rtol < 1:
        raise InputError(f"--rtol {rtol:g} must lie between 1.2e-6, what float32 resolves, and 1")
    return RK45(rtol)


def _labels(system: System, held: Dataset, rows: list[int]) -> dict[str, list[int]] | None:
    if system.condition != "label":
        return None
    return {"label": held.batch(rows)["label"].tolist()}


def _write(out: Path, system: System, x: Tensor, conditions: Conditions, columns: int | None = None) -> None:
    from ornstein.files import InputError

    if out.suffix == ".png":
        picture(out, system, x, columns)
    elif out.suffix == ".npz":
        write_npz(out, system, {"samples": samples_of(system, x)}, conditions)
    else:
        raise InputError(f"--out {str(out)!r} must end in .png or .npz")
