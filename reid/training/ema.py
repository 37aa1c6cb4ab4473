"""Moving average of a model's weights, which often scores better than the weights themselves."""

from __future__ import annotations

from copy import deepcopy

import torch

from reid.models import ReIDModel


class MovingAverage:
    """`a ← d·a + (1 − d)·w` after every step, for each weight w and its average a (Polyak and Juditsky 1992).

    At first the decay is lower, d = min(`decay`, (1 + n) / (10 + n)) after n updates, so that the initial weights are
    soon forgotten. The running statistics of BatchNorm are averaged as well (computing those of the averaged weights
    would take a pass over the data); counters and other integers are copied.

    Args:
        model: the model to average; it is copied.
        decay: d, 0 ≤ d < 1.

    Attributes:
        model: the averaged copy, in evaluation mode.
        updates: n.
    """

    def __init__(self, model: ReIDModel, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.model.zero_grad()
        # looked up once: state_dict would do it at each update
        self._averaged, self._current = _tensors(self.model), _tensors(model)

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights, without waiting for the device."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self._averaged[0], self._current[0], 1 - decay)
        for averaged, current in zip(self._averaged[1], self._current[1], strict=True):
            averaged.copy_(current)


def _tensors(model: torch.nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the floating-point parameters and buffers, and the others."""
    tensors = [*model.parameters(), *model.buffers()]
    floats = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
    return floats, [tensor for tensor in tensors if not tensor.is_floating_point()]
