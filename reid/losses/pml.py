"""Losses of pytorch-metric-learning with the interface of this package."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from reid.core.errors import ConfigError, check_choice
from reid.losses.pairs import PairLoss, References, check_labels, zero_of

PARTS = {
    "distance": "distances",
    "reducer": "reducers",
    "embedding_regularizer": "regularizers",
    "weight_regularizer": "regularizers",
}
"""Options that are objects of pytorch-metric-learning, and the module of their classes."""


class PmlLoss(PairLoss):
    """A loss of pytorch-metric-learning (Musgrave et al. 2020) by the name of its class.

    The value is that of pytorch-metric-learning with its defaults: most losses normalise the features and average over
    values above 0. This class adds what all losses of this package have: computation in float32, NaN for NaN features,
    0 for an empty batch, cameras, and a memory where the loss supports one. These losses use indices, so the host
    waits for a GPU at every call.

    Args:
        name: of a class in `pytorch_metric_learning.losses`.
        dim, num_classes: D and C, for a loss with learned vectors (its `embedding_size`, `num_classes`), whose `pids`
            are then labels 0..C−1.
        camera_aware: as in `PairLoss`; for losses that take pairs.
        seed: of the initial learned vectors.
        options: arguments of the class. A distance, reducer or regularizer may be given by the name of its class:
            `distance="LpDistance"`.

    Raises:
        ConfigError: the package is not installed, or an unknown name, option or value.
    """

    shown = ("name",)

    def __init__(
        self, name: str, *, dim: int, num_classes: int, camera_aware: bool = False, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(camera_aware)
        losses = _module("losses")
        base = losses.BaseMetricLossFunction
        # Not usable as `loss(features, pids)`: wrappers of losses, and losses of two views of an image.
        unusable = (base, losses.GenericPairLoss, losses.VICRegLoss, losses.ManifoldLoss)
        classes = {key: value for key, value in vars(losses).items() if inspect.isclass(value)}
        known = {key for key, value in classes.items() if issubclass(value, base) and value not in unusable}
        check_choice("pytorch-metric-learning loss", name, known)
        factory = getattr(losses, name)
        arguments = _arguments(factory)
        sizes = {"embedding_size": dim, "descriptors_dim": dim, "num_classes": num_classes}
        given = {key: value for key, value in sizes.items() if arguments.get(key) is inspect.Parameter.empty}
        for option in options:
            check_choice(f"pml:{name} option", option, {*arguments, "camera_aware", "seed"} - set(given))
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                self.loss: nn.Module = factory(**given, **{key: _part(key, value) for key, value in options.items()})
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"pml:{name} does not accept {options}: {error}") from error
        self.name = name
        self.classes = num_classes if "num_classes" in given else 0
        self.takes_references = name in losses.CrossBatchMemory.supported_losses()
        if camera_aware and not self.takes_references:
            raise ConfigError(f"pml:{name} does not use pairs. Set camera_aware to false.")

    def forward(
        self, features: Tensor, pids: Tensor, camids: Tensor | None = None, references: References | None = None
    ) -> Tensor:
        """See `PairLoss`.

        Raises:
            DataError: as there, and labels out of range for a loss with learned vectors.
        """
        with torch.autocast(features.device.type, enabled=False):
            pairs = self.pairs(features, pids, camids, references)
            x = pairs.anchors
            if self.classes:
                check_labels(pids, self.classes)
            if not len(x) or not x.isfinite().all():  # some of these losses fail at NaN, others ignore it
                return zero_of(x)
            if references is None and not self.camera_aware:
                return self.loss(x, pids) + zero_of(x)
            indices = (*pairs.positives.nonzero(as_tuple=True), *pairs.negatives.nonzero(as_tuple=True))
            return self.loss(x, pids, indices, pairs.others, pairs.other_pids) + zero_of(x)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"pytorch_metric_learning.{name}")
    except ImportError as error:
        raise ConfigError(
            "This loss is part of pytorch-metric-learning, which is not installed. Install it with "
            "`pip install pytorch-metric-learning`, or choose a loss of `reid.losses.LOSSES`."
        ) from error


def _arguments(factory: type) -> dict[str, Any]:
    """Return the defaults of the arguments of a class and its bases, which pass `**kwargs` on."""
    found: dict[str, Any] = {}
    for parent in factory.__mro__:
        if not parent.__module__.startswith("pytorch_metric_learning"):
            continue
        for name, parameter in inspect.signature(parent.__init__).parameters.items():  # type: ignore[misc]
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter.default)
    return found


def _part(option: str, value: Any) -> Any:
    """Return an object of the class that a string names; other values stay.

    Raises:
        ConfigError: unknown name.
    """
    if option not in PARTS or not isinstance(value, str):
        return value
    classes = {name: part for name, part in vars(_module(PARTS[option])).items() if inspect.isclass(part)}
    check_choice(f"pytorch-metric-learning {option}", value, classes)
    return classes[value]()
