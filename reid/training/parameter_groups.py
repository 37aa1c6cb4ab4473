"""Which weights move, how fast, and from when on: the optimiser, its groups, and freezing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from reid.config import OptimConfig
from reid.core.errors import ReidError, did_you_mean

FUSED = ("cpu", "cuda")
"""Devices where one kernel moves all weights of a group."""


@dataclass(frozen=True)
class Group:
    """What `optim.groups` says of the parameters that fit a pattern."""

    lr: float = 1.0
    """Factor of the learning rate."""
    weight_decay: float | None = None
    """Instead of `optim.weight_decay`."""
    freeze_epochs: float = 0.0
    """Epochs at the start during which they stand still."""


def read_groups(content: dict[str, Any]) -> dict[str, Group]:
    """`optim.groups`, checked.

    Raises:
        ReidError: an unknown key, or a value that is not a number from 0.
    """
    known = [item.name for item in fields(Group)]
    groups = {}
    for pattern, values in content.items():
        where = f"optim.groups: {pattern}"
        if not isinstance(values, dict):
            raise ReidError(
                f"{where} is {values!r}: say what is different, e.g. {{lr: 0.1}}. Known: {', '.join(known)}."
            )
        for key, value in values.items():
            if key not in known:
                raise ReidError(f"{where} has an unknown key {key!r}.{did_you_mean(str(key), known)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ReidError(f"{where}.{key} is {value!r}; it must be a number, 0 or more.")
        groups[str(pattern)] = Group(**{key: float(value) for key, value in values.items()})
    return groups


def pattern_of(name: str, patterns: Sequence[str]) -> str | None:
    """The first of `patterns` that fits the beginning of a dotted name: `backbone.layer[12]` fits
    `backbone.layer1.0.conv1.weight`, `backbone.lay` does not."""
    parts = name.split(".")
    heads = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return next((pattern for pattern in patterns if any(fnmatchcase(head, pattern) for head in heads)), None)


def make_optimizer(
    settings: OptimConfig, model: nn.Module, others: Sequence[nn.Parameter] = ()
) -> tuple[torch.optim.Optimizer, list[float]]:
    """The optimiser over all parameters of `model` that move and `others`, which no pattern fits, and the learning
    rate's factor of each of its groups.

    Raises:
        ReidError: `optim.groups` is wrong, or a pattern in it fits no parameter.
    """
    groups = read_groups(settings.groups)
    # what starts to move at another time stands apart: SGD's kernel starts all momenta of a group at once
    sorted_out: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    met = set()
    for name, parameter in [*model.named_parameters(), *(("", other) for other in others)]:
        pattern = pattern_of(name, list(groups)) if name else None
        met.add(pattern)
        if not parameter.requires_grad:
            continue
        group = groups[pattern] if pattern is not None else Group()
        decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
        if not settings.decay_norms and parameter.ndim <= 1:
            decay = 0.0
        sorted_out.setdefault((group.lr, decay, group.freeze_epochs), []).append(parameter)
    for pattern in groups:
        if pattern not in met:
            names = sorted({".".join(name.split(".")[:2]) for name, _ in model.named_parameters()})
            raise ReidError(
                f"optim.groups: {pattern!r} is the beginning of no parameter's name.{did_you_mean(pattern, names)}"
            )
    listed = [{"params": parameters, "weight_decay": decay} for (_, decay, _), parameters in sorted_out.items()]
    fused = next(model.parameters()).device.type in FUSED
    factors = [factor for factor, _, _ in sorted_out]
    if settings.name == "sgd":
        if settings.nesterov and settings.momentum == 0:
            raise ReidError("optim.nesterov=true looks ahead along the momentum, which is 0: set optim.momentum=0.9.")
        return (
            torch.optim.SGD(listed, settings.lr, settings.momentum, nesterov=settings.nesterov, fused=fused),
            factors,
        )
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(listed, settings.lr, betas=(settings.momentum, 0.999), fused=fused), factors


def set_rate(optimizer: torch.optim.Optimizer, factors: Sequence[float], lr: float, momentum: float) -> None:
    """Give every group its learning rate and momentum (Adam's β₁)."""
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        group["lr"] = lr * factor
        if "momentum" in group:
            group["momentum"] = momentum
        else:
            group["betas"] = (momentum, group["betas"][1])


class Freezer:
    """Holds still what `optim.groups` freezes, epoch by epoch.

    A frozen parameter takes no gradient, and a BatchNorm all of whose parameters are frozen keeps its statistics
    (evaluation mode), so that the part before the first moving weight is run forward only.
    """

    def __init__(self, settings: OptimConfig, model: nn.Module) -> None:
        groups = read_groups(settings.groups)
        self.model = model
        self.until: dict[str, float] = {}
        for name, parameter in model.named_parameters():
            pattern = pattern_of(name, list(groups))
            if parameter.requires_grad and pattern is not None and groups[pattern].freeze_epochs:
                self.until[name] = groups[pattern].freeze_epochs

    def apply(self, epoch: int) -> bool:
        """Set the model to training as of `epoch` (from 0); whether what is frozen changed."""
        self.model.train()
        named = dict(self.model.named_parameters())
        changed = False
        for name, until in self.until.items():
            moving = epoch >= until
            changed |= named[name].requires_grad != moving
            named[name].requires_grad_(moving)
        for prefix, module in self.model.named_modules():
            own = [f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
            if own and hasattr(module, "running_mean") and all(epoch < self.until.get(name, 0) for name in own):
                module.eval()
        return changed
