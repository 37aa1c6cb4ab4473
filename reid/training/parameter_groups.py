"""Optimiser, parameter groups and freezing."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from reid.config import OptimConfig, ParameterGroup
from reid.core.errors import ConfigError, did_you_mean


def pattern_of(name: str, patterns: Sequence[str]) -> str | None:
    """Return the first pattern that matches the beginning of a dotted name.

    `backbone.layer[12]` matches `backbone.layer1.0.conv1.weight`, `backbone.lay` does not.
    """
    parts = name.split(".")
    prefixes = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return next((pattern for pattern in patterns if any(fnmatchcase(prefix, pattern) for prefix in prefixes)), None)


def make_optimizer(
    settings: OptimConfig, model: nn.Module, others: Sequence[nn.Parameter] = ()
) -> tuple[torch.optim.Optimizer, list[float]]:
    """Build the optimiser of a model, and return it with the learning-rate factor of each of its groups.

    Args:
        settings: the optimiser and its groups.
        model: its parameters that require gradients are trained.
        others: further parameters, which no pattern matches.

    Raises:
        ConfigError: a pattern of `optim.groups` matches no parameter, or Nesterov momentum without momentum.
    """
    groups = settings.groups
    # one group per freeze time: SGD's kernel initialises all momenta of a group together
    parameters_of: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    matched = set()
    for name, parameter in [*model.named_parameters(), *(("", other) for other in others)]:
        pattern = pattern_of(name, list(groups)) if name else None
        matched.add(pattern)
        if not parameter.requires_grad:
            continue
        group = groups[pattern] if pattern is not None else ParameterGroup()
        decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
        if not settings.decay_norms and parameter.ndim <= 1:
            decay = 0.0
        parameters_of.setdefault((group.lr, decay, group.freeze_epochs), []).append(parameter)
    for pattern in groups:
        if pattern not in matched:
            names = sorted({".".join(name.split(".")[:2]) for name, _ in model.named_parameters()})
            raise ConfigError(f"optim.groups: {pattern!r} matches no parameter.{did_you_mean(pattern, names)}")
    listed = [{"params": parameters, "weight_decay": decay} for (_, decay, _), parameters in parameters_of.items()]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")  # one kernel updates all weights of a group
    factors = [factor for factor, _, _ in parameters_of]
    if settings.name == "sgd":
        if settings.nesterov and settings.momentum == 0:
            raise ConfigError("optim.nesterov=true needs momentum. Set optim.momentum=0.9.")
        sgd = torch.optim.SGD(listed, settings.lr, settings.momentum, nesterov=settings.nesterov, fused=fused)
        return sgd, factors
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(listed, settings.lr, betas=(settings.momentum, 0.999), fused=fused), factors


def set_rate(optimizer: torch.optim.Optimizer, factors: Sequence[float], lr: float, momentum: float) -> None:
    """Set learning rate and momentum (Adam's β₁) of every group."""
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        group["lr"] = lr * factor
        if "momentum" in group:
            group["momentum"] = momentum
        else:
            group["betas"] = (momentum, group["betas"][1])


class Freezer:
    """Freeze parameters for the first epochs, as set by `optim.groups`.

    A frozen parameter gets no gradient. A BatchNorm whose parameters are all frozen is in evaluation mode, so that no
    graph is kept for the layers before the first trained weight.
    """

    def __init__(self, settings: OptimConfig, model: nn.Module) -> None:
        groups = settings.groups
        self.model = model
        self.until: dict[str, float] = {}
        for name, parameter in model.named_parameters():
            pattern = pattern_of(name, list(groups))
            if parameter.requires_grad and pattern is not None and groups[pattern].freeze_epochs:
                self.until[name] = groups[pattern].freeze_epochs

    def apply(self, epoch: int) -> None:
        """Put the model into training mode for `epoch` (from 0)."""
        self.model.train()
        named = dict(self.model.named_parameters())
        for name, until in self.until.items():
            named[name].requires_grad_(epoch >= until)
        for prefix, module in self.model.named_modules():
            names = [f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
            if names and hasattr(module, "running_mean") and all(epoch < self.until.get(name, 0) for name in names):
                module.eval()
