"""Triplet loss: a distance, a miner, and the mean over the anchors that have a triplet."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.core.errors import ConfigError, DataError, check_choice, check_number
from reid.losses.distances import Distance, at_least_float32, distance_function, paired_distances, pairwise_distances
from reid.losses.mining import HARDNESS_MINERS, MINING_NAMES, batch_all, mine_triplets, pair_masks
from reid.losses.pairs import check_batch, masked_mean

REDUCTIONS = ("mean", "active", "sum")


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float | None = 0.2,
    distance: Distance = "squared_euclidean",
    nearest: bool = False,
) -> Tensor:
    """Return the mean triplet loss of given triplets, `max(0, d(a, p) − d(a, n) + margin)` (Schroff et al. 2015).

    Nothing is mined: row t of the three tensors is a triplet. For a batch `[B, 3, D]` call
    `triplet_loss(*batch.unbind(dim=1))`.

    Args:
        anchor: `[T, D]`.
        positive: `[T, D]`.
        negative: `[T, D]`; with `nearest` `[M, D]`.
        margin: 0 or more; None for the soft margin.
        distance: as in `pairwise_distances`.
        nearest: use the nearest of all negatives for each anchor.

    Returns:
        A scalar, float32 or float64; 0 (and differentiable) without triplets.

    Raises:
        DataError: shapes that do not fit.
        ConfigError: unknown distance or wrong margin.

    Example:
        >>> import torch
        >>> triplet_loss(torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[1.0]])).item()
        0.20000000298023224
    """
    check_number("The triplet margin", margin)
    d_ap = paired_distances(anchor, positive, distance)
    if not nearest:
        d_an = paired_distances(anchor, negative, distance)
    elif len(negative):
        d_an = pairwise_distances(anchor, negative, distance).min(dim=1).values
    else:
        raise DataError("There is no negative. Pass at least one with nearest=True.")
    return hinge(d_ap - d_an, margin).sum() / max(1, len(anchor))


class MinkowskiTripletLoss(nn.Module):
    """`triplet_loss` as a module, with the order of the Minkowski distance as an argument of each call.

    Args:
        margin: 0 or more, in the unit of the distance; None for the soft margin.
    """

    def __init__(self, margin: float | None = 1.0) -> None:
        super().__init__()
        check_number("The triplet margin", margin)
        self.margin = margin

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor, p: float = 2.0) -> Tensor:
        """Return the mean of `max(0, ‖a − p‖_p − ‖a − n‖_p + margin)` over the rows of three `[T, D]`.

        Raises:
            ReidError: p below 1, or shapes that do not fit.
        """
        return triplet_loss(anchor, positive, negative, self.margin, f"minkowski:{p}")


class TripletLoss(nn.Module):
    """Triplet loss: an anchor must be nearer to its positive than to its negative, by a margin (Hermans et al. 2017).

    With `d_ap`, `d_an` the distances of the triplets that `mining` selects (one per anchor, one per positive pair, or
    all):

    - hard margin `m`: `max(0, m + d_ap − d_an)`;
    - soft margin (`margin=None`): `log(1 + exp(d_ap − d_an))`, which is never 0.

    An anchor needs another crop of its identity and a crop of another identity in the batch. Triplets that satisfy the
    margin count as 0 in the mean.

    Corner cases:

    1. Identities may have any number of crops; P × K is not assumed.
    2. An identity with one crop has no anchor but is still a negative for the others.
    3. One identity in the batch, all crops of different identities, one crop, no crop: 0, with gradient 0.
    4. Equal points: distance exactly 0, gradient 0 for that pair; all points equal gives the margin (or log 2).
    5. bfloat16, float16, autocast: computed in float32; the gradient has the features' type.
    6. NaN or infinite features: loss and gradient are NaN. Nothing is raised, because a check would make the host wait
       for the device in every step; the trainer checks the loss, and `reid.core.arrays.check_finite` names the rows.

    Args:
        margin: in the unit of the distance, 0 or more; None for the soft margin.
        mining: a name in `MINING_NAMES`; each is described at its function in `reid.losses.mining`.
        distance: as in `pairwise_distances`; parameters of a module become parameters of this loss.
        reduction: over the triplets, "mean", "active" (mean of those with a loss above 0) or "sum". None: "active" for
            batch-all, most of whose triplets soon have loss 0, and "mean" for the others.
        camera_aware: an anchor with positives of other cameras uses only those; needs `camids`.
        seed: of random miners. Batch n draws from (seed, n), independent of other random numbers; n is the attribute
            `step`, which is stored in the state dict.

    The attributes `margin` and `hardness` (initially 1; see `mine_triplets`) may be changed between steps. Miners that
    are not in `HARDNESS_MINERS` refuse a hardness other than 1.

    Raises:
        ConfigError: negative or non-finite margin; unknown mining, distance or reduction.

    Example:
        >>> import torch
        >>> from reid import TripletLoss
        >>> features = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 1.2], [3.0, 0.0]], requires_grad=True)
        >>> loss = TripletLoss(margin=0.3)(features, torch.tensor([7, 7, 8, 8]))
        >>> round(loss.item(), 4)
        1.2655
        >>> loss.backward()
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
        check_number("The triplet margin", margin)
        check_choice("mining", mining, MINING_NAMES)
        distance_function(distance)
        self.margin = margin
        self.mining = mining
        self.distance = distance
        self.reduction = reduction or ("active" if mining == "batch_all" else "mean")
        check_choice("reduction", self.reduction, REDUCTIONS)
        self.camera_aware = camera_aware
        self.seed = seed
        self.hardness = 1.0
        self.step = 0

    def forward(self, features: Tensor, pids: Tensor, camids: Tensor | None = None) -> Tensor:
        """Return the loss of a batch, a float32 scalar.

        Args:
            features: `[B, D]`.
            pids: `[B]` integers.
            camids: `[B]` integers; only used with `camera_aware`.

        Raises:
            DataError: shapes that do not fit, or cameras are needed and missing.
            ConfigError: a hardness that the miner does not support.
        """
        return self._loss(features, pids, camids)[0]

    def measure(self, features: Tensor, pids: Tensor, camids: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and training statistics, without making the host wait for the device.

        Returns:
            The loss, and detached 0-d tensors: `active`, the fraction of triplets that are violated (hard margin: loss
            above 0; soft margin: the negative is not farther than the positive); `positive` and `negative`, the mean
            distance of all such pairs of the batch; `norm`, the mean L2 norm of the features; `valid`, the fraction of
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
        """Return the settings that `print(model)` shows."""
        names = ["margin", "mining", *["distance"] * isinstance(self.distance, str), "reduction"]
        names += ["camera_aware"] * self.camera_aware
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def get_extra_state(self) -> Tensor:
        """Return the number of batches so far, which determines the next draw."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of batches, so that random mining continues as before."""
        self.step = int(state)

    def _loss(self, features: Tensor, pids: Tensor, camids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, the distances, and the fraction of triplets that are violated."""
        cameras = camids if self.camera_aware else None
        check_batch(features, pids, cameras, camera_aware=self.camera_aware)
        if self.hardness != 1 and self.mining not in HARDNESS_MINERS:
            raise ConfigError(
                f"Mining {self.mining!r} has no hardness. Set it to 1, or use one of {', '.join(HARDNESS_MINERS)}."
            )
        distances = pairwise_distances(features, distance=self.distance)
        if self.mining == "batch_all":
            total, violated, count = batch_all(distances, pids, self.margin, cameras)
            active = count if self.margin is None else violated
        else:
            generator = None
            if self.hardness != 1 or self.mining in ("distance_weighted", "random"):
                (seed,) = np.random.SeedSequence([self.seed, self.step]).generate_state(1)
                generator = torch.Generator(features.device).manual_seed(int(seed))
            positive, negative, valid = mine_triplets(
                self.mining, distances, pids, cameras, hardness=self.hardness, generator=generator, features=features
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


def hinge(difference: Tensor, margin: float | None) -> Tensor:
    """Return `max(0, difference + margin)`, or `log(1 + exp(difference))` without a margin."""
    return functional.softplus(difference) if margin is None else (difference + margin).relu()
