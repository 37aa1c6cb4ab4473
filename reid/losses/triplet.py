"""The triplet loss: a distance, a miner, and the mean over the anchors that have a triplet."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.core.errors import ReidError, did_you_mean
from reid.losses.distances import Distance, at_least_float32, check_distance, paired_distances, pairwise_distances
from reid.losses.mining import GRADED, MINERS, MINING, batch_all, pair_masks
from reid.losses.pairs import masked_mean

REDUCTIONS = ("mean", "active", "sum")


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float | None = 0.2,
    distance: Distance = "squared_euclidean",
    nearest: bool = False,
) -> Tensor:
    """The mean triplet loss of given triplets, `max(0, d(a, p) − d(a, n) + margin)` (Schroff et al. 2015, eq. 2).

    Nothing is mined: row t of the three is a triplet. A batch `[B, 3, D]` is `triplet_loss(*batch.unbind(dim=1))`.

    Args:
        anchor: `[T, D]`.
        positive: `[T, D]`.
        negative: `[T, D]`; with `nearest` `[M, D]`.
        margin: 0 or more; None for the soft margin.
        distance: as in `pairwise_distances`.
        nearest: whether each anchor's negative is the nearest of all the negatives.

    Returns:
        A scalar, float32 or float64; 0 (and differentiable) for no triplet.

    Raises:
        ReidError: shapes that do not fit, unknown distance, or a wrong margin.
    """
    check_margin(margin)
    d_ap = paired_distances(anchor, positive, distance)
    if not nearest:
        d_an = paired_distances(anchor, negative, distance)
    elif len(negative):
        d_an = pairwise_distances(anchor, negative, distance).min(dim=1).values
    else:
        raise ReidError("There is no negative of which to take the nearest.")
    return hinge(d_ap - d_an, margin).sum() / max(1, len(anchor))


class MinkowskiTripletLoss(nn.Module):
    """`triplet_loss` as a module, with the order of the Minkowski distance given at each call.

    Args:
        margin: 0 or more, in the unit of the distance; None for the soft margin.
    """

    def __init__(self, margin: float | None = 1.0) -> None:
        super().__init__()
        check_margin(margin)
        self.margin = margin

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor, p: float = 2.0) -> Tensor:
        """The mean of `max(0, ‖a − p‖_p − ‖a − n‖_p + margin)` over the rows of three `[T, D]`.

        Raises:
            ReidError: p below 1, or shapes that do not fit.
        """
        return triplet_loss(anchor, positive, negative, self.margin, f"minkowski:{p}")


class TripletLoss(nn.Module):
    """An anchor's positive must be nearer than its negative, by a margin (Hermans, Beyer, Leibe 2017).

    With `d_ap`, `d_an` the distances of a triplet that `mining` picks (one an anchor, or one a positive pair, or all):

    - hard margin `m`: `max(0, m + d_ap − d_an)`;
    - soft margin (`margin=None`): `log(1 + exp(d_ap − d_an))`, which never stops pulling.

    An anchor needs another crop of its identity and a crop of another identity in the batch. Triplets already far
    enough count as 0 in the mean.

    Behaviour in corner cases:

    1. Ragged batch (identities with different numbers of crops): masked, no assumption of P × K.
    2. An identity with one crop: no anchor, but still a negative for the others.
    3. One identity in the batch, all crops of different identities, one crop, no crop: 0, with gradient 0.
    4. Equal points: distance exactly 0, gradient 0 through that pair; all points equal gives the margin (or log 2).
    5. bfloat16, float16, autocast: computed in float32; the gradient comes back in the features' own type.
    6. NaN or infinite features: the loss and its gradient are NaN. Nothing is raised, for looking would make the
       device wait in every step; the trainer looks at the loss, and `check_finite` names the rows.

    Args:
        margin: in the unit of the distance, 0 or more; None for the soft margin.
        mining: a name in `MINING`; each is described at its function in `reid.losses.mining`.
        distance: as in `pairwise_distances`; a module's weights become weights of this loss.
        reduction: over the triplets, "mean", "active" (mean of those whose loss is above 0) or "sum". None: "active"
            for batch-all, most of whose triplets are soon 0, and "mean" for the others.
        camera_aware: whether an anchor that has positives of other cameras uses only those; needs `camids`.
        seed: of the miners that draw. Batch n of a loss draws from (seed, n), whatever else draws random numbers; n is
            the attribute `step`, kept in the state dict.

    The attributes `margin` and `hardness` (1 at first; see `batch_hard`) may be set between steps. The miners that look
    at all pairs, or draw by rules of their own, refuse a hardness other than 1.

    Raises:
        ReidError: negative or non-finite margin; unknown mining, distance or reduction.
    """

    def __init__(
        self,
        margin: float | None = 0.3,
        mining: str = "batch_hard",
        distance: Distance = "euclidean",
        reduction: str | None = None,
        camera_aware: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_margin(margin)
        if mining not in MINING:
            raise ReidError(f"Unknown mining {mining!r}.{did_you_mean(mining, MINING)}")
        check_distance(distance)
        if reduction is not None and reduction not in REDUCTIONS:
            raise ReidError(f"Unknown reduction {reduction!r}.{did_you_mean(reduction, REDUCTIONS)}")
        self.margin = margin
        self.mining = mining
        self.distance = distance
        self.reduction = reduction or ("active" if mining == "batch_all" else "mean")
        self.camera_aware = camera_aware
        self.seed = seed
        self.hardness = 1.0
        self.step = 0

    def forward(self, features: Tensor, pids: Tensor, camids: Tensor | None = None) -> Tensor:
        """The loss of a batch, a float32 scalar.

        Args:
            features: `[B, D]`.
            pids: `[B]` integers.
            camids: `[B]` integers; needed, and looked at, with `camera_aware` only.

        Raises:
            ReidError: shapes that do not fit, no cameras where they are needed, or a hardness that the miner has not.
        """
        return self._loss(features, pids, camids)[0]

    def measure(self, features: Tensor, pids: Tensor, camids: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what shows how it is doing; nothing here makes the device wait.

        Returns:
            The loss, and detached 0-d tensors: `active`, the share of triplets that are violated (hard margin: loss
            above 0; soft margin: the negative no farther than the positive); `positive` and `negative`, the mean
            distance over all such pairs of the batch; `norm`, the mean L2 norm of the features; `valid`, the share of
            crops that are valid anchors. A mean over nothing is 0.
        """
        loss, distances, active = self._loss(features, pids, camids)
        with torch.no_grad():
            positives, negatives = pair_masks(pids)
            valid = positives.any(dim=1) & negatives.any(dim=1)
            measured = {
                "active": active,
                "positive": masked_mean(distances, positives),
                "negative": masked_mean(distances, negatives),
                "norm": masked_mean(at_least_float32(features).norm(dim=1), torch.ones_like(valid)),
                "valid": masked_mean(valid.to(distances.dtype), torch.ones_like(valid)),
            }
        return loss, measured

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        named = [f"margin={self.margin}", f"mining={self.mining!r}", f"reduction={self.reduction!r}"]
        if isinstance(self.distance, str):
            named.insert(2, f"distance={self.distance!r}")
        return ", ".join(named + ["camera_aware=True"] * self.camera_aware)

    def get_extra_state(self) -> Tensor:
        """The number of batches seen, from which the next draw comes."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on drawing where the saved loss stood."""
        self.step = int(state)

    def _loss(self, features: Tensor, pids: Tensor, camids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the distances, and the share of triplets that are violated."""
        if features.ndim != 2 or pids.shape != features.shape[:1]:
            raise ReidError(
                f"The triplet loss needs features [B, D] and pids [B]; got {list(features.shape)} and "
                f"{list(pids.shape)}."
            )
        if self.camera_aware and camids is None:
            raise ReidError("camera_aware needs the cameras: call the loss with (features, pids, camids).")
        if self.hardness != 1 and self.mining not in GRADED:
            raise ReidError(f"Mining {self.mining!r} has no hardness; one of {', '.join(GRADED)} has.")
        cameras = camids if self.camera_aware else None
        distances = pairwise_distances(features, distance=self.distance)
        if self.mining == "batch_all":
            total, violated, count = batch_all(distances, pids, self.margin, cameras)
            active = count if self.margin is None else violated
        else:
            positive, negative, valid = MINERS[self.mining](
                distances,
                pids,
                cameras,
                hardness=self.hardness,
                generator=self._generator(features.device),
                features=features,
            )
            difference = positive - negative
            losses = hinge(difference, self.margin) * valid
            total, count = losses.sum(), valid.sum()
            active = (losses.detach() > 0).sum()
            violated = (valid & (difference.detach() >= 0)).sum() if self.margin is None else active
        self.step += 1
        over = {"mean": count, "active": active}
        loss = total / over[self.reduction].clamp(min=1) if self.reduction in over else total
        distances = distances.detach()
        finite = distances.sum() * 0 + 1  # NaN, if any distance is NaN or infinite
        return loss * finite, distances, violated / count.clamp(min=1)

    def _generator(self, device: torch.device) -> torch.Generator | None:
        if self.hardness == 1 and self.mining not in ("distance_weighted", "random"):
            return None
        (seed,) = np.random.SeedSequence([self.seed, self.step]).generate_state(1)
        return torch.Generator(device).manual_seed(int(seed))


def hinge(difference: Tensor, margin: float | None) -> Tensor:
    """`max(0, difference + margin)`; without a margin the soft one, `log(1 + exp(difference))`."""
    return functional.softplus(difference) if margin is None else (difference + margin).relu()


def check_margin(margin: float | None) -> None:
    """Refuse a margin that is negative or not finite.

    Raises:
        ReidError: naming it.
    """
    if margin is not None and not (math.isfinite(margin) and margin >= 0):
        raise ReidError(f"The triplet margin must be 0 or more, or None for the soft margin; got {margin}.")
