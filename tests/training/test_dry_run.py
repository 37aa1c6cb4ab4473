from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from reid.commands import main
from reid.config import load_config
from reid.core.errors import ReidError
from reid.data.pixels import load_training_data, packed_stores
from reid.models.checkpoints import load_checkpoint
from reid.training import dry_run
from reid.training.dry_run import check_run, profile_run
from reid.training.profiling import PARTS, StepClock, outside_network, shares
from reid.training.trainer import train
from tests.training.runs import ALONE

HELD_OUT = ["eval.split=validation", "eval.fraction=0.3"]


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_rehearsal_checks_all_and_leaves_nothing(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*small, *HELD_OUT, f"data.store_dir={tmp_path / 'store'}"]
    check_run(load_config(None, settings), tmp_path / "run", ALONE)
    assert not everything(tmp_path)
    words = capsys.readouterr().out
    for part in ("84 train crops of 14 identities", "12 queries, 24 gallery crops", "loss ", "memory", "packed crops",
                 "checkpoints", "will be made", "12 steps"):  # fmt: skip
        assert part in " ".join(words.split()), part
    assert "✗" not in words


def test_what_it_foretells_is_what_the_run_takes(small: list[str], tmp_path: Path) -> None:
    settings = [*small, *HELD_OUT, f"data.store_dir={tmp_path / 'store'}", "optim.ema=0.9", "optim.name=adam"]
    config = load_config(None, settings)
    (store, size), *_ = packed_stores(config).items()
    assert not store.exists()
    trainer = dry_run._Trainer(config, tmp_path / "x", ALONE, load_training_data(config))
    assert sum(path.stat().st_size for path in store.glob("*.u8")) == size
    assert not dry_run._room(10**18, tmp_path)[1]
    trainer.network.train()
    trainer._step(next(trainer.grouped()))
    foretold = dry_run._checkpoint_bytes(trainer)
    train(config, tmp_path / "run", ALONE)
    last, best = ((tmp_path / f"run/{name}.pt").stat().st_size for name in ("last", "best"))
    assert foretold == pytest.approx(2 * last + 2 * best, rel=0.05)
    assert load_checkpoint(tmp_path / "run/last.pt")["updates"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["data.train=market1501:/nowhere"], "/nowhere"),  # the data
        (["sampler.batch_size=64"], "identities"),  # the sampler
        (["optim.groups={head: {lr: 1}}"], "no parameter's name"),  # the optimiser
        (["schedule.sizes=[[0.5,16,8]]"], "rise from 0"),  # the schedule
    ],
)
def test_what_would_stop_the_run_stops_the_rehearsal(
    small: list[str], tmp_path: Path, extra: list[str], words: str
) -> None:
    with pytest.raises(ReidError, match=words):
        check_run(load_config(None, [*small, *extra]), tmp_path / "run", ALONE)


def test_an_image_that_will_not_decode_is_found_without_packing(
    small: list[str], tmp_path: Path, tiny_market: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_market, copy)
    broken = sorted((copy / "bounding_box_train").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ReidError, match=broken.name):
        check_run(load_config(None, [*small, f"data.train=market1501:{copy}"]), tmp_path / "run", ALONE)


@pytest.mark.parametrize(
    ("what", "words"),
    [("disk", "packed crops, checkpoints"), ("memory", "memory"), ("run", "output"), ("file", "output")],
)
def test_too_little_of_anything_is_told_after_the_table(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    what: str, words: str,
) -> None:  # fmt: skip
    if what == "disk":
        monkeypatch.setattr(dry_run.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    elif what == "memory":
        monkeypatch.setattr(dry_run, "_memory", lambda device: (99, 100))
    elif what == "run":
        (tmp_path / "run").mkdir()
        (tmp_path / "run/config.yaml").write_text("")
    else:
        (tmp_path / "run").write_text("")
    settings = [*small, f"data.store_dir={tmp_path / 'store'}"]
    with pytest.raises(ReidError, match=f"see {words} above"):
        check_run(load_config(None, settings), tmp_path / "run", ALONE)
    printed = capsys.readouterr().out
    assert "✗" in printed
    assert ("goes on with it" in printed) == (what == "run")


def test_the_parts_of_a_step_add_up(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parts = profile_run(load_config(None, [*small, "optim.ema=0.9", "optim.accumulate=2"]), ALONE, 4)
    assert parts.keys() == {*PARTS, "other"}
    assert sum(parts.values()) == pytest.approx(1)
    assert all(share >= 0 for share in parts.values())
    assert min(parts[part] for part in ("forward", "backward", "optimiser", "loss")) > 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in parts)
    assert "crops/s" in printed


def test_a_profile_longer_than_the_run_is_refused(small: list[str]) -> None:
    with pytest.raises(ReidError, match="fewer than 100"):
        profile_run(load_config(None, [*small, "schedule.epochs=1"]), ALONE, 100)


def test_a_part_within_a_part_counts_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = StepClock(torch.device("cpu"))
    with clock("backward"):
        now[0] += 1
        with clock("forward"):
            now[0] += 2
        with clock("forward"):
            now[0] += 4
        now[0] += 8
    now[0] += 16
    assert clock.seconds == dict.fromkeys(PARTS, 0.0) | {"backward": 9.0, "forward": 6.0}
    parts = shares(clock.seconds, 32.0)
    assert parts["other"] == pytest.approx(17 / 32)
    assert outside_network(parts) == pytest.approx(17 / 32)
    clock.reset()
    assert not any(clock.seconds.values())


def test_the_command_rehearses_and_profiles(small: list[str], tmp_path: Path) -> None:
    arguments = ["train", "--dry-run", "--profile", "2", "--out", str(tmp_path / "run"), *small]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "ms a step" in done.output
    assert not (tmp_path / "run").exists()
