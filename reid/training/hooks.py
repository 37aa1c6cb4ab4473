"""Hooks: functions of your own that the trainer calls during training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from reid.data.loader import Batch

if TYPE_CHECKING:
    from reid.training.trainer import Trainer


class Hook:
    """Base class of hooks. Override the methods that you need; all of them do nothing by default.

    Hooks are called in the order in which they were passed to the trainer, in every process. They may read all of the
    trainer, e.g. `trainer.model`, `trainer.optimizer`, `trainer.progress` and `trainer.loader`, and end training with
    `trainer.stop()`.

    Reading a value of a tensor (`float(metrics["loss"])`) waits for the device; do it only when needed.

    Example:
        >>> class StopAfter(Hook):
        ...     def __init__(self, steps: int) -> None:
        ...         self.steps = steps
        ...     def on_step_end(self, trainer: "Trainer", metrics: dict[str, Tensor]) -> None:
        ...         if trainer.progress.step == self.steps:
        ...             trainer.stop()
        >>> hooks = [StopAfter(100)]  # Trainer(config, "runs/short", hooks=hooks).fit()
    """

    def on_train_start(self, trainer: Trainer) -> None:
        """Called once before the first step, after the run was started or restored."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Called before the first step of an epoch, or before the first step after resuming within it."""

    def on_step_start(self, trainer: Trainer, batches: list[Batch]) -> None:
        """Called before a step with its batches (`optim.accumulate` of them)."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, Tensor]) -> None:
        """Called after a step with its losses and statistics: 0-d tensors on the device; empty if it was skipped."""

    def on_section_start(self, trainer: Trainer, name: str) -> None:
        """Called when a section of a step begins: one of `reid.training.profiling.SECTIONS`. Sections may be nested."""

    def on_section_end(self, trainer: Trainer, name: str) -> None:
        """Called when a section of a step ends."""

    def on_log(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """Called before a line is written to `log.jsonl`: means of several steps, or the scores of an evaluation."""

    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Called after an epoch and its evaluation, with the means over its steps. Scores are in `progress.history`."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """Called after `last.pt` or `best.pt` was written."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Called once after the last step; not after an error or a signal."""
