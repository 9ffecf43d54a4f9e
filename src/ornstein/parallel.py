"""Sampling under torchrun: every process draws its share of the sample indices, the first one gathers them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


def main_process() -> bool:
    """Whether this process is the first of those that torchrun started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass(frozen=True)
class Share:
    """The samples first … first + count - 1 of n that this process draws; `main` is true in the process that gathers."""

    n: int
    first: int
    count: int
    rank: int
    world: int

    @property
    def main(self) -> bool:
        """Whether this process holds the result of `gather`."""
        return self.rank == 0

    def gather(self, part: Tensor) -> Tensor:
        """All n samples in order, in the main process; its own part elsewhere. `part` (count, *) lies on the CPU."""
        if self.world == 1:
            return part
        width = -(-self.n // self.world)
        padded = torch.cat([part, part.new_zeros(width - len(part), *part.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(self.world)] if self.main else None
        torch.distributed.gather(padded, parts, dst=0)
        return part if parts is None else torch.cat([p[: _count(self.n, r, self.world)] for r, p in enumerate(parts)])


@contextmanager
def shares(n: int) -> Iterator[Share]:
    """This process's share of n samples; one process without torchrun, a gloo group with it (one that exists is used)."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    width = -(-n // world)
    share = Share(n, min(rank * width, n), _count(n, rank, world), rank, world)
    if world == 1 or torch.distributed.is_initialized():
        yield share
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield share
        torch.distributed.barrier()  # a process that ended first would take the others' connections with it
    finally:
        torch.distributed.destroy_process_group()


def _count(n: int, rank: int, world: int) -> int:
    width = -(-n // world)
    return max(0, min(width, n - rank * width))
