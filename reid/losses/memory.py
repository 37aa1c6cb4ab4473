"""Cross-batch memory: compare a batch with features of earlier steps, at the cost of storing them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reid.core.errors import ConfigError, DataError, check_number
from reid.losses.distances import Distance, distance_function
from reid.losses.pairs import PairLoss, Pairs, References, check_batch, masked_mean
from reid.losses.triplet import hinge


class CrossBatchMemory(nn.Module):
    """Compare a batch with itself and with the features of the last steps (XBM: Wang et al. 2020, algorithm 1).

    Features change slowly once training has settled, so those of a few steps ago still represent their crops. They are
    stored in a ring buffer of `size` rows. A call computes the pair loss of the batch's anchors against the batch and
    the memory together, then stores the batch over the oldest rows. (The paper adds the loss over the memory to the
    loss over the batch; here both are one loss, so a mean is over all pairs.) The memory gets no gradient: pairs with
    it only move the batch.

    Corner cases:

    1. Empty rows are not compared. With an empty memory the loss is that of the batch alone.
    2. During the first `warmup` training calls the memory is filled but not used, because features still change fast.
    3. A batch larger than the memory leaves its last `size` rows in it. A crop that occurs again is a positive of its
       stored version, like a duplicate in a batch.
    4. A row with NaN or infinity makes the loss NaN and is not stored.
    5. In eval mode the memory is used and not changed.
    6. Buffer, position and number of calls are in the state dict, so a resumed run continues exactly.

    Args:
        loss: any `PairLoss`.
        dim: D.
        size: rows; a few to some tens of batches. Memory is `4 · size · D` bytes, and distances are `[B, B + size]`.
        warmup: training calls.

    Raises:
        ConfigError: a loss that does not take references, or a number out of range.
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
            raise ConfigError(f"{name} is not a loss over pairs of crops and cannot use a memory. Remove its memory.")
        check_number("memory", size, 1)
        check_number("warmup", warmup)
        self.loss = loss
        self.size = size
        self.warmup = warmup
        self.register_buffer("features", torch.zeros(size, dim))
        for name, shape in (("pids", (size,)), ("camids", (size,)), ("filled", (size,)), ("calls", ()), ("place", ())):
            dtype = torch.bool if name == "filled" else torch.int64
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    def forward(self, features: Tensor, pids: Tensor, camids: Tensor | None = None) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            features: `[B, D]`.
            pids: `[B]` integers, the same number for an identity in every batch.
            camids: `[B]` integers, or None in every batch.

        Raises:
            DataError: shapes that do not fit, or cameras are needed and missing.
        """
        check_batch(features, pids, camids)
        if features.shape[1] != self.features.shape[1]:
            raise DataError(
                f"The memory stores features of {self.features.shape[1]} dimensions; these have {features.shape[1]}."
            )
        usable = self.filled & (self.calls >= self.warmup)
        memory = References(self.features, self.pids, None if camids is None else self.camids, usable)
        loss: Tensor = self.loss(features, pids, camids, memory)
        if self.training:
            self._store(features, pids, camids)
        return loss

    def extra_repr(self) -> str:
        """Return the settings that `print(model)` shows."""
        return f"size={self.size}, warmup={self.warmup}"

    @torch.no_grad()
    def _store(self, features: Tensor, pids: Tensor, camids: Tensor | None) -> None:
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
    """Batch-hard triplet loss whose positives and negatives may be in a memory (`TripletLoss` uses a batch only).

    `max(0, m + d_ap − d_an)`, or `log(1 + exp(d_ap − d_an))` without a margin, with the farthest positive and the
    nearest negative of each anchor; the mean over the anchors that have both. Without a memory it equals `TripletLoss`
    with batch-hard mining, including the corner cases.

    Args:
        margin, distance, camera_aware: as in `TripletLoss`.

    Raises:
        ConfigError: a negative or non-finite margin, or an unknown distance.
    """

    shown = ("margin", "distance")

    def __init__(
        self, margin: float | None = 0.3, distance: Distance = "euclidean", camera_aware: bool = False
    ) -> None:
        super().__init__(camera_aware)
        check_number("The triplet margin", margin)
        distance_function(distance)
        self.margin = margin
        self.distance = distance

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See `PairLoss`."""
        if not len(pairs.anchors):
            return pairs.anchors.sum()
        distances = pairs.distances(self.distance)
        farthest = distances.masked_fill(~pairs.positives, -torch.inf).max(dim=1).values
        nearest = distances.masked_fill(~pairs.negatives, torch.inf).min(dim=1).values
        difference = (farthest - nearest).masked_fill(~pairs.valid, 0.0)
        return masked_mean(hinge(difference, self.margin), pairs.valid)
