"""Measuring a trained model: distances to real data, likelihood, memorisation, obedience to its condition, and the card."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ornstein import figures, metrics, model
from ornstein.config import DataConfig, Recipe
from ornstein.contract import Contract
from ornstein.files import InputError, write_atomic
from ornstein.image.classifier import ClassifierSystem, accuracy_by_level
from ornstein.image.cold import ColdSystem
from ornstein.image.data import ImageData
from ornstein.kinds import Dataset, Model, OfSeries, sampled, with_denoiser
from ornstein.likelihood import BitsPerDim, LogProb
from ornstein.metrics import Extractor, Record
from ornstein.noise import Noise
from ornstein.parallel import shares
from ornstein.samplers import RK45, Adaptive, Plan
from ornstein.sequence.windows import SeriesData
from ornstein.system import System
from ornstein.train.callbacks import read_log
from ornstein.vector import DPMSystem

RIDGE = 1e-3
"""Added to the covariance of the Gaussian that bits/dim are held against, in squared grey levels."""
ESTIMATES = ("bound", "ode")
"""Estimates of the likelihood: from above by the chain's bound, and by the probability flow."""
SVM_PIXELS = 1024
"""Images of at most so many numbers are classified by a support-vector machine, to see whether samples obey their label."""


def divide(config: DataConfig, data: Dataset) -> tuple[Dataset, Dataset | None]:
    """(training part, held-out part) as a recipe says: the last `held_out_last` data (of series: steps), or a random share."""
    if config.held_out_last and isinstance(data, SeriesData):
        steps = max(len(one) for one in data.series)
        return data.split(1 - config.held_out_last / steps, config.seed)
    if config.held_out_last and not isinstance(data, SeriesData):
        cut = len(data) - config.held_out_last
        if cut < 2:
            raise InputError(f"data.held_out_last={config.held_out_last} leaves none of {len(data)} data to train on; lower it")
        training = data.take(np.arange(cut)).refit()
        return training, data.take(np.arange(cut, len(data))).with_contract(training.contract)
    if config.held_out == 0:
        return data, None
    return data.split(1 - config.held_out, config.seed)


def relabel(data: ImageData, contract: Contract) -> ImageData:
    """Data with their labels numbered as in `contract`, by class name; InputError for data without labels or with others."""
    labels, own, names = data.require_labels(), data.contract.classes or (), contract.classes or ()
    if unknown := [name for name in own if name not in names]:
        raise InputError(f"the data have the class {unknown[0]!r}, which the model does not know; it knows {', '.join(names)}")
    return replace(data, labels=np.asarray([names.index(name) for name in own])[labels])


def evaluate(
    system: Model,
    training: Dataset,
    reference: Dataset,
    *,
    n: int = 1000,
    extractor: Extractor | None = None,
    sampler: Plan | Adaptive | int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[Record]:
    """Records of every metric that the data allow, from n samples against `reference`, with training data as the yardstick.

    Fréchet and kernel distance, precision and recall in the extractor's features (pixels or columns unless given), for tables
    sliced Wasserstein distance too, the same for n training data, nearest-training-datum ratio, and for a class-conditional
    model the share of samples that a support-vector machine trained on the training data gives the label asked for. Of a
    classifier its accuracy on n reference data at each noise level.
    """
    if isinstance(system, ClassifierSystem):
        for name, value in (("extractor", extractor), ("sampler", sampler)):
            if value is not None:
                raise InputError(f"{name} says nothing to a classifier, which is measured by its accuracy; leave it out")
        return accuracy_by_level(system, reference, n=n, seed=seed)
    tabular = len(system.contract.shape) == 1
    if extractor is None:
        extractor = metrics.Columns() if tabular else metrics.Pixels()
    system = sampled(system, "evaluate")
    start = time.monotonic()
    real = reference.batch(np.arange(len(reference)))["x"]
    cond = system.examples(n, real) if isinstance(system, System) else None
    drawn = system.draw(n, cond=cond, sampler=sampler, noise=Noise(seed), progress=progress)
    seconds = time.monotonic() - start
    samples = as_data(system, drawn.x0)
    chosen = Noise(seed).permutation(len(training), stream="evaluate")[:n]
    trained = training.batch(chosen)["x"]
    features = {name: extractor(x) for name, x in {"real": real, "sample": samples, "training": trained}.items()}
    note = f"samples per second, {float(drawn.calls.double().mean()):.0f} calls each"
    records = [Record("sampling", n / seconds, n, "none", seed, seconds, note=note)]

    def record(metric: str, value: float, begun: float, **more: object) -> None:
        records.append(Record(metric, float(value), n, extractor.name, seed, time.monotonic() - begun, **more))  # type: ignore[arg-type]

    for name, label in (("sample", ""), ("training", " (training data)")):
        begun = time.monotonic()
        record(f"frechet_distance{label}", metrics.frechet_distance(features[name], features["real"]), begun)
        begun = time.monotonic()
        size = min(n, len(real), 1000)
        kernel = metrics.kernel_distance(features[name], features["real"], size=size, seed=seed)
        interval = (kernel.value - 2 * kernel.standard_error, kernel.value + 2 * kernel.standard_error)
        record(f"kernel_distance{label}", kernel.value, begun, interval=interval)
        if tabular:
            begun = time.monotonic()
            record(f"sliced_wasserstein{label}", metrics.sliced_wasserstein(features[name], features["real"], seed=seed), begun)
        begun = time.monotonic()
        quality = metrics.precision_recall(features["real"], features[name])
        record(f"precision{label}", quality.precision, begun)
        record(f"recall{label}", quality.recall, begun)
    begun = time.monotonic()
    everything = training.batch(np.arange(len(training)))["x"].flatten(1)
    memory = metrics.nearest_neighbour(samples.flatten(1), everything, real.flatten(1))
    record("nearest_training_ratio", memory.median_ratio, begun, note=memory.verdict)
    if system.condition == "label" and training.labels is not None and samples[0].numel() <= SVM_PIXELS:
        begun = time.monotonic()
        labels = torch.arange(n) % len(system.contract.classes or (1,))
        record("label_accuracy", _obedience(training, samples, labels), begun, note="support-vector machine on training pixels")
    return records


def as_data(system: Model, samples: Tensor) -> Tensor:
    """Samples as the data are: rounded to their grey levels if they have any."""
    if system.contract.levels is None:
        return samples
    return torch.from_numpy(system.contract.quantise(samples).astype(np.float32))


def _obedience(training: Dataset, samples: Tensor, asked: Tensor) -> float:
    from sklearn.svm import SVC

    rows = np.arange(min(len(training), 10_000))
    machine = SVC(gamma="scale").fit(training.batch(rows)["x"].flatten(1).numpy(), training.require_labels()[rows])
    return float((machine.predict(samples.flatten(1).numpy()) == asked.numpy()).mean())


def likelihood(
    system: Model,
    training: Dataset,
    held: Dataset,
    *,
    n: int = 1000,
    by: Sequence[str] = ("bound",),
    draws: int = 20,
    seed: int = 0,
    dequantisation: str = "uniform",
    divergence: str = "rademacher",
    probes: int = 8,
    rtol: float = 1e-5,
    progress: bool = False,
) -> list[Record]:
    """-log P of held-out data, in bits/dim if the data declare grey levels and else in nats/dim of the encoded data.

    `by` names estimates (see `ESTIMATES`): "bound", the variational bound with `draws` levels per datum, and "ode", the
    probability flow solved to `rtol` (see `ornstein.bits_per_dim`). Each with standard error; for grey levels beside a Gaussian
    with full covariance fitted to the training data (uniform dequantisation). Under torchrun every process takes its share of
    the data, and only the first one returns records.
    """
    if isinstance(system, DPMSystem) and tuple(by) == ("bound",):
        return [_chain_bound(system, held, n, seed, progress)]
    system = with_denoiser(system, "the likelihood by the probability flow" if "ode" in by else "the likelihood")
    count = min(n, len(held))
    levels = system.contract.levels is not None
    unit, name = (math.log(2), "bits_per_dim") if levels else (1.0, "nats_per_dim")
    records = []
    with shares(count) as share:
        # a process that has no data of its own (more processes than data) takes one that it does not count
        batch = held.batch(range(share.first, share.first + share.count) or [0])
        x, dimensions = batch["x"], math.prod(system.contract.shape)
        cond = {"label": batch["label"].tolist()} if system.condition == "label" else system.examples(len(x), x)

        def record(label: str, values: Tensor, begun: float, note: str) -> None:
            value, error = float(values.mean()), float(values.std() / math.sqrt(len(values)))
            interval = (value - 2 * error, value + 2 * error)
            records.append(Record(label, value, count, "none", seed, time.monotonic() - begun, interval, note))

        if "bound" in by:
            begun = time.monotonic()
            rows = system.conditions(cond, len(x))
            device = None if rows is None else {key: value.to(system.device) for key, value in rows.items()}
            found = system.bound(x, Noise(seed), cond=device, samples=draws, first=share.first, progress=progress)
            parts = torch.stack([found.prior, found.steps, found.decoder], 1)[: share.count]
            parts = share.gather(parts) / (dimensions * unit)
            means = ", ".join(
                f"{part} {value:.4f}" for part, value in zip(("prior", "steps", "decoder"), parts.mean(0).tolist(), strict=True)
            )
            if share.main:
                record(name, parts.sum(1), begun, f"upper bound; {means}; {found.calls} calls per datum")
        if "ode" in by:
            begun = time.monotonic()
            options = {"cond": cond, "divergence": divergence, "probes": probes, "noise": Noise(seed), "first": share.first}
            solver = RK45(rtol)
            flow: BitsPerDim | LogProb
            if levels:
                flow = system.bits_per_dim(x, dequantisation=dequantisation, solver=solver, progress=progress, **options)  # type: ignore[arg-type]
                values, kind = flow.value, f"{dequantisation} dequantisation"
            else:
                flow = system.log_prob(x, solver=solver, progress=progress, **options)  # type: ignore[arg-type]
                values, kind = -flow.value / dimensions, "density"
            values, calls = share.gather(values[: share.count]), share.gather(flow.calls[: share.count]).double().mean()
            trace = "exact divergence" if divergence == "exact" or dimensions <= probes else f"{probes} {divergence} probes"
            note = f"{kind}, {trace}, noise {flow.noise_std:.3g} at start, {calls:.0f} calls per datum"
            if share.main:
                record(f"{name} (flow)", values, begun, note)
        if not share.main:
            return []
    if levels:
        begun = time.monotonic()
        rows_of_training = np.arange(min(len(training), 20_000))
        everything = held.batch(np.arange(count))["x"]
        baseline = gaussian_bits_per_dim(training.batch(rows_of_training)["x"], everything, Noise(seed))
        text = f"full covariance, ridge {RIDGE:g}, uniform dequantisation"
        records.append(Record("bits_per_dim (Gaussian)", baseline, count, "none", seed, time.monotonic() - begun, note=text))
    return records


def _chain_bound(system: DPMSystem, held: Dataset, n: int, seed: int, progress: bool) -> Record:
    """The bound of a dpm2015 model in bits per row, as an upper bound of -log2 p."""
    begun = time.monotonic()
    rows = held.batch(np.arange(min(n, len(held))))["x"]
    bits = -system.bound(rows, Noise(seed), progress=progress)
    value, error = float(bits.mean()), float(bits.std() / math.sqrt(len(bits)))
    kind = "probability" if system.contract.levels is not None else "density of the standardised row"
    note = f"upper bound of -log2 of a row's {kind}; {system.net.steps - 1} calls per row"
    seconds = time.monotonic() - begun
    return Record("bits_per_row", value, len(bits), "none", seed, seconds, (value - 2 * error, value + 2 * error), note)


def gaussian_bits_per_dim(training: Tensor, held: Tensor, noise: Noise, *, draws: int = 10) -> float:
    """-log2 of a Gaussian's density per number, for data on whole grey levels with uniform noise in [0, 1) added.

    The covariance is that of the dequantised training data, its sample covariance + 1/12 + `RIDGE` on the diagonal.
    """
    train, test = training.flatten(1).double(), held.flatten(1).double()
    covariance = torch.atleast_2d(torch.cov(train.T)) + (1 / 12 + RIDGE) * torch.eye(train.shape[1], dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(train.mean(0) + 0.5, covariance)
    total = torch.stack(
        [law.log_prob(test + noise.uniform(test.shape, stream="dequantise", step=k)).mean() for k in range(draws)]
    )
    return float(-total.mean() / (test.shape[1] * math.log(2)))


def draw_figures(out: Path, system: Model, held: Dataset, *, seed: int = 0) -> list[Record]:
    """samples.png, loss.png and, for images and two-dimensional data, strip.png of a model directory.

    Of a classifier accuracy.png and loss.png; the records are what that figure shows, and none for others.
    """
    records: list[Record] = []
    if isinstance(system, ClassifierSystem):
        records = accuracy_by_level(system, held, seed=seed)
        figures.accuracy_curve(records, out / "accuracy.png")
    elif isinstance(system, OfSeries):
        assert isinstance(held, SeriesData)
        figures.held_out_forecast(system, held, out / "samples.png", seed=seed)
    elif isinstance(system, ColdSystem):
        figures.image_grid(system.sample(64, noise=Noise(seed)), system.contract, out / "samples.png", columns=8)
        figures.restorations(system, held.batch(np.arange(min(4, len(held))))["x"], out / "strip.png", seed=seed)
    elif not isinstance(system, System) or len(system.contract.shape) == 1:
        shown = held.batch(np.arange(min(figures.POINTS, len(held))))["x"]
        figures.rows_picture(system.sample(len(shown), noise=Noise(seed)), system.contract, out / "samples.png", beside=shown)
        if isinstance(system, System) and system.contract.shape == (2,):
            figures.journey(system, shown, out / "strip.png", seed=seed)
    else:
        labelled = system.condition == "label"
        n = 10 * min(len(system.contract.classes or ()), 10) if labelled else 64
        seen = held.batch(np.arange(min(n, len(held))))["x"]
        figures.image_grid(
            system.sample(n, cond=system.examples(n, seen), noise=Noise(seed)),
            system.contract,
            out / "samples.png",
            columns=10 if labelled else 8,
        )
        shown = seen[:4]
        figures.strip(system, shown, out / "strip.png", cond=system.examples(len(shown), shown), seed=seed)
    rows_of_log = read_log(out)
    if rows_of_log:
        figures.loss_curve(rows_of_log, out / "loss.png")
    return records


def write_card(out: Path, recipe: Recipe, system: Model, records: list[Record]) -> None:
    """card.md: what the model is, what it was trained on, its figures and its measured numbers."""
    contract = system.contract
    parameters = sum(p.numel() for p in system.net.parameters())
    series = isinstance(system, OfSeries)
    lines = [
        f"# {out.name}",
        "",
        recipe.description or "A diffusion model trained with Ornstein.",
        "",
        f"- data: {recipe.data.source}, shape {contract.shape}, range {contract.low} … {contract.high}, "
        f"{len(contract.classes)} classes"
        if contract.classes
        else f"- data: {recipe.data.source}, shape {contract.shape}",
        *_made_of(recipe, system),
        f"- network: {recipe.net.name}, {parameters:,} parameters",
        "",
        "![accuracy](accuracy.png)" if isinstance(system, ClassifierSystem) else "![samples](samples.png)",
        "",
        *_journey(out, system),
        "![loss](loss.png)",
        "",
        "```",
        metrics.table(records) if records else f"not measured yet: ornstein {'backtest' if series else 'evaluate'}",
        "```",
        "",
    ]
    with write_atomic(out / model.CARD) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def _made_of(recipe: Recipe, system: Model) -> list[str]:
    """The card's lines about process and sampler."""
    if isinstance(system, DPMSystem):
        return [f"- chain: {system.net.steps} steps, schedule {recipe.process.name}, kernel {type(system.net.kernel).__name__}"]
    if isinstance(system, ClassifierSystem):
        return [f"- process: {recipe.process.name}, sigma_data {system.classifier.sigma_data:.4g}"]
    if isinstance(system, ColdSystem):
        return [
            f"- degradation: {recipe.process.name}, {system.process.steps} severities; restored with {system.norm} loss",
            f"- default sampler: {system.sampler.name}",
        ]
    process, plan = system.denoiser.process, system.plan
    windows = []
    if isinstance(system, OfSeries):
        settled, names = system.windowing, ", ".join(system.contract.channels[:12])
        step = f"steps of {settled.frequency}" if settled.frequency else "numbered steps"
        windows = [f"- windows: {settled.context} steps seen, {settled.horizon} asked for, {step}; channels {names}"]
    gap = process.terminal_gap(std=system.contract.std)
    return [
        *windows,
        f"- process: {recipe.process.name}, predicts {recipe.predicts}, sigma_data {system.denoiser.sigma_data:.4g}, "
        f"terminal gap {gap:.2e} nats/dim",
        f"- default sampler: {plan.name if plan else 'default'}, {plan.calls if plan else 50} calls",
    ]


def _journey(out: Path, system: Model) -> list[str]:
    """The card's lines about strip.png, if there is one."""
    if not (out / "strip.png").exists():
        return []
    text = "Upper half: data on their way to noise. Lower half: samples on their way back."
    if isinstance(system, ColdSystem):
        text = "Upper half: held-out data, degraded further and further. Lower half: the same, restored step by step."
    elif len(system.contract.shape) == 1:
        text = "Upper row: data on their way to noise. Middle row: samples on their way back. Lower row: where they are driven."
    return [text, "", "![strip](strip.png)", ""]
