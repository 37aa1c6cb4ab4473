"""What training minimises: the weighted sum of its losses, as scheduled; and the watch that sees it collapse."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.core.errors import ReidError, did_you_mean
from reid.losses.distances import at_least_float32
from reid.losses.factory import make_loss
from reid.losses.triplet import TripletLoss

Schedules = Mapping[str, Sequence[Sequence[float]]]

HEADS = ("arcface", "cosface")
"""Losses that classify: they get the feature after the neck, as the softmax classifier does, unless told otherwise."""


class Objective(nn.Module):
    """`triplet_weight · triplet(features) + softmax_weight · cross-entropy(logits) + Σ weight · extra(features)`.

    The triplet loss sees the feature before the neck's BatchNorm, the classifier the one after it (Luo et al. 2019,
    BNNeck). Cross-entropy is label-smoothed (Szegedy et al. 2016, section 7): the target is `1 − ε + ε/C` for the
    true class and `ε/C` for the others. A weight of 0 that no schedule raises leaves its term out wholly: it is not
    computed and not logged, so softmax alone works on any batch and triplet alone needs no logits.

    Schedules are piecewise linear in the share of training done, constant before their first and after their last
    point: `{"margin": [[0, 0.05], [0.5, 0.3]]}` raises the margin over the first half. They start to act with
    `set_progress`. A term whose weight is scheduled is computed also while it is 0.

    Args:
        triplet_weight: 0 or more.
        softmax_weight: 0 or more; not all weights 0.
        label_smoothing: ε, 0 ≤ ε ≤ 1.
        margin, mining, distance, reduction, camera_aware, hardness, seed: as in `TripletLoss`.
        extra: `{name: {"weight": w, **options}}`, built by `make_loss(name, dim=, num_classes=, **options)`. Two
            options are the objective's own: `input`, what the loss is given, "features" (before the neck) or
            "embeddings" (after it; the default of `HEADS`), and `lr`, the learning rate of the loss's own weights
            (see `own_rates`).
        schedules: keys triplet_weight, softmax_weight, label_smoothing, margin, hardness, or `NAME.weight`.
        dim, num_classes: D and C, for extra losses that have weights.

    Raises:
        ReidError: a value out of range, an unknown name, or a schedule that is none.
    """

    def __init__(
        self,
        triplet_weight: float = 1.0,
        softmax_weight: float = 1.0,
        label_smoothing: float = 0.1,
        margin: float | None = 0.3,
        mining: str = "batch_hard",
        distance: str = "euclidean",
        reduction: str | None = None,
        camera_aware: bool = False,
        hardness: float = 1.0,
        extra: Mapping[str, Mapping[str, Any]] | None = None,
        schedules: Schedules | None = None,
        *,
        dim: int = 0,
        num_classes: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, weight in (("triplet_weight", triplet_weight), ("softmax_weight", softmax_weight)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ReidError(f"{name} must be 0 or more; got {weight}.")
        if not 0 <= label_smoothing <= 1:
            raise ReidError(f"label_smoothing must be between 0 and 1; got {label_smoothing}.")
        self.triplet_weight = triplet_weight
        self.softmax_weight = softmax_weight
        self.label_smoothing = label_smoothing
        self.triplet: TripletLoss = make_loss(  # type: ignore[assignment]
            "triplet",
            dim=dim,
            num_classes=num_classes,
            margin=margin,
            mining=mining,
            distance=distance,
            reduction=reduction,
            camera_aware=camera_aware,
            seed=seed,
        )
        self.triplet.hardness = hardness
        self.extra = nn.ModuleDict()
        self.extra_weights: dict[str, float] = {}
        self.inputs: dict[str, str] = {}
        self.rates: dict[str, float | None] = {}
        for name, options in (extra or {}).items():
            self._add(name, dict(options), dim, num_classes)
        self.uses_embeddings = "embeddings" in self.inputs.values()
        self.schedules = _checked(schedules or {}, self.extra_weights, margin)
        self.uses_triplet = in_use("triplet_weight", triplet_weight, self.schedules)
        self.uses_softmax = in_use("softmax_weight", softmax_weight, self.schedules)
        if not (self.uses_triplet or self.uses_softmax or len(self.extra)):
            raise ReidError(
                "triplet_weight and softmax_weight are both 0, and there is no extra loss: nothing is left to learn "
                "from."
            )

    def _add(self, name: str, options: dict[str, Any], dim: int, num_classes: int) -> None:
        weight = options.pop("weight", None)
        if not isinstance(weight, int | float) or not (math.isfinite(weight) and weight >= 0):
            raise ReidError(f"The extra loss {name} needs a weight of 0 or more, e.g. {{weight: 1.0}}; got {weight}.")
        given = options.pop("input", "embeddings" if name in HEADS else "features")
        if given not in ("features", "embeddings"):
            raise ReidError(f"{name}.input={given!r} is neither features nor embeddings.")
        rate = options.pop("lr", None)
        if rate is not None and not (isinstance(rate, int | float) and math.isfinite(rate) and rate >= 0):
            raise ReidError(f"{name}.lr must be 0 or more; got {rate}.")
        try:
            self.extra[name] = make_loss(name, dim=dim, num_classes=num_classes, **options)
        except TypeError as error:  # a word where a number is meant
            raise ReidError(f"The loss {name} does not take {options}: {error}.") from error
        self.extra_weights[name], self.inputs[name], self.rates[name] = float(weight), given, rate

    def set_progress(self, share: float) -> None:
        """Take each scheduled value at `share` of training done, 0..1; called before a step."""
        for key, points in self.schedules.items():
            value = _at(points, share)
            if key in ("margin", "hardness"):
                setattr(self.triplet, key, value)
            elif key.endswith(".weight"):
                self.extra_weights[key.removesuffix(".weight")] = value
            else:
                setattr(self, key, value)

    def own_rates(self) -> Iterator[tuple[float, float, list[nn.Parameter]]]:
        """Of each extra loss with weights and a learning rate of its own: that rate, its weight now, and the weights.

        They are to be moved by plain SGD along the gradient of the loss itself, not times its weight in the sum (as
        the centres of the center loss are: Wen et al. 2016, algorithm 1).
        """
        for name, term in self.extra.items():
            rate, moving = self.rates[name], list(term.parameters())
            if rate is not None and moving:
                yield rate, self.extra_weights[name], moving

    def common_parameters(self) -> list[nn.Parameter]:
        """The weights of losses (centres, proxies, a learned distance) that move as the network's do."""
        own = [p for name, term in self.extra.items() if self.rates[name] is None for p in term.parameters()]
        return [*self.triplet.parameters(), *own] if self.uses_triplet else own

    def forward(
        self,
        features: Tensor,
        logits: Tensor | None,
        labels: Tensor,
        camids: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and what to log. Nothing here makes the device wait.

        Args:
            features: `[B, D]`, before BatchNorm.
            logits: `[B, C]`, from the feature after it, or `[B, n, C]` from n slices of it, whose losses and
                accuracies are averaged; may be None without a softmax term.
            labels: `[B]` int64 in 0..C−1.
            camids: `[B]` integers, for losses that know cameras.
            embeddings: `[B, D]`, after BatchNorm; may be None where no extra loss asks for it.

        Returns:
            The scalar to minimise, and detached 0-d tensors: `loss`; with the triplet term `triplet`, `active`,
            `positive`, `negative`, `norm` (see `TripletLoss.measure`), and `margin` and `hardness` where scheduled;
            with the softmax term `softmax` and `accuracy` (share of crops whose largest logit is their label, 0..1);
            `extra.NAME` of each extra loss, before its weight.

        Raises:
            ReidError: shapes that do not fit, or logits or embeddings needed and missing.
        """
        terms: list[Tensor] = []
        measured: dict[str, Tensor] = {}
        if self.uses_triplet:
            triplet, seen = self.triplet.measure(features, labels, camids)
            terms.append(self.triplet_weight * triplet)
            measured |= {"triplet": triplet.detach()} | {k: seen[k] for k in ("active", "positive", "negative", "norm")}
            for key in ("margin", "hardness"):
                if key in self.schedules:
                    measured[key] = torch.full_like(measured["triplet"], getattr(self.triplet, key))
        if self.uses_softmax:
            if logits is None or logits.ndim not in (2, 3) or labels.shape != logits.shape[:1]:
                shape = None if logits is None else list(logits.shape)
                raise ReidError(
                    f"The softmax loss needs logits [B, C] and labels [B]; got {shape} and {list(labels.shape)}. "
                    "Build the model with num_classes, or set softmax_weight to 0."
                )
            targets = labels if logits.ndim == 2 else labels.repeat_interleave(logits.shape[1])
            logits = at_least_float32(logits.flatten(0, -2))
            softmax = functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
            terms.append(self.softmax_weight * softmax)
            measured["softmax"] = softmax.detach()
            measured["accuracy"] = (logits.argmax(dim=1) == targets).float().mean()
        for name, term in self.extra.items():
            given = features if self.inputs[name] == "features" else embeddings
            if given is None:
                raise ReidError(f"The extra loss {name} asks for embeddings, and none were given.")
            value = term(given, labels, camids)
            terms.append(self.extra_weights[name] * value)
            measured[f"extra.{name}"] = value.detach()
        loss = torch.stack([at_least_float32(term) for term in terms]).sum()
        return loss, {"loss": loss.detach()} | measured


def in_use(key: str, weight: float, schedules: Schedules) -> bool:
    """Whether a term has a weight above 0, now or when its schedule raises it."""
    return weight > 0 or any(value > 0 for _, value in schedules.get(key, ()))


def _checked(schedules: Schedules, extra: Mapping[str, float], margin: float | None) -> Schedules:
    known = ["triplet_weight", "softmax_weight", "label_smoothing", "margin", "hardness"]
    known += [f"{name}.weight" for name in extra]
    for key, points in schedules.items():
        if key not in known:
            raise ReidError(f"There is no schedule of {key!r}.{did_you_mean(key, known)}")
        if key == "margin" and margin is None:
            raise ReidError("A soft margin (margin: null) has no value to schedule: give margin a number.")
        most = 1.0 if key in ("label_smoothing", "hardness") else math.inf
        try:
            good = len(points) > 0 and all(
                len(point) == 2 and 0 <= point[0] <= 1 and 0 <= point[1] <= most and math.isfinite(point[1])
                for point in points
            )
            rising = good and all(a[0] < b[0] for a, b in pairwise(points))
        except TypeError:
            good = rising = False
        if not rising:
            raise ReidError(
                f"The schedule of {key} must be [[share, value], …] with shares rising within 0..1 and values of 0 "
                f"{'or more' if most == math.inf else 'to 1'}, e.g. [[0, 0], [0.5, 0.3]]; got {points}."
            )
    return schedules


def _at(points: Sequence[Sequence[float]], share: float) -> float:
    """The piecewise linear function through `points` at `share`."""
    if share <= points[0][0]:
        return float(points[0][1])
    for (x, y), (end, there) in pairwise(points):
        if share <= end:
            return float(y + (there - y) * (share - x) / (end - x))
    return float(points[-1][1])


class CollapseWatch:
    """Sees the triplet loss settle where all crops have become the same point, and says so in words, once.

    When every distance is (nearly) the same, `d_ap − d_an ≈ 0` and the loss sits at the margin (soft margin: at
    `log 2`), where its gradient no longer separates anything (Hermans et al. 2017, section 4.1). A healthy run may
    pass that value too, on its way down, so the distances decide as well. The warning comes when for `patience`
    observations in a row the smoothed loss is within 2 % of that value and the mean positive and negative distance
    are either within 10 % of each other or both below 10 % of it.

    Args:
        margin: the loss's margin, None for soft; to be set before an observation where it is scheduled. A margin of 0
            is watched at 0.
        patience: observations in a row.
        momentum: of the running mean that smooths how far the loss is above the margin.
    """

    def __init__(self, margin: float | None = 0.3, patience: int = 10, momentum: float = 0.8) -> None:
        self.margin = margin
        self.patience = patience
        self.momentum = momentum
        self.excess: float | None = None
        self.stuck = 0
        self.warned = False

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on watching; plain numbers."""
        return {"excess": self.excess, "stuck": self.stuck, "warned": self.warned}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up `state()` again."""
        self.excess, self.stuck, self.warned = state["excess"], state["stuck"], state["warned"]

    def observe(self, triplet: float, positive: float, negative: float) -> str | None:
        """Take one observation of the logged numbers; the warning when it is due, else None.

        Args:
            triplet: the triplet loss, unweighted.
            positive: mean distance of positive pairs.
            negative: mean distance of negative pairs.
        """
        if not (math.isfinite(triplet) and math.isfinite(positive) and math.isfinite(negative)):
            return None
        level = math.log(2) if self.margin is None else self.margin
        above = triplet - level
        self.excess = above if self.excess is None else self.momentum * self.excess + (1 - self.momentum) * above
        farthest = max(positive, negative)
        at_margin = abs(self.excess) <= 0.02 * level
        same = abs(negative - positive) <= 0.1 * farthest or farthest <= 0.1 * level
        self.stuck = self.stuck + 1 if at_margin and same else 0
        if self.warned or self.stuck < self.patience:
            return None
        self.warned = True
        place = "log 2, where d_ap = d_an" if self.margin is None else f"its margin, {self.margin:g}"
        soft = "" if self.margin is None else "the soft margin (margin: null), "
        return (
            f"The triplet loss sits at {place}: {level + self.excess:.4f} over the last {self.patience} observations, "
            f"while crops of one person are as far apart ({positive:.3g}) as crops of two ({negative:.3g}). The "
            "features have collapsed: every crop gives nearly the same one, and more steps will not help. Start "
            f"again with a lower learning rate, a longer warm-up, {soft}a softmax term beside the triplet one, or "
            "smaller batches (fewer, hence less hard, negatives)."
        )
