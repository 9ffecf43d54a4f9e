"""Inverse problems on images: every method against every operator, by one model that was trained for none of them.

    python benchmarks/restore.py --model runs/mnist --data ../shared/data/mnist --classifiers runs/classifiers
    python benchmarks/restore.py --model runs/mnist --data ../shared/data/mnist --images 8 --travel 2 4 8 16 32
    python benchmarks/restore.py --model runs/faces --data ../shared/data/faces/att_faces64_train.npz --images 12

Held-out images are measured with noise of 0.05 of their range (12.75 of 255) by five operators and restored by every method,
with its defaults. A row is PSNR and SSIM of a draw and of the draws' mean against the truth, the ratio of their root mean square
errors, coverage of the 90 % intervals where there are 19 draws, Fréchet distance of the draws to other held-out images, network
calls and seconds. Fréchet distances are in the features of the first MNIST classifier, or on 8x8 block means where none is given;
they mean something only beside that of the true images, the last line. --travel judges only DPS, on training images, with these
settings of its step: that is where its default is chosen. Images, draws and seeds are fixed here.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ornstein import config, figures, model
from ornstein.evaluate import divide
from ornstein.files import InputError
from ornstein.guidance import METHODS, Given
from ornstein.kinds import load_data, with_denoiser
from ornstein.metrics import Ensemble, Record, classifier_features, frechet_distance, load_classifier, psnr, ssim, write_records
from ornstein.noise import Noise
from ornstein.operator import Operator, parse
from ornstein.system import System

SEED = 7
NOISE = 0.05
"""Standard deviation of the measurement's noise over the range of the data."""
OPERATORS = ("mask:box", "mask:random,share=0.8", "down:4", "blur:gaussian,std=2", "blur:motion,length=9,angle=30")
CHOSEN = ("pigdm", "moment_matching", "dps", "mcg", "ddrm", "repaint", "replacement")
_HEADER = ("operator", "method", "PSNR draw", "mean", "SSIM draw", "mean", "RMSE mean/draw", "90 %", "Fréchet", "calls", "s")


@dataclass(frozen=True)
class Judge:
    """What is compared with what: the truth (n, C, H, W), other held-out images, and the features of Fréchet distances."""

    truth: Tensor
    others: Tensor
    classifier: Path | None

    def features(self, x: Tensor) -> Tensor:
        """(n, D) features of images (n, C, H, W)."""
        if self.classifier is None:
            return torch.nn.functional.adaptive_avg_pool2d(x.float(), 8).flatten(1)
        return classifier_features(load_classifier(self.classifier))(x.float())

    def frechet(self, x: Tensor) -> float:
        """Fréchet distance of images to the other held-out ones."""
        return frechet_distance(self.features(x), self.features(self.others))


def judged(
    system: System, judge: Judge, operator: str, method: str, ensemble: Ensemble, seconds: float, calls: int
) -> list[Record]:
    """The records of one method under one operator; its row is printed."""
    span = float(system.contract.high or 1) - float(system.contract.low or 0)
    draws, mean = ensemble.draws.clamp(system.contract.low, system.contract.high), ensemble.mean
    n, count = draws.shape[:2]
    truth = judge.truth.unsqueeze(1).expand_as(draws)
    flat, flat_truth = draws.flatten(0, 1), truth.flatten(0, 1)
    error = [float((x - y).square().mean().sqrt()) for x, y in ((mean, judge.truth), (flat, flat_truth))]
    figures_ = {
        "PSNR draw": float(psnr(flat, flat_truth, span).mean()),
        "PSNR mean": float(psnr(mean, judge.truth, span).mean()),
        "SSIM draw": float(ssim(flat, flat_truth, span).mean()),
        "SSIM mean": float(ssim(mean, judge.truth, span).mean()),
        "RMSE mean/draw": error[0] / error[1],
        "coverage": ensemble.coverage(judge.truth) if count >= 19 else float("nan"),
        "Fréchet": judge.frechet(flat),
    }
    numbers = "  ".join(f"{value:7.3f}" for value in figures_.values())
    print(f"{operator:<30} {method:<16} {numbers}  {calls:5d} {seconds:6.0f}", flush=True)
    return [
        Record(f"{operator}, {method}: {name}", value, n * count, "", SEED, seconds, note=f"{calls} network calls a draw")
        for name, value in figures_.items()
        if math.isfinite(value)
    ]


def problem(operator: Operator, truth: Tensor, std: float) -> Given:
    """Noisy measurements of the truth."""
    y = operator(truth)
    return Given(y + std * Noise(SEED).normal(y.shape, stream="measurement"), operator, noise_std=std)


def tune(system: System, x: Tensor, operators: list[str], std: float, travels: list[float]) -> list[Record]:
    """PSNR of DPS on images x (n, C, H, W) by the travel of its step."""
    span, records = float(system.contract.high or 1) - float(system.contract.low or 0), []
    for text in operators:
        given = problem(parse(text, system.contract.shape, Noise(SEED)), x, std)
        for travel in travels:
            ensemble = system.restore(given, method="dps", draws=2, options={"travel": travel}, noise=Noise(SEED + 1))
            draws = ensemble.draws.clamp(system.contract.low, system.contract.high)
            pairs = draws.flatten(0, 1), x.unsqueeze(1).expand_as(draws).flatten(0, 1)
            for name, value in (("draw", psnr(*pairs, span)), ("mean", psnr(ensemble.mean, x, span))):
                note = f"{text}, dps, travel {travel:g}, {name}"
                records.append(Record("PSNR", float(value.mean()), len(x), "", SEED, 0.0, note=note))
                print(f"{note}: {records[-1].value:.2f}", flush=True)
    return records


def main() -> int:
    """Print the table row by row and write the JSON; return 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--classifiers", type=Path, default=None)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=list(CHOSEN), choices=list(METHODS))
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS))
    parser.add_argument(
        "--travel", type=float, nargs="+", default=[], help="judge DPS by this on training images, and nothing else"
    )
    parser.add_argument("--picture", type=Path, default=None, help="draws of the first method under every operator, a row each")
    parser.add_argument("--out", type=Path, default=Path("restore.json"))
    arguments = parser.parse_args()
    try:
        system = with_denoiser(model.load(arguments.model), "restoring")
        recipe = config.override(model.read_recipe(arguments.model), [f"data.source={arguments.data}"])
        training, held = divide(recipe.data, load_data(recipe))
        if held is None:
            raise InputError("the model was trained without held-out data")
        std = NOISE * (float(system.contract.high or 1) - float(system.contract.low or 0))
        if arguments.travel:
            some = Noise(SEED).permutation(len(training))[: arguments.images]
            tuned = training.with_contract(system.contract).batch(some)["x"]
            write_records(arguments.out, tune(system, tuned, arguments.operators, std, arguments.travel))
            return 0
        x = held.with_contract(system.contract).batch(torch.arange(len(held)))["x"]
        order = Noise(SEED).permutation(len(x))
        truth, others = x[order[: arguments.images]], x[order[arguments.images :]]
        classifier = None if arguments.classifiers is None else sorted(arguments.classifiers.glob("*.safetensors"))[0]
        judge, records, rows = Judge(truth, others, classifier), [], []
        print("  ".join(_HEADER))
        for text in arguments.operators:
            operator = parse(text, system.contract.shape, Noise(SEED))
            given = problem(operator, truth, std)
            inverse = Ensemble(operator.pseudo_inverse(given.values).unsqueeze(1))
            records += judged(system, judge, text, "pseudo-inverse", inverse, 0.0, 0)
            for name in arguments.methods:
                start, method = time.monotonic(), METHODS[name]
                plan = method.plan(system.denoiser.process, method.calls)
                ensemble = system.restore(given, method=name, sampler=plan, draws=arguments.draws, noise=Noise(SEED + 1))
                calls = method.network_calls(plan, **method.options)
                records += judged(system, judge, text, name, ensemble, time.monotonic() - start, calls)
                if name == arguments.methods[0]:
                    # noise through the inverse of a blur is a thousand times brighter than an image
                    rows.append((inverse.mean[:1].clamp(system.contract.low, system.contract.high), ensemble.draws[:1]))
                write_records(arguments.out, records)
        real = frechet_distance(*(judge.features(part) for part in (truth, others)))
        print(f"Fréchet distance of the {len(truth)} true images to the {len(others)} others: {real:.3f}")
        write_records(arguments.out, [*records, Record("Fréchet, true images", real, len(truth), "", SEED, 0.0)])
        if arguments.picture is not None:
            shown, draws = (torch.cat(part) for part in zip(*rows, strict=True))
            figures.restored_picture(
                shown, Ensemble(draws), system.contract, arguments.picture, truth=truth[:1].expand(len(rows), -1, -1, -1)
            )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
