"""What training minimises: the weighted sum of triplet and softmax loss; and the watch that sees it collapse."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ReidError
from reid.losses.triplet import TripletLoss


class Objective(nn.Module):
    """`triplet_weight · triplet(features) + softmax_weight · cross-entropy(logits)` (Luo et al. 2019, BNNeck).

    The triplet loss sees the feature before the neck's BatchNorm, the classifier the one after it. Cross-entropy is
    label-smoothed (Szegedy et al. 2016, section 7): the target is `1 − ε + ε/C` for the true class and `ε/C` for the
    others. A weight of 0 leaves its term out wholly: it is not computed and not logged, so softmax alone works on any
    batch and triplet alone needs no logits.

    Args:
        triplet_weight: 0 or more.
        softmax_weight: 0 or more; not both 0.
        label_smoothing: ε, 0 ≤ ε ≤ 1.
        margin, mining, distance: as in `TripletLoss`.

    Raises:
        ReidError: a value out of range, or an unknown name.
    """

    def __init__(
        self,
        triplet_weight: float = 1.0,
        softmax_weight: float = 1.0,
        label_smoothing: float = 0.1,
        margin: float | None = 0.3,
        mining: str = "batch_hard",
        distance: str = "euclidean",
    ) -> None:
        super().__init__()
        for name, weight in (("triplet_weight", triplet_weight), ("softmax_weight", softmax_weight)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ReidError(f"{name} must be 0 or more; got {weight}.")
        if triplet_weight == softmax_weight == 0:
            raise ReidError("triplet_weight and softmax_weight are both 0: nothing is left to learn from.")
        if not 0 <= label_smoothing <= 1:
            raise ReidError(f"label_smoothing must be between 0 and 1; got {label_smoothing}.")
        self.triplet_weight = triplet_weight
        self.softmax_weight = softmax_weight
        self.label_smoothing = label_smoothing
        self.triplet = TripletLoss(margin, mining, distance)

    def forward(self, features: Tensor, logits: Tensor | None, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and what to log. Nothing here makes the device wait.

        Args:
            features: `[B, D]`, before BatchNorm.
            logits: `[B, C]`, from the feature after it; may be None when `softmax_weight` is 0.
            labels: `[B]` int64 in 0..C−1.

        Returns:
            The scalar to minimise, and detached 0-d tensors: `loss`; with the triplet term `triplet`, `active`,
            `positive`, `negative`, `norm` (see `TripletLoss.measure`); with the softmax term `softmax` and
            `accuracy` (share of crops whose largest logit is their label, 0..1).

        Raises:
            ReidError: shapes that do not fit, or logits needed and missing.
        """
        terms: list[Tensor] = []
        measured: dict[str, Tensor] = {}
        if self.triplet_weight:
            triplet, seen = self.triplet.measure(features, labels)
            terms.append(self.triplet_weight * triplet)
            measured |= {"triplet": triplet.detach()} | {k: seen[k] for k in ("active", "positive", "negative", "norm")}
        if self.softmax_weight:
            if logits is None or logits.ndim != 2 or labels.shape != logits.shape[:1]:
                shape = None if logits is None else list(logits.shape)
                raise ReidError(
                    f"The softmax loss needs logits [B, C] and labels [B]; got {shape} and {list(labels.shape)}. "
                    "Build the model with num_classes, or set softmax_weight to 0."
                )
            softmax = functional.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
            terms.append(self.softmax_weight * softmax)
            measured["softmax"] = softmax.detach()
            measured["accuracy"] = (logits.argmax(dim=1) == labels).float().mean()
        loss = torch.stack(terms).sum()
        return loss, {"loss": loss.detach()} | measured


class CollapseWatch:
    """Sees the triplet loss settle where all crops have become the same point, and says so in words, once.

    When every distance is (nearly) the same, `d_ap − d_an ≈ 0` and the loss sits at the margin (soft margin: at
    `log 2`), where its gradient no longer separates anything (Hermans et al. 2017, section 4.1). A healthy run may
    pass that value too, on its way down, so the distances decide as well. The warning comes when for `patience`
    observations in a row the smoothed loss is within 2 % of that value and the mean positive and negative distance
    are either within 10 % of each other or both below 10 % of it.

    Args:
        margin: the loss's margin, None for soft. A margin of 0 is watched at 0.
        patience: observations in a row.
        momentum: of the running mean that smooths the loss.
    """

    def __init__(self, margin: float | None = 0.3, patience: int = 10, momentum: float = 0.8) -> None:
        self.margin = margin
        self.patience = patience
        self.momentum = momentum
        self.smoothed: float | None = None
        self.stuck = 0
        self.warned = False

    def observe(self, triplet: float, positive: float, negative: float) -> str | None:
        """Take one observation of the logged numbers; the warning when it is due, else None.

        Args:
            triplet: the triplet loss, unweighted.
            positive: mean distance of positive pairs.
            negative: mean distance of negative pairs.
        """
        if not (math.isfinite(triplet) and math.isfinite(positive) and math.isfinite(negative)):
            return None
        self.smoothed = (
            triplet if self.smoothed is None else self.momentum * self.smoothed + (1 - self.momentum) * triplet
        )
        level = math.log(2) if self.margin is None else self.margin
        farthest = max(positive, negative)
        at_margin = abs(self.smoothed - level) <= 0.02 * level
        same = abs(negative - positive) <= 0.1 * farthest or farthest <= 0.1 * level
        self.stuck = self.stuck + 1 if at_margin and same else 0
        if self.warned or self.stuck < self.patience:
            return None
        self.warned = True
        place = "log 2, where d_ap = d_an" if self.margin is None else f"its margin, {self.margin:g}"
        soft = "" if self.margin is None else "the soft margin (margin: null), "
        return (
            f"The triplet loss sits at {place}: {self.smoothed:.4f} over the last {self.patience} observations, while "
            f"crops of one person are as far apart ({positive:.3g}) as crops of two ({negative:.3g}). The features "
            "have collapsed: every crop gives nearly the same one, and more steps will not help. Start again with a "
            f"lower learning rate, a longer warm-up, {soft}a softmax term beside the triplet "
            "one, or smaller batches (fewer, hence less hard, negatives)."
        )
