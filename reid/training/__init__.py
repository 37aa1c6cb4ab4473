"""Training: the trainer and its hooks, schedules, mining between epochs, several processes."""

from __future__ import annotations

from reid.training.hooks import Hook
from reid.training.trainer import Interrupted, Progress, Trainer, train

__all__ = ["Hook", "Interrupted", "Progress", "Trainer", "train"]
