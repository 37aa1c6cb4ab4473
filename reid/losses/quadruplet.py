"""Quadruplet loss: the triplet loss plus a term over negatives of two other identities."""

from __future__ import annotations

import torch
from torch import Tensor

from reid.core.errors import check_number
from reid.losses.distances import Distance, distance_function
from reid.losses.pairs import PairLoss, Pairs, masked_mean


class QuadrupletLoss(PairLoss):
    """Quadruplet loss with the hardest quadruplet of each anchor (Chen et al. 2017, "Beyond triplet loss", eq. 7).

    For an anchor a of identity i,

        loss(a) = max(0, d_ap − d_an + m₁) + max(0, d_ap − d_nn + m₂)

    where `d_ap` is the distance to its farthest positive, `d_an` to its nearest negative, and `d_nn` the smallest
    distance between two crops of two different identities, neither of them i. The second term, with the smaller
    margin, requires that even pairs without the anchor are farther apart than the anchor's positive. The loss is the
    mean over the anchors that have a positive and a negative. The second term needs three identities. Memory is a few
    times `[B, B]`, never B³.

    Corner cases:

    1. Identities may have any number of crops. An identity with one crop has no anchor but is still a negative.
    2. Two identities: the triplet term only. One identity, all crops of different identities, one crop, no crop: 0,
       with gradient 0.
    3. All points equal: m₁ + m₂, with gradient 0.
    4. bfloat16, float16, autocast: computed in float32. NaN or infinite features give NaN.
    5. `camera_aware`: an anchor with positives from other cameras uses the farthest of those.

    Args:
        margin: m₁, in the unit of the distance, 0 or more.
        second_margin: m₂, 0 or more; None: half of `margin`, as in the paper.
        distance: as in `pairwise_distances`.
        camera_aware: needs `camids` at every call.

    Raises:
        ConfigError: a negative or non-finite margin, or an unknown distance.
    """

    takes_references = False
    shown = ("margin", "second_margin", "distance")

    def __init__(
        self,
        margin: float = 0.3,
        second_margin: float | None = None,
        distance: Distance = "euclidean",
        camera_aware: bool = False,
    ) -> None:
        super().__init__(camera_aware)
        second_margin = margin / 2 if second_margin is None else second_margin
        check_number("The quadruplet margin", margin)
        check_number("The quadruplet second_margin", second_margin)
        distance_function(distance)
        self.margin = margin
        self.second_margin = second_margin
        self.distance = distance

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See `PairLoss`."""
        distances = pairs.distances(self.distance)
        if not len(distances):
            return distances.sum()
        farthest = distances.masked_fill(~pairs.positives, -torch.inf).amax(dim=1)
        nearest = distances.masked_fill(~pairs.negatives, torch.inf).amin(dim=1)
        between = _nearest_two_others(distances, pairs.pids, pairs.negatives)
        first = (farthest - nearest + self.margin).masked_fill(~pairs.valid, 0.0).relu()
        second = (farthest - between + self.second_margin).masked_fill(~pairs.valid | between.isinf(), 0.0).relu()
        return masked_mean(first + second, pairs.valid)


def _nearest_two_others(distances: Tensor, pids: Tensor, negatives: Tensor) -> Tensor:
    """Return `[B]`: the smallest distance between crops of two identities, neither of them the row's; ∞ without any.

    Each crop has its nearest negative and its nearest crop of a third identity. For the identity of a row, one of the
    two is the nearest crop that is not of this identity.
    """
    others = distances.masked_fill(~negatives, torch.inf)
    nearest, at = others.min(dim=1)
    first = pids[at]
    third = others.masked_fill(pids.unsqueeze(0) == first.unsqueeze(1), torch.inf).amin(dim=1)
    of_row = torch.where(first.unsqueeze(0) != pids.unsqueeze(1), nearest, third)
    return of_row.masked_fill(~negatives, torch.inf).amin(dim=1)
