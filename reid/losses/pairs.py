"""Base class of the losses over pairs: which pairs count, references from earlier batches, and shared checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reid.core.arrays import different_cameras
from reid.core.errors import DataError
from reid.losses.distances import Distance, at_least_float32, normalised, pairwise_distances


class References(NamedTuple):
    """Features besides the batch that anchors are compared with, such as a memory. They get no gradient."""

    features: Tensor
    """`[M, D]`."""
    pids: Tensor
    """`[M]`."""
    camids: Tensor | None
    """`[M]`, or None if cameras are not used."""
    usable: Tensor
    """`[M]` bool; the others are empty and are not compared."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Anchors and the crops they are compared with.

    Attributes:
        anchors: `[B, D]`, float32 or float64.
        others: `[N, D]`, N ≥ B: the anchors first, then the references. The same tensor without references.
        pids: `[B]`; other_pids: `[N]`.
        positives, negatives: `[B, N]` bool; no pair is in both.
    """

    anchors: Tensor
    others: Tensor
    pids: Tensor
    other_pids: Tensor
    positives: Tensor
    negatives: Tensor

    @property
    def valid(self) -> Tensor:
        """`[B]` bool: anchors with a positive and a negative."""
        return self.positives.any(dim=1) & self.negatives.any(dim=1)

    def distances(self, distance: Distance) -> Tensor:
        """Return all distances `[B, N]`."""
        return pairwise_distances(self.anchors, None if self.others is self.anchors else self.others, distance)

    def similarities(self) -> Tensor:
        """Return all cosine similarities `[B, N]`."""
        return similarities(self.anchors, self.others)


class PairLoss(nn.Module):
    """Base class: a loss of anchors against the other crops of the batch and, optionally, references.

    Subclasses implement `pair_loss`. Common to all of them:

    1. A pair is positive if both crops have the same identity and are different rows, and negative if the identities
       differ. Two equal images in two rows are a pair.
    2. `camera_aware`: an anchor with positives from other cameras uses only those. The other anchors keep their
       positives, so no anchor is lost. An unknown camera (-1) differs from every other.
    3. Identities may have any number of crops. Where nothing can be learned (one identity; one crop each; one crop; no
       crop) the loss is 0 with gradient 0, unless the subclass says otherwise.
    4. bfloat16, float16, autocast: computed in float32; float64 stays. The gradient has the features' type.
    5. A NaN or infinite feature makes the loss NaN. Features are not checked because that would make the host wait for
       the device; the trainer checks the loss.

    Args:
        camera_aware: needs `camids` at every call.
    """

    takes_references = True
    """Whether the loss can compare with features besides the batch."""

    shown: tuple[str, ...] = ()
    """Names of the settings that `print(model)` shows."""

    def __init__(self, camera_aware: bool = False) -> None:
        super().__init__()
        self.camera_aware = camera_aware

    def forward(
        self, features: Tensor, pids: Tensor, camids: Tensor | None = None, references: References | None = None
    ) -> Tensor:
        """Return the loss of a batch, a float32 scalar (float64 for float64 features).

        Args:
            features: `[B, D]`.
            pids: `[B]` integers.
            camids: `[B]` integers; only used if the loss is camera-aware.
            references: what to compare with besides the batch; see `CrossBatchMemory`.

        Raises:
            DataError: shapes that do not fit, or cameras are needed and missing.
        """
        with torch.autocast(features.device.type, enabled=False):
            pairs = self.pairs(features, pids, camids, references)
            return self.pair_loss(pairs) + zero_of(pairs.anchors)

    def pairs(self, features: Tensor, pids: Tensor, camids: Tensor | None, references: References | None) -> Pairs:
        """Return what `forward` compares.

        Raises:
            DataError: as `forward`.
        """
        check_batch(features, pids, camids, camera_aware=self.camera_aware)
        anchors = others = at_least_float32(features)
        other_pids, other_camids, usable = pids, camids, torch.ones_like(pids, dtype=torch.bool)
        if references is not None:
            others = torch.cat([anchors, references.features.detach().to(anchors.dtype)])
            other_pids = torch.cat([pids, references.pids])
            usable = torch.cat([usable, references.usable])
            if camids is not None and references.camids is not None:
                other_camids = torch.cat([camids, references.camids])
        same = pids.unsqueeze(1) == other_pids
        positives = (same & usable).fill_diagonal_(False)
        if self.camera_aware and camids is not None and other_camids is not None:
            positives = other_cameras_first(positives, different_cameras(camids.unsqueeze(1), other_camids))
        return Pairs(anchors, others, pids, other_pids, positives, ~same & usable)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the loss of the pairs, a scalar."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return the settings that `print(model)` shows."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.shown)


class LabelLoss(nn.Module):
    """Base class: a loss of each crop against learned vectors, one per identity. Subclasses implement `label_loss`.

    Corner cases: crops are not compared with each other, so every batch is valid; no crop gives 0. bfloat16, float16,
    autocast: computed in float32. NaN features give NaN.
    """

    num_classes: int
    """C; `pids` are labels 0..C−1."""

    def forward(self, features: Tensor, pids: Tensor, camids: Tensor | None = None) -> Tensor:
        """Return the loss of a batch, the mean over crops: a float32 scalar (float64 for float64 features).

        Args:
            features: `[B, D]`.
            pids: `[B]` labels 0..C−1.
            camids: not used.

        Raises:
            DataError: shapes that do not fit, or (on the CPU) labels out of range.
        """
        check_batch(features, pids, camids)
        check_labels(pids, self.num_classes)
        with torch.autocast(features.device.type, enabled=False):
            x = at_least_float32(features)
            return self.label_loss(x, pids) / max(len(x), 1) + zero_of(x)

    def label_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the losses of all crops, a scalar."""
        raise NotImplementedError


def other_cameras_first(positives: Tensor, other_camera: Tensor) -> Tensor:
    """Return each row's positives from other cameras; all its positives in a row without any such."""
    across = positives & other_camera
    return torch.where(across.any(dim=1, keepdim=True), across, positives)


def check_batch(features: Tensor, pids: Tensor, camids: Tensor | None, *, camera_aware: bool = False) -> None:
    """Raise an error if a loss cannot take the batch.

    Raises:
        DataError: naming the shapes, or missing cameras.
    """
    if features.ndim != 2 or pids.shape != features.shape[:1]:
        raise DataError(
            f"A loss needs features [B, D] and pids [B]; got {list(features.shape)} and {list(pids.shape)}."
        )
    if camids is not None and camids.shape != pids.shape:
        raise DataError(f"A loss needs camids [B] like pids; got {list(camids.shape)} and {list(pids.shape)}.")
    if camera_aware and camids is None:
        raise DataError("A camera-aware loss needs camids [B]. Pass them, or set camera_aware to false.")


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise an error if labels on the CPU are not in 0..C−1. Labels on a GPU are not checked: the host would wait.

    Raises:
        DataError: naming the first wrong label.
    """
    if labels.device.type == "cpu" and len(labels):
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise DataError(
                f"This loss has one vector for each of {num_classes} identities and needs labels 0 to "
                f"{num_classes - 1}; got {int(wrong[0])}. Renumber the identities, e.g. with "
                "torch.unique(pids, return_inverse=True)."
            )


def zero_of(features: Tensor) -> Tensor:
    """Return 0 with gradient 0 if all features are finite; else NaN."""
    return (features * 0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the masked values; 0 (and differentiable) if there are none."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def masked_logsumexp(values: Tensor, mask: Tensor) -> Tensor:
    """Return `log Σ exp` over the masked values of each row; 0, without gradient, in a row without any."""
    has_any = mask.any(dim=1, keepdim=True)
    kept = values.masked_fill(~mask, -torch.inf).masked_fill(~has_any, 0.0)
    return kept.logsumexp(dim=1).masked_fill(~has_any.squeeze(1), 0.0)


def similarities(x: Tensor, y: Tensor) -> Tensor:
    """Return cosine similarities `[N, M]` between rows; 0 for a row of zeros, which gets no gradient."""
    directions = normalised(x)
    return directions @ (directions if y is x else normalised(y)).T
