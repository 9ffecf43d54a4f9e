"""The peer of benchmarks/mnist.py: diffusers' public unconditional-training recipe on the same digits, in the same minutes.

    /tmp/peer/bin/python benchmarks/peer_diffusers.py --data ../shared/data/mnist --minutes 10 --out peer.npz

It runs in an environment of its own (torch, diffusers, numpy) and imports nothing of ornstein. From the recipe: epsilon
prediction by mean squared error, DDPM with 1000 linear betas, AdamW 1e-4 with betas (0.95, 0.999) and weight decay 1e-6,
500 warm-up steps then cosine, batch 16, gradient norm clipped to 1, EMA (inv_gamma 1, power 3/4, at most 0.9999), float32,
contiguous, attention heads 8 wide. What had to be chosen, each in the peer's favour or neutral:

- the net has the example's blocks (DownBlock2D, AttnDownBlock2D near the bottom, two layers each) in three levels of
  (32, 64, 64) channels instead of six of 128 … 512, attention at 8x8: 1.6 M parameters;
- 28x28 digits are padded to 32x32 with black, and samples cropped, which loses nothing; resizing would blur;
- the cosine ends with the minutes instead of after the example's 100 epochs, which would never come down.

The clock starts with the first step, after imports and loading; samples are DDIM's, 50 steps, with the averaged weights.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional

TRAIN = 50_000
BATCH = 16
LEVELS = 1000
WARMUP = 500
LEARNING_RATE = 1e-4
PAD = 2
CALLS = 50


def read_digits(folder: Path) -> Tensor:
    """The first 50,000 training digits, float32 (50000, 1, 32, 32) in [-1, 1], padded with black."""
    raw = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:TRAIN]
    return functional.pad(torch.from_numpy(pixels / np.float32(127.5) - 1), (PAD,) * 4, value=-1.0)


def network() -> UNet2DModel:
    """The example's kind of U-Net in three levels; 1.6 M parameters."""
    return UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


def rate(step: int, share: float) -> float:
    """The learning rate at a step when `share` of the minutes is over: linear warm-up times cosine to zero."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def train(net: UNet2DModel, digits: Tensor, minutes: float, generator: torch.Generator) -> dict[str, float]:
    """Train `net` in place for so many minutes and leave the averaged weights in it; the figures of the run."""
    scheduler = DDPMScheduler(num_train_timesteps=LEVELS, beta_schedule="linear", prediction_type="epsilon")
    optimiser = torch.optim.AdamW(net.parameters(), LEARNING_RATE, betas=(0.95, 0.999), weight_decay=1e-6)
    ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    net.train()
    step, recent = 0, math.nan
    start = told = time.monotonic()
    order = torch.randperm(len(digits), generator=generator)
    per_epoch = len(digits) // BATCH
    while (now := time.monotonic()) - start < 60 * minutes:
        place = step % per_epoch
        if step and place == 0:
            order = torch.randperm(len(digits), generator=generator)
        clean = digits[order[place * BATCH : (place + 1) * BATCH]]
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(0, LEVELS, (len(clean),), generator=generator)
        predicted = net(scheduler.add_noise(clean, noise, times), times).sample
        loss = functional.mse_loss(predicted, noise)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, (now - start) / (60 * minutes))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        ema.step(net.parameters())
        step += 1
        recent = loss.item() if math.isnan(recent) else recent + 0.02 * (loss.item() - recent)
        if now - told > 30:
            told = now
            print(f"peer: step {step}, loss {recent:.4f}, {step * BATCH / (now - start):.0f} images/s", flush=True)
    seconds = time.monotonic() - start
    ema.copy_to(net.parameters())
    return {"steps": step, "seconds": seconds, "images_per_second": step * BATCH / seconds, "loss": recent}


@torch.no_grad()
def draw(net: UNet2DModel, n: int, calls: int, generator: torch.Generator, *, chunk: int = 250) -> np.ndarray:
    """n digits by DDIM, uint8 (n, 1, 28, 28)."""
    net.eval()
    scheduler = DDIMScheduler(num_train_timesteps=LEVELS, beta_schedule="linear", prediction_type="epsilon")
    scheduler.set_timesteps(calls)
    done = []
    for first in range(0, n, chunk):
        x = torch.randn((min(chunk, n - first), 1, 32, 32), generator=generator)
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
        print(f"peer: {first + len(x)} of {n} samples", flush=True)
        done.append(x[..., PAD:-PAD, PAD:-PAD])
    return ((torch.cat(done) / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def main() -> None:
    """Train, draw, write the samples and, beside them, the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the MNIST idx files")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("-n", "--number", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help=".npz for the samples; figures go to the same name, .json")
    arguments = parser.parse_args()
    digits = read_digits(arguments.data)
    generator = torch.Generator().manual_seed(arguments.seed)
    with torch.random.fork_rng():  # layers draw their initial weights from torch's default generator
        torch.default_generator.manual_seed(arguments.seed)
        net = network()
    figures: dict[str, object] = {"parameters": sum(p.numel() for p in net.parameters()), "batch": BATCH}
    figures |= train(net, digits, arguments.minutes, generator)
    start = time.monotonic()
    samples = draw(net, arguments.number, arguments.calls, generator)
    figures |= {"sample_seconds": time.monotonic() - start, "sample_calls": arguments.calls, "torch": torch.__version__}
    np.savez_compressed(arguments.out, samples=samples)
    arguments.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
