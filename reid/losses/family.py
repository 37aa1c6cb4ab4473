"""Losses by name, as a config writes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from reid.errors import ReidError, did_you_mean
from reid.losses.center import CenterLoss
from reid.losses.circle import CircleLoss
from reid.losses.contrastive import ContrastiveLoss
from reid.losses.triplet import TripletLoss

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "triplet": TripletLoss,
    "contrastive": ContrastiveLoss,
    "center": CenterLoss,
    "circle": CircleLoss,
}
"""Name to class. Those that take `dim` and `num_classes` get them from `make_loss`."""


def make_loss(name: str, *, dim: int, num_classes: int, **options: Any) -> nn.Module:
    """A loss `(features [B, dim], pids [B], camids [B] | None) -> scalar` by its name.

    Args:
        name: a key of `LOSSES`.
        dim: size of the features.
        num_classes: identities of the train set; losses that keep a vector for each take `pids` 0..num_classes − 1.
        options: of that loss, by the names of its own arguments.

    Raises:
        ReidError: an unknown name or option (the nearest is named), or a value out of range.
    """
    if name not in LOSSES:
        raise ReidError(f"Unknown loss {name!r}.{did_you_mean(name, LOSSES)}")
    factory = LOSSES[name]
    known = set(inspect.signature(factory).parameters)
    given = {key: value for key, value in (("dim", dim), ("num_classes", num_classes)) if key in known}
    for option in options:
        if option not in known - set(given):
            raise ReidError(f"The loss {name!r} has no option {option!r}.{did_you_mean(option, known - set(given))}")
    return factory(**given, **options)
