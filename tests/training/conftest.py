from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_settings(tiny_market: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a run of seconds: 20 identities, 7 steps of 16 crops an epoch, nothing scored."""
    return [
        f"data.train=market1501:{tiny_market}",
        f"data.store_dir={tmp_path_factory.getbasetemp() / 'store'}",
        "model.backbone=light10",
        "model.height=32",
        "model.width=16",
        "augment.pad=2",
        "sampler.batch_size=16",
        "sampler.crops_per_id=2",
        "optim.name=sgd",
        "optim.lr=0.02",
        "loss.margin=null",
        "schedule.epochs=2",
        "schedule.warmup_epochs=1",
        "eval.split=none",
        "log_every=3",
        "save_minutes=0",
        "device=cpu",
    ]


@pytest.fixture
def small(small_settings: list[str]) -> list[str]:
    """As `small_settings`."""
    return list(small_settings)
