"""Time of a training step by section."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from rich.table import Column, Table
from torch import Tensor

from reid.config import Config
from reid.core.console import console
from reid.core.distributed import DistributedContext
from reid.core.errors import ConfigError
from reid.training.hooks import Hook
from reid.training.trainer import Trainer

SECTIONS = ("loader", "copy", "preprocess", "forward", "loss", "backward", "optimiser")
WARM_UP = 3
"""Steps that are not measured: the first calls choose kernels and allocate memory."""


class StepTimer(Hook):
    """Hook that adds up the wall time of each section, and stops training after a number of steps.

    The device is waited for at each border of a section, so that its work is counted in the section that started it;
    steps therefore take a little longer. A section within another is counted only once.

    Args:
        device: the device of training.
        steps: measured steps, after `WARM_UP` others.

    Attributes:
        seconds: seconds of each section.
        total: seconds of all measured steps.
    """

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps = device, steps
        self.seconds = dict.fromkeys(SECTIONS, 0.0)
        self.total = 0.0
        self._done = -WARM_UP
        self._began = 0.0
        self._border = 0.0
        self._sections: list[str] = []

    def on_section_start(self, trainer: Trainer, name: str) -> None:
        """Count the time so far for the outer section, if there is one."""
        self._count()
        self._sections.append(name)

    def on_section_end(self, trainer: Trainer, name: str) -> None:
        """Count the time since the last border for the section."""
        self._count()
        self._sections.pop()

    def on_step_end(self, trainer: Trainer, metrics: dict[str, Tensor]) -> None:
        """Count the step; start to measure after the warm-up, and stop after the last one."""
        self._done += 1
        if self._done == 0:
            self.seconds = dict.fromkeys(SECTIONS, 0.0)
            self._began = self._now()
        if self._done == self.steps:
            self.total = self._now() - self._began
            trainer.stop(save=False)

    def fractions(self) -> dict[str, float]:
        """Return each section's fraction of the total time, and that of everything else as `other`."""
        named = {name: seconds / self.total for name, seconds in self.seconds.items()}
        return {**named, "other": 1 - sum(named.values())}

    def _count(self) -> None:
        now = self._now()
        if self._sections:
            self.seconds[self._sections[-1]] += now - self._border
        self._border = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def profile_run(config: Config, distributed: DistributedContext, steps: int) -> dict[str, float]:
    """Train for `steps` steps, after a few that are not measured, and print the time by section.

    No run folder is left.

    Returns:
        Fraction of the time of each section, and of `other`.

    Raises:
        ReidError: an error of training, or training has fewer steps.
    """
    timer = StepTimer(distributed.device, steps)
    with tempfile.TemporaryDirectory() as folder:
        config = config.model_copy(update={"save_every": 0, "save_minutes": 0.0})
        trainer = Trainer(config, Path(folder, "run"), distributed, hooks=[timer])
        trainer.fit()
    if not timer.total:
        raise ConfigError(f"Training has fewer than {steps} + {WARM_UP} steps. Profile fewer steps.")
    fractions, per_step = timer.fractions(), 1000 * timer.total / steps
    if distributed.is_first:
        table = Table("", Column("ms per step", justify="right"), Column("fraction", justify="right"), box=None)
        for name, fraction in fractions.items():
            table.add_row(name, f"{fraction * per_step:,.1f}", f"{fraction:.1%}")
        table.add_row("all", f"{per_step:,.1f}", "")
        console.print(table)
        console.print(
            f"{steps * trainer.crops_per_step / timer.total:,.1f} crops/s; outside forward, backward and optimiser: "
            f"{1 - sum(fractions[name] for name in ('forward', 'backward', 'optimiser')):.1%}"
        )
    return fractions
