from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from reid.commands import main
from reid.config import load_config
from reid.core.errors import ReidError
from reid.data.pixels import packed_stores
from reid.models.checkpoints import load_checkpoint
from reid.training import dry_run
from reid.training.dry_run import check_run
from reid.training.profiling import SECTIONS, WARM_UP, StepTimer, profile_run
from reid.training.trainer import train
from tests.training.runs import ALONE, make_trainer

HELD_OUT = ["eval.split=validation", "eval.fraction=0.3"]


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.slow
def test_a_dry_run_checks_everything_and_leaves_no_files(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*small, *HELD_OUT, f"data.store_dir={tmp_path / 'store'}"]
    check_run(load_config(None, settings), tmp_path / "run", ALONE)
    assert not everything(tmp_path)
    words = capsys.readouterr().out
    for part in ("84 train crops of 14 identities", "12 queries, 24 gallery crops", "loss ", "memory", "packed crops",
                 "checkpoints", "will be created", "12 steps"):  # fmt: skip
        assert part in " ".join(words.split()), part
    assert "✗" not in words


@pytest.mark.slow
def test_predicted_disk_space_equals_that_of_the_run(small: list[str], tmp_path: Path) -> None:
    settings = [*small, *HELD_OUT, f"data.store_dir={tmp_path / 'store'}", "optim.ema=0.9", "optim.name=adam"]
    config = load_config(None, settings)
    (store, size), *_ = packed_stores(config).items()
    assert not store.exists()
    trainer = make_trainer(settings, tmp_path / "x")
    assert sum(path.stat().st_size for path in store.glob("*.u8")) == size
    assert not dry_run._disk_space(10**18, tmp_path)[1]
    trainer.network.train()
    trainer.train_step(next(trainer.batches()))
    predicted = dry_run._checkpoint_bytes(trainer)
    train(config, tmp_path / "run", ALONE)
    last, best = ((tmp_path / f"run/{name}.pt").stat().st_size for name in ("last", "best"))
    assert predicted == pytest.approx(2 * last + 2 * best, rel=0.05)
    assert load_checkpoint(tmp_path / "run/last.pt")["raw"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["data.train=market1501:/nowhere"], "/nowhere"),  # the data
        (["sampler.batch_size=64"], "identities"),  # the sampler
        (["optim.groups={head: {lr: 1}}"], "matches no parameter"),  # the optimiser
        (["schedule.sizes=[[0.5,16,8]]"], "rise from 0"),  # the schedule
    ],
)
def test_errors_of_the_run_are_found_by_the_dry_run(
    small: list[str], tmp_path: Path, extra: list[str], words: str
) -> None:
    with pytest.raises(ReidError, match=words):
        check_run(load_config(None, [*small, *extra]), tmp_path / "run", ALONE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["optim.lr=0"], "no weight changed"),
        (["optim.groups={'*': {lr: 0}}"], "no weight changed"),
        (["loss.margin=0.3", "loss.triplet_weight=0", "loss.softmax_weight=0", "loss.extra={circle: {weight: 0}}"],
         "all gradients are 0"),
        (["sampler.kind=random", "sampler.batch_size=2"], "no batch has both equal and different identities"),
        (["sampler.kind=random", "sampler.batch_size=2", "loss.extra={contrastive: {weight: 1}}",
          "loss.triplet_weight=0"], "which contrastive compares"),
        (["loss.extra={'pml:TripletMarginLoss': {weight: 1}}", "loss.triplet_weight=0", "sampler.batch_size=2"],
         "the loss extra.pml:TripletMarginLoss is 0"),
    ],
    ids=["rate 0", "groups at rate 0", "weights 0", "random", "random contrastive", "pml"],
)  # fmt: skip
def test_a_dry_run_refuses_steps_that_cannot_learn(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    with pytest.raises(ReidError, match="see first steps above"):
        check_run(load_config(None, [*small, *extra]), tmp_path / "run", ALONE)
    assert message in " ".join(capsys.readouterr().out.split())


def test_an_unreadable_image_is_found_without_packing(small: list[str], tmp_path: Path, tiny_market: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_market, copy)
    broken = sorted((copy / "bounding_box_train").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ReidError, match=broken.name):
        check_run(load_config(None, [*small, f"data.train=market1501:{copy}"]), tmp_path / "run", ALONE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words"),
    [("disk", "packed crops, checkpoints"), ("memory", "memory"), ("run", "output"), ("file", "output")],
)
def test_missing_resources_are_reported_after_the_table(
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
    assert ("continue it with --resume" in printed) == (what == "run")


@pytest.mark.slow
def test_the_sections_of_a_step_add_up(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parts = profile_run(load_config(None, [*small, "optim.ema=0.9", "optim.accumulate=2"]), ALONE, 4)
    assert parts.keys() == {*SECTIONS, "other"}
    assert sum(parts.values()) == pytest.approx(1)
    assert all(share >= 0 for share in parts.values())
    assert min(parts[part] for part in ("forward", "backward", "optimiser", "loss")) > 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in parts)
    assert "crops/s" in printed


@pytest.mark.slow
def test_a_profile_longer_than_the_run_is_refused(small: list[str]) -> None:
    with pytest.raises(ReidError, match="fewer than 100"):
        profile_run(load_config(None, [*small, "schedule.epochs=1"]), ALONE, 100)


def test_nested_sections_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    timer, trainer = StepTimer(torch.device("cpu"), steps=1), SimpleNamespace(stop=lambda save: None)
    for _ in range(WARM_UP):
        timer.on_step_end(trainer, {})
    timer.on_section_start(trainer, "backward")
    now[0] += 1
    for seconds in (2, 4):
        timer.on_section_start(trainer, "forward")
        now[0] += seconds
        timer.on_section_end(trainer, "forward")
    now[0] += 8
    timer.on_section_end(trainer, "backward")
    now[0] += 17
    timer.on_step_end(trainer, {})
    assert timer.seconds == dict.fromkeys(SECTIONS, 0.0) | {"backward": 9.0, "forward": 6.0}
    assert timer.total == 32
    assert timer.fractions()["other"] == pytest.approx(17 / 32)


@pytest.mark.slow
def test_the_command_makes_a_dry_run_and_a_profile(small: list[str], tmp_path: Path) -> None:
    arguments = ["train", "--dry-run", "--profile", "2", "--out", str(tmp_path / "run"), *small]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "ms per step" in done.output
    assert not (tmp_path / "run").exists()
