"""Being asked to stop: SIGINT and SIGTERM are collected, and obeyed between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from reid.core.console import console
from reid.core.errors import ReidError


class Interrupted(ReidError):
    """The run was asked to stop and left a checkpoint; `signal` says by what."""

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"Stopped by {name}; to go on: reid train --resume {checkpoint.parent}")
        self.signal = signal_number


@contextmanager
def listen() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying; a second SIGINT interrupts at once."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        console.print(f"{signal.Signals(number).name}: stopping after this step, with a checkpoint")

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are its business
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
