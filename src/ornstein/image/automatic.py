"""Choices for `ornstein train --data my_folder/` without a recipe, each with the sentence that says why."""

from __future__ import annotations

from typing import Any

from ornstein.image.data import ImageData

# largest side in pixels → channel multipliers, batch; the last level then has about 4 to 10 pixels a side
_LADDER: tuple[tuple[float, tuple[int, ...], int], ...] = (
    (12, (1, 2), 128),
    (40, (1, 2, 2), 128),
    (96, (1, 2, 2, 4), 32),
    (float("inf"), (1, 1, 2, 2, 4), 8),
)
_FEW = 500


def suggest(data: ImageData) -> dict[str, Any]:
    """Network, batch and σ_data for these images, as plain values.

    Returns {"resolution": (H, W), "net": {"width", "multipliers", "attention"}, "batch", "sigma_data", "reasons"};
    `attention` has one flag per level, `reasons` is a list of sentences to print. Widths follow the small U-Nets of DDPM
    (arXiv 2006.11239) and EDM (arXiv 2206.00364); explicit recipes override all of it.
    """
    channels, height, width = data.contract.shape
    side = max(height, width)
    multipliers, batch = next((row[1], row[2]) for row in _LADDER if side <= row[0])
    last = -(-side // 2 ** (len(multipliers) - 1))
    channels_text = "1 channel" if channels == 1 else f"{channels} channels"
    reasons = [
        f"Resolution {width}x{height} with {channels_text}, as the images are.",
        f"{len(multipliers)} levels with multipliers {multipliers}: the last is {last} pixels wide and alone has attention.",
    ]
    if last > 16:
        reasons.append(f"Images of {side} pixels train slowly on a CPU; --set data.size=64 makes them smaller.")
    net_width = 64
    if len(data) < _FEW and side > 12:
        net_width = 32
        reasons.append(f"Width 32, because a wider network would memorise {len(data)} images.")
    else:
        reasons.append(f"Width 64, enough for images of {side} pixels and fast on two cores.")
    smaller = max(1, min(batch, len(data) // 4))
    why = f"a batch should be at most a quarter of {len(data)} images" if smaller < batch else f"usual for {side} pixels"
    reasons.append(f"Batch {smaller}: {why}.")
    reasons.append(f"sigma_data {data.contract.std:.4g}, measured on the encoded images.")
    return {
        "resolution": (height, width),
        "net": {
            "width": net_width,
            "multipliers": list(multipliers),
            "attention": [index == len(multipliers) - 1 for index in range(len(multipliers))],
        },
        "batch": smaller,
        "sigma_data": data.contract.std,
        "reasons": reasons,
    }
