"""Several processes: they train as one, and when one of them dies the others do not wait for it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from reid.config import load_config
from reid.core.distributed import init_distributed
from reid.core.errors import ReidError
from reid.models.checkpoints import load_checkpoint
from reid.training.trainer import train
from tests.training.runs import ALONE, REPOSITORY, log_of

pytestmark = pytest.mark.slow


SHARED = [
    "sync_batchnorm=true",
    "optim.ema=0.9",
    "optim.accumulate=2",
    "optim.groups={backbone.0: {freeze_epochs: 1}}",
    "loss.extra={center: {weight: 0.01, lr: 0.5}}",
    "augment.pad=2",
    "eval.split=validation",
    "eval.fraction=0.3",
    "eval.every=1",
    "log_every=1",
]
SMOOTH = ["loss.triplet_weight=0", "loss.extra={}", "model.neck=none"]
BRIEF = ["eval.split=none", "schedule.epochs=1", "optim.groups={}"]
TROUBLES = {"die": ["die", 1, 3], "fail": ["fail", 0, 3], "hang": ["hang", 1, 3], "late": ["late", 1, 12]}


@pytest.fixture(scope="module", autouse=True)
def torchruns(
    small_settings: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[tuple[Path, subprocess.CompletedProcess[str], float]]]]:
    """Jobs of torchrun with a trouble in one process, which go on while other tests run, as they mostly wait."""

    def job(kind: str) -> tuple[Path, subprocess.CompletedProcess[str], float]:
        folder = tmp_path_factory.mktemp(kind)
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "tests.training.ranks", "--out", str(folder / "run"), *small_settings, "rank_timeout=0.1",
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "REID_TEST_TROUBLE": json.dumps([kind, 1, 3])}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=environment, check=False, cwd=REPOSITORY
        )
        return folder, done, time.time() - (folder / "run.trouble").stat().st_mtime

    with ThreadPoolExecutor(1) as pool:
        yield {kind: pool.submit(job, kind) for kind in ("stop", "die")}


@pytest.fixture(scope="module")
def results(small_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of two processes that train together, undisturbed and with each of the troubles."""
    folder = tmp_path_factory.mktemp("ranks")
    tasks: list[dict[str, Any]] = [
        {"settings": [*small_settings, *SHARED, *BRIEF], "out": str(folder / "two")},
        {"settings": [*small_settings, *SHARED, *SMOOTH], "out": str(folder / "smooth")},
        {
            "settings": [*small_settings, *SHARED, *BRIEF, "sync_batchnorm=false"],
            "out": str(folder / "apart"),
        },
    ]
    tasks += [
        {"settings": [*small_settings, "rank_timeout=0.1"], "out": str(folder / kind), "trouble": trouble}
        for kind, trouble in TROUBLES.items()
    ]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    command = [sys.executable, "-m", "tests.training.ranks", str(folder / "tasks.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"folder": folder, **dict(zip(["two", "smooth", "apart", *TROUBLES], json.loads(done.stdout), strict=True))}


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_batch(
    results: dict[str, Any], small: list[str], tmp_path: Path
) -> None:
    """Softmax without a neck: rounding stays rounding to the end (compare the next test)."""
    assert results["smooth"]["codes"] == [0, 0], results["smooth"]["printed"]
    train(load_config(None, [*small, *SHARED, *SMOOTH]), tmp_path / "one", ALONE)
    one, two = log_of(tmp_path / "one"), log_of(results["folder"] / "smooth")
    assert len(one) == len(two) > 6
    for alone, shared in zip(one, two, strict=True):
        assert alone.keys() == shared.keys()
        for name, value in alone.items():
            assert shared[name] == pytest.approx(value, rel=1e-4), (alone["step"], name)
    checkpoints = [load_checkpoint(run / "last.pt") for run in (tmp_path / "one", results["folder"] / "smooth")]
    for kind in ("model", "raw"):
        for name, tensor in checkpoints[0][kind].items():
            assert torch.allclose(checkpoints[1][kind][name], tensor, rtol=1e-3, atol=1e-5), name
    assert results["smooth"]["printed"][0].count("epoch 2/2") == 1
    assert "epoch" not in results["smooth"]["printed"][1], "the second one is silent"


def test_two_processes_with_all_features_take_equal_first_steps(
    results: dict[str, Any], small: list[str], tmp_path: Path
) -> None:
    """Mining chooses other triplets, and channels with next to no variance are scaled up, at the smallest difference:
    a run of one process whose weights are changed by 1e-7 goes apart as fast. So the first steps are compared."""
    train(load_config(None, [*small, *SHARED, *BRIEF]), tmp_path / "one", ALONE)
    one, two = log_of(tmp_path / "one"), log_of(results["folder"] / "two")
    for alone, shared in zip(one[:2], two[:2], strict=True):
        assert {"triplet", "softmax", "extra.center"} < alone.keys() == shared.keys()
        for name, value in alone.items():
            assert shared[name] == pytest.approx(value, rel=1e-5), (alone["step"], name)
    apart = log_of(results["folder"] / "apart")
    assert apart[0]["loss"] != pytest.approx(one[0]["loss"], rel=1e-3), "statistics of half a batch are others"


def test_a_process_that_dies_ends_the_job(results: dict[str, Any]) -> None:
    died = results["die"]
    assert died["codes"] == [1, -9]
    assert "Process 0 of 2 lost the others" in died["printed"][0]
    assert "Traceback" not in died["printed"][0]
    assert died["late"] < 10


def test_a_process_that_fails_reports_its_error_and_ends_the_job(results: dict[str, Any]) -> None:
    failed = results["fail"]
    assert failed["codes"] == [1, 1]
    assert "rank 0 has a trouble of its own" in failed["printed"][0]
    assert "Process 1 of 2 lost the others" in failed["printed"][1]
    assert failed["late"] < 10


def test_a_process_that_hangs_ends_the_job_within_the_timeout(results: dict[str, Any]) -> None:
    hung = results["hang"]
    assert hung["codes"] == [1, -15]
    assert "rank_timeout=0.1 minutes" in hung["printed"][0]
    assert hung["seconds"] < 60


def test_a_process_that_starts_too_late_ends_the_job_within_the_timeout(results: dict[str, Any]) -> None:
    late = results["late"]
    assert late["codes"] == [1, 1]
    for number, printed in enumerate(late["printed"]):
        assert f"Process {number} of 2 did not meet the others at 127.0.0.1:" in printed
        assert "rank_timeout=0.1 minutes" in printed
        assert "Traceback" not in printed
    assert late["seconds"] < 60


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; it must be a whole number from 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2'; it must be a whole number from 0 to 1"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"}, "MASTER_PORT is '99999'"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "did not meet the others at unset:unset"),
    ],
)
def test_invalid_variables_of_torchrun_are_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ReidError, match=message), init_distributed("cpu", 0.05):
        pass


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as used:
        used.bind(("0.0.0.0", 0))
        used.listen()
        port = str(used.getsockname()[1])
        address = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in address.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ReidError, match=f"at 127.0.0.1:{port}.*in use"), init_distributed("cpu", 0.05):
            pass


def test_torchrun_restarts_from_the_last_checkpoint(small: list[str], tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1",
        "-m", "tests.training.ranks", "--out", str(tmp_path / "run"), *small, *SHARED, *SMOOTH, "save_every=2",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "REID_TEST_TROUBLE": json.dumps(["die", 1, 3])}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Continuing {tmp_path / 'run'} at epoch 1, step 3" in done.stdout.replace("\n", "")
    train(load_config(None, [*small, *SHARED, *SMOOTH]), tmp_path / "one", ALONE)
    assert [line["step"] for line in log_of(tmp_path / "run")] == [line["step"] for line in log_of(tmp_path / "one")]
    assert json.loads((tmp_path / "run/environment.json").read_text())["processes"] == 2
    last = [log_of(run)[-2]["loss"] for run in (tmp_path / "run", tmp_path / "one")]
    assert last[0] == pytest.approx(last[1], rel=1e-4)


def test_one_process_needs_no_group() -> None:
    with init_distributed("cpu") as ranks:
        assert (ranks.rank, ranks.world_size) == (0, 1)
        assert ranks.any(True)
        assert not ranks.any(False)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x"])
def test_a_missing_device_is_named(device: str) -> None:
    with pytest.raises(ReidError, match=device), init_distributed(device):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seconds"), [("die", 60), ("stop", 120)])
def test_torchrun_ends_the_job_and_leaves_no_process(
    torchruns: dict[str, Future[tuple[Path, subprocess.CompletedProcess[str], float]]], kind: str, seconds: float
) -> None:
    """A stopped process ignores SIGTERM: the other ends after `rank_timeout` (6 s), torchrun kills it 30 s later."""
    folder, done, passed = torchruns[kind].result()
    print(f"{kind}: the job ended after {passed:.1f} s")
    assert passed < seconds
    assert done.returncode != 0
    assert "Process 0 of 2 lost the others" in " ".join((done.stdout + done.stderr).split()) or kind == "die"
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if os.fsencode(folder) in command]
