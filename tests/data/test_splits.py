from __future__ import annotations

import numpy as np
import pytest

from reid.core.arrays import UNKNOWN
from reid.core.errors import ReidError
from reid.data.crops import Crops
from reid.data.splits import hold_out, query_and_gallery


def random_crops(rng: np.random.Generator, n: int, n_ids: int, cameras: str) -> Crops:
    camids = {
        "none": np.full(n, UNKNOWN),
        "one": np.full(n, 3),
        "several": rng.integers(1, 5, n),
        "some unknown": rng.integers(-1, 3, n),
    }[cameras]
    return Crops.from_columns([str(i) for i in range(n)], rng.integers(0, n_ids, n) * 7, camids)


def rows(crops: Crops) -> list[int]:
    return [int(path) for path in crops.paths]


def has_answer(pid: int, camid: int, gallery: Crops, by_camera: bool) -> bool:
    return any(
        pid == other and (not by_camera or (camid != camera and camera != UNKNOWN))
        for other, camera in zip(gallery.pids, gallery.camids, strict=True)
    )


@pytest.mark.parametrize("cameras", ["none", "several", "some unknown"])
@pytest.mark.parametrize("seed", range(15))
def test_hold_out_divides_by_identity_and_every_query_has_a_match(seed: int, cameras: str) -> None:
    rng = np.random.default_rng(seed)
    whole = random_crops(rng, int(rng.integers(30, 200)), int(rng.integers(3, 40)), cameras)
    fraction = float(rng.uniform(0.05, 0.9))
    train, query, gallery = hold_out(whole, fraction=fraction, seed=seed)

    assert sorted(rows(train) + rows(query) + rows(gallery)) == list(range(len(whole)))
    for part in (train, query, gallery):
        assert rows(part) == sorted(rows(part))
        assert len(part)
    held = set(query.pids) | set(gallery.pids)
    assert not held & set(train.pids)
    assert len(held) <= max(1, round(fraction * len(set(whole.pids))))
    assert set(gallery.pids) == set(query.pids)
    for pid, camid in zip(query.pids, query.camids, strict=True):
        assert has_answer(pid, camid, gallery, cameras != "none")
    pairs = list(zip(query.pids.tolist(), query.camids.tolist(), strict=True))
    assert len(pairs) == len(set(pairs)), "more than one query an identity and camera"


def test_the_split_depends_on_the_seed_only() -> None:
    whole = random_crops(np.random.default_rng(0), 400, 50, "several")
    first, again, other = (hold_out(whole, seed=seed) for seed in (3, 3, 4))
    assert [rows(part) for part in first] == [rows(part) for part in again]
    assert [rows(part) for part in first] != [rows(part) for part in other]


def test_the_global_generator_is_not_used() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    hold_out(random_crops(np.random.default_rng(0), 100, 10, "several"))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_the_fraction_sets_the_number_of_identities() -> None:
    whole = Crops.from_columns([str(i) for i in range(800)], np.repeat(np.arange(100), 8), np.tile([1, 2], 400))
    train, query, gallery = hold_out(whole, fraction=0.25)
    assert len(set(query.pids)) == 25
    assert len(query) == 50  # one of each of two cameras
    assert len(gallery) == 150
    assert len(train) == 600


def test_only_identities_that_two_cameras_see_are_held_out() -> None:
    pids = np.array([1, 1, 1, 2, 2, 3, 3, 3])
    camids = np.array([1, 1, 1, 2, 2, 1, 2, 2])
    _, query, gallery = hold_out(Crops.from_columns(list("abcdefgh"), pids, camids), fraction=0.9)
    assert set(query.pids) | set(gallery.pids) == {3}


@pytest.mark.parametrize(
    ("camids", "n_queries"),
    [
        pytest.param([1, 2], 1, id="one crop in each of two cameras: one must stay to be found"),
        pytest.param([1, 2, 3], 1, id="one crop in each of three"),
        pytest.param([1, 1, 1, 2], 1, id="only the lone crop finds others in another camera"),
        pytest.param([1, 1, 2, 2], 2, id="two and two"),
        pytest.param([1, 1, 2, 3], 2, id="two, one, one: the camera of two would find none elsewhere"),
        pytest.param([1, 1, 1], 0, id="one camera: a distractor"),
        pytest.param([-1, -1, 2], 0, id="one known camera"),
        pytest.param([-1, 1, 1, 2, 2], 2, id="a crop of an unknown camera is no query"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_every_query_of_an_identity_has_a_match_in_another_camera(camids: list[int], n_queries: int, seed: int) -> None:
    crops = Crops.from_columns([str(i) for i in range(len(camids))], [5] * len(camids), camids)
    query, gallery = query_and_gallery(crops, np.random.default_rng(seed))
    assert len(query) == n_queries
    assert len(gallery) == len(camids) - n_queries
    assert UNKNOWN not in query.camids


def test_without_cameras_an_identity_of_one_crop_is_a_distractor() -> None:
    query, gallery = query_and_gallery(Crops.from_columns(list("abc"), [1, 1, 2]), np.random.default_rng(0))
    assert query.pids.tolist() == [1]
    assert sorted(gallery.pids.tolist()) == [1, 2]


def test_cameras_can_be_ignored() -> None:
    crops = Crops.from_columns(list("abcd"), [1, 1, 2, 2], [1, 1, 1, 1])
    with pytest.raises(ReidError, match="two cameras"):
        hold_out(crops)
    _, query, gallery = hold_out(crops, cross_camera=False, fraction=0.5)
    assert len(query) == len(gallery) == 1
    assert query.camids.tolist() == [1], "the cameras themselves are kept"


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 7])
def test_a_fraction_outside_0_and_1_raises_an_error(fraction: float) -> None:
    with pytest.raises(ReidError, match=rf"above 0 and below 1; got {fraction}"):
        hold_out(random_crops(np.random.default_rng(0), 50, 5, "several"), fraction=fraction)


@pytest.mark.parametrize(
    "crops",
    [
        pytest.param(Crops.from_columns([], []), id="nothing"),
        pytest.param(Crops.from_columns(list("ab"), [1, 1], [1, 2]), id="one identity: one must remain for training"),
        pytest.param(Crops.from_columns(list("ab"), [1, 2]), id="single crops"),
    ],
)
def test_data_without_scorable_identities_raises_an_error(crops: Crops) -> None:
    with pytest.raises(ReidError, match="No identity can be held out"):
        hold_out(crops)
