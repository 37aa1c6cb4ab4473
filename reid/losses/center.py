"""Center loss: pull the crops of each identity towards a learned centre."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reid.core.errors import check_number
from reid.losses.pairs import LabelLoss


class CenterLoss(LabelLoss):
    """Half the mean squared distance to the identity's centre: `1/(2B) Σ ‖x_i − c_{y_i}‖²` (Wen et al. 2016, eq. 2).

    It pulls crops together and never separates them: combine it with a loss that does, with a small weight. (It is
    the mean over the batch, the paper uses the sum; "Bag of Tricks" uses weight 5e-4 for the same mean.)

    How centres are updated:

    - `rate=α` (the paper's rule, eq. 4): after each call in training mode, the centre of each identity of the batch
      moves by `α Σ (x_i − c) / (1 + n)` over its n crops. Centres are buffers that start at 0; optimiser, learning
      rate and weight decay do not affect them.
    - `rate=None`: the centres are parameters and get the gradient of the loss.

    Corner cases:

    1. Crops are not compared with each other, so every batch is valid: one identity, one crop. No crop gives 0.
    2. Equal points are not special. At the centre loss and gradient are 0.
    3. bfloat16, float16, autocast: computed in float32, in which the centres are stored.
    4. A NaN or infinite feature makes the loss NaN and does not move its centre.

    Args:
        dim: D.
        num_classes: C; `pids` are labels 0..C−1.
        rate: α, above 0 and up to 1, or None.

    Raises:
        ConfigError: a value out of range.
    """

    centers: Tensor
    """`[C, D]` float32."""

    def __init__(self, dim: int, num_classes: int, rate: float | None = 0.5) -> None:
        super().__init__()
        check_number("rate (null: centres are parameters)", rate, 0, 1, above=True)
        self.num_classes = num_classes
        self.rate = rate
        start = torch.zeros(num_classes, dim)
        if rate is None:
            self.centers = nn.Parameter(start)
        else:
            self.register_buffer("centers", start)

    def label_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """See `LabelLoss`. In training mode centres with a rate move."""
        difference = x - self.centers[labels]
        if self.rate is not None and self.training:
            self._move(difference.detach().to(self.centers.dtype), labels)
        return difference.square().sum() / 2

    def extra_repr(self) -> str:
        """Return the settings that `print(model)` shows."""
        return f"num_classes={self.num_classes}, dim={self.centers.shape[1]}, rate={self.rate}"

    @torch.no_grad()
    def _move(self, difference: Tensor, labels: Tensor) -> None:
        total = torch.zeros_like(self.centers).index_add_(0, labels, difference)
        count = self.centers.new_ones(self.num_classes).index_add_(0, labels, torch.ones_like(difference[:, 0]))
        step = (self.rate or 0.0) * total / count.unsqueeze(1)
        self.centers += torch.where(step.isfinite().all(dim=1, keepdim=True), step, 0.0)
