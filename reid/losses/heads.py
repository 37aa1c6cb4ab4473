"""ArcFace and CosFace: softmax over the angles to one learned direction per identity, with a margin."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.core.errors import check_number
from reid.losses.pairs import LabelLoss, similarities


class _AngularHead(LabelLoss):
    """Cross-entropy of `scale · cos`, where `_with_margin` reduces the cosine of the true identity."""

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
        check_number("The margin of a head", margin, 0, math.pi, below=True)
        check_number("The scale of a head", scale, above=True)
        check_number("label_smoothing", label_smoothing, 0, 1)
        self.num_classes = num_classes
        self.margin = margin
        self.scale = scale
        self.label_smoothing = label_smoothing
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(num_classes, dim, generator=generator) / math.sqrt(dim))
        """`[C, D]`; only the directions of its rows matter."""

    def label_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """See `LabelLoss`."""
        cosines = similarities(x, self.weight.to(x.dtype)).clamp(-1, 1)
        true = functional.one_hot(labels, self.num_classes).bool()
        logits = self.scale * torch.where(true, self._with_margin(cosines), cosines)
        return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")

    def extra_repr(self) -> str:
        """Return the settings that `print(model)` shows."""
        dim = self.weight.shape[1]
        return f"num_classes={self.num_classes}, dim={dim}, margin={self.margin}, scale={self.scale}"

    def _with_margin(self, cosines: Tensor) -> Tensor:
        raise NotImplementedError


class CosFaceLoss(_AngularHead):
    """CosFace: `cos θ − m` for the true identity (Wang et al. 2018, eq. 4), times the scale, then cross-entropy.

    θ is the angle between the feature and the learned direction of the identity. The loss is the mean over the batch.

    Corner cases: crops are not compared with each other, so every batch is valid; no crop gives 0, and so does a data
    set of one identity. A row of zeros has cosine 0 with all. bfloat16, float16, autocast: computed in float32. NaN
    features give NaN.

    Args:
        dim: D.
        num_classes: C; `pids` are labels 0..C−1.
        margin: m, subtracted from the cosine, 0 or more.
        scale: s, above 0. A loss near 0 needs at least `log(C − 1)` for C identities (section 3.3).
        label_smoothing: ε, 0..1.
        seed: of the initial directions.

    Raises:
        ConfigError: a value out of range.
    """

    def _with_margin(self, cosines: Tensor) -> Tensor:
        return cosines - self.margin


class ArcFaceLoss(_AngularHead):
    """ArcFace: `cos(θ + m)` for the true identity (Deng et al. 2019, eq. 3), times the scale, then cross-entropy.

    Where `θ + m` would exceed π and the cosine would rise again, `cos θ − m sin m` is used, which keeps falling.
    Everything else is as in `CosFaceLoss`; `margin` is an angle in radians.
    """

    def _with_margin(self, cosines: Tensor) -> Tensor:
        square = 1 - cosines.square()
        inside = square > 0  # at 0 and π the root has no finite gradient, so the gradient is 0 there
        sines = torch.where(inside, square.where(inside, 1.0).sqrt(), 0.0)
        turned = cosines * math.cos(self.margin) - sines * math.sin(self.margin)
        past = cosines < -math.cos(self.margin)
        return torch.where(past, cosines - self.margin * math.sin(self.margin), turned)
