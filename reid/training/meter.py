"""Transfer of metrics from the device to the host without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Meter:
    """Collect 0-d tensors on a device; `send` starts one copy to the host, `receive` finishes it."""

    def __init__(self) -> None:
        self._collected: list[tuple[int, dict[str, Tensor], Tensor]] = []
        self._sent: list[tuple[list[tuple[int, dict[str, Tensor], Tensor]], Tensor, torch.cuda.Event | None]] = []

    def add(self, step: int, metrics: dict[str, Tensor], rows: Tensor) -> None:
        """Add the metrics of a step. Their names are the same in all steps."""
        self._collected.append((step, metrics, rows))

    def send(self) -> None:
        """Start to copy what was added since the last call."""
        if not self._collected:
            return
        values = torch.stack([torch.stack([v.float() for v in metrics.values()]) for _, metrics, _ in self._collected])
        event = None
        if values.device.type == "cuda":
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._sent.append((self._collected, values, event))
        self._collected = []

    def receive(self) -> Iterator[tuple[int, dict[str, float], Tensor]]:
        """Yield number, metrics and train rows of each sent step, in order. Only the copy is waited for."""
        sent, self._sent = self._sent, []
        for collected, values, event in sent:
            if event is not None:
                event.synchronize()
            for (step, metrics, rows), numbers in zip(collected, values.tolist(), strict=True):
                yield step, dict(zip(metrics, numbers, strict=True)), rows
