"""Networks with one calling convention, `net(x, c_noise, cond) -> tensor`: U-Nets for grids, an MLP for vectors.

`HalfUNet`, which classifies, takes no condition.
"""

from ornstein.nets.classifier import HalfUNet
from ornstein.nets.embed import ConditionEmbedding, LevelFree, NoiseEmbedding
from ornstein.nets.mlp import MLP
from ornstein.nets.unet import UNet

__all__ = ["MLP", "ConditionEmbedding", "HalfUNet", "LevelFree", "NoiseEmbedding", "UNet"]
