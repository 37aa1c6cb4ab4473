"""The training objective: the weighted sum of losses with its schedules, and a monitor that detects collapse."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.config import LossConfig
from reid.core.errors import ConfigError, DataError
from reid.losses.distances import at_least_float32
from reid.losses.factory import make_loss
from reid.losses.triplet import TripletLoss

CLASSIFYING_LOSSES = ("arcface", "cosface", "centroids")
"""Losses that classify. By default they get the embedding (after the neck), like the softmax classifier."""


class Objective(nn.Module):
    """`triplet_weight · triplet(features) + softmax_weight · cross-entropy(logits) + Σ weight · extra(features)`.

    The triplet loss gets the feature before the neck's BatchNorm, the classifier the embedding after it (Luo et al.
    2019, BNNeck). Cross-entropy is label-smoothed (Szegedy et al. 2016, section 7): the target is `1 − ε + ε/C` for the
    true class and `ε/C` for the others. A term whose weight is 0 and is not raised by a schedule is neither computed
    nor logged.

    Schedules are piecewise linear in the progress of training, 0..1, and constant outside their points. They take
    effect with `set_progress`.

    Args:
        config: weights, settings of the triplet loss, extra losses and schedules; default: those of `LossConfig()`.
        dim: D, size of the features; needed by losses with weights.
        num_classes: C; needed by losses with one vector per identity.
        seed: seed of random draws (mining, initial weights).

    Raises:
        ConfigError: an unknown loss or option, or no loss at all.

    Example:
        >>> import torch
        >>> from reid.config import LossConfig
        >>> objective = Objective(LossConfig(margin=0.3, extra={"center": {"weight": 0.0005}}), dim=64, num_classes=2)
        >>> features, logits = torch.zeros(4, 64), torch.zeros(4, 2)
        >>> loss, terms = objective(features, logits, torch.tensor([0, 0, 1, 1]))
        >>> sorted(terms)
        ['accuracy', 'active', 'extra.center', 'loss', 'negative', 'norm', 'positive', 'softmax', 'triplet']
    """

    def __init__(self, config: LossConfig | None = None, *, dim: int = 0, num_classes: int = 0, seed: int = 0) -> None:
        super().__init__()
        config = LossConfig() if config is None else config
        self.config = config
        self.triplet_weight = config.triplet_weight
        self.softmax_weight = config.softmax_weight
        self.label_smoothing = config.label_smoothing
        options = config.model_dump(include={"margin", "mining", "distance", "camera_aware"})
        options["reduction"] = None if config.reduction == "auto" else config.reduction
        self.triplet: TripletLoss = make_loss(  # type: ignore[assignment]
            "triplet", dim=dim, num_classes=num_classes, seed=seed, **options
        )
        self.triplet.hardness = config.hardness
        self.extra = nn.ModuleDict(
            {
                name: make_loss(name, dim=dim, num_classes=num_classes, **extra.options)
                for name, extra in config.extra.items()
            }
        )
        self.extra_weights = {name: extra.weight for name, extra in config.extra.items()}
        self.inputs = {
            name: extra.input or ("embeddings" if name in CLASSIFYING_LOSSES else "features")
            for name, extra in config.extra.items()
        }
        self.uses_embeddings = "embeddings" in self.inputs.values()
        self.uses_triplet, self.uses_softmax = config.in_use("triplet"), config.in_use("softmax")
        if not (self.uses_triplet or self.uses_softmax or config.extra):
            raise ConfigError(
                "triplet_weight and softmax_weight are both 0, and there is no extra loss. Set one of the weights."
            )

    def set_progress(self, progress: float) -> None:
        """Set each scheduled value to that at `progress`, the fraction of training done. Call it before a step."""
        for key, points in self.config.schedules.items():
            value = float(np.interp(progress, [x for x, _ in points], [y for _, y in points]))
            if key in ("margin", "hardness"):
                setattr(self.triplet, key, value)
            elif key.endswith(".weight"):
                self.extra_weights[key.removesuffix(".weight")] = value
            else:
                setattr(self, key, value)

    def separate_parameters(self) -> Iterator[tuple[float, float, list[nn.Parameter]]]:
        """Yield learning rate, weight in the sum and parameters of each extra loss with its own learning rate.

        These parameters are trained with plain SGD along the gradient of the loss itself, without its weight in the
        sum (as the centres of the center loss: Wen et al. 2016, algorithm 1).
        """
        for name, term in self.extra.items():
            rate, parameters = self.config.extra[name].lr, list(term.parameters())
            if rate is not None and parameters:
                yield rate, self.extra_weights[name], parameters

    def common_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of losses (centres, proxies, a learned distance) that are trained like the network."""
        extra = [
            p for name, term in self.extra.items() if self.config.extra[name].lr is None for p in term.parameters()
        ]
        return [*self.triplet.parameters(), *extra] if self.uses_triplet else extra

    def forward(
        self,
        features: Tensor,
        logits: Tensor | None,
        labels: Tensor,
        camids: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and training statistics. The device is never waited for.

        Args:
            features: `[B, D]`, before the neck.
            logits: `[B, C]`, or `[B, n, C]` from n slices, whose losses and accuracies are averaged; None is possible
                without a softmax term.
            labels: `[B]` int64 in 0..C−1.
            camids: `[B]` integers, for camera-aware losses.
            embeddings: `[B, D]`, after the neck; None is possible if no extra loss uses them.

        Returns:
            The scalar to minimise, and detached 0-d tensors: `loss`; with the triplet term `triplet`, `active`,
            `positive`, `negative`, `norm` (see `TripletLoss.measure`), and `margin` and `hardness` if scheduled; with
            the softmax term `softmax` and `accuracy` (fraction of crops whose largest logit is their label); of each
            extra loss `extra.NAME`, before its weight.

        Raises:
            DataError: shapes do not match, or required logits or embeddings are missing.
        """
        terms: list[Tensor] = []
        measured: dict[str, Tensor] = {}
        if self.uses_triplet:
            triplet, seen = self.triplet.measure(features, labels, camids)
            terms.append(self.triplet_weight * triplet)
            measured |= {"triplet": triplet.detach()} | {k: seen[k] for k in ("active", "positive", "negative", "norm")}
            for key in ("margin", "hardness"):
                if key in self.config.schedules:
                    measured[key] = torch.full_like(measured["triplet"], getattr(self.triplet, key))
        if self.uses_softmax:
            if logits is None or logits.ndim not in (2, 3) or labels.shape != logits.shape[:1]:
                shape = None if logits is None else list(logits.shape)
                raise DataError(
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
                raise DataError(f"The extra loss {name} needs embeddings. Pass embeddings, or set input to features.")
            value = term(given, labels, camids)
            terms.append(self.extra_weights[name] * value)
            measured[f"extra.{name}"] = value.detach()
        loss = torch.stack([at_least_float32(term) for term in terms]).sum()
        return loss, {"loss": loss.detach()} | measured


class CollapseWatch:
    """Detect that all embeddings have become equal (collapse), and return a warning once.

    If all distances are equal, `d_ap − d_an ≈ 0` and the triplet loss stays at the margin (soft margin: at `log 2`),
    where its gradient no longer separates identities (Hermans et al. 2017, section 4.1). The loss of a healthy run may
    pass that value as well, so the distances are also checked. The warning is due after `patience` consecutive
    observations in which the smoothed loss is within 2 % of that value, and the mean positive and negative distance are
    within 10 % of each other or both below 10 % of that value.

    Args:
        margin: margin of the loss, None for soft; update it before an observation if it is scheduled.
        patience: number of consecutive observations.
        momentum: momentum of the running mean that smooths the loss.
    """

    def __init__(self, margin: float | None = 0.3, patience: int = 10, momentum: float = 0.8) -> None:
        self.margin = margin
        self.patience = patience
        self.momentum = momentum
        self.excess: float | None = None
        self.stuck = 0
        self.warned = False

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores, as plain numbers."""
        return {"excess": self.excess, "stuck": self.stuck, "warned": self.warned}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state()`."""
        self.excess, self.stuck, self.warned = state["excess"], state["stuck"], state["warned"]

    def observe(self, triplet: float, positive: float, negative: float) -> str | None:
        """Add one observation and return the warning if it is due, else None.

        Args:
            triplet: triplet loss before its weight.
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
            f"The triplet loss stays at {place}: {level + self.excess:.4f} over the last {self.patience} observations. "
            f"The mean distance of positive pairs ({positive:.3g}) equals that of negative pairs ({negative:.3g}): the "
            "features have collapsed to nearly the same vector, and more steps will not help. Start again with a "
            f"lower learning rate, a longer warm-up, {soft}an additional softmax term, or smaller batches (fewer and "
            "therefore less hard negatives)."
        )
