"""Networks with one calling convention, `net(x, c_noise, cond) -> tensor`: U-Nets for grids, an MLP for vectors, `SSSDNet` and
`CSDINet` for series with gaps.

`HalfUNet`, which classifies, takes no condition; `S4` is a layer over time.
"""

from ornstein.nets.axial import CSDINet
from ornstein.nets.classifier import HalfUNet
from ornstein.nets.embed import ConditionEmbedding, LevelFree, NoiseEmbedding
from ornstein.nets.mlp import MLP
from ornstein.nets.s4 import S4, SSSDNet
from ornstein.nets.ssm import S4DKernel, S4Kernel
from ornstein.nets.unet import UNet

__all__ = [
    "MLP",
    "S4",
    "CSDINet",
    "ConditionEmbedding",
    "HalfUNet",
    "LevelFree",
    "NoiseEmbedding",
    "S4DKernel",
    "S4Kernel",
    "SSSDNet",
    "UNet",
]
