"""Which of a batch's pairs a loss looks at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reid.errors import ReidError

Miner = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""`(distances [B, B], pids [B])` to `(positive [B], negative [B], valid [B] bool)`: one triplet an anchor."""


def pair_masks(pids: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs are positive (same identity, not the same row) and which negative.

    Args:
        pids: `[B]` identities, any integers.

    Returns:
        Two `[B, B]` bool masks; no pair is in both, and the diagonal is in neither.
    """
    same = pids.unsqueeze(0) == pids.unsqueeze(1)
    self_pair = torch.eye(len(pids), dtype=torch.bool, device=pids.device)
    return same & ~self_pair, ~same


def batch_hard(distances: Tensor, pids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each anchor the farthest crop of its identity and the nearest of any other (Hermans et al. 2017, eq. 5).

    `positive[a] = max over p ≠ a with pid[p] = pid[a] of d[a, p]`;
    `negative[a] = min over n with pid[n] ≠ pid[a] of d[a, n]`.
    Masks do the choosing, so identities may have any number of crops each. An anchor is valid when it has both; the
    others get 0 and 0 and no gradient. Of equal distances one gets the gradient. A NaN distance is passed on as NaN.
    No copy to the host.

    Args:
        distances: `[B, B]`.
        pids: `[B]` integers.

    Returns:
        `positive [B]`, `negative [B]`, `valid [B]` bool.

    Raises:
        ReidError: shapes that do not fit.
    """
    if pids.ndim != 1 or distances.shape != (len(pids), len(pids)):
        raise ReidError(
            f"Mining needs distances [B, B] and pids [B]; got {list(distances.shape)} and {list(pids.shape)}."
        )
    if len(pids) == 0:
        nothing = distances.sum(dim=1)  # [0], and still differentiable
        return nothing, nothing, pids.new_zeros(0, dtype=torch.bool)
    positives, negatives = pair_masks(pids)
    valid = positives.any(dim=1) & negatives.any(dim=1)
    hardest_positive = distances.masked_fill(~positives, -torch.inf).max(dim=1).values
    hardest_negative = distances.masked_fill(~negatives, torch.inf).min(dim=1).values
    return hardest_positive.masked_fill(~valid, 0.0), hardest_negative.masked_fill(~valid, 0.0), valid


MINING: dict[str, Miner] = {"batch_hard": batch_hard}
