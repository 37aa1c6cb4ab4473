"""The circle loss: each similarity is pulled or pushed the harder the farther it is from where it should be."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from reid.core.errors import ReidError
from reid.losses.pairs import PairLoss, masked_mean, similarities


class CircleLoss(PairLoss):
    """Sun et al. 2020, "Circle Loss", eq. 6, with the settings of section 3.2, over the pairs of the batch.

    For an anchor with cosine similarities `s_p` to its positives and `s_n` to its negatives,

        loss = log(1 + Σ_n exp(γ α_n (s_n − m)) · Σ_p exp(−γ α_p (s_p − 1 + m)))
        α_p = max(0, 1 + m − s_p),  α_n = max(0, s_n + m)

    and the weights α pass no gradient. A pair that is right already hardly pulls: the boundary between right and
    wrong is a circle in the plane of `s_n` and `s_p`. The loss is the mean over the anchors that have both kinds.

    Behaviour in corner cases: as in `PairLoss`. Features of any length, for the cosine takes it out; a row of zeros
    has similarity 0 to all. All points equal: all similarities are 1, the loss is large and the gradient 0.

    Args:
        margin: m, 0 to 1; the paper's 0.25.
        gamma: γ, above 0; the paper's 128 for person re-identification.
        camera_aware: as in `PairLoss`.

    Raises:
        ReidError: a value out of range.
    """

    def __init__(self, margin: float = 0.25, gamma: float = 128.0, camera_aware: bool = False) -> None:
        super().__init__(camera_aware)
        if not 0 <= margin <= 1:
            raise ReidError(f"The margin of the circle loss must be between 0 and 1; got {margin}.")
        if not (math.isfinite(gamma) and gamma > 0):
            raise ReidError(f"gamma must be above 0; got {gamma}.")
        self.margin = margin
        self.gamma = gamma

    def of_pairs(self, anchors: Tensor, others: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """See `PairLoss`."""
        similarity = similarities(anchors, others)
        fixed = similarity.detach()
        pull = -self.gamma * (1 + self.margin - fixed).relu() * (similarity - 1 + self.margin)
        push = self.gamma * (fixed + self.margin).relu() * (similarity - self.margin)
        valid = positives.any(dim=1) & negatives.any(dim=1)
        both = masked_logsumexp(pull, positives) + masked_logsumexp(push, negatives)
        return masked_mean(functional.softplus(both), valid)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"margin={self.margin}, gamma={self.gamma}"


def masked_logsumexp(values: Tensor, mask: Tensor) -> Tensor:
    """`log Σ exp` over the masked values of each row; 0, without gradient, in a row that has none."""
    some = mask.any(dim=1, keepdim=True)
    kept = values.masked_fill(~mask, -torch.inf).masked_fill(~some, 0.0)
    return kept.logsumexp(dim=1).masked_fill(~some.squeeze(1), 0.0)
