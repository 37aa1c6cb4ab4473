"""The moving average of a model's weights, which often scores better than the weights that made it."""

from __future__ import annotations

from copy import deepcopy

import torch

from reid.models import ReIDModel


class Average:
    """`a ← d·a + (1 − d)·w` after every step, for each weight w and its average a (Polyak and Juditsky 1992).

    Early on the decay is lower, d = min(`decay`, (1 + n) / (10 + n)) after n updates, so that the average soon forgets
    the random start. The running statistics of BatchNorm are averaged likewise (to know those of the averaged weights
    themselves would take a pass over the data); counters and other whole numbers are copied.

    Args:
        model: whose weights are averaged; a copy of it is made at once.
        decay: d, 0 ≤ d < 1.

    Attributes:
        model: the copy that holds the average, in evaluation mode.
        updates: n.
    """

    def __init__(self, model: ReIDModel, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = deepcopy(model).eval().requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.grad = None
        # state_dict would not do: its tensors are looked up anew and detached at each call
        self._own, self._given = _tensors(self.model), _tensors(model)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights as they are now. Nothing waits for the device."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self._own[0], self._given[0], 1 - decay)
        for own, given in zip(self._own[1], self._given[1], strict=True):
            own.copy_(given)


def _tensors(model: torch.nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of floating point, and others: parameters and buffers in the order of their names."""
    every = [*model.parameters(), *model.buffers()]
    floats = [tensor.detach() for tensor in every if tensor.is_floating_point()]
    return floats, [tensor for tensor in every if not tensor.is_floating_point()]
