from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.config import Config, load_config
from reid.core.errors import ReidError
from reid.models.checkpoints import load_checkpoint, load_model
from reid.training.trainer import Interrupted, train
from tests.training.runs import ALONE, assert_same_run, log_of, stop_at


@pytest.fixture
def settings(tiny_market: Path, tmp_path: Path) -> list[str]:
    return [
        f"data.train=market1501:{tiny_market}",
        f"data.store_dir={tmp_path / 'store'}",
        "model.backbone=light10",
        "model.height=32",
        "model.width=16",
        "augment.pad=2",
        "sampler.batch_size=16",
        "sampler.crops_per_id=2",
        "schedule.epochs=2",
        "schedule.warmup_epochs=1",
        "eval.fraction=0.3",
        "eval.every=1",
        "log_every=3",
        "device=cpu",
    ]


@pytest.mark.slow
def test_a_run_learns_and_writes_all_files(settings: list[str], tmp_path: Path) -> None:
    config = load_config(None, [*settings, "schedule.epochs=4"])
    progress = train(config, tmp_path / "run", ALONE)
    lines = [line for line in log_of(tmp_path / "run") if "loss" in line]
    assert lines[-1]["loss"] < 0.75 * lines[0]["loss"]
    assert {"triplet", "softmax", "active", "positive", "negative", "norm", "lr"} <= lines[0].keys()
    assert [entry["epoch"] for entry in progress.history] == [1, 2, 3, 4]
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {
        "config.yaml", "environment.json", "data.json", "log.jsonl", "tensorboard", "last.pt", "best.pt",
    }  # fmt: skip
    assert load_config(tmp_path / "run/config.yaml") == config
    data = json.loads((tmp_path / "run/data.json").read_text())
    assert data["train"]["identities"] == 14
    assert data["synthetic validation query"]["identities"] == 6
    best = load_checkpoint(tmp_path / "run/best.pt")["scores"]
    top = max(entry["synthetic validation"]["mAP"] for entry in progress.history)
    assert best["synthetic validation"]["mAP"] == top == pytest.approx(progress.best)
    assert load_model(tmp_path / "run/last.pt").spec["num_classes"] == 14


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 5, 6])  # in the first epoch; between two log lines; where an epoch ends
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    settings: list[str], tmp_path: Path, number: int
) -> None:
    config = load_config(None, settings)
    before = torch.random.get_rng_state()
    train(config, tmp_path / "whole", ALONE)
    assert torch.equal(before, torch.random.get_rng_state())

    with pytest.raises(Interrupted) as caught:
        train(config, tmp_path / "parts", ALONE, hooks=[stop_at(number)])
    assert caught.value.signal == signal.SIGTERM
    assert load_checkpoint(tmp_path / "parts/last.pt")["progress"]["step"] == number
    train(Config(), tmp_path / "parts", ALONE, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_lines_logged_after_the_checkpoint_are_dropped_on_resume(settings: list[str], tmp_path: Path) -> None:
    train(load_config(None, settings), tmp_path / "run", ALONE)
    before = log_of(tmp_path / "run")
    with open(tmp_path / "run/log.jsonl", "a") as log:
        log.write('{"step": 999, "loss": 1}\n{"step": 10')
    train(Config(), tmp_path / "run", ALONE, resume=True)
    assert log_of(tmp_path / "run") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "terms"),
    [
        (["loss.triplet_weight=0", "sampler.kind=random"], {"loss", "softmax", "accuracy"}),  # softmax alone
        (["loss.softmax_weight=0", "loss.margin=null"], {"loss", "triplet", "active", "positive", "negative", "norm"}),
        (["precision=bf16", "optim.clip_norm=1", "optim.name=adamw", "optim.decay_norms=false"], {"loss", "softmax"}),
        (["optim.name=sgd", "schedule.kind=cosine", "schedule.per=step", "channels_last=false"], {"loss", "triplet"}),
        (["data.store=files", "eval.split=none"], {"loss"}),
    ],
    ids=["softmax-only", "triplet-only", "bf16-clipped", "sgd-cosine", "from-files"],
)
def test_settings_are_used_in_training(settings: list[str], tmp_path: Path, extra: list[str], terms: set[str]) -> None:
    progress = train(load_config(None, [*settings, "schedule.epochs=1", *extra]), tmp_path / "run", ALONE)
    (line, *_rest) = log_of(tmp_path / "run")
    assert terms <= line.keys()
    if "loss.triplet_weight=0" in extra:
        assert "triplet" not in line
    assert np.isfinite([value for value in line.values() if isinstance(value, float)]).all()
    assert (tmp_path / "run/best.pt").exists() == bool(progress.history) == ("eval.split=none" not in extra)


def test_the_test_split_is_evaluated_only_with_eval_split_test(settings: list[str], tmp_path: Path, capsys) -> None:
    progress = train(load_config(None, [*settings, "schedule.epochs=1", "eval.split=test"]), tmp_path / "run", ALONE)
    assert progress.history[0].keys() == {"epoch", "step", "synthetic test"}
    assert "optimistic" in capsys.readouterr().out


def test_two_sources_train_together(settings: list[str], tmp_path: Path, tiny_market: Path) -> None:
    both = [*settings, f"data.train=[market1501:{tiny_market},market1501:{tiny_market}]", "schedule.epochs=1"]
    progress = train(load_config(None, both), tmp_path / "run", ALONE)
    assert {"synthetic#1 validation", "synthetic#2 validation"} <= progress.history[0].keys()
    assert load_model(tmp_path / "run/last.pt").spec["num_classes"] == 28


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["data.train=[]"], "data.train is empty"),
        (["data.train=market1501"], "LAYOUT:ROOT"),
        (["data.train=market:/x"], "Did you mean 'market1501'"),
        (["sampler.batch_size=15"], "multiple"),
        (["sampler.batch_size=64"], "64|identities"),  # more identities than there are
        (["model.backbone=resnet19"], "Did you mean 'resnet18'"),
        (["optim.lr=1e30"], "not finite|The loss of step"),
    ],
)
def test_invalid_settings_are_named(settings: list[str], tmp_path: Path, extra: list[str], words: str) -> None:
    with pytest.raises(ReidError, match=words):
        train(load_config(None, [*settings, *extra]), tmp_path / "run", ALONE)


def test_a_used_run_folder_is_unchanged(settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("do not lose")
    with pytest.raises(ReidError, match=r"not empty.*--resume"):
        train(load_config(None, settings), tmp_path / "run", ALONE)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_resuming_on_other_data_is_refused(settings: list[str], tmp_path: Path, tiny_market: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_market, copy)
    train(load_config(None, [*settings, f"data.train=market1501:{copy}", "schedule.epochs=1"]), tmp_path / "run", ALONE)
    for path in (copy / "bounding_box_train").glob("0001_*"):
        path.unlink()
    with pytest.raises(ReidError, match="started on other data"):
        train(Config(), tmp_path / "run", ALONE, resume=True)
