"""`reid test` with tracks of known identities: re-association after a gap."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from reid.commands import main
from reid.embedding.table import Embeddings
from reid.evaluation import reassociate
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint
from reid.mtmc.track_files import read_tracks
from reid.pipelines.reassociation import needed_boxes
from reid.pipelines.settings import ReassociationSettings
from reid.synthetic import Recording, SyntheticSettings, record, simulate_embeddings, synthesize


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["test", *map(str, arguments)])


@pytest.fixture(scope="module")
def recording() -> Recording:
    return record(SyntheticSettings(ids=8, train_fraction=0, cameras=2, site="floor", difficulty={"crowd": 4}))


def test_embeddings_with_true_ids_are_scored_without_a_model(recording: Recording, tmp_path: Path) -> None:
    table = simulate_embeddings(recording, noise=1.5, per_track=10_000)
    table.save(tmp_path / "boxes.parquet")
    result = call("--embeddings", tmp_path / "boxes.parquet", "--gaps", 5, "--gaps", 50, "--stride", 4)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "test" / "reassociation.json").read_text())
    expected = reassociate(table.features, table.pids, table.frames, table.camids, gaps=(5, 50), stride=4)
    assert written["gaps"] == expected.as_dict()["gaps"]
    assert 0.5 < written["gaps"][0]["rank1"] <= 1
    assert f"{100 * written['gaps'][0]['rank1']:.1f}" in result.output


def test_without_pids_the_tracks_are_the_identities(recording: Recording, tmp_path: Path) -> None:
    table = simulate_embeddings(recording, noise=1)
    known = table.take(table.pids >= 0)  # type: ignore[operator]
    renamed = Embeddings(known.features, camids=known.camids, tracks=known.pids, frames=known.frames)
    scores = []
    for name, one in (("pids", known), ("tracks", renamed)):
        one.save(tmp_path / f"{name}.parquet")
        assert call("--embeddings", tmp_path / f"{name}.parquet", "--out", tmp_path / name).exit_code == 0
        scores.append(json.loads((tmp_path / name / "reassociation.json").read_text())["gaps"])
    assert scores[0] == scores[1]


def test_only_boxes_of_queries_and_their_galleries_are_embedded(recording: Recording) -> None:
    settings = ReassociationSettings(gaps=(3, 20), stride=15)
    kept = needed_boxes(recording.truth, settings)
    assert 0 < len(kept) < 0.4 * len(recording.truth)
    features = np.random.default_rng(0).normal(size=(len(recording.truth), 4))

    def scores(tracks: object, features: np.ndarray) -> object:
        columns = (getattr(tracks, name) for name in ("track", "frame", "camera"))
        return reassociate(features, *columns, gaps=settings.gaps, stride=settings.stride).gaps

    keys = {key: row for row, key in enumerate(zip(*_keys(recording.truth), strict=True))}
    rows = [keys[key] for key in zip(*_keys(kept), strict=True)]
    assert scores(kept, features[rows]) == scores(recording.truth, features)


def _keys(tracks: object) -> list[list[int]]:
    return [getattr(tracks, name).tolist() for name in ("camera", "frame", "track")]


@pytest.mark.slow
def test_boxes_of_true_tracks_are_cut_out_of_videos_and_embedded(tmp_path: Path) -> None:
    settings = SyntheticSettings(ids=6, train_fraction=0, cameras=1, site="floor", difficulty={"crowd": 4}, videos=True)
    root = synthesize(tmp_path / "scene", settings, track_seconds=15)
    save_checkpoint(tmp_path / "model.pt", build_model("light10", height=64, width=32))
    arguments = ("--model", tmp_path / "model.pt", "--tracks", root / "truth", "--videos", root / "videos")
    result = call(*arguments, "--gaps", 2, "--device", "cpu", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "out" / "reassociation.json").read_text())
    truth = read_tracks(root / "truth")
    random = np.random.default_rng(0).normal(size=(len(truth), 4))
    expected = reassociate(random, truth.track, truth.frame, truth.camera, gaps=[2]).gaps[0]
    assert scores["gaps"][0]["n_valid"] == expected.n_valid > 0
    assert scores["gaps"][0]["dropped"] == expected.dropped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--tracks", "x"], "Pass --embeddings FILE, or --tracks", id="tracks without videos"),
        pytest.param(["--embeddings", "x", "--data", "market1501:y"], "cannot be combined", id="embeddings and data"),
        pytest.param([], "Pass --model FILE, or --embeddings", id="no input"),
    ],
)
def test_a_missing_input_is_named(arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())


def test_embeddings_without_frames_are_an_error(tmp_path: Path) -> None:
    Embeddings([[1.0, 0.0]], pids=[1]).save(tmp_path / "e.parquet")
    result = call("--embeddings", tmp_path / "e.parquet")
    assert "no column frame" in " ".join(result.output.split())
