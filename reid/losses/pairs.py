"""What the losses over pairs share: which pairs count, references beside the batch, sums that stay differentiable."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reid.core.errors import ReidError
from reid.losses.distances import at_least_float32, unit


class References(NamedTuple):
    """Features beside the batch that its anchors are compared to: a memory. They pass no gradient on."""

    features: Tensor
    """`[M, D]`."""
    pids: Tensor
    """`[M]`."""
    camids: Tensor | None
    """`[M]`, or None when cameras are not looked at."""
    usable: Tensor
    """`[M]` bool; the others are empty places, which nothing is compared to."""


class Compared(NamedTuple):
    """Anchors and what each of them is compared with."""

    anchors: Tensor
    """`[B, D]`, float32 or float64."""
    others: Tensor
    """`[N, D]`, N ≥ B: the anchors themselves first, then the references. The same tensor where there are none."""
    other_pids: Tensor
    """`[N]`."""
    positives: Tensor
    """`[B, N]` bool."""
    negatives: Tensor
    """`[B, N]` bool; no pair is in both."""


class PairLoss(nn.Module):
    """A loss of anchors against references, which are the batch itself and, where given, a memory.

    A child gives `of_pairs`; here stand what all of them share.

    1. A pair is positive when both crops are of one identity and are not the same row, negative when they are of two.
       Two equal images in two rows are a pair.
    2. `camera_aware`: an anchor that has a positive from another camera is paired with such ones only. The others
       keep those they have, so no anchor is lost.
    3. Any numbers of crops an identity. Where nothing can be learned from (one identity; one crop each; one crop; no
       crop) the loss is 0 with gradient 0, but where the child says otherwise.
    4. bfloat16, float16, autocast: computed in float32; float64 stays. The gradient has the features' own type.
    5. A NaN or infinite feature makes the loss NaN. There is no check here, which would make the device wait; the
       trainer looks at the loss.

    Args:
        camera_aware: needs `camids` at every call.
    """

    takes_references = True
    """Whether it can compare with features beside the batch."""

    def __init__(self, camera_aware: bool = False) -> None:
        super().__init__()
        self.camera_aware = camera_aware

    def forward(
        self, features: Tensor, pids: Tensor, camids: Tensor | None = None, references: References | None = None
    ) -> Tensor:
        """The loss of a batch, a float32 scalar (float64 for float64 features).

        Args:
            features: `[B, D]`.
            pids: `[B]` integers.
            camids: `[B]` integers; only looked at when the loss is camera-aware.
            references: what to compare with beside the batch; see `CrossBatchMemory`.

        Raises:
            ReidError: shapes that do not fit, or cameras needed and missing.
        """
        with torch.autocast(features.device.type, enabled=False):
            compared = self.compared(features, pids, camids, references)
            value = self.of_pairs(compared.anchors, compared.others, compared.positives, compared.negatives)
            return value + nothing(compared.anchors)

    def compared(
        self, features: Tensor, pids: Tensor, camids: Tensor | None, references: References | None
    ) -> Compared:
        """What `forward` compares with what.

        Raises:
            ReidError: as `forward`.
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
            positives = other_cameras_first(positives, camids.unsqueeze(1) != other_camids)
        return Compared(anchors, others, other_pids, positives, ~same & usable)

    def of_pairs(self, anchors: Tensor, others: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """The loss, given what is compared with what: the fields of `Compared`."""
        raise NotImplementedError


def other_cameras_first(positives: Tensor, other_camera: Tensor) -> Tensor:
    """Of each row's positives those from other cameras; all of them in a row that has none such."""
    across = positives & other_camera
    return torch.where(across.any(dim=1, keepdim=True), across, positives)


def check_batch(features: Tensor, pids: Tensor, camids: Tensor | None, *, camera_aware: bool = False) -> None:
    """Refuse shapes that no loss can take.

    Raises:
        ReidError: naming the shapes, or that cameras are missing.
    """
    if features.ndim != 2 or pids.shape != features.shape[:1]:
        raise ReidError(
            f"A loss needs features [B, D] and pids [B]; got {list(features.shape)} and {list(pids.shape)}."
        )
    if camids is not None and camids.shape != pids.shape:
        raise ReidError(f"A loss needs camids [B] like pids; got {list(camids.shape)} and {list(pids.shape)}.")
    if camera_aware and camids is None:
        raise ReidError("A camera-aware loss needs camids [B]. Pass them, or set camera_aware to false.")


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that are not 0..C−1, where looking does not make a device wait (on the CPU).

    Raises:
        ReidError: naming the first such label.
    """
    if labels.device.type == "cpu" and len(labels):
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise ReidError(
                f"This loss keeps one vector for each of {num_classes} identities and needs labels 0 to "
                f"{num_classes - 1}; got {int(wrong[0])}. Number the identities anew, e.g. with "
                "torch.unique(pids, return_inverse=True)."
            )


def nothing(features: Tensor) -> Tensor:
    """0 with gradient 0 where all features are finite; else NaN."""
    return (features * 0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the masked values; 0 (and differentiable) when there is none."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def similarities(x: Tensor, y: Tensor) -> Tensor:
    """Cosines `[N, M]` of the angles between rows; 0 for a row of zeros, which passes no gradient."""
    directions = unit(x)
    return directions @ (directions if y is x else unit(y)).T
