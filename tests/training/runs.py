"""What the tests of whole runs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from reid.config import load_config
from reid.core.distributed import DistributedContext
from reid.data.pixels import load_training_data
from reid.models.checkpoints import load_checkpoint
from reid.training.trainer import _Trainer

ALONE = DistributedContext(0, 1, torch.device("cpu"))
REPOSITORY = Path(__file__).parent.parent.parent


def make_trainer(settings: list[str], out: Path) -> _Trainer:
    config = load_config(None, settings)
    return _Trainer(config, out, ALONE, load_training_data(config))


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
    """Checkpoint and log, bit for bit, but for the wall time."""
    a, b = load_checkpoint(one / "last.pt"), load_checkpoint(other / "last.pt")
    for content in (a, b):
        content["progress"].pop("seconds")
    assert a.keys() == b.keys()
    for key in a:
        assert same_state(a[key], b[key]), key
    assert log_of(one) == log_of(other)
