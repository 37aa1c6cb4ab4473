"""Contrastive loss against a memory of centroids: one for each identity, or for each identity in each camera."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from reid.core.errors import DataError, check_number
from reid.losses.distances import at_least_float32, normalised
from reid.losses.pairs import LabelLoss, check_batch, check_labels, zero_of


class CentroidMemory(LabelLoss):
    """Softmax over the similarities to the stored centroids of all identities (Dai et al. 2022, "Cluster Contrast").

    With m_k the centroid of row k, of length 1, and s_k = cos(x, m_k) / τ, the loss of a crop is

        −1/|P| Σ_{p ∈ P} log( exp s_p / (exp s_p + Σ_{n ∈ N} exp s_n) )

    P are the rows of its identity and N the `negatives` most similar rows of other identities. The memory gets no
    gradient: after the loss, each row moves to the mean x̄ of the batch's crops of that row,
    `m ← normalised(μ m + (1 − μ) x̄)`.

    `start` gives each identity a row, or (`camera_aware`) one for each camera that it occurs in. A crop is then pulled
    to its identity as each camera sees it, and rows of one identity are never compared (Wang et al. 2021, "Camera-aware
    Proxies"). Without `start`, there is one row for each identity, which is empty and not compared before its first
    crop.

    Corner cases: an empty batch, or no row to compare with, gives 0. A row of zeros has similarity 0. NaN features make
    the loss NaN and are not stored. bfloat16, float16, autocast: computed in float32. In evaluation mode the memory
    does not change.

    Args:
        dim: D.
        num_classes: C; `pids` are labels 0..C−1.
        temperature: τ, above 0.
        momentum: μ, 0..1.
        negatives: most rows of other identities that a crop is compared with; 0: all.
        camera_aware: separate rows for each camera; needs `camids` and `start`, which `reid adapt` calls.

    Raises:
        ConfigError: a number out of range.

    Example:
        >>> import torch
        >>> loss = CentroidMemory(dim=2, num_classes=2)
        >>> loss.start(torch.eye(2), torch.tensor([0, 1]))
        >>> round(loss(torch.tensor([[1.0, 1.0]]), torch.tensor([0])).item(), 3)
        0.693
    """

    memory: Tensor
    filled: Tensor
    label_of: Tensor
    camera_of: Tensor
    weight_of: Tensor

    def __init__(
        self,
        dim: int,
        num_classes: int,
        temperature: float = 0.07,
        momentum: float = 0.2,
        negatives: int = 0,
        camera_aware: bool = False,
    ) -> None:
        super().__init__()
        check_number("The temperature", temperature, above=True)
        check_number("momentum", momentum, 0, 1)
        check_number("negatives", negatives)
        self.num_classes, self.temperature, self.momentum = num_classes, temperature, momentum
        self.negatives, self.camera_aware, self.started = negatives, camera_aware, False
        self.register_buffer("memory", torch.zeros(num_classes, dim))
        self.register_buffer("filled", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("label_of", torch.arange(num_classes))
        self.register_buffer("camera_of", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("weight_of", torch.ones(num_classes))

    @torch.no_grad()
    def start(
        self, features: Tensor, labels: Tensor, camids: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Store the centroids of crops.

        Args:
            features: `[N, D]`.
            labels: `[N]`, in 0..C−1.
            camids: `[N]`; needed if the loss is camera-aware.
            weights: `[C]` of each identity in the mean over a batch; None: 1 for all.

        Raises:
            DataError: shapes or labels that do not fit, or cameras are needed and missing.
        """
        check_batch(features, labels, camids, camera_aware=self.camera_aware)
        check_labels(labels, self.num_classes)
        camera = camids if self.camera_aware and camids is not None else torch.zeros_like(labels)
        keys, row = torch.unique(torch.stack([labels, camera], 1), dim=0, return_inverse=True)
        device = self.memory.device
        sums = torch.zeros(len(keys), features.shape[1], device=features.device)
        sums.index_add_(0, row, normalised(at_least_float32(features)).float())
        self.memory, self.filled = normalised(sums).to(device), torch.ones(len(keys), dtype=torch.bool, device=device)
        self.label_of, self.camera_of = keys[:, 0].to(device), keys[:, 1].to(device)
        self.started = True
        if weights is not None:
            self.weight_of = weights.to(device, torch.float32)

    def forward(self, features: Tensor, pids: Tensor, camids: Tensor | None = None) -> Tensor:
        """Return the loss of a batch, a float32 scalar.

        Args:
            features: `[B, D]`.
            pids: `[B]` labels in 0..C−1.
            camids: `[B]`; only used if the loss is camera-aware.

        Raises:
            DataError: shapes or labels that do not fit, or cameras are needed and missing.
        """
        check_batch(features, pids, camids, camera_aware=self.camera_aware)
        check_labels(pids, self.num_classes)
        if self.camera_aware and not self.started:
            raise DataError(
                "Centroids of each camera need crops to start from. Call start, or set camera_aware to false."
            )
        with torch.autocast(features.device.type, enabled=False):
            x = normalised(at_least_float32(features))
            scores = x @ self.memory.to(x.dtype).T / self.temperature
            same = pids.unsqueeze(1) == self.label_of
            positives, others = same & self.filled, ~same & self.filled
            against = scores.masked_fill(~others, -torch.inf)
            if 0 < self.negatives < against.shape[1]:
                against = against.topk(self.negatives, dim=1).values
            has = others.any(dim=1) & positives.any(dim=1)
            total = against.masked_fill(~has.unsqueeze(1), 0.0).logsumexp(dim=1, keepdim=True)
            losses = functional.softplus(total - scores).masked_fill(~positives, 0.0).sum(dim=1)
            weight = self.weight_of.to(x.dtype)[pids] * has
            mean = (losses / positives.sum(dim=1).clamp(min=1) * weight).sum() / weight.sum().clamp(min=1e-12)
            if self.training:
                self._move(x.detach(), pids, camids)
            return mean + zero_of(at_least_float32(features))

    def extra_repr(self) -> str:
        """Return the settings that `print(model)` shows."""
        names = ("temperature", "momentum", "negatives", "camera_aware")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    @torch.no_grad()
    def _move(self, x: Tensor, pids: Tensor, camids: Tensor | None) -> None:
        hit = (pids.unsqueeze(1) == self.label_of) & x.isfinite().all(dim=1, keepdim=True)
        if self.camera_aware and camids is not None:
            hit &= camids.unsqueeze(1) == self.camera_of
        hit = hit.to(self.memory.dtype)
        count = hit.sum(dim=0)
        mean = hit.T @ x.nan_to_num(0.0).to(self.memory.dtype) / count.clamp(min=1).unsqueeze(1)
        kept = torch.where(self.filled, self.momentum, 0.0).unsqueeze(1)
        moved = normalised(kept * self.memory + (1 - kept) * mean)
        self.memory = torch.where((count > 0).unsqueeze(1), moved, self.memory)
        self.filled = self.filled | (count > 0)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[no-untyped-def]
        self.started = True
        for name, buffer in self.named_buffers():
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != buffer.shape:
                setattr(self, name, torch.zeros_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
