"""How near images are to the truth, image by image."""

from __future__ import annotations

import torch
from torch import Tensor

from ornstein.files import InputError


def psnr(images: Tensor, truth: Tensor, data_range: float) -> Tensor:
    """Peak signal-to-noise ratio 10 log10(data_range²/mean square error) in dB, (B,), of images (B, *) against truth."""
    return 10 * torch.log10(data_range**2 / (images - truth).double().flatten(1).square().mean(1))


def ssim(images: Tensor, truth: Tensor, data_range: float) -> Tensor:
    """Structural similarity, (B,), of images (B, C, H, W) against truth: 1 for equal ones.

    torchmetrics' with Gaussian windows of standard deviation 1.5; InputError for images under 11 pixels, which the window needs.
    Source: Wang et al. 2004, doi 10.1109/TIP.2003.819861.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(images.shape[2:]) < 11:
        raise InputError(f"images of {images.shape[3]}x{images.shape[2]} pixels are smaller than SSIM's window of 11; use psnr")
    found = structural_similarity_index_measure(images.double(), truth.double(), data_range=data_range, reduction="none")
    return found
