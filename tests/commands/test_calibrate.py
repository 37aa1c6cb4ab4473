from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from reid.commands import main
from reid.embedding.calibration_file import load_calibration
from reid.embedding.table import Embeddings
from tests.evaluation.test_calibration import people, walks


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments)])


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    features, pids, camids = people()
    meta = {"model": "net-1", "metric": "cosine"}
    return Embeddings(features, pids=pids, camids=camids, meta=meta).save(tmp_path / "labelled.parquet")


@pytest.fixture
def tracked(tmp_path: Path) -> Path:
    features, pids, camids, tracks, times = walks()
    frames = np.round(times * 25).astype(int)
    meta = {"model": "net-1", "metric": "cosine"}
    return Embeddings(features, pids=pids, camids=camids, tracks=tracks, frames=frames, meta=meta).save(
        tmp_path / "tracked.parquet"
    )


def test_labelled_embeddings_are_calibrated(labelled: Path) -> None:
    result = calibrate(labelled, "--fmr", 1e-2)
    assert result.exit_code == 0, result.output
    made = load_calibration(labelled.parent / "calibration.json")
    assert (made.model, made.source, made.chosen_fmr) == ("net-1", "labels", 1e-2)
    for expected in (
        "*0.01",
        f"{made.threshold():.4f}",
        "too few pairs",
        f"{made.overall.genuine:,} genuine and {made.overall.impostor:,} impostor pairs",
        "3 camera pairs have a curve each",
        f"calibration: {labelled.parent / 'calibration.json'}",
    ):
        assert expected in result.output
    assert "Warning" not in result.output


def test_several_files_give_the_calibration_of_one(labelled: Path, tmp_path: Path) -> None:
    table = Embeddings.load(labelled)
    parts = [table.take(np.arange(start, 720, 2)).save(tmp_path / f"{start}.parquet") for start in (0, 1)]
    for files, out in (([labelled], "whole.json"), (parts, "parts.json")):
        assert calibrate(*files, "--fmr", 1e-2, "--out", tmp_path / out).exit_code == 0
    whole, both = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "parts.json"))
    assert whole["overall"]["impostor_pairs"] == both["overall"]["impostor_pairs"]
    assert whole["threshold"] == pytest.approx(both["threshold"], rel=1e-4)


def test_any_camera_counts_all_pairs(labelled: Path) -> None:
    assert "all pairs, of any cameras" in calibrate(labelled, "--fmr", 1e-2, "--any-camera").output


def test_calibration_is_written_next_to_the_model(labelled: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "best.pt"
    result = calibrate(labelled, "--fmr", 1e-2, "--model", checkpoint)
    assert result.exit_code == 1
    assert f"There is no model {checkpoint}" in result.output
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"")
    assert calibrate(labelled, "--fmr", 1e-2, "--model", checkpoint).exit_code == 0
    assert (tmp_path / "run" / "calibration.json").is_file()


def test_tracks_are_calibrated_without_labels(tracked: Path, tmp_path: Path) -> None:
    result = calibrate(tracked, "--label-free", "--fmr", 1e-2)
    assert result.exit_code == 0, result.output
    assert "Made without labels" in result.output
    assert "450 tracks" in result.output
    table = Embeddings.load(tracked)
    bare = Embeddings(table.features, camids=table.camids, tracks=table.tracks, frames=table.frames)
    again = calibrate(bare.save(tmp_path / "bare" / "bare.parquet"), "--fmr", 1e-2)
    assert "do not name their model" in again.output
    first, second = (load_calibration(folder / "calibration.json") for folder in (tmp_path, tmp_path / "bare"))
    assert first.threshold() == second.threshold()
    assert first.source == second.source == "tracks"


@pytest.mark.parametrize(
    ("columns", "arguments", "expected"),
    [
        pytest.param({"camids": None}, [], "no camid column.*--any-camera", id="labels without cameras"),
        pytest.param(
            {"pids": None, "tracks": None}, [], "the columns camid, track and frame. Add track", id="no track"
        ),
        pytest.param({"frames": None}, ["--label-free"], "Without labels.*Add frame", id="no frame"),
        pytest.param({"tracks": 1}, ["--label-free"], "does not number tracks of one person: 3", id="videos"),
        pytest.param({}, ["--fmr", "1e-6"], "cannot be estimated from these pairs", id="too few"),
    ],
)
def test_missing_columns_are_errors(
    tracked: Path, tmp_path: Path, columns: dict, arguments: list, expected: str
) -> None:
    table = Embeddings.load(tracked)
    kept = {name: getattr(table, name) for name in ("pids", "camids", "tracks", "frames")}
    for name, value in columns.items():
        kept[name] = None if value is None else np.full(len(table), value)
    path = Embeddings(table.features, **kept).save(tmp_path / "other" / "other.parquet")
    result = calibrate(path, *arguments)
    assert result.exit_code == 1
    parts = expected.split(".*")
    flat = " ".join(result.output.split())
    assert all(part in flat for part in parts), flat
    assert not (tmp_path / "other" / "calibration.json").exists()


def test_embeddings_of_two_models_are_an_error(labelled: Path, tmp_path: Path) -> None:
    other = Embeddings(*people(), meta={"model": "net-2"}).save(tmp_path / "other.parquet")
    result = calibrate(labelled, other)
    assert result.exit_code == 1
    assert f"'net-1' ({labelled}) with those of 'net-2' ({tmp_path / 'other.parquet'})" in result.output
