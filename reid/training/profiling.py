"""Where the time of a training step goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

PARTS = ("loader", "copy", "preprocess", "forward", "loss", "backward", "optimiser")
NETWORK = ("forward", "backward", "optimiser")
"""What a step cannot do without; all else is what this code adds."""


class StepClock:
    """Adds up wall time by part; as the trainer's `clock` it is called as `with clock("forward"):`.

    Each part waits for the device before and after, so that what it started is counted where it belongs: a step takes
    a little longer under this clock than without it. A part within another counts for itself alone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._inner = [0.0]

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside for `part`."""
        self._wait()
        began = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            self._wait()
            took = time.perf_counter() - began
            self.seconds[part] += took - self._inner.pop()
            self._inner[-1] += took

    def reset(self) -> None:
        """Begin anew."""
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def shares(seconds: dict[str, float], whole: float) -> dict[str, float]:
    """Each part's share of `whole` seconds, with `other` for what no part counted."""
    named = {part: took / whole for part, took in seconds.items()}
    return {**named, "other": 1 - sum(named.values())}


def outside_network(parts: dict[str, float]) -> float:
    """The share of all that is not forward, backward or optimiser."""
    return sum(share for part, share in parts.items() if part not in NETWORK)
