"""Losses, chunks and the clock in the training loop."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from reid.config import load_config
from reid.core.distributed import DistributedContext
from reid.core.errors import ReidError
from reid.models.checkpoints import load_checkpoint
from reid.training import trainer as trainer_module
from reid.training.trainer import train

ALONE = DistributedContext(0, 1, torch.device("cpu"))


@pytest.fixture
def settings(tiny_market: Path, tmp_path: Path) -> list[str]:
    return [
        f"data.train=market1501:{tiny_market}",
        f"data.store_dir={tmp_path / 'store'}",
        "model.backbone=light14",
        "model.height=32",
        "model.width=16",
        "augment.pad=2",
        "sampler.batch_size=12",
        "sampler.crops_per_id=2",
        "schedule.epochs=1",
        "schedule.warmup_epochs=0",
        "eval.split=none",
        "log_every=1",
        "device=cpu",
    ]


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every look at the clock takes `seconds`."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += seconds
        return now[0]

    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=monotonic))


@pytest.mark.slow
def test_a_run_limited_in_minutes_ends_on_time_at_the_end_of_its_schedule(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 1.0)
    by_time = [
        "schedule.minutes=0.5", "schedule.epochs=100", "schedule.kind=cosine", "schedule.per=step", "save_minutes=0",
        "loss.schedules={margin: [[0, 0.1], [1, 0.5]]}", "eval.split=validation", "eval.fraction=0.5",
        "sampler.batch_size=8",
    ]  # fmt: skip
    progress = train(load_config(None, [*settings, *by_time]), tmp_path / "run", ALONE)
    steps = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert 15 <= len(steps) <= 30, "half a minute, at a second or so a step"
    assert progress.epoch < 100
    assert [entry["step"] for entry in progress.history] == [len(steps)], "scored once, where it ended"
    assert steps[0]["lr"] > 0.95 * 3.5e-4
    assert steps[-1]["lr"] < 0.05 * 3.5e-4
    margins = [line["margin"] for line in steps]
    assert margins == sorted(margins)
    assert (margins[0], margins[-1]) == (pytest.approx(0.1, abs=0.05), pytest.approx(0.5, abs=0.05))
    again = train(load_config(None, []), tmp_path / "run", ALONE, resume=True)
    assert again.step == len(steps), "its time is used up"


@pytest.mark.slow
def test_training_works_in_chunks(settings: list[str], tmp_path: Path) -> None:
    """The first step's loss is that of chunks with BatchNorm of their own; a chunk of everything is the plain step."""
    for name, more in {"plain": [], "whole": ["loss.chunk=12"], "parts": ["loss.chunk=5"]}.items():
        train(load_config(None, [*settings, *more]), tmp_path / name, ALONE)
    plain, whole, parts = (lines(tmp_path / name) for name in ("plain", "whole", "parts"))
    assert whole[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-6)
    assert whole[-1]["loss"] == pytest.approx(plain[-1]["loss"], rel=0.02)
    assert parts[0]["loss"] == pytest.approx(plain[0]["loss"], rel=0.5)
    assert parts[0]["loss"] != plain[0]["loss"]
    assert parts[0].keys() == plain[0].keys()


@pytest.mark.slow
def test_a_separate_learning_rate_of_a_loss_does_not_depend_on_its_weight(settings: list[str], tmp_path: Path) -> None:
    """After one step the centres stand at rate × the gradient of the center loss, whatever its weight in the sum."""
    centres = []
    for weight in (0.001, 0.01):
        one_step = [
            f"loss.extra={{center: {{weight: {weight}, rate: null, lr: 0.5}}}}", "sampler.batch_size=40", "optim.lr=0",
        ]  # fmt: skip
        train(load_config(None, [*settings, *one_step, "schedule.epochs=1"]), tmp_path / str(weight), ALONE)
        centres.append(load_checkpoint(tmp_path / str(weight) / "last.pt")["objective"]["extra.center.centers"])
    torch.testing.assert_close(centres[0], centres[1])
    assert centres[0].norm(dim=1).min() > 0


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["loss.extra.circel.weight=1"], "Unknown loss 'circel'"),
        (["loss.schedules={margn: [[0, 1]]}"], "Unknown key of schedules 'margn'"),
        (["loss.mining=semi"], "Unknown mining 'semi'"),
        (["loss.distance=minkowski:0.5"], "0.5"),
        (["loss.chunk=1"], "loss.chunk=1"),
        (["loss.hardness=2"], "loss.hardness=2"),
        (["loss.mining=batch_all", "loss.hardness=0.5"], "hardness|batch_all"),
    ],
)
def test_invalid_settings_are_named(settings: list[str], tmp_path: Path, extra: list[str], words: str) -> None:
    with pytest.raises(ReidError, match=words):
        train(load_config(None, [*settings, *extra]), tmp_path / "run", ALONE)
