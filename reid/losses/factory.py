"""Losses by name, as a config writes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from reid.core.errors import ReidError, did_you_mean
from reid.losses.center import CenterLoss
from reid.losses.circle import CircleLoss
from reid.losses.contrastive import ContrastiveLoss
from reid.losses.heads import ArcFaceLoss, CosFaceLoss
from reid.losses.infonce import InfoNCELoss, SupConLoss
from reid.losses.mahalanobis import Mahalanobis
from reid.losses.memory import CrossBatchMemory, HardTripletPairs
from reid.losses.pml import PmlLoss
from reid.losses.quadruplet import QuadrupletLoss
from reid.losses.triplet import TripletLoss

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "triplet": TripletLoss,
    "quadruplet": QuadrupletLoss,
    "contrastive": ContrastiveLoss,
    "circle": CircleLoss,
    "infonce": InfoNCELoss,
    "supcon": SupConLoss,
    "center": CenterLoss,
    "arcface": ArcFaceLoss,
    "cosface": CosFaceLoss,
}
"""Ours by name. Those that take `dim` and `num_classes` get them from `make_loss`."""

THEIRS = {
    "lifted": "GeneralizedLiftedStructureLoss",
    "multi_similarity": "MultiSimilarityLoss",
    "proxy_nca": "ProxyNCALoss",
    "proxy_anchor": "ProxyAnchorLoss",
}
"""Short names of losses of pytorch-metric-learning; `pml:CLASS` reaches any of them."""


def make_loss(name: str, *, dim: int, num_classes: int, **options: Any) -> nn.Module:
    """A loss `(features [B, dim], pids [B], camids [B] | None) -> scalar` by its name.

    Beside a loss's own options, `memory=N` makes any loss over pairs, and batch-hard triplets, compare with the last N
    features too, once `warmup=W` steps are done (see `CrossBatchMemory`). `distance="mahalanobis"` or
    `"mahalanobis:RANK"` learns the distance.

    Args:
        name: a key of `LOSSES` or `THEIRS`, or `pml:CLASS`.
        dim: size of the features.
        num_classes: identities of the train set; losses that keep a vector for each take `pids` 0..num_classes − 1.
        options: of that loss, by the names of its own arguments.

    Raises:
        ReidError: an unknown name or option (the nearest is named), a value out of range, or a missing package.
    """
    memory, warmup = options.pop("memory", None), options.pop("warmup", None)
    if memory is None and warmup is not None:
        raise ReidError(f"warmup={warmup} is of a memory, and the loss {name!r} has none: give memory=N too.")
    if str(options.get("distance", "")).partition(":")[0] == "mahalanobis":
        options["distance"] = Mahalanobis(dim, _rank(options["distance"]))
    theirs = name.removeprefix("pml:") if name.startswith("pml:") else THEIRS.get(name)
    if theirs is not None:
        loss: nn.Module = PmlLoss(theirs, dim=dim, num_classes=num_classes, **options)
    else:
        loss = _ours(name, dim, num_classes, options, memory is not None)
    return loss if memory is None else CrossBatchMemory(loss, dim, memory, warmup or 0)


def _ours(name: str, dim: int, num_classes: int, options: dict[str, Any], memory: bool) -> nn.Module:
    if name not in LOSSES:
        raise ReidError(f"Unknown loss {name!r}.{did_you_mean(name, {*LOSSES, *THEIRS, 'pml:CLASS'})}")
    factory: Callable[..., nn.Module] = HardTripletPairs if memory and name == "triplet" else LOSSES[name]
    known = set(inspect.signature(factory).parameters)
    given = {key: value for key, value in (("dim", dim), ("num_classes", num_classes)) if key in known}
    for option in options:
        if option not in known - set(given):
            raise ReidError(f"The loss {name!r} has no option {option!r}.{did_you_mean(option, known - set(given))}")
    return factory(**given, **options)


def _rank(distance: str) -> int | None:
    rank = distance.partition(":")[2]
    if rank and not rank.isdigit():
        raise ReidError(f"distance={distance!r} must be mahalanobis or mahalanobis:RANK, e.g. mahalanobis:64.")
    return int(rank) if rank else None
