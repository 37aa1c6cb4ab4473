"""Losses by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from reid.core.errors import ConfigError, check_choice
from reid.losses.center import CenterLoss
from reid.losses.centroids import CentroidMemory
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
    "centroids": CentroidMemory,
}
"""Losses of this package by name. Those with parameters `dim` and `num_classes` get them from `make_loss`."""

PML_LOSSES = {
    "lifted": "GeneralizedLiftedStructureLoss",
    "multi_similarity": "MultiSimilarityLoss",
    "proxy_nca": "ProxyNCALoss",
    "proxy_anchor": "ProxyAnchorLoss",
}
"""Short names of losses of pytorch-metric-learning; `pml:CLASS` selects any of its losses."""


def make_loss(name: str, *, dim: int, num_classes: int, **options: Any) -> nn.Module:
    """Build a loss `(features [B, dim], pids [B], camids [B] | None) -> scalar` by its name.

    Two options exist for several losses: `memory=N` makes a loss over pairs, or the batch-hard triplet loss, also
    compare with the last N features, after `warmup=W` steps (see `CrossBatchMemory`); `distance="mahalanobis"` or
    `"mahalanobis:RANK"` learns the distance.

    Args:
        name: a key of `LOSSES` or `PML_LOSSES`, or `pml:CLASS`.
        dim: size of the features.
        num_classes: identities of the train split; losses with one vector per identity take `pids` in
            0..num_classes − 1.
        options: arguments of that loss.

    Raises:
        ConfigError: an unknown name or option (the nearest one is suggested), an invalid value, or a missing package.

    Example:
        >>> import torch
        >>> circle = make_loss("circle", dim=8, num_classes=2, gamma=64)
        >>> circle(torch.eye(4, 8), torch.tensor([0, 0, 1, 1])).shape
        torch.Size([])
    """
    memory, warmup = options.pop("memory", None), options.pop("warmup", None)
    if memory is None and warmup is not None:
        raise ConfigError(f"warmup={warmup} needs a memory, and the loss {name!r} has none. Add memory=N.")
    if str(options.get("distance", "")).partition(":")[0] == "mahalanobis":
        rank = options["distance"].partition(":")[2]
        if rank and not rank.isdigit():
            raise ConfigError(
                f"distance={options['distance']!r} is invalid. Use mahalanobis or mahalanobis:RANK, e.g. "
                "mahalanobis:64."
            )
        options["distance"] = Mahalanobis(dim, int(rank) if rank else None)
    loss_type: Callable[..., nn.Module]
    provided: dict[str, Any] = {"dim": dim, "num_classes": num_classes}
    if not name.startswith("pml:"):
        check_choice("loss", name, {*LOSSES, *PML_LOSSES, "pml:CLASS"})
    if name in LOSSES:
        loss_type = HardTripletPairs if memory is not None and name == "triplet" else LOSSES[name]
        arguments = set(inspect.signature(loss_type).parameters)
        provided = {key: value for key, value in provided.items() if key in arguments}
        known = arguments - set(provided)
        for option in options:
            check_choice(f"{name} option", option, known)
    else:
        loss_type = partial(PmlLoss, PML_LOSSES.get(name, name.removeprefix("pml:")))
    try:
        loss = loss_type(**provided, **options)
    except (ConfigError, TypeError) as error:  # e.g. text for a number
        raise ConfigError(f"The loss {name!r} does not accept {options}: {str(error).rstrip('.')}.") from error
    return loss if memory is None else CrossBatchMemory(loss, dim, memory, warmup or 0)
