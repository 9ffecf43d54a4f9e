"""Residual perceptron for vectors, the network of the two-dimensional toys and of tables."""

from torch import Tensor, nn
from torch.nn import functional

from ornstein.files import InputError
from ornstein.nets.embed import Condition, ConditionEmbedding, NoiseEmbedding


class MLP(nn.Module):
    """Residual perceptron: (B, features), c_noise (B,), cond -> (B, features), zero before training.

    h ← h + W₂·silu(W₁·silu(norm(h)·(1 + s) + b)), with (s, b) linear in the embedding of c_noise and cond.
    Arguments: `width` of h, `depth` residual blocks, `classes` for ``cond["label"]``, `values` for ``cond["values"]``.
    Raises `InputError` for an x, c_noise or cond that does not fit. Source: the residual multilayer perceptron of
    Gorishniy et al., arXiv:2106.11959, section 3.2, with the scale and shift of `UNet`. `UNet` is its sibling for grids.
    """

    def __init__(
        self, features: int, width: int = 128, depth: int = 4, classes: int | None = None, values: int | None = None
    ) -> None:
        super().__init__()
        self.features = features
        self.noise = NoiseEmbedding(width)
        self.condition = ConditionEmbedding(width, classes, values)
        self.stem = nn.Linear(features, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, features)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.features:
            raise InputError(f"x has shape {tuple(x.shape)}: this MLP takes (batch, {self.features})")
        if c_noise.shape != x.shape[:1]:
            raise InputError(f"c_noise has shape {tuple(c_noise.shape)}: make it ({len(x)},), one level per sample")
        condition = self.condition(x, cond)
        code = self.noise(c_noise)
        code = functional.silu(code if condition is None else code + condition)
        h = self.stem(x.to(self.stem.weight.dtype))
        for block in self.blocks:
            h = block(h, code)
        return self.head(functional.silu(self.norm(h))).to(x.dtype)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.affine = nn.Linear(width, 2 * width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.affine(code).chunk(2, dim=1)
        inner = self.inner(functional.silu(self.norm(h) * (1 + scale) + shift))
        return h + self.outer(functional.silu(inner))
