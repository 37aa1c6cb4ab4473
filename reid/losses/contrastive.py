"""The contrastive loss: positive pairs together, negative pairs apart by a margin, each pair on its own."""

from __future__ import annotations

import math

from torch import Tensor

from reid.core.errors import ReidError, did_you_mean
from reid.losses.distances import Distance, check_distance, pairwise_distances
from reid.losses.pairs import PairLoss, masked_mean

REDUCTIONS = ("active", "mean")


class ContrastiveLoss(PairLoss):
    """Every pair is judged alone (Hadsell, Chopra, LeCun 2006, eq. 4).

    `positive: max(0, d − m₊)^q / q`, `negative: max(0, m − d)^q / q`. With `q = 2` and `m₊ = 0` these are the paper's
    `d²/2` and `max(0, m − d)²/2`; with `q = 1` the pull and the push do not depend on how far off a pair is.

    A batch of P × K has P − 1 times as many negatives as positives or more, so the two kinds are reduced apart and
    added: `loss = R(positives) + R(negatives)`, where R is the mean over all such pairs ("mean") or over those above
    0 ("active": the few negatives that are too near are not diluted by the many that are far enough).

    Behaviour in corner cases: as in `PairLoss`; a batch with one kind of pair only has the other term at 0, so one
    identity is still pulled together, and crops of different identities are still pushed apart. Equal points are at
    distance 0 and pass no gradient.

    Args:
        margin: m, in the unit of the distance; above `positive_margin`.
        positive_margin: m₊, 0 or more: positives nearer than this are left alone.
        distance: as in `pairwise_distances`.
        power: q, 1 or 2.
        reduction: "active" or "mean".
        camera_aware: as in `PairLoss`.

    Raises:
        ReidError: a value out of range, or an unknown name.
    """

    def __init__(
        self,
        margin: float = 1.0,
        positive_margin: float = 0.0,
        distance: Distance = "euclidean",
        power: int = 2,
        reduction: str = "active",
        camera_aware: bool = False,
    ) -> None:
        super().__init__(camera_aware)
        if not (math.isfinite(margin) and 0 <= positive_margin < margin):
            raise ReidError(
                f"The contrastive loss needs 0 ≤ positive_margin < margin; got {positive_margin} and {margin}."
            )
        if power not in (1, 2):
            raise ReidError(f"power must be 1 or 2; got {power}.")
        if reduction not in REDUCTIONS:
            raise ReidError(f"Unknown reduction {reduction!r}.{did_you_mean(reduction, REDUCTIONS)}")
        check_distance(distance)
        self.margin = margin
        self.positive_margin = positive_margin
        self.distance = distance
        self.power = power
        self.reduction = reduction

    def of_pairs(self, anchors: Tensor, others: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """See `PairLoss`."""
        distances = pairwise_distances(anchors, None if others is anchors else others, self.distance)
        pull = (distances - self.positive_margin).relu().pow(self.power) / self.power
        push = (self.margin - distances).relu().pow(self.power) / self.power
        return self._reduced(pull, positives) + self._reduced(push, negatives)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"margin={self.margin}, power={self.power}, reduction={self.reduction!r}"

    def _reduced(self, values: Tensor, mask: Tensor) -> Tensor:
        return masked_mean(values, mask & ~(values <= 0) if self.reduction == "active" else mask)
