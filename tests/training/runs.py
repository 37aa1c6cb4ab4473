"""Helpers for tests of whole runs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reid.config import load_config
from reid.core.distributed import DistributedContext
from reid.models.checkpoints import load_checkpoint
from reid.training.hooks import Hook
from reid.training.trainer import Trainer

ALONE = DistributedContext(0, 1, torch.device("cpu"))
REPOSITORY = Path(__file__).parent.parent.parent


def make_trainer(settings: list[str], out: Path, *hooks: Hook) -> Trainer:
    return Trainer(load_config(None, settings), out, ALONE, hooks=hooks)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def same_state(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same_state, a, b))
    return a == b


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that checkpoint and log are equal bit for bit, except for the wall time."""
    a, b = load_checkpoint(one / "last.pt"), load_checkpoint(other / "last.pt")
    for content in (a, b):
        content["progress"].pop("seconds")
    assert a.keys() == b.keys()
    for key in a:
        assert same_state(a[key], b[key]), key
    assert log_of(one) == log_of(other)


class Record(Hook):
    """Call a function at an event: `Record(on_step_end=lambda trainer, metrics: ...)`."""

    def __init__(self, **functions: Callable[..., None]) -> None:
        for event, function in functions.items():
            assert hasattr(Hook, event)
            setattr(self, event, function)


def stop_at(step: int) -> Record:
    """Send SIGTERM to this process before the given step (from 1)."""

    def before_step(trainer: Trainer, batches: object) -> None:
        if trainer.progress.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return Record(on_step_start=before_step)
