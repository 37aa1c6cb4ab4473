"""Which of a batch's triplets a loss looks at. A miner picks distances; the loss around it does the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from reid.core.errors import ReidError
from reid.losses.distances import at_least_float32, unit
from reid.losses.pairs import other_cameras_first

Picked = tuple[Tensor, Tensor, Tensor]
"""`positive`, `negative` (distances) and `valid` (bool), all `[B]`: one triplet an anchor; or all `[B, W]`: one a
positive pair, anchors in rows, W at least the most positives that an anchor has. What is not valid is 0."""

Miner = Callable[..., Picked]
"""`(distances [B, B], pids [B], camids [B] | None, *, hardness, generator, features)` to `Picked`."""

_NARROW = 16
"""Positives an anchor up to which one pass each is faster than sorting all negatives."""

_BLOCK = 2**20
"""Elements of a block of rows; batch-all holds a few of them beside its `[B, B]` gradient."""


def pair_masks(pids: Tensor, camids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which pairs are positive (same identity, not the same row) and which negative.

    Args:
        pids: `[B]` identities, any integers.
        camids: `[B]` cameras to put first the positives of other cameras: an anchor that has any keeps only those.

    Returns:
        Two `[B, B]` bool masks, anchors in rows; no pair is in both, and the diagonal is in neither.
    """
    same = pids.unsqueeze(0) == pids.unsqueeze(1)
    negatives = ~same
    positives = same.fill_diagonal_(False)
    if camids is not None:
        positives = other_cameras_first(positives, camids.unsqueeze(0) != camids.unsqueeze(1))
    return positives, negatives


def batch_hard(
    distances: Tensor,
    pids: Tensor,
    camids: Tensor | None = None,
    *,
    hardness: float = 1.0,
    generator: torch.Generator | None = None,
    features: Tensor | None = None,
) -> Picked:
    """For each anchor the farthest crop of its identity and the nearest of any other (Hermans et al. 2017, eq. 5).

    `positive[a] = max over p ≠ a with pid[p] = pid[a] of d[a, p]`;
    `negative[a] = min over n with pid[n] ≠ pid[a] of d[a, n]`.
    With `hardness < 1` each of the two is drawn at random from the hardest share `1 − hardness` of its candidates (at
    least one of them), every candidate there with the same chance: 0 is `random`, 1 the hardest, and the chances
    change continuously in between.

    Masks do the choosing, so identities may have any number of crops each. An anchor is valid when it has both; the
    others get 0 and 0 and no gradient. Of equal distances one gets the gradient. A NaN distance is passed on as NaN
    (by the hardest choice; a random one may not meet it). No copy to the host.

    Args:
        distances: `[B, B]`.
        pids: `[B]` integers.
        camids: `[B]` integers: positives of other cameras first (`pair_masks`); None: cameras do not matter.
        hardness: 0..1.
        generator: of the draw, on the device of the distances; not needed for hardness 1.
        features: not looked at.

    Returns:
        `positive [B]`, `negative [B]`, `valid [B]` bool.

    Raises:
        ReidError: shapes that do not fit, hardness out of range, or no generator where one is needed.
    """
    _check(distances, pids, camids)
    if len(pids) == 0:
        return _nothing(distances)
    positives, negatives, valid = _anchors(pids, camids)
    positive = _hard(distances, positives, hardness, generator, farthest=True)
    negative = _hard(distances, negatives, hardness, generator, farthest=False)
    return _picked(positive, negative, valid)


def random(
    distances: Tensor,
    pids: Tensor,
    camids: Tensor | None = None,
    *,
    hardness: float = 1.0,
    generator: torch.Generator | None = None,
    features: Tensor | None = None,
) -> Picked:
    """For each anchor one of its positives and one of its negatives, drawn with equal chances.

    Arguments, corner cases and errors as in `batch_hard`; `hardness` is not looked at.
    """
    _check(distances, pids, camids)
    if len(pids) == 0:
        return _nothing(distances)
    positives, negatives, valid = _anchors(pids, camids)
    lots = _uniform(distances.shape, distances, generator)
    drawn = [lots.masked_fill(~mask, -1.0).argmax(dim=1, keepdim=True) for mask in (positives, negatives)]
    positive, negative = (distances.gather(1, column).squeeze(1) for column in drawn)
    return _picked(positive, negative, valid)


def easy_positive(
    distances: Tensor,
    pids: Tensor,
    camids: Tensor | None = None,
    *,
    hardness: float = 1.0,
    generator: torch.Generator | None = None,
    features: Tensor | None = None,
) -> Picked:
    """For each anchor its nearest positive and its nearest negative (Xuan, Stylianou, Pless 2020, EPHN).

    A crop is pulled only to the crop of its identity that it already resembles, so that an identity may keep several
    looks (front and back) apart. `hardness` moves the choice of the negative as in `batch_hard`; the rest as there.
    """
    _check(distances, pids, camids)
    if len(pids) == 0:
        return _nothing(distances)
    positives, negatives, valid = _anchors(pids, camids)
    positive = _hard(distances, positives, 1.0, None, farthest=False)
    negative = _hard(distances, negatives, hardness, generator, farthest=False)
    return _picked(positive, negative, valid)


def hardest_negative(
    distances: Tensor,
    pids: Tensor,
    camids: Tensor | None = None,
    *,
    hardness: float = 1.0,
    generator: torch.Generator | None = None,
    features: Tensor | None = None,
) -> Picked:
    """Every positive pair with the nearest negative of its anchor.

    With `hardness < 1` each pair draws its negative from the nearest share `1 − hardness` of the anchor's negatives.

    Returns:
        `positive`, `negative`, `valid`, all `[B, W]`.

    Arguments, corner cases and errors as in `batch_hard`.
    """
    _check(distances, pids, camids)
    if len(pids) == 0:
        return _nothing(distances)
    index, negatives, valid = _pairs(pids, camids)
    positive = distances.gather(1, index)
    if hardness == 1:
        negative = _hard(distances, negatives, 1.0, None, farthest=False).unsqueeze(1).expand_as(positive)
    else:
        count = negatives.sum(dim=1, keepdim=True).expand_as(positive)
        ranked = distances.masked_fill(~negatives, torch.inf).sort(dim=1).values
        negative = ranked.gather(1, _rank(count, hardness, generator))
    return _picked(positive, negative, valid)


def semi_hard(
    distances: Tensor,
    pids: Tensor,
    camids: Tensor | None = None,
    *,
    hardness: float = 1.0,
    generator: torch.Generator | None = None,
    features: Tensor | None = None,
) -> Picked:
    """Every positive pair with the nearest negative that is farther than the positive (Schroff et al. 2015, 3.2).

    `negative[a, p] = min over n with pid[n] ≠ pid[a] and d[a, n] > d[a, p] of d[a, n]`; where no negative is farther
    than the positive, the farthest negative of the anchor, which violates least. FaceNet asks too that the negative
    lie inside the margin, `d[a, n] < d[a, p] + margin`; one outside gives a hard-margin loss of 0 in any case.
    With `hardness < 1` each pair draws its negative from the nearest share `1 − hardness` of those that are farther.

    Returns:
        `positive`, `negative`, `valid`, all `[B, W]`.

    Arguments, corner cases and errors as in `batch_hard`.
    """
    _check(distances, pids, camids)
    if len(pids) == 0:
        return _nothing(distances)
    index, negatives, valid = _pairs(pids, camids)
    positive = distances.gather(1, index)
    with torch.no_grad():
        if hardness == 1 and index.shape[1] <= _NARROW:
            chosen = _first_beyond(distances, negatives, positive)
        else:
            ranked, order = distances.masked_fill(~negatives, torch.inf).sort(dim=1)
            count = negatives.sum(dim=1, keepdim=True)
            nearer = torch.searchsorted(ranked, positive, right=True).minimum(count)
            place = nearer + _rank(count - nearer, hardness, generator)
            chosen = order.gather(1, place.minimum(count - 1).clamp(min=0))
    negative = distances.gather(1, chosen)
    return _picked(positive, negative, valid)


def _first_beyond(distances: Tensor, negatives: Tensor, positive: Tensor) -> Tensor:
    """Columns `[B, W]` of the nearest negative beyond each positive, else of the farthest: without sorting all."""
    candidates = distances.masked_fill(~negatives, -torch.inf)
    farthest = candidates.argmax(dim=1, keepdim=True)
    step = max(1, _BLOCK // max(1, positive.numel()))
    chosen = []
    for some, thresholds in zip(candidates.split(step), positive.split(step), strict=True):
        some, thresholds = some.unsqueeze(1), thresholds.unsqueeze(2)
        chosen.append(some.masked_fill(some <= thresholds, torch.inf).min(dim=2))
    values, columns = (torch.cat(parts) for parts in zip(*chosen, strict=True))
    return torch.where(values < torch.inf, columns, farthest)


def distance_weighted(
    distances: Tensor,
    pids: Tensor,
    camids: Tensor | None = None,
    *,
    hardness: float = 1.0,
    generator: torch.Generator | None = None,
    features: Tensor | None = None,
    nearest: float = 0.5,
    farthest: float = 1.4,
) -> Picked:
    """Every positive pair with a negative drawn so that all distances are seen equally often (Wu et al. 2017, sec. 4).

    With u the Euclidean distance of the L2-normalised features (whatever `distances` are), a negative is drawn with
    probability proportional to `1 / q(max(u, nearest))` where `q(u) ∝ u^(D−2) (1 − u²/4)^((D−3)/2)` is the density of
    distances between random points of the unit sphere. Negatives beyond `farthest` are drawn only where an anchor has
    no other, and then with equal chances.

    Args:
        distances, pids, camids: as in `batch_hard`.
        hardness: not looked at.
        generator: of the draw, on the device of the distances.
        features: `[B, D]`, needed.
        nearest: in 0..2; nearer negatives are drawn as often as those at this distance (the paper's λ).
        farthest: in 0..2.

    Returns:
        `positive`, `negative`, `valid`, all `[B, W]`.

    Raises:
        ReidError: as in `batch_hard`, or no features.
    """
    _check(distances, pids, camids)
    if features is None:
        raise ReidError("Distance-weighted mining needs the features [B, D]: chances depend on where they lie.")
    if len(pids) == 0:
        return _nothing(distances)
    index, negatives, valid = _pairs(pids, camids)
    positive = distances.gather(1, index)
    with torch.no_grad(), torch.autocast(distances.device.type, enabled=False):
        directions = unit(at_least_float32(features.detach()))
        u = (2 - 2 * (directions @ directions.T)).clamp(min=nearest**2, max=4 - 1e-6).sqrt()
        dimension = features.shape[1]
        logit = -(dimension - 2) * u.log() - (dimension - 3) / 2 * (1 - u.square() / 4).log()
        near = negatives & (u < farthest)
        some = near.any(dim=1, keepdim=True)
        chance = torch.where(some, logit.masked_fill(~near, -torch.inf), torch.where(negatives, 0.0, -torch.inf))
        ladder = chance.softmax(dim=1).nan_to_num(0.0).cumsum(dim=1)
        drawn = _uniform(positive.shape, distances, generator) * ladder[:, -1:]
        chosen = torch.searchsorted(ladder, drawn, right=True).clamp(max=len(pids) - 1)
    negative = distances.gather(1, chosen)
    return _picked(positive, negative, valid)


def weighted(
    distances: Tensor,
    pids: Tensor,
    camids: Tensor | None = None,
    *,
    hardness: float = 1.0,
    generator: torch.Generator | None = None,
    features: Tensor | None = None,
) -> Picked:
    """For each anchor a mean of its positives that leans to the far, and of its negatives to the near (AGW).

    `positive[a] = Σ_p softmax_p(d[a, p]) d[a, p]`, `negative[a] = Σ_n softmax_n(−d[a, n]) d[a, n]` (Ye et al. 2021,
    eq. 6 and 7; with the soft margin this is their weighted regularised triplet loss). The gradient goes through the
    weights too. `hardness` and `generator` are not looked at; the rest as in `batch_hard`.
    """
    _check(distances, pids, camids)
    if len(pids) == 0:
        return _nothing(distances)
    positives, negatives, valid = _anchors(pids, camids)
    positive = (_softmax(distances, positives) * distances).sum(dim=1)
    negative = (_softmax(-distances, negatives) * distances).sum(dim=1)
    return _picked(positive, negative, valid)


MINERS: dict[str, Miner] = {
    "batch_hard": batch_hard,
    "semi_hard": semi_hard,
    "hardest_negative": hardest_negative,
    "easy_positive": easy_positive,
    "distance_weighted": distance_weighted,
    "weighted": weighted,
    "random": random,
}

MINING = ("batch_all", *MINERS)
"""Every name that `TripletLoss` knows."""

GRADED = ("batch_hard", "semi_hard", "hardest_negative", "easy_positive")
"""Those whose choice `hardness` moves."""


def batch_all(
    distances: Tensor, pids: Tensor, margin: float | None = 0.3, camids: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The triplet loss summed over all triplets of a batch, without making them.

    `Σ_a Σ_p Σ_n max(0, margin + d[a, p] − d[a, n])`, exactly: the thresholds `margin + d[a, p]` of an anchor are
    sorted once; how many of them lie above a negative, and their sum, is then one look-up for each negative. Time
    O(B² log W) for at most W positives an anchor, memory a small multiple of B². With the soft margin,
    `log(1 + exp(d[a, p] − d[a, n]))`, every triplet counts: O(B² W) time, in blocks.

    Args:
        distances: `[B, B]`.
        pids: `[B]` integers.
        margin: 0 or more; None for the soft margin.
        camids: `[B]` integers: positives of other cameras first (`pair_masks`); None: cameras do not matter.

    Returns:
        The sum (0, and differentiable, without a triplet); the number of violated triplets (hard margin: loss above 0;
        soft margin: the negative no farther than the positive); the number of triplets. Three 0-d tensors.

    Raises:
        ReidError: shapes that do not fit.
    """
    _check(distances, pids, camids)
    if len(pids) == 0:
        return distances.sum(), distances.new_zeros(()), distances.new_zeros(())
    positives, negatives = pair_masks(pids, camids)
    index, listed = _listed(positives)
    total, violated = _AllTriplets.apply(distances, index, listed, negatives, margin)
    return total, violated, (listed.sum(dim=1) * negatives.sum(dim=1)).sum()


class _AllTriplets(torch.autograd.Function):
    """`batch_all`; the gradient is made on the way, block by block of anchors, and kept."""

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
    """A block of rows: sum and number of the triplets above 0; fills in their gradient."""
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
    """As `_all_hinge`, for the soft margin; violated: the negative no farther than the positive."""
    difference = d.gather(1, index).unsqueeze(2) - d.unsqueeze(1)
    triplets = listed.unsqueeze(2) & negatives.unsqueeze(1)
    total = functional.softplus(difference).masked_fill_(~triplets, 0.0).sum()
    slope = difference.sigmoid().masked_fill_(~triplets, 0.0)
    torch.neg(slope.sum(dim=1), out=gradient)
    gradient.scatter_add_(1, index, slope.sum(dim=2))
    return total, ((difference >= 0) & triplets).sum()


def _check(distances: Tensor, pids: Tensor, camids: Tensor | None) -> None:
    if pids.ndim != 1 or distances.shape != (len(pids), len(pids)):
        raise ReidError(
            f"Mining needs distances [B, B] and pids [B]; got {list(distances.shape)} and {list(pids.shape)}."
        )
    if camids is not None and camids.shape != pids.shape:
        raise ReidError(f"Mining needs camids like pids, {list(pids.shape)}; got {list(camids.shape)}.")


def _nothing(distances: Tensor) -> Picked:
    nothing = distances.sum(dim=1)  # [0], and still differentiable
    return nothing, nothing, torch.zeros_like(nothing, dtype=torch.bool)


def _anchors(pids: Tensor, camids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`pair_masks`, and which anchors `[B]` have a positive and a negative."""
    positives, negatives = pair_masks(pids, camids)
    return positives, negatives, positives.any(dim=1) & negatives.any(dim=1)


def _pairs(pids: Tensor, camids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The columns `[B, W]` of each anchor's positives, its negatives `[B, B]`, and which columns make a triplet."""
    positives, negatives = pair_masks(pids, camids)
    index, listed = _listed(positives)
    return index, negatives, listed & negatives.any(dim=1, keepdim=True)


def _picked(positive: Tensor, negative: Tensor, valid: Tensor) -> Picked:
    return positive.masked_fill(~valid, 0.0), negative.masked_fill(~valid, 0.0), valid


def _listed(positives: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of each anchor's positives `[B, W]`, and which of them are some: a mask as a ragged list.

    W is the most that an anchor has (1 if none has any) on the CPU, where the number is at hand; elsewhere B, for
    asking would make the host wait.
    """
    width = max(1, int(positives.sum(dim=1).max())) if positives.device.type == "cpu" else len(positives)
    listed, index = positives.to(torch.uint8).topk(width, dim=1)
    return index, listed.bool()


def _hard(
    distances: Tensor, candidates: Tensor, hardness: float, generator: torch.Generator | None, *, farthest: bool
) -> Tensor:
    """`[B]`: of each row's candidates the farthest or nearest, or a draw from the hardest share; ±inf without any."""
    masked = distances.masked_fill(~candidates, -torch.inf if farthest else torch.inf)
    if hardness == 1:
        return (masked.max(dim=1) if farthest else masked.min(dim=1)).values
    ranked = masked.sort(dim=1, descending=farthest).values
    return ranked.gather(1, _rank(candidates.sum(dim=1, keepdim=True), hardness, generator)).squeeze(1)


def _rank(count: Tensor, hardness: float, generator: torch.Generator | None) -> Tensor:
    """0, or a draw from the first `max(1, (1 − hardness) · count)` ranks, equal chances to each (the last one's less,
    where that number is not whole)."""
    if not 0 <= hardness <= 1:
        raise ReidError(f"Hardness must be between 0 (any) and 1 (the hardest); got {hardness}.")
    if hardness == 1:
        return torch.zeros_like(count)
    drawn = _uniform(count.shape, count, generator) * ((1 - hardness) * count).clamp(min=1)
    return drawn.long().minimum(count - 1).clamp(min=0)


def _uniform(shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise ReidError("This choice is random: give it a torch.Generator, on the device of the distances.")
    return torch.rand(shape, device=like.device, generator=generator)


def _softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Along rows, over what is masked in; 0 elsewhere, also where a row has nothing."""
    some = mask.any(dim=1, keepdim=True)
    return logits.masked_fill(some & ~mask, -torch.inf).softmax(dim=1).masked_fill(~mask, 0.0)
