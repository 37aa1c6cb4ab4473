"""The quadruplet loss: the triplet loss, and negatives of two other identities kept apart as well."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reid.core.errors import ReidError
from reid.losses.distances import Distance, at_least_float32, check_distance, pairwise_distances
from reid.losses.mining import pair_masks
from reid.losses.pairs import check_batch, masked_mean, nothing


class QuadrupletLoss(nn.Module):
    """Chen et al. 2017, "Beyond triplet loss", eq. 7, with the hardest quadruplet of each anchor.

    For an anchor a of identity i,

        loss(a) = max(0, d_ap − d_an + m₁) + max(0, d_ap − d_nn + m₂)

    where `d_ap` is the distance to its farthest positive, `d_an` to its nearest negative, and `d_nn` the smallest
    distance between two crops of two different identities, neither of them i. The second term, with the smaller
    margin, asks that even pairs that do not share the anchor be farther apart than the anchor's own. The loss is the
    mean over the anchors that have a positive and a negative; the second term counts where a `d_nn` exists, which
    takes three identities. No B³: a few times `[B, B]`.

    Behaviour in corner cases:

    1. Ragged batch: masked, no assumption of P × K. An identity with one crop is no anchor but stays a negative.
    2. Two identities: the triplet term alone. One identity, all crops of different identities, one crop, no crop:
       0, with gradient 0.
    3. All points equal: m₁ + m₂, with gradient 0.
    4. bfloat16, float16, autocast: computed in float32. NaN or infinite features give NaN.
    5. `camera_aware`: an anchor that has a positive from another camera takes its farthest among those.

    Args:
        margin: m₁, in the unit of the distance, 0 or more.
        second_margin: m₂, 0 or more; None: half of `margin`, as in the paper.
        distance: as in `pairwise_distances`.
        camera_aware: needs `camids` at every call.

    Raises:
        ReidError: a negative or non-finite margin, or an unknown distance.
    """

    def __init__(
        self,
        margin: float = 0.3,
        second_margin: float | None = None,
        distance: Distance = "euclidean",
        camera_aware: bool = False,
    ) -> None:
        super().__init__()
        second_margin = margin / 2 if second_margin is None else second_margin
        for name, value in (("margin", margin), ("second_margin", second_margin)):
            if not (math.isfinite(value) and value >= 0):
                raise ReidError(f"The quadruplet {name} must be 0 or more; got {value}.")
        check_distance(distance)
        self.margin = margin
        self.second_margin = second_margin
        self.distance = distance
        self.camera_aware = camera_aware

    def forward(self, features: Tensor, pids: Tensor, camids: Tensor | None = None) -> Tensor:
        """The loss of a batch, a float32 scalar (float64 for float64 features).

        Args:
            features: `[B, D]`.
            pids: `[B]` integers.
            camids: `[B]` integers; only looked at when the loss is camera-aware.

        Raises:
            ReidError: shapes that do not fit, or cameras needed and missing.
        """
        check_batch(features, pids, camids, camera_aware=self.camera_aware)
        distances = pairwise_distances(features, distance=self.distance)
        if len(pids) == 0:
            return distances.sum()
        positives, negatives = pair_masks(pids, camids if self.camera_aware else None)
        valid = positives.any(dim=1) & negatives.any(dim=1)
        farthest = distances.masked_fill(~positives, -torch.inf).amax(dim=1)
        nearest = distances.masked_fill(~negatives, torch.inf).amin(dim=1)
        elsewhere = _nearest_two_others(distances, pids, negatives)
        first = (farthest - nearest + self.margin).masked_fill(~valid, 0.0).relu()
        second = (farthest - elsewhere + self.second_margin).masked_fill(~valid | elsewhere.isinf(), 0.0).relu()
        return masked_mean(first + second, valid) + nothing(at_least_float32(features))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"margin={self.margin}, second_margin={self.second_margin}, distance={self.distance!r}"


def _nearest_two_others(distances: Tensor, pids: Tensor, negatives: Tensor) -> Tensor:
    """`[B]`: the smallest distance between crops of two different identities, neither of them the row's; else ∞.

    Each crop is asked for its nearest negative, and for its nearest of a third identity; for an anchor's identity one
    of the two is the nearest that is not of it.
    """
    apart = distances.masked_fill(~negatives, torch.inf)
    nearest, at = apart.min(dim=1)
    first = pids[at]
    third = apart.masked_fill(pids.unsqueeze(0) == first.unsqueeze(1), torch.inf).amin(dim=1)
    of_row = torch.where(first.unsqueeze(0) != pids.unsqueeze(1), nearest, third)
    return of_row.masked_fill(~negatives, torch.inf).amin(dim=1)
