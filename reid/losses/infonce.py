"""InfoNCE and supervised contrastive loss: each positive must win a softmax against the negatives."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from reid.core.errors import ReidError
from reid.losses.circle import masked_logsumexp
from reid.losses.pairs import PairLoss, masked_mean, similarities


class _Temperature(PairLoss):
    def __init__(self, temperature: float = 0.1, camera_aware: bool = False) -> None:
        super().__init__(camera_aware)
        if not (math.isfinite(temperature) and temperature > 0):
            raise ReidError(f"The temperature must be above 0; got {temperature}.")
        self.temperature = temperature

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"temperature={self.temperature}"


class InfoNCELoss(_Temperature):
    """Every positive pair alone against the anchor's negatives (van den Oord et al. 2018, eq. 4).

    With `s` the cosine over the temperature τ,

        loss(a, p) = −log( exp s(a, p) / (exp s(a, p) + Σ_n exp s(a, n)) )

    and the loss is the mean over all positive pairs of the batch whose anchor has a negative.

    Behaviour in corner cases: as in `PairLoss`. All points equal: `log(1 + N)` with N negatives an anchor, and
    gradient 0. A row of zeros has similarity 0 to all.

    Args:
        temperature: τ, above 0.
        camera_aware: as in `PairLoss`.

    Raises:
        ReidError: a temperature out of range.
    """

    def of_pairs(self, anchors: Tensor, others: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """See `PairLoss`."""
        scores = similarities(anchors, others) / self.temperature
        against = masked_logsumexp(scores, negatives).unsqueeze(1)
        return masked_mean(functional.softplus(against - scores), positives & negatives.any(dim=1, keepdim=True))


class SupConLoss(_Temperature):
    """All positives of an anchor share one softmax over everybody else (Khosla et al. 2020, eq. 2, `L_out`).

        loss(a) = −1/|P(a)| Σ_p log( exp s(a, p) / Σ_{o ≠ a} exp s(a, o) )

    with `s` the cosine over the temperature τ, and the loss is the mean over the anchors that have a positive and a
    negative. The positives stand in the denominator too, so it does not reach 0 with more than one.

    Behaviour in corner cases: as in `InfoNCELoss`; all points equal: `log(B − 1)`. Camera-aware: positives that are
    left out stand in no denominator.

    Args:
        temperature: τ, above 0; the paper's 0.1.
        camera_aware: as in `PairLoss`.

    Raises:
        ReidError: a temperature out of range.
    """

    def of_pairs(self, anchors: Tensor, others: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """See `PairLoss`."""
        scores = similarities(anchors, others) / self.temperature
        everybody = masked_logsumexp(scores, positives | negatives)
        mean_positive = scores.masked_fill(~positives, 0.0).sum(dim=1) / positives.sum(dim=1).clamp(min=1)
        return masked_mean(everybody - mean_positive, positives.any(dim=1) & negatives.any(dim=1))
