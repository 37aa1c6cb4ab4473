"""InfoNCE and supervised contrastive loss: softmax of the positives against the negatives."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from reid.core.errors import check_number
from reid.losses.pairs import PairLoss, Pairs, masked_logsumexp, masked_mean


class _Temperature(PairLoss):
    shown = ("temperature",)

    def __init__(self, temperature: float = 0.1, camera_aware: bool = False) -> None:
        super().__init__(camera_aware)
        check_number("The temperature", temperature, above=True)
        self.temperature = temperature


class InfoNCELoss(_Temperature):
    """InfoNCE: every positive pair against the anchor's negatives (van den Oord et al. 2018, eq. 4).

    With `s` the cosine similarity divided by the temperature τ,

        loss(a, p) = −log( exp s(a, p) / (exp s(a, p) + Σ_n exp s(a, n)) )

    and the loss is the mean over all positive pairs of the batch whose anchor has a negative.

    Corner cases: as in `PairLoss`. All points equal: `log(1 + N)` with N negatives per anchor, and gradient 0. A row
    of zeros has similarity 0 to all.

    Args:
        temperature: τ, above 0.
        camera_aware: as in `PairLoss`.

    Raises:
        ConfigError: a temperature out of range.
    """

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See `PairLoss`."""
        scores = pairs.similarities() / self.temperature
        against = masked_logsumexp(scores, pairs.negatives).unsqueeze(1)
        counted = pairs.positives & pairs.negatives.any(dim=1, keepdim=True)
        return masked_mean(functional.softplus(against - scores), counted)


class SupConLoss(_Temperature):
    """Supervised contrastive loss: one softmax over all other crops (Khosla et al. 2020, eq. 2, `L_out`).

        loss(a) = −1/|P(a)| Σ_p log( exp s(a, p) / Σ_{o ≠ a} exp s(a, o) )

    with `s` the cosine similarity divided by the temperature τ. The loss is the mean over the anchors that have a
    positive and a negative. The denominator contains the positives too, so with several positives the loss does not
    reach 0.

    Corner cases: as in `InfoNCELoss`; all points equal: `log(B − 1)`. Camera-aware: positives that are not used are
    not in the denominator either.

    Args:
        temperature: τ, above 0; 0.1 in the paper.
        camera_aware: as in `PairLoss`.

    Raises:
        ConfigError: a temperature out of range.
    """

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See `PairLoss`."""
        scores, positives = pairs.similarities() / self.temperature, pairs.positives
        denominator = masked_logsumexp(scores, positives | pairs.negatives)
        mean_positive = scores.masked_fill(~positives, 0.0).sum(dim=1) / positives.sum(dim=1).clamp(min=1)
        return masked_mean(denominator - mean_positive, pairs.valid)
