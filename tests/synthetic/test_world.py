"""The plan of a synthetic world: walks and crops."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from reid.synthetic import Difficulty, SyntheticSettings
from reid.synthetic.trajectories import Pass, travel_table
from reid.synthetic.world import World, plan_world
from tests.synthetic.rendering import rendered_people

NAME = re.compile(r"^(-?\d{1,4})_c(\d+)s(\d+)_(\d+)_(\d+)\.jpe?g$")
PLANS = {
    "defaults": SyntheticSettings(),
    "smallest": SyntheticSettings(ids=4, cameras=2),
    "two cameras": SyntheticSettings(ids=20, cameras=2, seed=5),
    "many cameras and a crowd": SyntheticSettings(ids=30, cameras=11, difficulty=Difficulty(crowd=8.0)),
    "few crops per walk": SyntheticSettings(ids=30, cameras=3, crops_per_pass=(2, 2), seed=2),
    "nearly all identities in train": SyntheticSettings(ids=12, train_fraction=0.99),
    "25 frames per second": SyntheticSettings(ids=12, fps=25.0, seed=9),
    "many re-entries": SyntheticSettings(ids=24, cameras=4, difficulty=Difficulty(reentry=0.6)),
}


@pytest.fixture(scope="module", params=PLANS.values(), ids=PLANS.keys())
def world(request: pytest.FixtureRequest) -> World:
    return plan_world(request.param)


def by_person(world: World) -> dict[tuple[int, int], list[Pass]]:
    """Return each person's passes of a recording, sorted by time."""
    found: dict[tuple[int, int], list[Pass]] = defaultdict(list)
    for recording, cameras in enumerate(world.sightings):
        for seen in cameras:
            for sighting in seen:
                found[recording, sighting.walk.person].append(sighting.walk)
    return {key: sorted(passes, key=lambda one: one.start) for key, passes in found.items()}


@pytest.mark.slow
def test_file_names_are_unique_and_follow_market1501(world: World) -> None:
    names = [shot.name for shot in world.shots]
    assert len(set(names)) == len(names)
    for shot in world.shots:
        pid, camera, sequence, frame, box = (int(part) for part in NAME.match(shot.name).groups())  # type: ignore[union-attr]
        assert (camera, frame) == (shot.camera + 1, shot.frame)
        assert sequence >= 1
        assert frame >= 1
        assert box >= 1
        assert -1 <= pid <= world.settings.ids


def test_train_and_test_have_no_common_identity(world: World) -> None:
    pids = defaultdict(set)
    for shot in world.shots:
        pids[shot.folder].add(int(shot.name.split("_")[0]))
    assert pids["bounding_box_train"] <= set(range(1, world.n_train + 1))
    assert pids["query"] <= set(range(world.n_train + 1, world.settings.ids + 1))
    assert pids["query"] <= pids["bounding_box_test"]
    assert len(pids["bounding_box_train"]) >= 2
    assert pids["query"]


def test_each_identity_and_camera_has_one_query_with_a_match_in_another_camera(world: World) -> None:
    queries, gallery = Counter(), defaultdict(set)
    for shot in world.shots:
        pid = int(shot.name.split("_")[0])
        if shot.folder == "query":
            queries[pid, shot.camera] += 1
        elif shot.folder == "bounding_box_test":
            gallery[pid].add(shot.camera)
    assert max(queries.values()) == 1
    assert all(gallery[pid] - {camera} for pid, camera in queries)


def test_counts_of_junk_and_distractors_follow_the_settings(world: World) -> None:
    kinds = Counter(int(shot.name.split("_")[0]) for shot in world.shots if shot.folder == "bounding_box_test")
    good = sum(count for pid, count in kinds.items() if pid > 0)
    assert kinds[-1] == round(world.settings.junk * good)
    assert kinds[0] == round(world.settings.distractors * good)


def test_boxes_are_inside_the_frame(world: World) -> None:
    for shot in world.shots:
        x, y, w, h = shot.box
        width, height = world.cameras[shot.camera].size
        assert x >= 0
        assert y >= 0
        assert w > 0
        assert h > 0
        assert x + w <= width + 1e-6
        assert y + h <= height + 1e-6


def test_walks_respect_the_travel_times(world: World) -> None:
    table = {(t.source, t.target): t for t in travel_table(world.cameras)}
    assert len(table) == world.settings.cameras**2
    gaps = 0
    for passes in by_person(world).values():
        for a, b in pairwise(passes):
            most = table[a.camera, b.camera].most
            assert most is not None
            assert b.start - a.end <= most
            gaps += 1
        for i, a in enumerate(passes):
            for b in passes[i + 1 :]:
                assert b.start - a.end >= table[a.camera, b.camera].least > 0
    assert gaps > 0


def test_passes_of_a_person_do_not_overlap_and_visits_are_counted(world: World) -> None:
    for passes in by_person(world).values():
        seen: Counter[int] = Counter()
        for a, b in pairwise(passes):
            assert a.end < b.start
        for one in passes:
            seen[one.camera] += 1
            assert one.visit == seen[one.camera]


@pytest.mark.slow
def test_most_people_are_seen_by_several_cameras() -> None:
    world = plan_world(SyntheticSettings())
    cameras = [len({one.camera for one in passes}) for (_, person), passes in by_person(world).items() if person < 350]
    assert min(cameras) >= 2
    assert 3.5 < np.mean(cameras) < 5.5
    come_back = sum(one.visit > 1 for passes in by_person(world).values() for one in passes)
    assert come_back > 20


def test_people_are_seen_from_all_sides() -> None:
    world = plan_world(SyntheticSettings())
    quarters = Counter()
    for cameras in world.sightings:
        for seen in cameras:
            for one in (sighting.walk for sighting in seen):
                x, y, heading, _ = one.at(world.people[one.person], np.array([one.start + one.seconds / 2]))
                seen_from = (heading[0] - math.atan2(-x[0], y[0])) % (2 * math.pi)
                quarters[int(((seen_from + math.pi / 4) % (2 * math.pi)) // (math.pi / 2))] += 1
    fractions = np.array([quarters[q] for q in range(4)]) / quarters.total()
    assert fractions.min() > 0.1


@pytest.mark.slow
def test_the_true_box_contains_the_rendered_person() -> None:
    world = plan_world(SyntheticSettings(ids=30, difficulty=Difficulty(occluders=0, crowd=0.05)))
    overlaps = []
    for (x, y, w, h), changed in rendered_people(world):
        ys, xs = np.nonzero(changed)
        x0, y0, x1, y1 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        both = max(0, min(x1, x + w) - max(x0, x)) * max(0, min(y1, y + h) - max(y0, y))
        overlaps.append(both / ((x1 - x0) * (y1 - y0) + w * h - both))
    assert len(overlaps) >= 12
    assert min(overlaps) > 0.5
    assert np.mean(overlaps) > 0.72


def test_cameras_differ_in_every_parameter() -> None:
    cameras = plan_world(SyntheticSettings()).cameras
    for name in (
        "height",
        "tilt",
        "far",
        "walking_direction",
        "sun",
        "gamma",
        "blur",
        "noise",
        "detail",
        "quality",
        "offset",
    ):
        values = [getattr(camera, name) for camera in cameras]
        assert len(set(values)) == len(values), name
    gains = np.stack([camera.matrix[:, :3].sum(1) for camera in cameras])
    differences = np.abs(gains[:, None] - gains[None]).sum(-1)[np.triu_indices(len(cameras), 1)]
    assert differences.min() > 0.05
    assert len({camera.ground for camera in cameras}) == 6
