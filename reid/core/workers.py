"""Worker processes that never outlive the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def worker_pool(workers: int, initializer: Callable[..., object] | None = None, *arguments: Any) -> ProcessPoolExecutor:
    """Return a pool of new processes, each of which calls `initializer(*arguments)` first.

    A worker ends as soon as its parent has ended, by any signal.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _start, (initializer, arguments))


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(initializer: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_wait_for_parent, daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
