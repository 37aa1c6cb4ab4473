"""Triplet mining: which triplets of a batch contribute to the loss. A miner selects distances; the loss uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from reid.core.arrays import different_cameras
from reid.core.errors import ConfigError, DataError, check_choice, check_number
from reid.losses.distances import at_least_float32, normalised
from reid.losses.pairs import other_cameras_first

_NARROW = 16
"""Positives per anchor up to which one pass for each is faster than sorting all negatives."""

_BLOCK = 2**20
"""Elements of a block of rows; batch-all needs a few blocks of memory besides its `[B, B]` gradient."""

_NEAREST, _FARTHEST = 0.5, 1.4
"""Distance-weighted mining: range of distances on the unit sphere from which negatives are drawn."""


class Triplets(NamedTuple):
    """Distances of mined triplets: `[B]`, one triplet per anchor, or `[B, W]`, one per positive pair.

    With `[B, W]` anchors are in rows, and W is at least the largest number of positives of an anchor.
    """

    positive: Tensor
    """Distance of the anchor to the positive; 0 where not valid."""
    negative: Tensor
    """Distance of the anchor to the negative; 0 where not valid."""
    valid: Tensor
    """Bool."""


@dataclass(frozen=True, eq=False)
class MinerInput:
    """What a miner selects from.

    Attributes:
        distances: `[B, B]`.
        positives, negatives: `[B, B]` bool, as from `pair_masks`.
        hardness: 0..1; see `mine_triplets`.
        generator: for random choices, on the device of the distances.
        features: `[B, D]`, for distance-weighted mining.
    """

    distances: Tensor
    positives: Tensor
    negatives: Tensor
    hardness: float
    generator: torch.Generator | None
    features: Tensor | None

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Columns `[B, W]` of each anchor's positives, and which of them are used."""
        return _columns_of(self.positives)

    def positive_distances(self) -> Tensor:
        """Return the distances `[B, W]` of all positive pairs."""
        return self.distances.gather(1, self.pairs[0])

    def hardest(self, candidates: Tensor, *, farthest: bool = False) -> Tensor:
        """Return `[B]`: the farthest or nearest candidate of each row, or a draw from the hardest ones; else ±inf."""
        masked = self.distances.masked_fill(~candidates, -torch.inf if farthest else torch.inf)
        if self.hardness == 1:
            return (masked.max(dim=1) if farthest else masked.min(dim=1)).values
        ranked = masked.sort(dim=1, descending=farthest).values
        return ranked.gather(1, self.draw_rank(candidates.sum(dim=1, keepdim=True))).squeeze(1)

    def draw_rank(self, count: Tensor) -> Tensor:
        """Return 0, or a draw from the first `max(1, (1 − hardness) · count)` ranks with equal chances.

        If that number is not an integer, the last rank has a smaller chance.
        """
        if self.hardness == 1:
            return torch.zeros_like(count)
        drawn = self.uniform(count.shape) * ((1 - self.hardness) * count).clamp(min=1)
        return drawn.long().minimum(count - 1).clamp(min=0)

    def uniform(self, shape: torch.Size) -> Tensor:
        """Return random numbers in 0..1."""
        if self.generator is None:
            raise ConfigError("This mining is random. Pass a torch.Generator on the device of the distances.")
        return torch.rand(shape, device=self.distances.device, generator=self.generator)


def pair_masks(pids: Tensor, camids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return which pairs are positive (same identity, different rows) and which are negative.

    Args:
        pids: `[B]` identities, any integers.
        camids: `[B]` cameras, to prefer positives of other cameras: an anchor that has any uses only those.

    Returns:
        Two `[B, B]` bool masks, anchors in rows. No pair is in both, and the diagonal is in neither.
    """
    same = pids.unsqueeze(0) == pids.unsqueeze(1)
    negatives = ~same
    positives = same.fill_diagonal_(False)
    if camids is not None:
        positives = other_cameras_first(positives, different_cameras(camids.unsqueeze(1), camids.unsqueeze(0)))
    return positives, negatives


def mine_triplets(
    mining: str,
    distances: Tensor,
    pids: Tensor,
    camids: Tensor | None = None,
    *,
    hardness: float = 1.0,
    generator: torch.Generator | None = None,
    features: Tensor | None = None,
) -> Triplets:
    """Select triplets of a batch with one of `MINERS`.

    Identities may have any number of crops each. An anchor without a positive or without a negative is not valid and
    gets no gradient. Of equal distances one gets the gradient. A NaN distance is passed on as NaN (a random choice may
    not select it). Nothing is copied to the host.

    Args:
        mining: a key of `MINERS`.
        distances: `[B, B]`.
        pids: `[B]` integers.
        camids: `[B]` integers: prefer positives of other cameras (`pair_masks`); None: cameras are not used.
        hardness: 0..1, for the miners in `HARDNESS_MINERS`. Below 1 the choice is drawn at random, with equal chances,
            from the hardest fraction `1 − hardness` of the candidates (at least one): 1 is the hardest, 0 any
            candidate, and the chances change continuously in between.
        generator: for random choices, on the device of the distances; not needed with hardness 1.
        features: `[B, D]`, only for "distance_weighted".

    Raises:
        DataError: shapes that do not fit, or features are needed and missing.
        ConfigError: hardness out of range, or a generator is needed and missing.

    Example:
        >>> import torch
        >>> distances = torch.tensor([[0.0, 2.0, 1.0], [2.0, 0.0, 3.0], [1.0, 3.0, 0.0]])
        >>> triplets = mine_triplets("batch_hard", distances, torch.tensor([7, 7, 8]))
        >>> triplets.positive.tolist(), triplets.negative.tolist(), triplets.valid.tolist()
        ([2.0, 2.0, 0.0], [1.0, 3.0, 0.0], [True, True, False])
    """
    _check_shapes(distances, pids, camids)
    check_choice("miner", mining, MINERS)
    check_number("hardness", hardness, 0, 1)
    if len(pids) == 0:
        empty = distances.sum(dim=1)  # [0], and still differentiable
        return Triplets(empty, empty, torch.zeros_like(empty, dtype=torch.bool))
    positives, negatives = pair_masks(pids, camids)
    given = MinerInput(distances, positives, negatives, hardness, generator, features)
    positive, negative = MINERS[mining](given)
    if positive.ndim == 1:
        valid = positives.any(dim=1) & negatives.any(dim=1)
    else:
        valid = given.pairs[1] & negatives.any(dim=1, keepdim=True)
    return Triplets(positive.masked_fill(~valid, 0.0), negative.masked_fill(~valid, 0.0), valid)


def batch_hard(given: MinerInput) -> tuple[Tensor, Tensor]:
    """Select the farthest positive and the nearest negative of each anchor (Hermans et al. 2017, eq. 5).

    `positive[a] = max over p ≠ a with pid[p] = pid[a] of d[a, p]`;
    `negative[a] = min over n with pid[n] ≠ pid[a] of d[a, n]`. With hardness below 1 both are drawn.
    """
    return given.hardest(given.positives, farthest=True), given.hardest(given.negatives)


def random(given: MinerInput) -> tuple[Tensor, Tensor]:
    """Select a random positive and a random negative of each anchor, with equal chances."""
    scores = given.uniform(given.distances.shape)
    drawn = [scores.masked_fill(~mask, -1.0).argmax(dim=1, keepdim=True) for mask in (given.positives, given.negatives)]
    positive, negative = (given.distances.gather(1, column).squeeze(1) for column in drawn)
    return positive, negative


def easy_positive(given: MinerInput) -> tuple[Tensor, Tensor]:
    """Select the nearest positive and the nearest negative of each anchor (Xuan, Stylianou, Pless 2020, EPHN).

    A crop is only pulled to the crop of its identity that is most similar, so an identity may keep several separate
    appearances (front and back). With hardness below 1 the negative is drawn.
    """
    nearest = given.distances.masked_fill(~given.positives, torch.inf).min(dim=1).values
    return nearest, given.hardest(given.negatives)


def hardest_negative(given: MinerInput) -> tuple[Tensor, Tensor]:
    """Select every positive pair with the nearest negative of its anchor.

    With hardness below 1 each pair draws its negative from the nearest fraction `1 − hardness`.
    """
    positive = given.positive_distances()
    if given.hardness == 1:
        return positive, given.hardest(given.negatives).unsqueeze(1).expand_as(positive)
    count = given.negatives.sum(dim=1, keepdim=True).expand_as(positive)
    ranked = given.distances.masked_fill(~given.negatives, torch.inf).sort(dim=1).values
    return positive, ranked.gather(1, given.draw_rank(count))


def semi_hard(given: MinerInput) -> tuple[Tensor, Tensor]:
    """Select every positive pair with the nearest negative beyond the positive (Schroff et al. 2015, section 3.2).

    `negative[a, p] = min over n with pid[n] ≠ pid[a] and d[a, n] > d[a, p] of d[a, n]`. If no negative is farther than
    the positive, the farthest negative of the anchor is used, which violates least. FaceNet also requires that the
    negative is within the margin, `d[a, n] < d[a, p] + margin`; one beyond has a hard-margin loss of 0 anyway. With
    hardness below 1 each pair draws its negative from the nearest fraction `1 − hardness` of those beyond.
    """
    positive = given.positive_distances()
    with torch.no_grad():
        if given.hardness == 1 and positive.shape[1] <= _NARROW:
            chosen = _first_beyond(given.distances, given.negatives, positive)
        else:
            ranked, order = given.distances.masked_fill(~given.negatives, torch.inf).sort(dim=1)
            count = given.negatives.sum(dim=1, keepdim=True)
            nearer = torch.searchsorted(ranked, positive, right=True).minimum(count)
            rank = nearer + given.draw_rank(count - nearer)
            chosen = order.gather(1, rank.minimum(count - 1).clamp(min=0))
    return positive, given.distances.gather(1, chosen)


def _first_beyond(distances: Tensor, negatives: Tensor, positive: Tensor) -> Tensor:
    """Return the columns `[B, W]` of the nearest negative beyond each positive, else of the farthest, unsorted."""
    candidates = distances.masked_fill(~negatives, -torch.inf)
    farthest = candidates.argmax(dim=1, keepdim=True)
    step = max(1, _BLOCK // max(1, positive.numel()))
    chosen = []
    for rows, thresholds in zip(candidates.split(step), positive.split(step), strict=True):
        rows, thresholds = rows.unsqueeze(1), thresholds.unsqueeze(2)
        chosen.append(rows.masked_fill(rows <= thresholds, torch.inf).min(dim=2))
    values, columns = (torch.cat(parts) for parts in zip(*chosen, strict=True))
    return torch.where(values < torch.inf, columns, farthest)


def distance_weighted(given: MinerInput) -> tuple[Tensor, Tensor]:
    """Select every positive pair with a negative drawn so that all distances are equally frequent (Wu et al. 2017, 4).

    With u the Euclidean distance of the L2-normalised features (whatever `distances` are), a negative is drawn with
    probability proportional to `1 / q(max(u, 0.5))`, where `q(u) ∝ u^(D−2) (1 − u²/4)^((D−3)/2)` is the density of
    distances between random points of the unit sphere. Negatives beyond 1.4 are only drawn if an anchor has no other,
    and then with equal chances. `hardness` is not used.
    """
    if given.features is None:
        raise DataError("Distance-weighted mining needs the features [B, D]. Pass them.")
    positive = given.positive_distances()
    with torch.no_grad(), torch.autocast(given.distances.device.type, enabled=False):
        directions = normalised(at_least_float32(given.features.detach()))
        u = (2 - 2 * (directions @ directions.T)).clamp(min=_NEAREST**2, max=4 - 1e-6).sqrt()
        dim = given.features.shape[1]
        logit = -(dim - 2) * u.log() - (dim - 3) / 2 * (1 - u.square() / 4).log()
        near = given.negatives & (u < _FARTHEST)
        uniform = torch.where(given.negatives, 0.0, -torch.inf)
        chance = torch.where(near.any(dim=1, keepdim=True), logit.masked_fill(~near, -torch.inf), uniform)
        cumulative = chance.softmax(dim=1).nan_to_num(0.0).cumsum(dim=1)
        drawn = given.uniform(positive.shape) * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, drawn, right=True).clamp(max=len(positive) - 1)
    return positive, given.distances.gather(1, chosen)


def weighted(given: MinerInput) -> tuple[Tensor, Tensor]:
    """Average the positives with more weight for distant ones, and the negatives with more for near ones (AGW).

    `positive[a] = Σ_p softmax_p(d[a, p]) d[a, p]`, `negative[a] = Σ_n softmax_n(−d[a, n]) d[a, n]` (Ye et al. 2021,
    eq. 6 and 7; with the soft margin this is their weighted regularised triplet loss). The gradient includes the
    weights. `hardness` is not used.
    """
    distances = given.distances
    positive = (_softmax(distances, given.positives) * distances).sum(dim=1)
    return positive, (_softmax(-distances, given.negatives) * distances).sum(dim=1)


MINERS: dict[str, Callable[[MinerInput], tuple[Tensor, Tensor]]] = {
    "batch_hard": batch_hard,
    "semi_hard": semi_hard,
    "hardest_negative": hardest_negative,
    "easy_positive": easy_positive,
    "distance_weighted": distance_weighted,
    "weighted": weighted,
    "random": random,
}
"""Miners by name: each returns the distances of positives and of negatives, `[B]` or `[B, W]`."""

MINING_NAMES = ("batch_all", *MINERS)
"""All values of `mining` in `TripletLoss`."""

HARDNESS_MINERS = ("batch_hard", "semi_hard", "hardest_negative", "easy_positive")
"""Miners that use `hardness`."""


def batch_all(
    distances: Tensor, pids: Tensor, margin: float | None = 0.3, camids: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the triplet loss over all triplets of a batch without storing them.

    `Σ_a Σ_p Σ_n max(0, margin + d[a, p] − d[a, n])`, exactly: the thresholds `margin + d[a, p]` of an anchor are
    sorted once; the number of thresholds above each negative, and their sum, are then found by one search. Time
    O(B² log W) for at most W positives per anchor, memory a small multiple of B². With the soft margin,
    `log(1 + exp(d[a, p] − d[a, n]))`, every triplet counts: O(B² W) time, in blocks.

    Args:
        distances: `[B, B]`.
        pids: `[B]` integers.
        margin: 0 or more; None for the soft margin.
        camids: `[B]` integers: prefer positives of other cameras (`pair_masks`); None: cameras are not used.

    Returns:
        Three 0-d tensors: the sum (0, and differentiable, without a triplet); the number of violated triplets (hard
        margin: loss above 0; soft margin: the negative is not farther than the positive); the number of triplets.

    Raises:
        DataError: shapes that do not fit.
    """
    _check_shapes(distances, pids, camids)
    if len(pids) == 0:
        return distances.sum(), distances.new_zeros(()), distances.new_zeros(())
    positives, negatives = pair_masks(pids, camids)
    index, listed = _columns_of(positives)
    total, violated = _AllTriplets.apply(distances, index, listed, negatives, margin)
    return total, violated, (listed.sum(dim=1) * negatives.sum(dim=1)).sum()


class _AllTriplets(torch.autograd.Function):
    """`batch_all`; the gradient is computed with the loss, block by block of anchors, and stored."""

    @staticmethod
    def forward(
        ctx: Any, distances: Tensor, index: Tensor, listed: Tensor, negatives: Tensor, margin: float | None
    ) -> tuple[Tensor, Tensor]:
        size, width = len(distances), index.shape[1]
        gradient = torch.empty_like(distances)
        total, violated = distances.new_zeros(()), distances.new_zeros((), dtype=torch.int64)
        step = max(1, _BLOCK // (size if margin is not None else size * width))
        block = _all_soft if margin is None else _all_hinge
        for start in range(0, size, step):
            rows = slice(start, start + step)
            part, found = block(
                distances[rows], index[rows], listed[rows], negatives[rows], margin or 0.0, gradient[rows]
            )
            total, violated = total + part, violated + found
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(violated)
        return total, violated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None, None


def _all_hinge(
    d: Tensor, index: Tensor, listed: Tensor, negatives: Tensor, margin: float, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sum and the number of the triplets with a loss above 0 in a block of rows; fill in `gradient`."""
    padding = torch.finfo(d.dtype).max
    thresholds, order = (-margin - d.gather(1, index)).masked_fill(~listed, padding).sort(dim=1)
    above = torch.searchsorted(thresholds, (-d).masked_fill(~negatives, -torch.inf))  # thresholds above each negative
    weights = above.to(d.dtype)
    counts = torch.zeros(len(d), index.shape[1] + 1, dtype=d.dtype, device=d.device)
    counts.scatter_add_(1, above, torch.ones_like(weights))
    below = d.shape[1] - counts.cumsum(dim=1)[:, :-1]  # negatives below each threshold
    total = -((below * thresholds).sum(dim=1) + (weights * d).sum(dim=1)).sum()
    torch.neg(weights, out=gradient)
    gradient.scatter_add_(1, index.gather(1, order), below)
    return total, below.sum()


def _all_soft(
    d: Tensor, index: Tensor, listed: Tensor, negatives: Tensor, margin: float, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Do the same for the soft margin; a triplet is violated if the negative is not farther than the positive."""
    difference = d.gather(1, index).unsqueeze(2) - d.unsqueeze(1)
    triplets = listed.unsqueeze(2) & negatives.unsqueeze(1)
    total = functional.softplus(difference).masked_fill_(~triplets, 0.0).sum()
    slope = difference.sigmoid().masked_fill_(~triplets, 0.0)
    torch.neg(slope.sum(dim=1), out=gradient)
    gradient.scatter_add_(1, index, slope.sum(dim=2))
    return total, ((difference >= 0) & triplets).sum()


def _check_shapes(distances: Tensor, pids: Tensor, camids: Tensor | None) -> None:
    if pids.ndim != 1 or distances.shape != (len(pids), len(pids)):
        raise DataError(
            f"Mining needs distances [B, B] and pids [B]; got {list(distances.shape)} and {list(pids.shape)}."
        )
    if camids is not None and camids.shape != pids.shape:
        raise DataError(f"Mining needs camids like pids, {list(pids.shape)}; got {list(camids.shape)}.")


def _columns_of(positives: Tensor) -> tuple[Tensor, Tensor]:
    """Convert a mask to a ragged list: the columns `[B, W]` of each row's positives, and which of them are used.

    W is the largest number of positives of a row (at least 1) on the CPU, and B on other devices, where reading that
    number would make the host wait.
    """
    width = max(1, int(positives.sum(dim=1).max())) if positives.device.type == "cpu" else len(positives)
    listed, index = positives.to(torch.uint8).topk(width, dim=1)
    return index, listed.bool()


def _softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax of each row over the masked values; 0 elsewhere and in rows without any."""
    has_any = mask.any(dim=1, keepdim=True)
    return logits.masked_fill(has_any & ~mask, -torch.inf).softmax(dim=1).masked_fill(~mask, 0.0)
