"""Losses of pytorch-metric-learning, called as ours are."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from reid.core.errors import ReidError, did_you_mean
from reid.losses.pairs import PairLoss, References, check_labels, nothing

PARTS = {
    "distance": "distances",
    "reducer": "reducers",
    "embedding_regularizer": "regularizers",
    "weight_regularizer": "regularizers",
}
"""Options that are objects of theirs, and the module of their classes."""


class PmlLoss(PairLoss):
    """A loss of pytorch-metric-learning (Musgrave et al. 2020) by the name of its class.

    The value is theirs, their defaults and their mean included: most normalise the features, and average over what is
    above 0. Here is added what all losses of this package do: float32 inside, NaN in gives NaN out, an empty batch
    gives 0, cameras, and a memory where theirs supports one. They look at indices, so a GPU waits at every call.

    Args:
        name: of a class in `pytorch_metric_learning.losses`.
        dim, num_classes: D and C, given to a loss that keeps vectors (its `embedding_size`, `num_classes`), whose
            `pids` are then labels 0..C−1.
        camera_aware: as in `PairLoss`; for losses that take pairs.
        seed: of the first vectors, for losses that keep some.
        options: the class's own arguments. Where a distance, reducer or regularizer is wanted, the name of its class
            will do: `distance="LpDistance"`.

    Raises:
        ReidError: the package is missing, or a name, option or value is not one it knows.
    """

    def __init__(
        self,
        name: str,
        *,
        dim: int,
        num_classes: int,
        camera_aware: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(camera_aware)
        losses = _module("losses")
        known = {key for key, value in vars(losses).items() if _is_loss(value, losses)}
        if name not in known:
            raise ReidError(f"pytorch-metric-learning has no loss {name!r}.{did_you_mean(name, known)}")
        factory = getattr(losses, name)
        arguments = _arguments(factory)
        sizes = {"embedding_size": dim, "descriptors_dim": dim, "num_classes": num_classes}
        given = {key: value for key, value in sizes.items() if arguments.get(key) is inspect.Parameter.empty}
        for option in options:
            if option not in arguments or option in given:
                hint = did_you_mean(option, {*arguments, "camera_aware", "seed"} - set(given))
                raise ReidError(f"The loss pml:{name} has no option {option!r}.{hint}")
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                self.loss: nn.Module = factory(**given, **{key: _part(key, value) for key, value in options.items()})
        except (TypeError, ValueError, AssertionError) as error:
            raise ReidError(f"pml:{name} does not take {options}: {error}") from error
        self.name = name
        self.classes = num_classes if "num_classes" in given else 0
        self.takes_references = name in losses.CrossBatchMemory.supported_losses()
        if camera_aware and not self.takes_references:
            raise ReidError(f"pml:{name} does not take pairs, so it cannot be camera_aware.")

    def forward(
        self, features: Tensor, pids: Tensor, camids: Tensor | None = None, references: References | None = None
    ) -> Tensor:
        """See `PairLoss`.

        Raises:
            ReidError: as there, and labels out of range for a loss that keeps vectors.
        """
        with torch.autocast(features.device.type, enabled=False):
            x, others, other_pids, positives, negatives = self.compared(features, pids, camids, references)
            if self.classes:
                check_labels(pids, self.classes)
            if not len(x) or not x.isfinite().all():  # some of theirs stop at NaN, others hide it
                return nothing(x)
            if references is None and not self.camera_aware:
                return self.loss(x, pids) + nothing(x)
            pairs = (*positives.nonzero(as_tuple=True), *negatives.nonzero(as_tuple=True))
            return self.loss(x, pids, pairs, others, other_pids) + nothing(x)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return repr(self.name)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"pytorch_metric_learning.{name}")
    except ImportError as error:
        raise ReidError(
            "This loss comes from pytorch-metric-learning, which is not installed. Install it with "
            "`pip install 'reid[losses]'` or `pip install pytorch-metric-learning`, or take one of ours."
        ) from error


def _is_loss(value: Any, losses: ModuleType) -> bool:
    """Wrappers of other losses, and what takes two views of an image, do not fit `loss(features, pids)`."""
    base = losses.BaseMetricLossFunction
    return (
        inspect.isclass(value)
        and issubclass(value, base)
        and value not in (base, losses.GenericPairLoss, losses.VICRegLoss, losses.ManifoldLoss)
    )


def _arguments(factory: type) -> dict[str, Any]:
    """The defaults of a class's arguments, those of its bases too, for each passes `**kwargs` on."""
    found: dict[str, Any] = {}
    for parent in factory.__mro__:
        if not parent.__module__.startswith("pytorch_metric_learning"):
            continue
        for name, parameter in inspect.signature(parent.__init__).parameters.items():  # type: ignore[misc]
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter.default)
    return found


def _part(option: str, value: Any) -> Any:
    """An object of theirs where a string names its class; everything else as it is.

    Raises:
        ReidError: a name that is none.
    """
    if option not in PARTS or not isinstance(value, str):
        return value
    classes = {name: part for name, part in vars(_module(PARTS[option])).items() if inspect.isclass(part)}
    if value not in classes:
        raise ReidError(f"pytorch-metric-learning has no {option} {value!r}.{did_you_mean(value, classes)}")
    return classes[value]()
