"""Numbers of each step on their way from the device to the log, a step late, so that the device never waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Measured(NamedTuple):
    """A step's number, its terms, and the train rows of its batches on this process."""

    step: int
    terms: dict[str, float]
    rows: Tensor


class Meter:
    """Collects 0-d tensors on a device; `send` starts their way to the host in one copy, `receive` ends it."""

    def __init__(self) -> None:
        self._collected: list[tuple[int, dict[str, Tensor], Tensor]] = []
        self._sent: list[tuple[list[tuple[int, dict[str, Tensor], Tensor]], Tensor, torch.cuda.Event | None]] = []

    def add(self, step: int, terms: dict[str, Tensor], rows: Tensor) -> None:
        """Keep the terms of a step, which have the same names each time."""
        self._collected.append((step, terms, rows))

    def send(self) -> None:
        """Start to copy what was added since the last call."""
        if not self._collected:
            return
        values = torch.stack([torch.stack([v.float() for v in terms.values()]) for _, terms, _ in self._collected])
        event = None
        if values.device.type == "cuda":
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._sent.append((self._collected, values, event))
        self._collected = []

    def receive(self) -> Iterator[Measured]:
        """What was sent, in order; waits for the copy only."""
        sent, self._sent = self._sent, []
        for collected, values, event in sent:
            if event is not None:
                event.synchronize()
            for (step, terms, rows), numbers in zip(collected, values.tolist(), strict=True):
                yield Measured(step, dict(zip(terms, numbers, strict=True)), rows)
