"""`python -m ornstein`, which torchrun can start: `torchrun --nproc-per-node 2 -m ornstein train …`."""

from __future__ import annotations

from ornstein.cli import main

if __name__ == "__main__":
    main()
