"""Contrastive loss: pull positive pairs together, push negative pairs apart up to a margin."""

from __future__ import annotations

from torch import Tensor

from reid.core.errors import ConfigError, check_choice, check_number
from reid.losses.distances import Distance, distance_function
from reid.losses.pairs import PairLoss, Pairs, masked_mean

REDUCTIONS = ("active", "mean")


class ContrastiveLoss(PairLoss):
    """Contrastive loss: each pair separately (Hadsell, Chopra, LeCun 2006, eq. 4).

    `positive: max(0, d − m₊)^q / q`, `negative: max(0, m − d)^q / q`. With `q = 2` and `m₊ = 0` these are the paper's
    `d²/2` and `max(0, m − d)²/2`; with `q = 1` the gradient does not depend on the distance of a pair.

    A batch of P × K has at least P − 1 times as many negative as positive pairs, so both kinds are reduced separately
    and added: `loss = R(positives) + R(negatives)`, where R is the mean over all such pairs ("mean") or over those
    with a loss above 0 ("active": the few near negatives are not diluted by the many distant ones).

    Corner cases: as in `PairLoss`. In a batch with one kind of pair the other term is 0, so crops of one identity are
    still pulled together, and crops of different identities still pushed apart. Equal points have distance 0 and get
    no gradient.

    Args:
        margin: m, in the unit of the distance; above `positive_margin`.
        positive_margin: m₊, 0 or more: nearer positives have no loss.
        distance: as in `pairwise_distances`.
        power: q, 1 or 2.
        reduction: "active" or "mean".
        camera_aware: as in `PairLoss`.

    Raises:
        ConfigError: a value out of range, or an unknown name.
    """

    shown = ("margin", "power", "reduction")

    def __init__(
        self,
        margin: float = 1.0,
        positive_margin: float = 0.0,
        distance: Distance = "euclidean",
        power: int = 2,
        reduction: str = "active",
        camera_aware: bool = False,
    ) -> None:
        super().__init__(camera_aware)
        check_number("positive_margin", positive_margin)
        check_number("The margin of the contrastive loss", margin, positive_margin, above=True)
        if power not in (1, 2):
            raise ConfigError(f"power must be 1 or 2; got {power}.")
        check_choice("reduction", reduction, REDUCTIONS)
        distance_function(distance)
        self.margin = margin
        self.positive_margin = positive_margin
        self.distance = distance
        self.power = power
        self.reduction = reduction

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See `PairLoss`."""
        distances = pairs.distances(self.distance)
        pull = (distances - self.positive_margin).relu().pow(self.power) / self.power
        push = (self.margin - distances).relu().pow(self.power) / self.power
        return self._reduced(pull, pairs.positives) + self._reduced(push, pairs.negatives)

    def _reduced(self, values: Tensor, mask: Tensor) -> Tensor:
        return masked_mean(values, mask & ~(values <= 0) if self.reduction == "active" else mask)
