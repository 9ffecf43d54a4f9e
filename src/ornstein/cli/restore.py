"""`ornstein restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ornstein.cli.app import Cond, Count, Guidance, app, at_least
from ornstein.cli.inputs import conditions_of, sampler_of, write_npz

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.image.cold import ColdSystem
    from ornstein.kinds import Model
    from ornstein.metrics import Ensemble
    from ornstein.noise import Noise
    from ornstein.operator import Operator
    from ornstein.system import System

LEAST_FOR_COVERAGE = 19
"""Draws below which there is no interval of probability 0.9."""
Option = Annotated[
    list[str] | None, Parameter(name="--option", help="An option of the method, name=value: step=0.5. May be repeated.")
]


@app.command
def restore(
    directory: Path,
    *,
    data: Annotated[Path, Parameter(name="--input")],
    operator: str | None = None,
    measured: bool = False,
    noise_std: float | Literal["unknown"] = 0.0,
    method: str | None = None,
    option: Option = None,
    draws: int | None = None,
    number: Count = 8,
    sampler: str | None = None,
    calls: int | None = None,
    grid: str | None = None,
    cond: Cond = None,
    guidance: Guidance = 1.0,
    seed: int = 0,
    batch: int | None = None,
    out: Path = Path("restored.png"),
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Restore data from a measurement y = A(x) + noise: several draws of what x may be, their mean, and how sure they are.

    Any diffusion model serves, none needs to know the operator; a model with condition `grid` brings its own and draws from what
    it learned, a cold model undoes its own degradation. Without --measured the input is whole: it is measured here, with noise,
    and what comes back is held against it.

    Parameters
    ----------
    directory
        A model directory.
    data
        An image, a folder or ZIP of images, a .npz or .npy, in the data's own range (0 to 255 for 8-bit images).
    operator
        What is measured: mask:box, mask:random,share=0.9, down:4, blur:gaussian,std=2, … (see `ornstein list`).
    measured
        The input is the measurement itself; NaN in a .npz or .npy may mark what a mask leaves out.
    noise_std
        Standard deviation of the measurement's noise in the data's own units, or `unknown`.
    method
        pigdm unless given (see `ornstein list`).
    option
        An option of the method, name=number.
    draws
        Draws for every input, 8 unless given: their mean is the best single estimate, their standard deviation its error.
    number
        At most so many inputs are taken.
    sampler
        A sampler by name, in place of the method's; for a cold model improved, naive or direct.
    calls
        Network calls per draw; the method's default unless given.
    grid
        Time grid by name.
    cond
        Condition, name=value, for a conditional model.
    guidance
        Scale of classifier-free guidance, beneath the method's own.
    seed
        Draw i of a seed is the same in any batch size.
    batch
        Draws made at a time; 64 unless given.
    out
        A .png (truth, measurement, draws, mean, standard deviation, error) or a .npz with all of them.
    device
        cpu, cuda or mps.
    quiet
        No progress line.
    """
    from ornstein import model
    from ornstein.files import InputError
    from ornstein.guidance import Given
    from ornstein.image.cold import ColdSystem
    from ornstein.kinds import with_denoiser
    from ornstein.noise import Noise

    if out.suffix not in (".png", ".npz"):
        raise InputError(f"--out {str(out)!r} must end in .png or .npz")
    for name, count in (("-n", number), ("--draws", draws), ("--batch", batch), ("--calls", calls)):
        at_least(name, count)
    if not measured and noise_std == "unknown":
        raise InputError("--noise-std unknown goes with --measured; without it the noise is added here, and needs a size")
    loaded, noise = model.load(directory, device=device), Noise(seed)
    if isinstance(loaded, ColdSystem):
        asked = {
            "--operator": operator, "--method": method, "--option": option, "--draws": draws, "--grid": grid, "--cond": cond,
            "--noise-std": noise_std or None, "--guidance": None if guidance == 1 else guidance,
        }  # fmt: skip
        if given := [name for name, value in asked.items() if value is not None]:
            raise InputError(f"{given[0]} is not for a cold model, which undoes its own degradation in one way; leave it out")
        whole = _read(data, loaded.contract.shape, measured)[:number]
        values, ensemble, what = _undone(loaded, whole, measured, sampler, calls, noise, batch, quiet)
        simple: dict[str, Tensor] = {"as degraded": values}
    else:
        system = with_denoiser(loaded, "restore")
        known, own = _operator(system, operator, method, noise)
        whole = _read(data, known.measured_shape if measured else system.contract.shape, measured)[:number]
        std = None if noise_std == "unknown" else float(noise_std)
        values = whole if measured else known(whole)
        if not measured and std:
            values = values + std * noise.normal(values.shape, stream="measurement")
        plan = None if sampler is None and grid is None else sampler_of(directory, system, sampler, calls, None, grid)
        chosen, count = plan if plan is not None else calls, 8 if draws is None else draws
        if own:
            if option or cond:
                raise InputError("--option and --cond are not for a model that was trained to see measurements; leave them out")
            if std is None:
                raise InputError("--noise-std unknown: this model must be told the noise of what it sees; give its size")
            ensemble = system.predict(
                values, draws=count, noise_std=std, guidance=guidance, sampler=chosen, noise=noise, batch_size=batch,
                progress=not quiet,
            )  # fmt: skip
        else:
            ensemble = system.restore(
                Given(values, known, noise_std=std), method=method or "pigdm", options=_options(option), draws=count,
                sampler=chosen, cond=conditions_of(cond, len(values)), guidance=guidance, noise=noise, batch_size=batch,
                progress=not quiet,
            )  # fmt: skip
        what = f"{'amortised' if own else method or 'pigdm'} from {known}"
        simple = {"pseudo-inverse": known.pseudo_inverse(values)} if known.linear else {}
    truth = None if measured else whole
    _write(out, loaded, values, ensemble, truth)
    print(f"{out}: {len(values)} x {ensemble.draws.shape[1]} draws, {what}")
    if truth is not None:
        print(_verdict(loaded, simple, ensemble, truth))


def _operator(system: System, text: str | None, method: str | None, noise: Noise) -> tuple[Operator, bool]:
    """The operator, and whether it is the model's own: what it was trained to see measurements of."""
    from ornstein.files import InputError
    from ornstein.operator import parse

    own = system.grid
    if own is not None and method in (None, "amortised"):
        if text is not None:
            raise InputError(f"--operator {text}: this model was trained for {own.operator} and takes no other; leave it out")
        return own.operator, True
    if method == "amortised":
        raise InputError("--method amortised needs a model with condition: grid, trained to see measurements")
    if text is None:
        raise InputError("--operator is missing: say what is measured, as in --operator mask:box (see `ornstein list`)")
    return parse(text, system.contract.shape, noise), False


def _undone(
    system: ColdSystem, whole: Tensor, measured: bool, sampler: str | None, calls: int | None, noise: Noise, batch: int | None,
    quiet: bool,
) -> tuple[Tensor, Ensemble, str]:  # fmt: skip
    """What a cold model starts from, what it restores, and by which sampler."""
    from ornstein.metrics import Ensemble

    values, eps = (whole, None) if measured else system.degrade(whole, noise)
    way = system.sampler_for(sampler, calls=calls)
    restored = system.restore(values, sampler=way, eps=eps, batch_size=batch, progress=not quiet).cpu()
    return values, Ensemble(restored.unsqueeze(1)), f"{way.name}, from {type(system.process).__name__.lower()}"


def _read(path: Path, shape: tuple[int, ...], measured: bool) -> Tensor:
    """Data (n, *shape) from a file as they are, float32; InputError for another shape."""
    import numpy as np
    import torch

    from ornstein.files import InputError
    from ornstein.image.data import read_images

    if measured and path.suffix == ".npy" and path.is_file():
        try:
            array = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"--input {str(path)!r} is no array of numbers ({error})") from error
        array = array[None] if array.ndim == len(shape) else array
    else:
        array = read_images(path, shape[0] if len(shape) == 3 and shape[0] in (1, 3) else None)
    if tuple(array.shape[1:]) != shape:
        what, remedy = (
            ("a measurement by this operator has", "check --operator, or") if measured else ("the model's data have", "")
        )
        other = (
            "leave --measured out if the input is whole" if measured else "resize it, or add --measured if it is a measurement"
        )
        raise InputError(
            f"--input {str(path)!r} has shape {tuple(array.shape[1:])}; {what} {shape}: {remedy} {other}".replace(":  ", ": ")
        )
    if not measured and not bool(array.isfinite().all()):
        raise InputError(f"--input {str(path)!r} holds {int((~array.isfinite()).sum())} NaN or infinite numbers; replace them")
    return array


def _options(pairs: list[str] | None) -> dict[str, float]:
    from ornstein.files import InputError

    found: dict[str, float] = {}
    for pair in pairs or []:
        name, _, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise InputError(f"--option {pair!r} is not name=number; write --option travel=2") from error
    return found


def _verdict(system: Model, simple: dict[str, Tensor], ensemble: Ensemble, truth: Tensor) -> str:
    """How near the truth the restored data are, in a line."""
    from ornstein.metrics import psnr

    low, high = system.contract.low, system.contract.high
    span = high - low if low is not None and high is not None else float(truth.max() - truth.min()) or 1.0
    draws = ensemble.draws.cpu()
    shown = {"mean of the draws": ensemble.mean.cpu(), "a draw": draws[:, 0]} if draws.shape[1] > 1 else {"the draw": draws[:, 0]}
    parts = [f"{name} {float(psnr(images, truth, span).mean()):.1f} dB" for name, images in {**shown, **simple}.items()]
    if draws.shape[1] >= LEAST_FOR_COVERAGE:
        parts.append(f"90 % intervals cover {100 * ensemble.coverage(truth.to(ensemble.draws)):.0f} % of the truth")
    return "PSNR: " + ", ".join(parts)


def _write(out: Path, system: Model, values: Tensor, ensemble: Ensemble, truth: Tensor | None) -> None:
    if out.suffix == ".npz":
        arrays = {"draws": ensemble.draws, "mean": ensemble.mean, "measured": values}
        if ensemble.draws.shape[1] > 1:
            arrays["std"] = ensemble.std
        if truth is not None:
            arrays["truth"] = truth
        write_npz(out, system, {name: array.cpu().numpy() for name, array in arrays.items()}, None)
        return
    from ornstein.figures import restored_picture

    image = values if values.ndim == 4 and values.shape[1] in (1, 3) else None
    restored_picture(image, ensemble, system.contract, out, truth=truth)
