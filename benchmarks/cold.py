"""Cold diffusion on MNIST's held-out digits: deblurring, inpainting, generation; tables, JSON and a picture.

    python benchmarks/cold.py --part blur --out cold-blur.json
    python benchmarks/cold.py --part mask --out cold-mask.json
    python benchmarks/cold.py --part generate --out cold-generate.json
    python benchmarks/cold.py --part known -n 300 --out cold-known.json
    python benchmarks/cold.py --part picture --out docs/images/cold-mnist.png

- blur, mask: RMSE and SSIM of n of the 10,000 held-out digits (in 0 … 1), degraded and restored by each sampler, and the Fréchet
  distance of them to all 10,000 in the features of the classifiers that benchmarks/classifier.py trained (mean over those found).
- generate: the same distance for samples from the learned end states of the blur, and the moments of these end states.
- known: without any network, what x_T of the blur with noise of some size says of a digit: RMSE of the best linear estimate, also
  corrected by its mean error at the 20 training digits whose estimates are nearest.
- picture: blurred digits and digits with a hole: degraded, direct, naive, improved, truth; last generated digits.

The models come from `ornstein train cold-mnist` and `cold-mnist-inpaint` with --data ../shared/data/mnist, in --models.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from classifier import TRAIN, read_digits
from ornstein import model
from ornstein.figures import image_grid
from ornstein.files import InputError
from ornstein.image.cold import ColdSystem
from ornstein.metrics import Extractor, Record, frechet_distance, load_extractor, ssim, table, write_records
from ornstein.noise import Noise
from ornstein.process.cold import COLD

MODELS = {"blur": "cold-mnist", "mask": "cold-mnist-inpaint"}
ORDER = ("direct", "naive", "improved")
SEED = 0
SHOWN = 10


def system_of(part: str, folder: Path) -> ColdSystem:
    """The trained cold model of a part."""
    system = model.load(folder / MODELS[part])
    if not isinstance(system, ColdSystem):
        raise InputError(f"{folder / MODELS[part]} is no cold model; train it with ornstein train {MODELS[part]}")
    return system


def extractors(folder: Path) -> list[Extractor]:
    """The classifiers' features; InputError if there are none."""
    found = [load_extractor(str(path)) for path in sorted(folder.glob("mnist-seed*.safetensors"))]
    if not found:
        raise InputError(f"{folder} holds no classifier mnist-seed*.safetensors; run benchmarks/classifier.py")
    return found


def restored(system: ColdSystem, digits: Tensor, progress: bool = True) -> dict[str, tuple[Tensor, float]]:
    """Of digits (n, 1, 28, 28): them degraded, restored by each sampler, and as they are, with the seconds each took."""
    degraded, eps = system.degrade(digits, Noise(SEED))
    out = {"degraded": (degraded, 0.0)}
    for sampler in ORDER:
        begun = time.perf_counter()
        out[sampler] = (system.restore(degraded, sampler=sampler, eps=eps, progress=progress), time.perf_counter() - begun)
    return out | {"truth": (digits, 0.0)}


def restoration_records(part: str, folder: Path, classifiers: Path, digits: Tensor, n: int) -> list[Record]:
    """The table of a degradation, printed as it grows."""
    judges = extractors(classifiers)
    references = [judge(digits) for judge in judges]
    truth, records = digits[:n].float() / 255, []
    names = ", ".join(judge.name for judge in judges)
    print(f"{part}: {n} held-out digits; Fréchet distance to all {len(digits)}, mean over {names}")
    print(f"{'':<10}{'frechet':>10}{'rmse':>9}{'ssim':>9}{'seconds':>9}")
    for name, (images, seconds) in restored(system_of(part, folder), digits[:n].float()).items():
        shown = images.clamp(0, 255)
        pairs = zip(judges, references, strict=True)
        frechet = sum(frechet_distance(judge(shown), reference) for judge, reference in pairs) / len(judges)
        rmse = float((shown / 255 - truth).square().mean().sqrt())
        likeness = float(ssim(shown / 255, truth, 1.0).mean())
        print(f"{name:<10}{frechet:>10.3f}{rmse:>9.4f}{likeness:>9.4f}{seconds:>9.0f}", flush=True)
        for metric, value in (("frechet", frechet), ("rmse", rmse), ("ssim", likeness)):
            records.append(
                Record(metric, value, n, names if metric == "frechet" else "none", SEED, seconds, note=f"{part}, {name}")
            )
    return records


def generation_records(folder: Path, classifiers: Path, digits: Tensor, n: int) -> list[Record]:
    """Fréchet distance of n generated digits, and how near the moments of the drawn end states come to those of held-out data."""
    system, judges = system_of("blur", folder), extractors(classifiers)
    x0 = system.contract.encode(digits.float())
    ends = system.process.degrade(x0, system.process.steps).flatten(1)
    drawn = system.net.start.sample(len(ends), Noise(SEED)).flatten(1)
    # along the directions that the mixture knows: each has variance 1 in the training data
    axes = torch.linalg.pinv(system.net.start.basis.double())
    ours, theirs = ((x.double() - system.net.start.centre) @ axes for x in (drawn, ends))
    mean = float((ours.mean(0) - theirs.mean(0)).abs().max())
    std = float((ours.std(0) / theirs.std(0) - 1).abs().max())
    records = [
        Record("end states, mean", mean, len(ends), "none", SEED, 0.0, note="largest distance, in the data's deviation"),
        Record("end states, std", std, len(ends), "none", SEED, 0.0, note="largest relative distance"),
    ]
    begun = time.perf_counter()
    samples = system.sample(n, noise=Noise(SEED), progress=True).clamp(0, 255)
    seconds = time.perf_counter() - begun
    for judge in judges:
        value = frechet_distance(judge(samples), judge(digits))
        records.append(Record("frechet", value, n, judge.name, SEED, seconds, note="generated digits"))
    print(table(records))
    return records


def known_records(train: Tensor, digits: Tensor, n: int) -> list[Record]:
    """What blurred digits say with noise of 8 bits, of less, and of float32, in 0 … 1; half of the degraded beside them."""
    blur = COLD["blur"]()
    x, truth = (part.flatten(1).double() / 127.5 - 1 for part in (train, digits[:n]))
    eye = torch.eye(x.shape[1], dtype=torch.float64)
    a = blur.degrade(eye.reshape(-1, *digits.shape[1:]), blur.steps).flatten(1).mT
    mean, covariance = x.mean(0), torch.cov(x[:8000].mT)
    half = float((truth @ a.mT - truth).square().mean().sqrt()) / 4
    records = [Record("rmse", half, n, "none", SEED, 0.0, note="half of the degraded")]
    for std in (2e-3, 1e-4, 1e-6):
        gain = torch.linalg.solve(a @ covariance @ a.mT + std**2 * eye, a @ covariance)
        noise = (Noise(SEED).normal(y.shape, stream=str(k), dtype=torch.float64) for k, y in enumerate((x, truth)))
        guesses = [mean + ((y - mean) @ a.mT + std * z) @ gain for y, z in zip((x, truth), noise, strict=True)]
        near = torch.cdist(guesses[1].float(), guesses[0].float()).topk(20, largest=False).indices
        restored = guesses[1] + (x - guesses[0])[near].mean(1)
        for name, guess in (("linear", guesses[1]), ("with 20 neighbours", restored)):
            error = float((guess - truth).square().mean().sqrt()) / 2
            records.append(Record("rmse", error, n, "none", SEED, 0.0, note=f"{name}, noise {std:g}"))
    print(table(records))
    return records


def picture(folder: Path, digits: Tensor, out: Path) -> None:
    """Rows of blurred digits, beside rows of digits with a hole if that model is there, and two rows of generated ones."""
    blocks = []
    for number, part in enumerate(part for part in MODELS if part == "blur" or (folder / MODELS[part]).exists()):
        shown = digits[number * SHOWN : (number + 1) * SHOWN].float()
        blocks.append(torch.stack([images for images, _ in restored(system_of(part, folder), shown).values()]))
    system = system_of("blur", folder)
    columns = SHOWN * len(blocks)
    generated = system.sample(2 * columns, noise=Noise(SEED)).unflatten(0, (2, columns))
    image_grid(torch.cat([torch.cat(blocks, 1), generated]).flatten(0, 1), system.contract, out, columns=columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=(*MODELS, "generate", "known", "picture"), required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"))
    parser.add_argument("--models", type=Path, default=Path("runs"))
    parser.add_argument("--classifiers", type=Path, default=Path("runs/classifiers"))
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    images = read_digits(arguments.data)[0]
    held = images[TRAIN:]
    parts: dict[str, Callable[[], list[Record]]] = {
        part: lambda part=part: restoration_records(part, arguments.models, arguments.classifiers, held, arguments.n)  # type: ignore[misc]
        for part in MODELS
    }
    parts["generate"] = lambda: generation_records(arguments.models, arguments.classifiers, held, arguments.n)
    parts["known"] = lambda: known_records(images[:TRAIN], held, arguments.n)
    if arguments.part == "picture":
        picture(arguments.models, held, arguments.out)
    else:
        write_records(arguments.out, parts[arguments.part]())


if __name__ == "__main__":
    main()
