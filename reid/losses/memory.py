"""Cross-batch memory: pairs with features of earlier steps, at the price of their storage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reid.core.errors import ReidError
from reid.losses.distances import Distance, check_distance, pairwise_distances
from reid.losses.pairs import PairLoss, References, check_batch, masked_mean
from reid.losses.triplet import check_margin, hinge


class CrossBatchMemory(nn.Module):
    """Compare a batch with itself and with the features of the last steps (XBM: Wang et al. 2020, algorithm 1).

    Features drift slowly once training has settled, so those of a few steps ago still stand for their crops. They are
    kept in a ring of `size` places. A call takes the pair loss of the batch's anchors against the batch and the
    memory together, then puts the batch into the memory, over what is oldest. (The paper adds the loss over the
    memory to the loss over the batch; here they are one loss over both, so a mean is over all pairs.) The memory
    passes no gradient: pairs with it move the batch only.

    Behaviour in corner cases:

    1. Empty places are compared with nothing; with an empty memory the loss is that of the batch alone.
    2. During the first `warmup` training calls the memory fills but is not compared with: features still move fast.
    3. A batch larger than the memory leaves its last `size` rows in it. A crop met again is a positive to its older
       self, as a duplicate in a batch is.
    4. A row with NaN or infinity makes the loss NaN, and is kept out of the memory.
    5. In eval mode the memory is compared with and does not change.
    6. Ring, place and count of calls are buffers: a run that goes on from its state dict goes on the same.

    Args:
        loss: any `PairLoss`.
        dim: D.
        size: places; a few to some tens of batches. Memory is `4 · size · D` bytes, and distances are `[B, B + size]`.
        warmup: training calls.

    Raises:
        ReidError: a loss without pairs, or a number out of range.
    """

    features: Tensor
    pids: Tensor
    camids: Tensor
    filled: Tensor
    calls: Tensor
    place: Tensor

    def __init__(self, loss: nn.Module, dim: int, size: int = 1024, warmup: int = 0) -> None:
        super().__init__()
        if not (isinstance(loss, PairLoss) and loss.takes_references):
            name = getattr(loss, "name", type(loss).__name__)
            raise ReidError(f"{name} is no loss over pairs of an anchor and another crop: leave its memory out.")
        if size < 1 or warmup < 0:
            raise ReidError(f"A memory needs 1 place or more and a warm-up of 0 or more; got {size} and {warmup}.")
        self.loss = loss
        self.size = size
        self.warmup = warmup
        self.register_buffer("features", torch.zeros(size, dim))
        self.register_buffer("pids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("camids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor, pids: Tensor, camids: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            features: `[B, D]`.
            pids: `[B]` integers, the same number for an identity in every batch.
            camids: `[B]` integers, or None in every batch.

        Raises:
            ReidError: shapes that do not fit, or cameras needed and missing.
        """
        check_batch(features, pids, camids)
        if features.shape[1] != self.features.shape[1]:
            raise ReidError(
                f"The memory was made for features of {self.features.shape[1]} numbers; these have {features.shape[1]}."
            )
        usable = self.filled & (self.calls >= self.warmup)
        memory = References(self.features, self.pids, None if camids is None else self.camids, usable)
        loss: Tensor = self.loss(features, pids, camids, memory)
        if self.training:
            self._keep(features, pids, camids)
        return loss

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"size={self.size}, warmup={self.warmup}"

    @torch.no_grad()
    def _keep(self, features: Tensor, pids: Tensor, camids: Tensor | None) -> None:
        features, pids = features[-self.size :].detach(), pids[-self.size :]
        at = (self.place + torch.arange(len(pids), device=pids.device)) % self.size
        good = features.isfinite().all(dim=1)
        self.features[at] = features.to(self.features.dtype).masked_fill(~good.unsqueeze(1), 0.0)
        self.pids[at] = pids.long()
        self.camids[at] = torch.zeros_like(self.pids[at]) if camids is None else camids[-self.size :].long()
        self.filled[at] = good
        self.place += len(pids)
        self.place %= self.size
        self.calls += 1


class HardTripletPairs(PairLoss):
    """Batch-hard triplets whose positives and negatives may lie in a memory (`TripletLoss` looks at a batch alone).

    `max(0, m + d_ap − d_an)`, or `log(1 + exp(d_ap − d_an))` without a margin, with the farthest positive and the
    nearest negative of each anchor; the mean over the anchors that have both. Without a memory it is `TripletLoss`
    with batch-hard mining, and its corner cases are the same.

    Args:
        margin, distance, camera_aware: as in `TripletLoss`.

    Raises:
        ReidError: a negative or non-finite margin, or an unknown distance.
    """

    def __init__(
        self, margin: float | None = 0.3, distance: Distance = "euclidean", camera_aware: bool = False
    ) -> None:
        super().__init__(camera_aware)
        check_margin(margin)
        check_distance(distance)
        self.margin = margin
        self.distance = distance

    def of_pairs(self, anchors: Tensor, others: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """See `PairLoss`."""
        if not len(anchors):
            return anchors.sum()
        distances = pairwise_distances(anchors, None if others is anchors else others, self.distance)
        valid = positives.any(dim=1) & negatives.any(dim=1)
        farthest = distances.masked_fill(~positives, -torch.inf).max(dim=1).values
        nearest = distances.masked_fill(~negatives, torch.inf).min(dim=1).values
        difference = (farthest - nearest).masked_fill(~valid, 0.0)
        return masked_mean(hinge(difference, self.margin), valid)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"margin={self.margin}, distance={self.distance!r}"
