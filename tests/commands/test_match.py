from __future__ import annotations

import csv
import json

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from reid.commands import main
from reid.embedding.table import Embeddings
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint
from reid.mtmc import Tracks
from reid.mtmc.track_files import read_tracks
from reid.mtmc.track_writers import write_tracks
from reid.pipelines.pictures_file import read_pictures

CAMERAS = ("cam01", "cam02", "cam03")
PEOPLE = 6


def run(*arguments):
    return CliRunner().invoke(main, ["match", *map(str, arguments)])


def walks():
    """Six people pass three cameras one after the other; local ids run backwards in every second camera."""
    rows = []
    for c in range(len(CAMERAS)):
        for person in range(PEOPLE):
            local = 1 + (person if c % 2 == 0 else PEOPLE - 1 - person)
            first = 1 + 100 * c + 8 * person
            box = (10.0 + 30 * person, 20.0, 24.0, 60.0)
            rows += [(c, local, frame, *box, person) for frame in range(first, first + 20)]
    return np.array(rows)


@pytest.fixture
def world(tmp_path):
    """Track files, truth and embeddings that are easy: people are orthogonal, crops differ a little."""
    rows = walks()
    camera, local, frame, person = (rows[:, i].astype(np.int64) for i in (0, 1, 2, 7))
    write_tracks(Tracks.from_columns(CAMERAS, camera, local, frame, rows[:, 3:7]), tmp_path / "tracks")
    write_tracks(Tracks.from_columns(CAMERAS, camera, 100 + person, frame, rows[:, 3:7]), tmp_path / "truth")
    rng = np.random.default_rng(0)
    features = np.eye(PEOPLE, 16)[person] + 0.1 * rng.normal(size=(len(rows), 16))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    Embeddings(features, camids=camera + 1, tracks=local, frames=frame, meta={"model": "m"}).save(
        tmp_path / "features.parquet"
    )
    return tmp_path


def options(world, *more):
    return ("--tracks", world / "tracks", "--embeddings", world / "features.parquet", "--out", world / "out", *more)


def identities(world):
    """{(camera, local track): identity} of the last run."""
    lines = csv.DictReader((world / "out" / "identities.csv").open())
    return {(line["camera"], int(line["track"])): int(line["identity"]) for line in lines}


def test_every_person_gets_one_identity_in_all_files(world):
    result = run(*options(world, "--truth", world / "truth"))
    assert result.exit_code == 0, result.output
    assert "6 identities from 18 tracklets, 6 of them in two or more cameras" in result.output
    out = world / "out"
    truth = read_tracks(world / "truth")
    scores = json.loads((out / "scores.json").read_text())
    assert scores["overall"]["IDF1"] == scores["overall"]["HOTA"] == 1
    for person in range(PEOPLE):
        assert len({number for (name, local), number in identities(world).items()
                    if person == (PEOPLE - local if name == "cam02" else local - 1)}) == 1  # fmt: skip
    links = pq.read_table(out / "links.parquet").to_pandas()
    assert (links.first_identity == links.second_identity).equals(links.joined)
    assert set(links.forbidden_by[links.first_camera == links.second_camera]) >= {"same camera, same time"}
    match = json.loads((out / "match.json").read_text())
    assert match["identities"] == match["multi_camera_identities"] == PEOPLE
    assert match["tracklets"] == 18
    for written in (read_tracks(out / "tracks"), read_tracks(out / "aicity.txt")):
        assert len(written) == len(truth)
        np.testing.assert_allclose(np.sort(written.boxes, axis=0), np.sort(truth.boxes, axis=0))
    assert "</html>" in (out / "report.html").read_text("utf-8")


def test_cameras_may_be_named_in_the_embeddings(world):
    path = world / "features.parquet"
    table = pq.read_table(path)
    names = pq.read_table(path).column("camid").to_pandas().map(lambda number: f"cam{number:02d}")
    table = table.drop_columns(["camid"]).add_column(0, "camera", [names.to_list()])
    pq.write_table(table.replace_schema_metadata(None), path)
    result = run(*options(world))
    assert result.exit_code == 0, result.output
    assert "6 identities" in result.output


def test_constraints_are_obeyed(world):
    (world / "constraints.json").write_text(
        json.dumps({"format": 1, "merge": [[["cam01", 1], ["cam03", 2]]], "split": [[["cam01", 3], ["cam03", 3]]]})
    )
    result = run(*options(world, "--constraints", world / "constraints.json"))
    assert result.exit_code == 0, result.output
    found = identities(world)
    assert found["cam01", 1] == found["cam03", 2]
    assert found["cam01", 3] != found["cam03", 3]


def test_tracks_without_appearance_are_listed_and_keep_an_identity(world):
    table = Embeddings.load(world / "features.parquet")
    table.take(~((table.camids == 2) & (table.tracks == 4))).save(world / "features.parquet")
    result = run(*options(world))
    assert result.exit_code == 0, result.output
    assert ("cam02", 4) in identities(world)
    assert "cam02, track 4" in (world / "out" / "report.html").read_text("utf-8")
    assert json.loads((world / "out" / "match.json").read_text())["tracklets_without_feature"] == 1


def test_cameras_yaml_next_to_the_tracks_is_used(world):
    (world / "cameras.yaml").write_text(
        "cameras: {cam01: {fps: 10}, cam02: {fps: 10}, cam03: {fps: 10}}\n"
        "pairs: [{from: cam01, to: cam02, min: 1000}]\n"
    )
    result = run(*options(world))
    assert result.exit_code == 0, result.output
    found = identities(world)
    assert all(found["cam01", 1 + i] != found["cam02", PEOPLE - i] for i in range(PEOPLE))
    assert all(found["cam03", 1 + i] in (found["cam01", 1 + i], found["cam02", PEOPLE - i]) for i in range(PEOPLE))


@pytest.mark.parametrize("solver", ["agglomerative", "correlation", "hungarian", "single_linkage"])
def test_every_solver_runs(world, solver):
    result = run(*options(world, f"solver={solver}", "threshold=0.5"))
    assert result.exit_code == 0, result.output
    assert f'"solver": "{solver}"' in (world / "out" / "match.json").read_text()


@pytest.fixture
def videos(world):
    """Each person is a colour on grey; the model is untrained, but colours differ."""
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [200, 200, 30], [200, 30, 200], [30, 200, 200]])
    rows = walks()
    for c, name in enumerate(CAMERAS):
        folder = world / "videos" / name
        folder.mkdir(parents=True)
        for frame in range(1, 262):
            picture = np.full((100, 200, 3), 128, dtype=np.uint8)
            for row in rows[(rows[:, 0] == c) & (rows[:, 2] == frame)]:
                x, y, w, h = row[3:7].astype(int)
                picture[y : y + h, x : x + w] = colours[int(row[7])]
            cv2.imwrite(str(folder / f"{frame:06d}.png"), picture[..., ::-1])
    save_checkpoint(world / "model.pt", build_model("light10", height=64, width=32))
    return world


@pytest.mark.slow
def test_crops_of_videos_are_embedded_once(videos):
    given = ("--tracks", videos / "tracks", "--videos", videos / "videos", "--model", videos / "model.pt")
    first = run(*given, "--out", videos / "out", "--per-track", 2, "threshold=0.001", "--pixelate-heads")
    assert first.exit_code == 0, first.output
    assert "36 crops embedded (0 of them by an earlier run)" in first.output
    assert "data:image/jpeg;base64" in (videos / "out" / "report.html").read_text("utf-8")
    table = Embeddings.load(videos / "out" / "embeddings.parquet")
    assert table.meta["camera_names"] == list(CAMERAS)
    picture_of = read_pictures(videos / "out" / "pictures.parquet", table)
    assert all(picture_of(row) for row in range(len(table)))
    again = run(*given, "--out", videos / "out", "--per-track", 2, "threshold=0.001")
    assert "36 crops embedded (36 of them by an earlier run)" in again.output
    kept = run("--tracks", videos / "tracks", "--embeddings", videos / "out" / "embeddings.parquet",
               "--out", videos / "other", "threshold=0.001")  # fmt: skip
    assert kept.exit_code == 0, kept.output
    assert (videos / "other" / "identities.csv").read_text() == (videos / "out" / "identities.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("--out", "o"), "Missing option '--tracks'", id="no tracks"),
        pytest.param(("--tracks", "tracks", "--out", "o"), "Pass the appearance of the tracks", id="no appearance"),
        pytest.param(
            ("--tracks", "tracks", "--embeddings", "features.parquet", "--out", "o", "solver=agglomerativ"),
            "agglomerative", id="an unknown solver: the nearest is named",
        ),
        pytest.param(
            ("--tracks", "tracks", "--embeddings", "features.parquet", "--out", "o", "neighbors=3"),
            "neighbours", id="an unknown setting: the nearest is named",
        ),
        pytest.param(
            ("--tracks", "tracks", "--embeddings", "features.parquet", "--out", "o", "neighbours"),
            "not of the form", id="a setting without a value",
        ),
        pytest.param(
            ("--tracks", "nowhere", "--embeddings", "features.parquet", "--out", "o"), "nowhere", id="no such folder"
        ),
        pytest.param(
            ("--tracks", "tracks", "--embeddings", "nothing.parquet", "--out", "o"), "nothing.parquet",
            id="no such file",
        ),
    ],
)  # fmt: skip
def test_invalid_arguments_are_errors(world, monkeypatch, arguments, message):
    monkeypatch.chdir(world)
    result = run(*arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
    assert not (world / "o").exists()


def test_embeddings_of_other_cameras_are_refused(world):
    table = Embeddings.load(world / "features.parquet")
    table.camids = table.camids + 10
    table.save(world / "features.parquet")
    result = run(*options(world))
    assert result.exit_code != 0
    assert "features of cameras without tracks" in " ".join(result.output.split())


def test_embeddings_without_tracks_are_refused(world):
    table = Embeddings.load(world / "features.parquet")
    Embeddings(table.features, camids=table.camids).save(world / "features.parquet")
    result = run(*options(world))
    assert result.exit_code != 0
    assert "Add the columns track, frame" in " ".join(result.output.split())


@pytest.mark.slow
def test_online_matching_is_compared_with_offline_matching(world):
    result = run(*options(world, "--online", "stream.period=2", "threshold=0.5", "--truth", world / "truth"))
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "online, delay at most 4 s" in text
    assert "of the pairs joined offline, 100.0% are joined online" in text
    assert "IDF1 100.0 online, 100.0 offline" in text
    assert json.loads((world / "out" / "match.json").read_text())["protocol"]["online"]["delay"] == 4


def renumber(world, offset):
    """Add the offset to the frame numbers of the features."""
    table = Embeddings.load(world / "features.parquet")
    table.frames = table.frames + offset
    table.save(world / "features.parquet")


def test_features_that_number_frames_differently_are_refused_with_counts(world):
    renumber(world, -1)
    result = run(*options(world))
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert "number their frames differently" in text
    assert "342 fit at offset 0, 324 at offset -1, 360 at offset 1" in text
    assert "--embeddings-first-frame" in text
    assert not (world / "out").exists()
    result = run(*options(world, "--embeddings-first-frame", 0))
    assert result.exit_code == 0, result.output
    assert "6 identities" in result.output


def test_features_whose_frames_are_those_of_no_box_are_refused(world):
    renumber(world, 1000)
    result = run(*options(world))
    assert result.exit_code == 1
    assert "0 fit at offset 0, 0 at offset -1, 0 at offset 1. Pass files of the same" in " ".join(result.output.split())


def test_features_of_a_few_other_frames_are_left_out_and_counted(world):
    table = Embeddings.load(world / "features.parquet")
    table.frames = np.where(np.arange(len(table)) < 3, 5000, table.frames)
    table.save(world / "features.parquet")
    result = run(*options(world))
    assert result.exit_code == 0, result.output
    assert "3 features left out: their frame has no box of the track" in " ".join(result.output.split())


def test_invalid_features_are_counted_and_named(world):
    path = world / "features.parquet"
    table = pq.read_table(path)
    features = np.stack(table.column("features").to_numpy()).copy()
    features[[0, 1, 30]] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel(), pa.float32()), features.shape[1])
    place = table.column_names.index("features")
    pq.write_table(table.set_column(place, "features", column), path)
    result = run(*options(world))
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "3 of 360 features left out: they contain NaN or infinity, or are zero. They are of cam01 track 1" in text


def test_untracked_rows_are_left_out_on_request(world):
    with (world / "tracks" / "cam01.txt").open("a") as file:
        file.write("5,-1,1,2,30,40,1,-1,-1,-1\n")
    assert "--skip-untracked" in " ".join(run(*options(world)).output.split())
    result = run(*options(world, "--skip-untracked"))
    assert result.exit_code == 0, result.output
    assert "1 of 121 rows skipped: their id is -1" in " ".join(result.output.split())


@pytest.mark.slow
def test_a_truth_that_numbers_frames_differently_is_named(world):
    truth = read_tracks(world / "truth")
    write_tracks(truth.shift_frames(5), world / "late")
    result = run(*options(world, "--truth", world / "late", "--truth-first-frame", 6))
    assert result.exit_code == 0, result.output
    assert json.loads((world / "out" / "scores.json").read_text())["overall"]["IDF1"] == 1
    write_tracks(truth.shift_frames(1), world / "shifted")
    result = run(*options(world, "--truth", world / "shifted"))
    text = " ".join(result.output.split())
    assert "IDF1 would be 100.0 if 1 were added to the frame numbers of the predicted tracks" in text


@pytest.mark.slow
def test_tracks_that_count_from_0_cut_the_same_crops(videos):
    tracks = read_tracks(videos / "tracks")
    write_tracks(tracks.shift_frames(-1), videos / "from0")
    given = ("--videos", videos / "videos", "--model", videos / "model.pt", "--per-track", 2)
    features = []
    for name in ("tracks", "from0"):
        result = run("--tracks", videos / name, "--out", videos / f"out-{name}", *given)
        assert result.exit_code == 0, result.output
        features.append(Embeddings.load(videos / f"out-{name}" / "embeddings.parquet").features)
    np.testing.assert_array_equal(*features)
    result = run("--tracks", videos / "tracks", "--out", videos / "out3", *given, "--first-frame", 0)
    assert result.exit_code == 0, result.output  # every frame from 1 on exists too


ENTRANCE = [
    pytest.param(tracks, features, arguments, id=f"{tracks} tracks, {features}, {' '.join(arguments) or 'defaults'}")
    for tracks, features in (
        (1, "all features"),
        (2, "all features"),
        (1, "equal features"),
        (2, "one feature"),
        (1, "no valid feature"),
    )
    for arguments in ((), ("threshold=0.5",), ("--online",), ("--online", "threshold=0.5"), ("--split",))
]


@pytest.mark.slow
@pytest.mark.parametrize(("tracks", "features", "arguments"), ENTRANCE)
def test_an_entrance_that_never_sees_two_people_at_once_has_undefined_statistics(tmp_path, tracks, features, arguments):
    rows = [(c, t, 1000 * c + 100 * t + f) for c in range(2) for t in range(tracks) for f in range(1, 6)]
    camera, track, frame = np.array(rows).T
    boxes = np.tile([10.0, 20, 30, 60], (len(rows), 1))
    write_tracks(Tracks.from_columns(["cam1", "cam2"], camera, track, frame, boxes), tmp_path / "tracks")
    values = np.random.default_rng(0).normal(size=(len(rows), 8))
    values = {"equal features": np.ones_like(values), "no valid feature": np.zeros_like(values)}.get(features, values)
    table = Embeddings(values, camids=camera + 1, tracks=track, frames=frame)
    table.take(np.arange(1 if features == "one feature" else len(rows))).save(tmp_path / "features.parquet")
    result = run(*options(tmp_path, "--truth", tmp_path / "tracks", *arguments))
    assert result.exit_code == 0, result.output
    assert "expected false-match rate unknown (not enough data)" in " ".join(result.output.split())
    for name in ("match.json", "scores.json"):
        json.loads((tmp_path / "out" / name).read_text(), parse_constant=pytest.fail)
    assert json.loads((tmp_path / "out" / "match.json").read_text())["expected_false_match_rate"] is None
