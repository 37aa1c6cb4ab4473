"""Circle loss: the weight of each similarity grows with its distance from the optimum."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from reid.core.errors import check_number
from reid.losses.pairs import PairLoss, Pairs, masked_logsumexp, masked_mean


class CircleLoss(PairLoss):
    """Circle loss over the pairs of the batch (Sun et al. 2020, "Circle Loss", eq. 6, settings of section 3.2).

    For an anchor with cosine similarities `s_p` to its positives and `s_n` to its negatives,

        loss = log(1 + Σ_n exp(γ α_n (s_n − m)) · Σ_p exp(−γ α_p (s_p − 1 + m)))
        α_p = max(0, 1 + m − s_p),  α_n = max(0, s_n + m)

    where the weights α get no gradient. A pair that is already right has a small weight: the decision boundary in the
    plane of `s_n` and `s_p` is a circle. The loss is the mean over the anchors that have positives and negatives.

    Corner cases: as in `PairLoss`. Features may have any length, because cosine normalises them; a row of zeros has
    similarity 0 to all. If all points are equal, all similarities are 1, the loss is large and the gradient 0.

    Args:
        margin: m, 0 to 1; 0.25 in the paper.
        gamma: γ, above 0; 128 in the paper for person re-identification.
        camera_aware: as in `PairLoss`.

    Raises:
        ConfigError: a value out of range.
    """

    shown = ("margin", "gamma")

    def __init__(self, margin: float = 0.25, gamma: float = 128.0, camera_aware: bool = False) -> None:
        super().__init__(camera_aware)
        check_number("The margin of the circle loss", margin, 0, 1)
        check_number("gamma", gamma, above=True)
        self.margin = margin
        self.gamma = gamma

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See `PairLoss`."""
        similarity = pairs.similarities()
        fixed = similarity.detach()
        pull = -self.gamma * (1 + self.margin - fixed).relu() * (similarity - 1 + self.margin)
        push = self.gamma * (fixed + self.margin).relu() * (similarity - self.margin)
        total = masked_logsumexp(pull, pairs.positives) + masked_logsumexp(push, pairs.negatives)
        return masked_mean(functional.softplus(total), pairs.valid)
