"""Optimiser, parameter groups and freezing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from reid.config import OptimConfig, ParameterGroup
from reid.core.errors import ConfigError, did_you_mean


def pattern_of(name: str, patterns: Iterable[str]) -> str | None:
    """Return the first pattern that matches the beginning of a dotted name.

    `backbone.layer[12]` matches `backbone.layer1.0.conv1.weight`, `backbone.lay` does not.
    """
    parts = name.split(".")
    prefixes = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return next((pattern for pattern in patterns if any(fnmatchcase(prefix, pattern) for prefix in prefixes)), None)


def make_optimizer(
    settings: OptimConfig, model: nn.Module, others: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Build the optimiser of a model. Its groups contain `lr_factor` and `freeze_epochs`.

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
        pattern = pattern_of(name, groups) if name else None
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
    listed = [
        {"params": parameters, "lr_factor": factor, "weight_decay": decay, "freeze_epochs": freeze_epochs}
        for (factor, decay, freeze_epochs), parameters in parameters_of.items()
    ]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")  # one kernel updates all weights of a group
    if settings.name == "sgd":
        if settings.nesterov and settings.momentum == 0:
            raise ConfigError("optim.nesterov=true needs momentum. Set optim.momentum=0.9.")
        return torch.optim.SGD(listed, settings.lr, settings.momentum, nesterov=settings.nesterov, fused=fused)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(listed, settings.lr, betas=(settings.momentum, 0.999), fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, lr: float, momentum: float) -> None:
    """Set learning rate and momentum (Adam's β₁) of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
        if "momentum" in group:
            group["momentum"] = momentum
        else:
            group["betas"] = (momentum, group["betas"][1])


def freeze(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Put the model into training mode for `epoch` (from 0), with the groups frozen that `optim.groups` freezes.

    A frozen parameter gets no gradient. A BatchNorm whose parameters are all frozen is in evaluation mode, so that no
    graph is kept for the layers before the first trained weight.
    """
    model.train()
    frozen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(epoch >= group["freeze_epochs"])
            if not parameter.requires_grad:
                frozen.add(parameter)
    for module in model.modules():
        parameters = set(module.parameters(recurse=False))
        if parameters and hasattr(module, "running_mean") and parameters <= frozen:
            module.eval()
