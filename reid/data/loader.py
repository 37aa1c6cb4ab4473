"""From a store and a sampler to batches of tensors, made ahead in a background thread."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import ReidError
from reid.data.augment import Augment
from reid.data.crops import Crops
from reid.data.samplers import Sampler
from reid.data.store import Store

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Batch:
    """What a training step takes. `images` uint8 RGB `[B, H, W, 3]`; all others int64 `[B]`."""

    images: torch.Tensor
    labels: torch.Tensor
    pids: torch.Tensor
    camids: torch.Tensor
    index: torch.Tensor


class TrainLoader:
    """Augmented batches of an epoch, in the sampler's order.

    Batch b of an epoch is augmented by a generator of (`seed`, epoch, b), from which each rank takes its part: a crop's
    look is the same whatever `prefetch` is, whether or not the batches before it were made, and however many ranks
    share the batch. The sampler must have been given the same rank and world size.

    Args:
        store: crops in rows 0 … N − 1.
        labels: `[N]` int64, the class of each row.
        crops: the same N rows.
        augment: None for no augmentation.
        prefetch: batches made ahead by one background thread; 0 makes each when it is asked for.
        pin: whether batches stand in page-locked memory, from where a GPU copies them while it works.
        paced: whether the thread waits for `make_next` before each batch beyond the first `prefetch`. Python runs one
            thread at a time, so batches are best made while a step is in its backward pass, which is one long call
            outside of Python. A batch that is asked for and not there is made in any case.

    Raises:
        ReidError: store, labels and crops of different lengths, or a negative `prefetch`.
    """

    def __init__(
        self,
        store: Store,
        labels: ArrayLike,
        crops: Crops,
        sampler: Sampler,
        augment: Augment | None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        pin: bool = False,
        paced: bool = False,
    ) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        if not len(store) == len(crops) == len(self.labels):
            raise ReidError(
                f"The store has {len(store)} rows, crops {len(crops)} and labels {len(self.labels)}; they must match. "
                "Where unreadable images were skipped, take them out of all three (without_unreadable)."
            )
        if prefetch < 0:
            raise ReidError(f"prefetch is {prefetch}; it must be 0 or more batches.")
        self.store, self.crops, self.sampler, self.augment = store, crops, sampler, augment
        self.seed, self.rank, self.world_size, self.prefetch, self.pin = seed, rank, world_size, prefetch, pin
        self.epoch = 0
        self._start = 0
        self._paced = paced
        self._permits = threading.Semaphore(0)

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
        """Let the next pass, and only that one, leave out the first `batch` batches of its epoch (for resuming)."""
        if not 0 <= batch <= len(self):
            raise ReidError(f"Cannot start at batch {batch}: an epoch has {len(self)}.")
        self._start = batch

    def __iter__(self) -> Iterator[Batch]:
        start, self._start = self._start, 0
        self._permits = threading.Semaphore(self.prefetch)
        batches = self._batches(self.epoch, list(self.sampler), start)
        return ahead(batches, self.prefetch, self._permits if self._paced else None)

    def make_next(self) -> None:
        """Now is a good time to make one more batch of the latest pass (see `paced`)."""
        self._permits.release()

    def _batches(self, epoch: int, plan: list[NDArray[np.int64]], start: int) -> Iterator[Batch]:
        size = self.augment.size if self.augment is not None and self.store.size is None else None
        for number, index in enumerate(plan[start:], start):
            images = self.store.read(index, size)
            if self.augment is not None:
                rng = np.random.default_rng((self.seed, epoch, 0, number))
                images = self.augment(images, rng, part=self.rank, parts=self.world_size)
            yield Batch(
                self._tensor(images),
                self._tensor(self.labels[index]),
                self._tensor(self.crops.pids[index]),
                self._tensor(self.crops.camids[index]),
                torch.from_numpy(index),
            )

    def _tensor(self, column: NDArray[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(column)
        return tensor.pin_memory() if self.pin else tensor


def read_batches(store: Store, index: ArrayLike, batch_size: int) -> Iterator[torch.Tensor]:
    """The rows `index [N]` in order, as uint8 tensors `[B, H, W, 3]`, the last one shorter; one is read ahead.

    Raises:
        ReidError: a batch size below 1, and as the store's `read`.
    """
    if batch_size < 1:
        raise ReidError(f"batch_size is {batch_size}; it must be 1 or more.")
    rows = np.asarray(index, dtype=np.int64)
    parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    return ahead((torch.from_numpy(store.read(part)) for part in parts), 2)


class _Failed:
    """Carries an exception from the background thread to the consumer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def ahead(items: Iterator[Item], depth: int, permits: threading.Semaphore | None = None) -> Iterator[Item]:
    """The same items, up to `depth` of them made ahead by a thread that ends with this iterator, however it ends.

    With `permits`, the thread takes one for each item; who asks for an item that is not there gives one.
    """
    if depth == 0:
        yield from items
        return
    ready: queue.Queue[object] = queue.Queue(depth)
    stopped = threading.Event()

    def may_go_on() -> bool:
        while not stopped.is_set():
            if permits is None or permits.acquire(timeout=0.1):
                return True
        return False

    def put(item: object) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            while may_go_on():
                item = next(items, _END)
                put(item)
                if item is _END:
                    return
        except BaseException as error:
            put(_Failed(error))

    def taken() -> object:
        if permits is not None and ready.empty():
            permits.release()
        return ready.get()

    thread = threading.Thread(target=work, name="reid-batches", daemon=True)
    thread.start()
    try:
        while (item := taken()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        while not ready.empty():
            ready.get_nowait()
        thread.join()
