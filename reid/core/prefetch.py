"""Compute the items of an iterator ahead, in one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """Yield the same items, up to `depth` of them computed ahead by a thread that ends with this iterator.

    Example:
        >>> list(prefetch(iter("abc"), 2))
        ['a', 'b', 'c']
    """
    return Prefetcher(items, depth).items()


_END = object()


class Prefetcher(Generic[Item]):
    """Computes items ahead in one thread; at most `depth` are started and not yet taken."""

    def __init__(self, items: Iterator[Item], depth: int, paced: bool = False) -> None:
        self._items, self._depth, self._paced = items, depth, paced
        self._pool: ThreadPoolExecutor | None = None
        self._started: deque[Future[Any]] = deque()

    def start_next(self) -> None:
        if self._pool is not None and len(self._started) < self._depth:
            self._started.append(self._pool.submit(next, self._items, _END))

    def items(self) -> Iterator[Item]:
        if self._depth == 0:
            yield from self._items
            return
        self._pool = ThreadPoolExecutor(1, "reid-batches")
        try:
            for _ in range(self._depth):
                self.start_next()
            while True:
                if not self._started:
                    self.start_next()
                item = self._started.popleft().result()
                if item is _END:
                    return
                if not self._paced:
                    self.start_next()
                yield item
        finally:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
