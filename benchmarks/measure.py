"""Timing and memory measurements shared by the benchmarks."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from reid.core.errors import ReidError


def at_median(times: Sequence[float], of: Sequence[float] | None = None) -> float:
    """Return the median of times, or of their ratios to those of the same round."""
    return statistics.median(times if of is None else [a / b for a, b in zip(times, of, strict=True)])


def peak_above_inputs(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """Return the peak of the bytes that a step needs in addition to its inputs, in a separate process.

    `prepare(*arguments)` creates the inputs and returns the step. Linux only: the kernel's high-water mark is read.

    Raises:
        ReidError: there is no /proc, or the process died.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise ReidError("Peak memory is read from Linux's /proc, which does not exist here. Use Linux.")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, prepare, arguments))
    process.start()
    sender.close()
    try:
        return int(receiver.recv())
    except EOFError as error:
        raise ReidError("The process that measured peak memory died. Use a machine with more memory.") from error
    finally:
        process.join()


def _measure(sender: Connection, prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> None:
    step = prepare(*arguments)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    sender.send(_status("VmHWM") - before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])
