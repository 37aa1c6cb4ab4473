"""Pooling: feature map [B, C, h, w] → feature [B, C]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reid.core.errors import DataError


class AveragePool(nn.Module):
    """Mean over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → [B, C]."""
        return x.mean((2, 3))


class MaxPool(nn.Module):
    """Maximum over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → [B, C]."""
        return x.amax((2, 3))


class GeMPool(nn.Module):
    """Generalised mean: (mean over positions of max(x, ε)^p)^(1/p), with one learned p.

    p = 1 is the average, p → ∞ the maximum (Radenović et al. 2018, "Fine-tuning CNN Image Retrieval with No Human
    Annotation", equation 3). Powers are computed in float32 after division by the maximum, so that neither half
    precision nor a large p overflows. The result has the dtype of `x`. A map without values above ε gives ε.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → [B, C]."""
        clamped, p = x.float().clamp(min=self.eps), self.p.float()
        top = clamped.detach().amax((2, 3), keepdim=True)
        return (top[:, :, 0, 0] * (clamped / top).pow(p).mean((2, 3)).pow(1 / p)).to(x.dtype)


class StripePool(nn.Module):
    """Pool the whole map and each of its `num_stripes` horizontal stripes, and concatenate them, the whole first.

    People stand upright, so a stripe shows the same part of the body in most crops (Sun et al. 2018, "Beyond Part
    Models", section 3.1). If h is not a multiple of `num_stripes`, the upper stripes are one row taller.
    """

    def __init__(self, pool: nn.Module, num_stripes: int) -> None:
        super().__init__()
        self.pool = pool
        self.num_stripes = num_stripes

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] with h of at least `num_stripes` → [B, (1 + num_stripes) · C]."""
        if x.shape[2] < self.num_stripes:
            raise DataError(
                f"A feature map of {x.shape[2]} rows cannot be cut into {self.num_stripes} stripes. "
                "Lower model.num_stripes or use larger images."
            )
        return torch.cat([self.pool(part) for part in (x, *x.tensor_split(self.num_stripes, dim=2))], dim=1)


POOLINGS: dict[str, Callable[[], nn.Module]] = {"avg": AveragePool, "max": MaxPool, "gem": GeMPool}
