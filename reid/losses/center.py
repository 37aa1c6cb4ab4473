"""The center loss: each identity has a learned centre, and its crops are drawn to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reid.core.errors import ReidError
from reid.losses.distances import at_least_float32
from reid.losses.pairs import check_batch, check_labels, nothing


class CenterLoss(nn.Module):
    """Half the mean squared distance to the own centre: `1/(2B) Σ ‖x_i − c_{y_i}‖²` (Wen et al. 2016, eq. 2).

    It pulls together and never pushes apart: use it beside a loss that does, with a small weight (the mean over the
    batch here stands for the paper's sum; "Bag of Tricks" weighs its mean-like form with 5e-4).

    How centres move:

    - `rate=α` (the paper's rule, eq. 4): after each call in training mode, every identity of the batch moves by
      `α Σ (x_i − c) / (1 + n)` over its n crops. No optimiser, learning rate or weight decay touches the centres,
      which are buffers and start at 0.
    - `rate=None`: the centres are parameters, and get the gradient of the loss.

    Behaviour in corner cases:

    1. Any batch will do, for crops are not compared with each other: one identity, one crop. No crop gives 0.
    2. Duplicates and equal points: nothing special. At the centre itself loss and gradient are 0.
    3. bfloat16, float16, autocast: computed in float32, in which the centres are kept.
    4. A NaN or infinite feature makes the loss NaN; its centre does not move then.

    Args:
        dim: D.
        num_classes: C; `pids` are labels 0..C−1.
        rate: α, above 0 and up to 1, or None.

    Raises:
        ReidError: a value out of range.
    """

    centers: Tensor
    """`[C, D]` float32."""

    def __init__(self, dim: int, num_classes: int, rate: float | None = 0.5) -> None:
        super().__init__()
        if rate is not None and not 0 < rate <= 1:
            raise ReidError(f"rate must be above 0 and up to 1, or None for learned centres; got {rate}.")
        self.num_classes = num_classes
        self.rate = rate
        start = torch.zeros(num_classes, dim)
        if rate is None:
            self.centers = nn.Parameter(start)
        else:
            self.register_buffer("centers", start)

    def forward(self, features: Tensor, pids: Tensor, camids: Tensor | None = None) -> Tensor:
        """The loss of a batch, a float32 scalar (float64 for float64 features).

        Args:
            features: `[B, D]`.
            pids: `[B]` labels 0..C−1.
            camids: not looked at.

        Raises:
            ReidError: shapes that do not fit, or (on the CPU) labels out of range.
        """
        check_batch(features, pids, camids)
        check_labels(pids, self.num_classes)
        with torch.autocast(features.device.type, enabled=False):
            x = at_least_float32(features)
            difference = x - self.centers[pids]
            loss = difference.square().sum() / (2 * max(len(x), 1)) + nothing(x)
            if self.rate is not None and self.training:
                self._move(difference.detach().to(self.centers.dtype), pids)
        return loss

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"num_classes={self.num_classes}, dim={self.centers.shape[1]}, rate={self.rate}"

    @torch.no_grad()
    def _move(self, difference: Tensor, labels: Tensor) -> None:
        total = torch.zeros_like(self.centers).index_add_(0, labels, difference)
        count = self.centers.new_ones(self.num_classes).index_add_(0, labels, torch.ones_like(difference[:, 0]))
        step = (self.rate or 0.0) * total / count.unsqueeze(1)
        self.centers += torch.where(step.isfinite().all(dim=1, keepdim=True), step, 0.0)
