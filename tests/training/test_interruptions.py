"""Runs that are killed, resumed, started twice, or that end with an error."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.config import Config, load_config
from reid.core.errors import ReidError
from reid.models.checkpoints import load_checkpoint
from reid.training import trainer as trainer_module
from reid.training.run_folder import clean_up
from reid.training.trainer import train
from tests.training.runs import ALONE, REPOSITORY, Record, assert_same_run, log_of, make_trainer

pytestmark = pytest.mark.slow


EVERYTHING = [
    "save_every=2",
    "optim.ema=0.9",
    "optim.accumulate=2",
    "schedule.kind=onecycle",
    "schedule.per=step",
    "schedule.peak_momentum=0.8",
    "schedule.sizes=[[0,24,12],[0.5,32,16]]",
    "optim.groups={backbone.0: {freeze_epochs: 1}, backbone: {lr: 0.5}}",
    "loss.extra={center: {weight: 0.01, lr: 0.5}}",
    "sampler.kind=hard_identity",
    "eval.split=validation",
    "eval.fraction=0.3",
    "eval.every=1",
    "schedule.epochs=3",
]

KILLS = [
    [("in the settings", 1), ("before anything", 1)],  # without settings; with nothing else
    [("in a save", 1), ("before a step", 4)],  # in the first save; then within an epoch
    [("after a step", 5), ("in a save", 2), ("in a line", 1)],  # three times
    [("before the rename", 3)],  # written, not yet in place
    [("in a save", 4)],  # at an epoch's end
]


IN_SETTINGS = [("in the settings", 1)]


@pytest.fixture(scope="module")
def runs(small_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `whole`, a run that was never stopped, and `0`, `1`, …, killed by `KILLS` and `IN_SETTINGS`."""
    folder = tmp_path_factory.mktemp("runs")
    settings = [*small_settings, *EVERYTHING]
    train(load_config(None, settings), folder / "whole", ALONE)
    task = {
        "settings": settings,
        "runs": {str(folder / str(i)): kills for i, kills in enumerate([*KILLS, IN_SETTINGS])},
    }
    command = [sys.executable, "-m", "tests.training.killed", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(KILLS)), ids=lambda i: " then ".join(place for place, _ in KILLS[i]))
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(runs: Path, number: int) -> None:
    killed = runs / str(number)
    train(Config(), killed, ALONE, resume=True)
    assert_same_run(runs / "whole", killed)
    whole, best = (load_checkpoint(run / "best.pt") for run in (runs / "whole", killed))
    assert whole["scores"] == best["scores"]
    assert all(torch.equal(tensor, best["model"][name]) for name, tensor in whole["model"].items())
    assert not list(killed.glob(".*.part*"))


@pytest.mark.slow
def test_checkpoints_within_an_epoch_are_written_when_due(small: list[str], tmp_path: Path) -> None:
    steps: list[int] = []
    hooks = [Record(on_checkpoint=lambda trainer, path: steps.append(trainer.progress.step))]
    train(load_config(None, [*small, "save_every=3", "schedule.epochs=1"]), tmp_path / "a", ALONE, hooks=hooks)
    assert steps == [3, 6, 8]
    steps.clear()
    train(load_config(None, [*small, "save_minutes=0.0001", "schedule.epochs=1"]), tmp_path / "b", ALONE, hooks=hooks)
    assert steps[-1] == 8
    assert len(steps) > 2
    steps.clear()
    train(load_config(None, [*small, "schedule.epochs=1"]), tmp_path / "c", ALONE, hooks=hooks)
    assert steps == [8]


def spoil(monkeypatch: pytest.MonkeyPatch, at: dict[int, float]) -> None:
    """Put a loss of these values, and its gradients, in the place of these steps' (from 1)."""
    objective = trainer_module.Objective.forward
    calls = [0]

    def forward(self, *given):
        loss, terms = objective(self, *given)
        calls[0] += 1
        if calls[0] in at:
            loss = loss * at[calls[0]]
            terms = {**terms, "loss": loss.detach()}
        return loss, terms

    monkeypatch.setattr(trainer_module.Objective, "forward", forward)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e9], ids=["nan", "inf", "exploding"])
def test_a_loss_that_is_not_finite_names_its_step_files_and_the_last_checkpoint(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    spoil(monkeypatch, {5: factor})
    settings = [*small, "save_every=2", "log_every=1"]
    with pytest.raises(ReidError, match=r"The loss of step 5 \(epoch 1\)") as caught:
        train(load_config(None, settings), tmp_path / "run", ALONE)
    words = str(caught.value)
    assert f"last good checkpoint is {tmp_path / 'run/last.pt'}" in words
    trainer = make_trainer(small, tmp_path / "other")
    rows = list(trainer.loader)[4].index.numpy()
    assert all(path in words for path in trainer.data.train.crops.paths[rows])
    good = load_checkpoint(tmp_path / "run/last.pt")
    assert good["progress"]["step"] == 4
    assert all(tensor.isfinite().all() for tensor in good["model"].values())
    if np.isnan(factor):
        monkeypatch.undo()
        train(Config(), tmp_path / "run", ALONE, resume=True)
        train(load_config(None, settings), tmp_path / "whole", ALONE)
        assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_the_error_reports_that_there_is_no_checkpoint_yet(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {1: float("nan")})
    with pytest.raises(ReidError, match=r"The loss of step 1 .*No checkpoint has been written yet"):
        train(load_config(None, small), tmp_path / "run", ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["optim.ema=0.5", "optim.clip_norm=1", "optim.accumulate=2"]])
def test_steps_that_are_not_finite_are_skipped_and_counted(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], extra: list
) -> None:
    states: list[dict[str, torch.Tensor]] = []
    keep = Record(on_step_end=lambda trainer, _: states.append({**deepcopy(trainer.eval_model.state_dict())}))
    trainer = make_trainer([*small, *extra, "on_nan=skip", "log_every=1"], tmp_path / "run", keep)
    spoil(monkeypatch, {3: float("nan"), 6: 1e12})
    progress = trainer.fit()
    assert progress.skipped == 2
    assert "skipped: loss nan" in capsys.readouterr().out
    still = [
        number
        for number, (one, other) in enumerate(itertools.pairwise(states), 2)
        if all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    ]
    assert still == ([2, 3] if "optim.accumulate=2" in extra else [3, 6])
    skipped = {2} if "optim.accumulate=2" in extra else {3, 6}
    assert not skipped & {line["step"] for line in log_of(tmp_path / "run")}
    assert all(np.isfinite(list(line.values())).all() for line in log_of(tmp_path / "run"))
    assert load_checkpoint(tmp_path / "run/last.pt")["progress"]["skipped"] == 2


def test_training_ends_after_max_skipped_steps(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, dict.fromkeys(range(2, 20), float("nan")))
    with pytest.raises(ReidError, match=r"Step 5 would be skipped.*max_skipped=3"):
        train(load_config(None, [*small, "on_nan=skip", "max_skipped=3"]), tmp_path / "run", ALONE)


@pytest.mark.slow
def test_on_nan_skip_changes_nothing_if_all_values_are_finite(small: list[str], tmp_path: Path) -> None:
    one = [*small, "schedule.epochs=1"]
    train(load_config(None, one), tmp_path / "stop", ALONE)
    train(load_config(None, [*one, "on_nan=skip"]), tmp_path / "skip", ALONE)
    assert log_of(tmp_path / "stop") == log_of(tmp_path / "skip")


def test_resuming_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReidError, match=r"nothing has no config.yaml.*Start a run with --out"):
        train(Config(), tmp_path / "nothing", ALONE, resume=True)
    assert not os.path.exists(tmp_path / "nothing")


@pytest.mark.slow
def test_a_run_killed_while_its_settings_are_written_can_be_started_again(small: list[str], runs: Path) -> None:
    run = runs / str(len(KILLS))
    assert [path.name for path in run.iterdir()] != []  # a temporary file, and the lock
    with pytest.raises(ReidError, match=r"has no config.yaml.*Start a run with --out"):
        train(Config(), run, ALONE, resume=True)
    train(load_config(None, [*small, "schedule.epochs=1"]), run, ALONE)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_cleaning_a_run_keeps_temporary_folders_of_other_machines(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 3}\n')
    exporting = tmp_path / ".best-onnx.0123abcd-77-ef-0.part"  # such as a running `reid model export` makes
    exporting.mkdir()
    clean_up(tmp_path, 2)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n'
    assert exporting.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True], ids=["start", "resume"])
def test_a_second_training_of_a_running_folder_is_refused(small: list[str], tmp_path: Path, resume: bool) -> None:
    config = load_config(None, [*small, "schedule.epochs=1", "save_every=2"])
    refused: list[int] = []

    def start_another(trainer, metrics) -> None:
        if trainer.progress.step in (1, 3):  # before and after the first checkpoint
            with pytest.raises(ReidError, match=f"run is in use by process {os.getpid()} on .* since") as error:
                train(config, tmp_path / "run", ALONE, resume=resume)
            assert "space" not in str(error.value)
            refused.append(trainer.progress.step)

    train(config, tmp_path / "run", ALONE, hooks=[Record(on_step_end=start_another)])
    train(config, tmp_path / "alone", ALONE)
    assert refused == [1, 3]
    assert_same_run(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
def test_memory_files_and_threads_stay_flat_over_many_epochs(small: list[str], tmp_path: Path) -> None:
    """From epoch 10 to epoch 30: resident memory, open files, threads, and files in the temporary folder."""
    seen: list[tuple[int, int, int, int]] = []

    def measure(trainer, metrics) -> None:
        status = Path("/proc/self/status").read_text()
        memory = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])
        threads = int(re.search(r"Threads:\s+(\d+)", status)[1])
        temporary = len(list(tmp_path.rglob("*")))
        seen.append((memory, threads, len(os.listdir("/proc/self/fd")), temporary))

    settings = [*small, "schedule.epochs=30", "eval.split=validation", "eval.fraction=0.3", "eval.every=5"]
    train(load_config(None, settings), tmp_path / "run", ALONE, hooks=[Record(on_epoch_end=measure)])
    early, late = seen[9], seen[-1]
    print(f"epoch 10: {early}, epoch 30: {late} (resident kB, threads, open files, files written)")
    assert late[0] < early[0] + 10_000
    assert all(now <= before for now, before in zip(late[1:], early[1:], strict=True))
