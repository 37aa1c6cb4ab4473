"""Which weights move, how fast, and from when on: the optimiser, its groups, and freezing."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from reid.config import OptimConfig, ParameterGroup
from reid.core.errors import ReidError, did_you_mean

FUSED = ("cpu", "cuda")
"""Devices where one kernel moves all weights of a group."""


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
    groups = settings.groups
    # what starts to move at another time stands apart: SGD's kernel starts all momenta of a group at once
    sorted_out: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    met = set()
    for name, parameter in [*model.named_parameters(), *(("", other) for other in others)]:
        pattern = pattern_of(name, list(groups)) if name else None
        met.add(pattern)
        if not parameter.requires_grad:
            continue
        group = groups[pattern] if pattern is not None else ParameterGroup()
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
        groups = settings.groups
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
