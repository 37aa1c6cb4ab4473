"""The triplet loss: a distance, a miner, and the mean over the anchors that have a triplet."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ReidError, did_you_mean
from reid.losses.distances import at_least_float32, check_distance, pairwise_distances
from reid.losses.mining import MINING, pair_masks


class TripletLoss(nn.Module):
    """An anchor's positive must be nearer than its negative, by a margin (Hermans, Beyer, Leibe 2017).

    With `d_ap`, `d_an` the distances that the miner picks for an anchor (batch-hard: eq. 5):

    - hard margin `m`: `max(0, m + d_ap − d_an)`;
    - soft margin (`margin=None`): `log(1 + exp(d_ap − d_an))`, which never stops pulling.

    The loss is the mean over the valid anchors: those with another crop of their identity and a crop of another
    identity in the batch. Anchors already far enough count as 0 in that mean.

    Behaviour in corner cases:

    1. Ragged batch (identities with different numbers of crops): masked, no assumption of P × K.
    2. An identity with one crop: no anchor, but still a negative for the others.
    3. One identity in the batch, all crops of different identities, one crop, no crop: 0, with gradient 0.
    4. Equal points: distance exactly 0, gradient 0 through that pair; all points equal gives the margin (or log 2).
    5. bfloat16, float16, autocast: computed in float32; the gradient comes back in the features' own type.
    6. NaN or infinite features: the loss is NaN. There is no check here, for it would make the device wait in every
       step; the trainer looks at the loss.

    Args:
        margin: in the unit of the distance, 0 or more; None for the soft margin.
        mining: a key of `MINING`.
        distance: a key of `DISTANCES`.

    Raises:
        ReidError: negative or non-finite margin, unknown mining or distance.
    """

    def __init__(self, margin: float | None = 0.3, mining: str = "batch_hard", distance: str = "euclidean") -> None:
        super().__init__()
        if margin is not None and not (math.isfinite(margin) and margin >= 0):
            raise ReidError(f"The triplet margin must be 0 or more, or None for the soft margin; got {margin}.")
        if mining not in MINING:
            raise ReidError(f"Unknown mining {mining!r}.{did_you_mean(mining, MINING)}")
        check_distance(distance)
        self.margin = margin
        self.mining = mining
        self.distance = distance

    def forward(self, features: Tensor, pids: Tensor) -> Tensor:
        """The loss of a batch, a float32 scalar.

        Args:
            features: `[B, D]`.
            pids: `[B]` integers.

        Raises:
            ReidError: shapes that do not fit.
        """
        return self._loss(features, pids)[0]

    def measure(self, features: Tensor, pids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what shows how it is doing; nothing here makes the device wait.

        Returns:
            The loss, and detached 0-d tensors: `active`, the share of valid anchors whose triplet is violated (hard
            margin: loss above 0; soft margin: the negative no farther than the positive); `positive` and `negative`,
            the mean distance over all such pairs of the batch; `norm`, the mean L2 norm of the features; `valid`, the
            share of crops that are valid anchors. A mean over nothing is 0.
        """
        loss, distances, difference, valid = self._loss(features, pids)
        with torch.no_grad():
            positives, negatives = pair_masks(pids)
            violated = difference >= 0 if self.margin is None else difference > -self.margin
            measured = {
                "active": _mean(violated.to(distances.dtype), valid),
                "positive": _mean(distances, positives),
                "negative": _mean(distances, negatives),
                "norm": _mean(at_least_float32(features).norm(dim=1), torch.ones_like(valid)),
                "valid": _mean(valid.to(distances.dtype), torch.ones_like(valid)),
            }
        return loss, measured

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"margin={self.margin}, mining={self.mining!r}, distance={self.distance!r}"

    def _loss(self, features: Tensor, pids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if features.ndim != 2 or pids.shape != features.shape[:1]:
            raise ReidError(
                f"The triplet loss needs features [B, D] and pids [B]; got {list(features.shape)} and "
                f"{list(pids.shape)}."
            )
        distances = pairwise_distances(features, distance=self.distance)
        positive, negative, valid = MINING[self.mining](distances, pids)
        difference = positive - negative
        per_anchor = functional.softplus(difference) if self.margin is None else (difference + self.margin).relu()
        return _mean(per_anchor, valid), distances, difference.detach(), valid


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the masked values; 0 (and differentiable) when the mask is empty."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)
