from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner, Result

from reid.commands import main
from reid.pipelines.compare import curves_of, differences, read_runs

SETTINGS = [
    "model.backbone=light10", "model.height=32", "model.width=16", "augment.pad=2", "sampler.batch_size=16",
    "sampler.crops_per_id=2", "loss.margin=null", "schedule.warmup_epochs=1", "eval.fraction=0.3", "eval.every=1",
    "log_every=2", "device=cpu",
]  # fmt: skip


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_market: Path) -> Path:
    """Two runs: `one` of 2 epochs, `other` of 1 with another rate and a further loss."""
    folder = tmp_path_factory.mktemp("runs")
    data = [f"data.train=market1501:{tiny_market}", f"data.store_dir={folder / 'store'}"]
    for name, extra in {
        "one": ["schedule.epochs=2"],
        "other": ["schedule.epochs=1", "optim.lr=0.001", "loss.extra={center: {weight: 0.01}}"],
    }.items():
        done = call("train", "--out", folder / name, *data, *SETTINGS, *extra)
        assert done.exit_code == 0, done.output
    return folder


@pytest.mark.slow
def test_comparison_of_two_runs(folder: Path, tmp_path: Path) -> None:
    done = call("runs", "compare", folder / "one", folder / "other", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    for part in ("one", "other", "synthetic validation", "optim.lr", "schedule.epochs", "loss.extra.center.weight"):
        assert part in text
    assert "augment.pad" not in text, "equal settings are not listed"
    assert "trained on different rows" not in text
    content = json.loads((tmp_path / "out/comparison.json").read_text())
    assert content["differences"]["optim.lr"] == {"one": 3.5e-4, "other": 1e-3}
    assert content["differences"]["loss.extra.center.weight"] == {"one": None, "other": 0.01}
    one = content["runs"]["one"]
    assert [entry["epoch"] for entry in one["history"]] == [1, 2]
    assert one["scores"]["synthetic validation"] == one["history"][-1]["synthetic validation"]
    assert one["minutes"] > 0
    steps, losses = content["curves"]["loss"]["one"]
    lines = [json.loads(line) for line in (folder / "one/log.jsonl").read_text().splitlines()]
    assert list(zip(steps, losses, strict=True)) == [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert set(content["curves"]["extra.center"]) == {"other"}
    picture = cv2.imread(str(tmp_path / "out/comparison.png"))
    assert picture.shape[0] > 300
    assert picture.std() > 10


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the pictures, which take most of the time."""
    monkeypatch.setattr("reid.pipelines.compare.plot_learning", lambda *given: None)


@pytest.mark.usefixtures("undrawn")
def test_comparison_of_one_run_and_of_equal_runs(folder: Path, tmp_path: Path) -> None:
    done = call("runs", "compare", folder / "one", "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert "setting" not in done.output
    shutil.copytree(folder / "one", tmp_path / "elsewhere/one")
    done = call("runs", "compare", folder / "one", tmp_path / "elsewhere/one", "--out", tmp_path / "b")
    assert done.exit_code == 0, done.output
    assert "All settings are equal" in done.output
    assert set(json.loads((tmp_path / "b/comparison.json").read_text())["runs"]) == {
        str(folder / "one"), str(tmp_path / "elsewhere/one"),
    }  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_scores_of_reid_test_and_different_data_are_reported(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder / "one", copy)
    (copy / "test").mkdir()
    (copy / "test/metrics.json").write_text(json.dumps({"sets": {"duke": {"plain": {"mAP": 0.25, "rank-1": 0.5}}}}))
    data = json.loads((copy / "data.json").read_text())
    data["train"]["sha256"] = "0"
    (copy / "data.json").write_text(json.dumps(data))
    done = call("runs", "compare", folder / "one", copy, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "25.00% / 50.00%" in done.output
    assert "trained on different rows" in done.output


def test_unfinished_run_is_read(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder / "one", copy)
    (copy / "last.pt").unlink()
    lines = (copy / "log.jsonl").read_text().splitlines()
    (copy / "log.jsonl").write_text("\n".join(lines[:2]) + '\n{"step": 6, "lo')
    (run,) = read_runs([copy])
    assert len(run.lines) == 2
    assert run.minutes is None
    assert run.scores == {}
    assert curves_of([run]).keys() >= {"loss", "lr"}
    (copy / "log.jsonl").write_text("")
    assert curves_of(read_runs([copy])) == {}
    done = call("runs", "compare", copy, "--out", tmp_path / "none")
    assert done.exit_code == 1
    assert "not logged anything yet" in done.output


@pytest.mark.parametrize("kind", ["missing", "empty", "damaged"])
def test_invalid_run_folder_is_an_error(folder: Path, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "run"
    if kind != "missing":
        place.mkdir()
    if kind == "damaged":
        (place / "config.yaml").write_text("seed: 0\n")
        (place / "log.jsonl").write_text("not json\n")
    done = call("runs", "compare", folder / "one", place, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert str(place) in done.output.replace("\n", "")
    assert "Traceback" not in done.output


def test_differences_are_none_where_a_run_lacks_the_key(folder: Path) -> None:
    found = differences(read_runs([folder / "one", folder / "other"]))
    assert found["loss.extra.center.weight"] == [None, 0.01]
    assert found["optim.lr"] == [3.5e-4, 1e-3]


@pytest.mark.slow
def test_run_is_repeated_from_its_saved_settings(folder: Path, tmp_path: Path, tiny_market: Path) -> None:
    done = call("train", "--config", folder / "one/config.yaml", "--out", tmp_path / "again")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "again/log.jsonl").read_bytes() == (folder / "one/log.jsonl").read_bytes()
    assert "The data differ" not in done.output
    copy = tmp_path / "data"
    shutil.copytree(tiny_market, copy)
    next((copy / "bounding_box_train").iterdir()).unlink()
    arguments = ("train", "--config", folder / "one/config.yaml", f"data.train=market1501:{copy}")
    done = call(*arguments, "--out", tmp_path / "changed")
    assert done.exit_code == 0, done.output
    assert "The data differ from those of the run" in " ".join(done.output.split())
