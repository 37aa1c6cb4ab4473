"""Stop after the current step on SIGINT or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from reid.core.console import console
from reid.core.errors import ReidError


class Interrupted(ReidError):
    """Training was stopped by `signal` and a checkpoint was written."""

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"Stopped by {name}. Continue with: reid train --resume {checkpoint.parent}")
        self.signal = signal_number


@contextmanager
def listen(reaction: str = "stopping after this step and writing a checkpoint") -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of ending the process; a second SIGINT interrupts immediately.

    `reaction` is printed with the name of the signal.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        console.print(f"{signal.Signals(number).name}: {reaction}")

    is_main = threading.current_thread() is threading.main_thread()  # no other thread can handle signals
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
