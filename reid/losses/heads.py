"""ArcFace and CosFace: softmax over the angles to one learned direction an identity, with a margin."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.core.errors import ReidError
from reid.losses.distances import at_least_float32
from reid.losses.pairs import check_batch, check_labels, nothing, similarities


class _AngularHead(nn.Module):
    """Cross-entropy of `scale · cos`, the true identity's cosine lowered by a margin in `_with_margin`."""

    def __init__(
        self,
        dim: int,
        num_classes: int,
        margin: float = 0.3,
        scale: float = 30.0,
        label_smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(margin) and 0 <= margin < math.pi):
            raise ReidError(f"The margin of a head must be 0 or more and below π; got {margin}.")
        if not (math.isfinite(scale) and scale > 0):
            raise ReidError(f"The scale of a head must be above 0; got {scale}.")
        if not 0 <= label_smoothing <= 1:
            raise ReidError(f"label_smoothing must be between 0 and 1; got {label_smoothing}.")
        self.margin = margin
        self.scale = scale
        self.label_smoothing = label_smoothing
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(num_classes, dim, generator=generator) / math.sqrt(dim))
        """`[C, D]`; only its rows' directions count."""

    def forward(self, features: Tensor, pids: Tensor, camids: Tensor | None = None) -> Tensor:
        """The loss of a batch, a float32 scalar (float64 for float64 features and weights).

        Args:
            features: `[B, D]`.
            pids: `[B]` labels 0..C−1.
            camids: not looked at.

        Raises:
            ReidError: shapes that do not fit, or (on the CPU) labels out of range.
        """
        check_batch(features, pids, camids)
        check_labels(pids, len(self.weight))
        with torch.autocast(features.device.type, enabled=False):
            x = at_least_float32(features)
            cosines = similarities(x, self.weight.to(x.dtype)).clamp(-1, 1)
            true = functional.one_hot(pids, len(self.weight)).bool()
            logits = self.scale * torch.where(true, self._with_margin(cosines), cosines)
            losses = functional.cross_entropy(logits, pids, label_smoothing=self.label_smoothing, reduction="sum")
            return losses / max(len(x), 1) + nothing(x)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        classes, dim = self.weight.shape
        return f"num_classes={classes}, dim={dim}, margin={self.margin}, scale={self.scale}"

    def _with_margin(self, cosines: Tensor) -> Tensor:
        raise NotImplementedError


class CosFaceLoss(_AngularHead):
    """`cos θ − m` for the true identity (Wang et al. 2018, eq. 4), times the scale, into cross-entropy.

    θ is the angle between the feature and the identity's learned direction. Mean over the batch.

    Behaviour in corner cases: any batch will do, for crops are not compared with each other; no crop gives 0; one
    identity in all gives 0. A row of zeros has cosine 0 with all. bfloat16, float16, autocast: computed in float32.
    NaN features give NaN.

    Args:
        dim: D.
        num_classes: C; `pids` are labels 0..C−1.
        margin: m, of the cosine, 0 or more.
        scale: s, above 0. For C identities, `log(C − 1)` or more is needed for a loss near 0 (section 3.3).
        label_smoothing: ε, 0..1.
        seed: of the first directions.

    Raises:
        ReidError: a value out of range.
    """

    def _with_margin(self, cosines: Tensor) -> Tensor:
        return cosines - self.margin


class ArcFaceLoss(_AngularHead):
    """`cos(θ + m)` for the true identity (Deng et al. 2019, eq. 3), times the scale, into cross-entropy.

    Where `θ + m` would pass π, and the cosine rise again, `cos θ − m sin m` stands in its place, which keeps falling.
    Everything else is as in `CosFaceLoss`; `margin` is an angle in radians.
    """

    def _with_margin(self, cosines: Tensor) -> Tensor:
        square = 1 - cosines.square()
        inside = square > 0  # at 0 and π the root has no finite gradient; 0 is passed there
        sines = torch.where(inside, square.where(inside, 1.0).sqrt(), 0.0)
        turned = cosines * math.cos(self.margin) - sines * math.sin(self.margin)
        past = cosines < -math.cos(self.margin)
        return torch.where(past, cosines - self.margin * math.sin(self.margin), turned)
