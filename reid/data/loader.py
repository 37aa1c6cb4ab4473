"""Batches of tensors from a store and a sampler, prepared ahead by a background thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import DataError, check_number
from reid.core.prefetch import Prefetcher, prefetch
from reid.data.augment import Augment
from reid.data.crops import Crops
from reid.data.samplers import Sampler
from reid.data.store import Store


@dataclass(frozen=True, eq=False)
class Batch:
    """Input of a training step. `images` uint8 RGB `[B, H, W, 3]`; all others int64 `[B]`."""

    images: torch.Tensor
    labels: torch.Tensor
    pids: torch.Tensor
    camids: torch.Tensor
    index: torch.Tensor


@dataclass(frozen=True)
class LoaderOptions:
    """How a `TrainLoader` makes its batches.

    Attributes:
        seed: of the augmentation.
        rank, world_size: of this process; those of the sampler.
        prefetch: number of batches prepared ahead by one background thread; 0 prepares each one when it is requested.
        pin: whether batches are in page-locked memory, which a GPU copies while it computes.
        paced: whether the thread waits for `make_next` before each batch after the first `prefetch` ones. Python runs
            one thread at a time, so the best time to prepare a batch is during the backward pass, which is one long
            call outside of Python. A batch that is requested before it was started is prepared in any case.
    """

    seed: int = 0
    rank: int = 0
    world_size: int = 1
    prefetch: int = 2
    pin: bool = False
    paced: bool = False


class TrainLoader:
    """Augmented batches of an epoch, in the sampler's order.

    Batch b of an epoch is augmented by a generator of (`seed`, epoch, b), and each rank takes its part of the batch. So
    the augmentation of a crop does not depend on `prefetch`, on the batches before, or on the number of ranks.

    Args:
        store: pixels of rows 0 … N − 1.
        labels: `[N]` int64, the class of each row.
        crops: the same N rows.
        sampler: rows of each batch.
        augment: None for no augmentation.
        options: see `LoaderOptions`.

    Raises:
        DataError: store, labels and crops of different lengths.
        ConfigError: a negative `prefetch`.
    """

    def __init__(
        self,
        store: Store,
        labels: ArrayLike,
        crops: Crops,
        sampler: Sampler,
        augment: Augment | None,
        options: LoaderOptions | None = None,
    ) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        if not len(store) == len(crops) == len(self.labels):
            raise DataError(
                f"The store has {len(store)} rows, crops {len(crops)} and labels {len(self.labels)}; they must match. "
                "Remove the rows of skipped unreadable images from all three (without_unreadable)."
            )
        self.options = options or LoaderOptions()
        check_number("prefetch", self.options.prefetch)
        self.store, self.crops, self.sampler, self.augment = store, crops, sampler, augment
        self.epoch = 0
        self._start = 0
        self._prefetcher: Prefetcher[Batch] | None = None

    def __len__(self) -> int:
        """The number of batches of a whole epoch."""
        return len(self.sampler)

    @property
    def batch_size(self) -> int:
        """Crops of a batch of this rank."""
        return self.sampler.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, here and in the sampler."""
        self.epoch = epoch
        self.sampler.set_epoch(epoch)

    def start_at(self, batch: int) -> None:
        """Skip the first `batch` batches of the next pass, and only of that one (to resume)."""
        check_number("The first batch of the epoch", batch, 0, len(self))
        self._start = batch

    def __iter__(self) -> Iterator[Batch]:
        start, self._start = self._start, 0
        batches = self._batches(self.epoch, list(self.sampler), start)
        self._prefetcher = Prefetcher(batches, self.options.prefetch, self.options.paced)
        return self._prefetcher.items()

    def make_next(self) -> None:
        """Prepare one more batch of the current pass in the background (see `LoaderOptions.paced`)."""
        if self._prefetcher is not None:
            self._prefetcher.start_next()

    def _batches(self, epoch: int, plan: list[NDArray[np.int64]], start: int) -> Iterator[Batch]:
        options = self.options
        size = self.augment.size if self.augment is not None and self.store.size is None else None
        for number, index in enumerate(plan[start:], start):
            images = self.store.read(index, size)
            if self.augment is not None:
                rng = np.random.default_rng((options.seed, epoch, 0, number))
                images = self.augment(images, rng, part=options.rank, parts=options.world_size)
            yield Batch(
                self._tensor(images),
                self._tensor(self.labels[index]),
                self._tensor(self.crops.pids[index]),
                self._tensor(self.crops.camids[index]),
                torch.from_numpy(index),
            )

    def _tensor(self, column: NDArray[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(column)
        return tensor.pin_memory() if self.options.pin else tensor


def read_batches(store: Store, index: ArrayLike, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the rows `index [N]` in order, as uint8 tensors `[B, H, W, 3]`, the last one shorter. Reads one ahead.

    Raises:
        ConfigError: a batch size below 1.
        DataError: as the store's `read`.
    """
    check_number("batch_size", batch_size, 1)
    rows = np.asarray(index, dtype=np.int64)
    parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    return prefetch((torch.from_numpy(store.read(part)) for part in parts), 2)
