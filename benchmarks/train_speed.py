"""Training throughput of `UNet` against diffusers' `UNet2DModel`: forward, backward and AdamW step on a squared error.

Both have three levels of (1, 2, 2) x 64 channels, attention at the lowest, two blocks per level as each counts them, and
equal parameters within 3 %. All variants take turns in one process, so that a busy machine slows them alike; a ratio is
the median over rounds of peer's time / ours in that round.

(a) equal precision, head width 32 for both, the best memory layout of each;
(b) defaults: ours channels-last with bfloat16 autocast (and torch.compile with --compile), the peer as its public
    unconditional-training example runs on a CPU: contiguous float32, attention heads 8 wide.

Run it where diffusers is installed: pip install 'ornstein[bench]', then python benchmarks/train_speed.py --out speed.json
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.nets import UNet

TARGET_EQUAL, TARGET_DEFAULTS = 1.3, 2.5
PARAMETER_TOLERANCE = 0.03
HEAD_WIDTH = 32


@dataclass(frozen=True)
class Variant:
    """One way to train one of the two networks."""

    who: str
    precision: str
    layout: str
    head_width: int
    compiled: bool = False

    @property
    def name(self) -> str:
        extra = " compiled" if self.compiled else ""
        return f"{self.who} {self.precision} {self.layout} head {self.head_width}{extra}"


def ours(channels: int, head_width: int) -> nn.Module:
    """The U-Net under test; two more blocks in the middle bring its parameters to the peer's number."""
    return UNet(2, channels, width=64, multipliers=(1, 2, 2), blocks=2, middle=4, head_width=head_width)


def peer(channels: int, size: int, head_width: int) -> nn.Module:
    """diffusers' U-Net of the same levels."""
    from diffusers import UNet2DModel  # type: ignore[import-not-found]

    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(64, 128, 128),
        layers_per_block=2,
        attention_head_dim=head_width,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


def build(variant: Variant, channels: int, size: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        if variant.who == "ours":
            net = ours(channels, variant.head_width)
        else:
            net = peer(channels, size, variant.head_width)
    layout = torch.channels_last if variant.layout == "channels-last" else torch.contiguous_format
    return net.to(memory_format=layout).train()


def trainer(variant: Variant, x: Tensor, c_noise: Tensor) -> Callable[[], float]:
    """A function that makes one training step and returns its loss."""
    net = build(variant, x.shape[1], x.shape[2])
    call = torch.compile(net) if variant.compiled else net
    optimiser = torch.optim.AdamW(net.parameters(), 1e-4)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=variant.precision == "bf16"):
            out = call(x, c_noise) if variant.who == "ours" else call(x, c_noise).sample
        loss = functional.mse_loss(out.float(), x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def measure(
    variants: list[Variant], x: Tensor, c_noise: Tensor, rounds: int, warmup: int, clock: Callable[[], float]
) -> dict[Variant, list[float]]:
    """Seconds per step of each variant in each round, the variants taking turns."""
    steps = {variant: trainer(variant, x, c_noise) for variant in variants}
    for _ in range(warmup):
        for step in steps.values():
            step()
    seconds: dict[Variant, list[float]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant, step in steps.items():
            start = clock()
            step()
            seconds[variant].append(clock() - start)
            print(f"{variant.name:<44}{seconds[variant][-1]:8.3f} s", flush=True)
    return seconds


def best(seconds: dict[Variant, list[float]], who: str, precision: str) -> Variant:
    """The faster layout of one contestant at equal head width."""
    candidates = [v for v in seconds if (v.who, v.precision, v.head_width) == (who, precision, HEAD_WIDTH)]
    return min((v for v in candidates if not v.compiled), key=lambda v: statistics.median(seconds[v]))


def ratio(seconds: dict[Variant, list[float]], ours: Variant, peer: Variant) -> float:
    return statistics.median(b / a for a, b in zip(seconds[ours], seconds[peer], strict=True))


def flops(net: nn.Module, x: Tensor, c_noise: Tensor) -> float:
    """Multiply-adds, counted twice, of one sample's forward pass, in units of 1e9."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x[:1], c_noise[:1])
    return counter.get_total_flops() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a busy machine, one thread")
    parser.add_argument("--threads", type=int, help="torch's threads; all cores unless given")
    parser.add_argument("--compile", action="store_true", help="add our defaults compiled")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(arguments.batch, arguments.channels, arguments.size, arguments.size, generator=generator)
    c_noise = torch.randint(0, 1000, (arguments.batch,), generator=generator).float()

    variants = [
        Variant(who, precision, layout, HEAD_WIDTH)
        for precision in ("float32", "bf16")
        for layout in ("channels-last", "contiguous")
        for who in ("ours", "peer")
    ]
    defaults = (Variant("ours", "bf16", "channels-last", HEAD_WIDTH), Variant("peer", "float32", "contiguous", 8))
    compiled = Variant("ours", "bf16", "channels-last", HEAD_WIDTH, compiled=True)
    variants += [defaults[1], *([compiled] if arguments.compile else [])]

    nets = {v.who: build(v, arguments.channels, arguments.size) for v in defaults}
    parameters = {who: sum(p.numel() for p in net.parameters()) for who, net in nets.items()}
    difference = parameters["ours"] / parameters["peer"] - 1
    if abs(difference) > PARAMETER_TOLERANCE:
        raise SystemExit(f"parameters differ by {difference:+.1%}: the comparison is void above {PARAMETER_TOLERANCE:.0%}")
    work = {who: flops(net, x, c_noise) for who, net in nets.items()}

    load = os.getloadavg()
    seconds = measure(variants, x, c_noise, arguments.rounds, arguments.warmup, clock)

    print(f"parameters {parameters}, difference {difference:+.2%}; GFLOP per forward sample {work}")
    print(f"{'variant':<44}{'s/step':>8}{'images/s':>10}")
    for variant, times in seconds.items():
        median = statistics.median(times)
        print(f"{variant.name:<44}{median:8.3f}{arguments.batch / median:10.1f}")

    comparisons = []
    for precision in ("float32", "bf16"):
        pair = best(seconds, "ours", precision), best(seconds, "peer", precision)
        comparisons.append((f"(a) equal, {precision}", pair, TARGET_EQUAL))
    comparisons.append(("(b) defaults", defaults, TARGET_DEFAULTS))
    if arguments.compile:
        comparisons.append(("(b) defaults, ours compiled", (compiled, defaults[1]), TARGET_DEFAULTS))
    rows = []
    print(f"\n{'comparison':<30}{'ratio':>7}{'target':>8}   ours / peer")
    for name, (mine, other), target in comparisons:
        value = ratio(seconds, mine, other)
        rows.append({"comparison": name, "ratio": value, "target": target, "ours": mine.name, "peer": other.name})
        print(f"{name:<30}{value:7.2f}{target:8.1f}   {mine.name} / {other.name}")

    if arguments.out is not None:
        record = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "clock": arguments.clock,
            "machine": platform.processor() or platform.machine(),
            "load_before_and_after": [load, os.getloadavg()],
            "batch": arguments.batch,
            "shape": list(x.shape[1:]),
            "parameters": parameters,
            "gflop_forward": work,
            "comparisons": rows,
            "seconds": [{**asdict(variant), "seconds": times} for variant, times in seconds.items()],
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
