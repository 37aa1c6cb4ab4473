"""Written data sets: tree, tracks, videos; reproducibility and errors."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from reid.config import load_settings
from reid.core.errors import ConfigError, ReidError
from reid.data.box_selection import box_quality, choose_boxes
from reid.data.layouts import load_benchmark
from reid.mtmc.track_files import read_tracks
from reid.synthetic import Difficulty, SyntheticSettings, TrackerFaults, synthesize, writer
from reid.synthetic.simulated_tracks import tracked_boxes
from reid.synthetic.trajectories import Sighting
from reid.synthetic.world import TEST, plan_world
from tests.synthetic.baselines import score

SMALL: dict[str, Any] = {"ids": 10, "train_fraction": 0.6, "cameras": 3, "crops_per_pass": (2, 3), "seed": 4}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("synthetic") / "set", **SMALL)


def digest(root: Path) -> dict[str, str]:
    """Return the hash of every file by its path."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_mot(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", ndmin=2)


@pytest.mark.slow
def test_the_same_settings_give_the_same_files_for_any_number_of_workers(generated: Path, tmp_path: Path) -> None:
    again = synthesize(tmp_path / "again", **SMALL, workers=2)
    assert digest(again) == digest(generated)


@pytest.mark.slow
def test_another_seed_gives_other_files(generated: Path, tmp_path: Path) -> None:
    other = synthesize(tmp_path / "other", **{**SMALL, "seed": 5})
    same = set(digest(other).items()) & set(digest(generated).items())
    assert not same


def test_the_tree_is_read_as_market1501(generated: Path) -> None:
    benchmark = load_benchmark("market1501", generated)
    counts = json.loads((generated / "made.json").read_text())["counts"]
    assert len(benchmark.train) == counts["bounding_box_train"]
    assert len(benchmark.query) == counts["query"]
    assert len(benchmark.gallery) == counts["bounding_box_test"] - counts["junk"]
    assert benchmark.n_junk == counts["junk"] > 0
    assert benchmark.n_distractors == counts["distractors"] > 0
    assert not benchmark.skipped
    assert set(benchmark.train.camids) == {1, 2, 3}
    for path in [*benchmark.train.paths, *benchmark.query.paths, *benchmark.gallery.paths]:
        image = cv2.imread(path)
        assert image is not None
        assert image.shape == (128, 64, 3)
        assert image.std() > 2


def test_the_truth_has_one_box_inside_the_frame_per_identity_and_frame(generated: Path) -> None:
    cameras = yaml.safe_load((generated / "cameras.yaml").read_text())["cameras"]
    assert sorted(cameras) == ["cam01", "cam02", "cam03"]
    seen = defaultdict(set)
    for name, camera in cameras.items():
        for folder in ("truth", "tracks"):
            rows = read_mot(generated / folder / f"{name}.txt")
            assert rows.shape[1] == 10
            frames, ids, x, y, w, h, conf = rows[:, :7].T
            assert frames.min() >= 1
            assert ids.min() >= 1
            assert not [key for key, count in Counter(zip(frames, ids, strict=True)).items() if count > 1]
            width, height = camera["size"]
            assert x.min() >= 0
            assert y.min() >= 0
            assert (x + w).max() <= width + 0.02
            assert (y + h).max() <= height + 0.02
            assert w.min() > 0
            assert h.min() > 0
            assert conf.min() > 0
            assert conf.max() <= 1
            assert (rows[:, 7:] == -1).all()
            assert list(frames) == sorted(frames)
        for identity in read_mot(generated / "truth" / f"{name}.txt")[:, 1]:
            seen[int(identity)].add(name)
    assert all(len(seen[pid]) >= 2 for pid in range(7, 11)), "every test identity is seen by several cameras"
    assert not set(seen) & set(range(1, 7)), "train identities are in another recording"


def test_gallery_crops_agree_with_the_true_tracks(generated: Path) -> None:
    gallery = load_benchmark("market1501", generated).gallery
    for pid, camera, frame in zip(gallery.pids, gallery.camids, gallery.frames, strict=True):
        rows = read_mot(generated / "truth" / f"cam{camera:02d}.txt")
        if pid > 0:
            assert ((rows[:, 0] == frame) & (rows[:, 1] == pid)).any()


@pytest.mark.slow
def test_tracker_faults_follow_their_settings() -> None:
    world = plan_world(SyntheticSettings(ids=60))
    perfect = TrackerFaults(miss=0, blind=1.1, jitter=0, split=0, switch=0, false_tracks=0)
    rng = np.random.default_rng
    camera, seen = world.cameras[0], world.sightings[TEST][0]
    n_true = sum(len(s.frames) for s in seen)

    def track(**faults: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the frames and ids of the simulated tracker's boxes."""
        return tracked_boxes(camera, seen, TrackerFaults(**{**vars(perfect), **faults}), rng(0))[:2]

    frames, ids = track()
    n = len(np.unique(ids))
    assert 0.98 * n_true < len(frames) <= n_true, "only boxes at the border are lost"
    assert n == len([s for s in seen if len(s.frames)])
    assert 0.7 * n_true < len(track(miss=0.2)[0]) < 0.9 * n_true
    assert len(np.unique(track(split=1.0)[1])) > 1.8 * n
    assert len(np.unique(track(false_tracks=1.0)[1])) > 1.4 * n
    switched = track(switch=1.0)
    assert len(switched[0]) == len(frames)
    assert (switched[1] != ids).any()


@pytest.mark.slow
def test_track_ids_are_unique_per_frame_after_many_id_switches() -> None:
    world = plan_world(SyntheticSettings(ids=120, train_fraction=0.1))
    swapping = TrackerFaults(switch=1.0, split=0.5)
    for camera, seen in zip(world.cameras, world.sightings[TEST], strict=True):
        frames, ids, *_ = tracked_boxes(camera, seen, swapping, np.random.default_rng(1))
        assert len(np.unique(np.stack([frames, ids]), axis=1).T) == len(frames)


@pytest.mark.slow
def test_track_seconds_stops_all_cameras_at_the_same_time(tmp_path: Path) -> None:
    root = synthesize(tmp_path / "short", **{**SMALL, "ids": 6}, track_seconds=40.0)
    cameras = yaml.safe_load((root / "cameras.yaml").read_text())["cameras"]
    for name, camera in cameras.items():
        text = (root / "truth" / f"{name}.txt").read_text()
        for line in text.splitlines():
            assert camera["offset"] + (int(line.split(",")[0]) - 1) / camera["fps"] <= 40.0 + 1e-6


def test_true_tracks_respect_the_travel_times_of_cameras_yaml(generated: Path) -> None:
    settings = yaml.safe_load((generated / "cameras.yaml").read_text())
    least = {(pair["from"], pair["to"]): pair["min"] for pair in settings["pairs"]}
    assert len(least) == 9
    spans = defaultdict(list)
    for name, camera in settings["cameras"].items():
        rows = read_mot(generated / "truth" / f"{name}.txt")
        for identity in np.unique(rows[:, 1]):
            times = camera["offset"] + (rows[rows[:, 1] == identity, 0] - 1) / camera["fps"]
            for part in np.split(times, np.flatnonzero(np.diff(times) > 1.5) + 1):
                spans[identity].append((part[0], part[-1], name))
    for walks in spans.values():
        walks.sort()
        for i, (_, end, source) in enumerate(walks):
            for start, _, target in walks[i + 1 :]:
                assert start - end >= least[source, target]


@pytest.mark.slow
def test_videos_show_people_in_the_true_boxes(tmp_path: Path) -> None:
    root = synthesize(
        tmp_path / "filmed",
        **{**SMALL, "ids": 4, "cameras": 2},
        videos=True,
        track_seconds=11.0,
        difficulty=Difficulty(occluders=0),
    )
    checked = 0
    for name, camera in yaml.safe_load((root / "cameras.yaml").read_text())["cameras"].items():
        video = cv2.VideoCapture(str(root / "videos" / f"{name}.mp4"))
        assert video.isOpened()
        assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(camera["fps"])
        frames = []
        while (read := video.read())[0]:
            frames.append(read[1])
        assert frames[0].shape[1::-1] == tuple(camera["size"])
        assert len(frames) == int((11.0 - camera["offset"]) * camera["fps"] + 1e-6) + 1
        text = (root / "truth" / f"{name}.txt").read_text()
        if not text:
            continue
        rows = np.array([[float(v) for v in line.split(",")] for line in text.splitlines()])
        busy = set(rows[:, 0].astype(int))
        empty = np.mean([f for i, f in enumerate(frames, start=1) if i not in busy][:20], axis=0)
        for frame in sorted(busy)[3::8]:
            change = np.abs(frames[frame - 1] - empty).mean(-1)
            inside = np.zeros(change.shape, bool)
            for x, y, w, h in rows[rows[:, 0] == frame, 2:6]:
                inside[int(y) : int(y + h), int(x) : int(x + w)] = True
            assert change[inside].mean() > 2 * change[~inside].mean()
            checked += 1
    assert checked > 3


@pytest.mark.slow
def test_colour_identifies_people_when_cameras_are_neutral(tmp_path: Path) -> None:
    """The same identity has the same look in every camera, so neutral cameras make colour a good guess."""
    settings: dict[str, Any] = {"ids": 24, "cameras": 3, "train_fraction": 0.1, "seed": 1}
    neutral = Difficulty(lookalikes=0, colour=0, degrade=0, occluders=0, crowd=0.3, bad_boxes=0)
    hard = Difficulty(lookalikes=0.5)
    easy_scores = score(str(synthesize(tmp_path / "easy", **settings, difficulty=neutral)))
    hard_scores = score(str(synthesize(tmp_path / "hard", **settings, difficulty=hard)))
    assert easy_scores["HSV histogram"].mAP > 0.4
    assert hard_scores["HSV histogram"].mAP < 0.6 * easy_scores["HSV histogram"].mAP


def test_a_complete_data_set_is_not_rendered_again(generated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "plan_world", lambda settings: pytest.fail("rendered again"))
    assert synthesize(generated, **SMALL) == generated


def test_a_failure_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, shot: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._Renderer, "crop", full)
    with pytest.raises(ReidError, match="No space left on device"):
        synthesize(tmp_path / "out", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_the_config_file_lists_all_defaults() -> None:
    file = Path(__file__).parents[2] / "configs/synthetic.yaml"
    assert load_settings(SyntheticSettings, file) == SyntheticSettings()
    assert yaml.safe_load(file.read_text(encoding="utf-8")) == SyntheticSettings().as_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"cameras": 1}, "cameras=1", id="one camera"),
        pytest.param({"ids": 3}, "ids=3", id="too few identities"),
        pytest.param({"ids": 10000}, "ids=10000", id="more identities than four digits"),
        pytest.param({"seed": -1}, "seed=-1", id="negative seed"),
        pytest.param({"train_fraction": 1.5}, "train_fraction=1.5", id="fraction above 1"),
        pytest.param({"crops_per_pass": (1, 3)}, "crops_per_pass", id="one crop per walk"),
        pytest.param({"crops_per_pass": (4, 2)}, "crops_per_pass", id="falling limits"),
        pytest.param({"junk": -0.1}, "junk=-0.1", id="negative junk"),
        pytest.param({"fps": 0}, "fps=0", id="no frames"),
        pytest.param({"track_seconds": 0}, "track_seconds=0", id="empty tracks"),
        pytest.param({"size": (8, 16)}, "size is", id="tiny crops"),
        pytest.param({"difficulty": {"crowd": 0}}, "difficulty.crowd=0", id="no people in view"),
        pytest.param({"difficulty": {"occluders": -1}}, "difficulty.occluders=-1", id="negative occluders"),
        pytest.param({"difficulty": {"hidden": 1.5}}, "difficulty.hidden=1.5", id="hidden fraction above 1"),
        pytest.param({"tracker": {"mis": 0.1}}, "Did you mean 'miss'", id="unknown setting"),
    ],
)
def test_an_invalid_setting_is_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        synthesize(tmp_path / "out", **{**SMALL, **settings})
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_content_is_refused(generated: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ReidError, match=r"not empty and has no made\.json"):
        synthesize(tmp_path, **SMALL)
    assert (tmp_path / "mine.txt").read_text() == "keep"
    with pytest.raises(ReidError, match="contains a data set with ids=10, not 12"):
        synthesize(generated, **{**SMALL, "ids": 12})
    with pytest.raises(ReidError, match="is a file"):
        synthesize(tmp_path / "mine.txt", **SMALL)


@pytest.mark.slow
def test_an_empty_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (synthesize(tmp_path / "empty", **{**SMALL, "ids": 4}) / "made.json").is_file()


def test_a_sighting_can_be_cut_at_a_frame() -> None:
    seen: Sighting = next(s for s in plan_world(SyntheticSettings(ids=10)).sightings[TEST][0] if len(s.frames) > 5)
    part = seen.until(int(seen.frames[3]))
    assert len(part.frames) == len(part.boxes) == len(part.hidden) == 4


@pytest.mark.slow
def test_stills_are_the_frames_that_matching_selects_and_look_like_the_video(tmp_path: Path) -> None:
    root = synthesize(tmp_path / "both", **{**SMALL, "cameras": 2, "ids": 6}, stills=3, videos=True, track_seconds=24)
    tracks = read_tracks(root / "tracks")
    cameras = yaml.safe_load((root / "cameras.yaml").read_text())["cameras"]
    sizes = {name: camera["size"] for name, camera in cameras.items()}
    rows = choose_boxes(tracks, box_quality(tracks, sizes), per_track=3)
    assert len(rows)
    for number, name in enumerate(tracks.camera_names):
        wanted = np.unique(tracks.frame[rows[tracks.camera[rows] == number]])
        assert sorted(int(path.stem) for path in (root / "stills" / name).glob("*.jpg")) == wanted.tolist()
        film = cv2.VideoCapture(str(root / "videos" / f"{name}.mp4"))
        film.set(cv2.CAP_PROP_POS_FRAMES, int(wanted[0]) - 1)
        still = cv2.imread(str(root / "stills" / name / f"{wanted[0]:06d}.jpg"))
        same = np.abs(film.read()[1].astype(int) - still).mean()
        film.set(cv2.CAP_PROP_POS_FRAMES, max(0, int(wanted[0]) - 12))
        assert same < np.abs(film.read()[1].astype(int) - still).mean()
        assert same < 8


GENERATE = "import sys; from reid.synthetic import synthesize; synthesize(sys.argv[1], ids=40, cameras=2, workers=2)"


def is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_workers_end_with_their_parent_and_the_next_run_removes_its_files(
    tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "data"
    default = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup ignores it for all children
    parent = subprocess.Popen([sys.executable, "-c", default + GENERATE, str(out)])
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    wait_until(lambda: list(tmp_path.glob(".data.*/bounding_box_*/*.jpg")))
    workers = [int(child) for child in children.read_text().split()]
    assert len(workers) == 3, "two workers and the resource tracker of multiprocessing"
    parent.send_signal(number)
    assert parent.wait() == -number
    wait_until(lambda: not any(map(is_running, workers)))
    assert len(list(tmp_path.glob(".data.*.part"))) == 1
    synthesize(out, ids=4, cameras=2)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
