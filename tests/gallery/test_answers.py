"""What a hit means: expected strangers, p(same), and nobody."""

from __future__ import annotations

import numpy as np
import pytest

from reid import DataError, Embeddings, Gallery, calibrate
from reid.embedding.calibration_file import save_calibration
from reid.gallery import GallerySettings, Scope, search
from reid.gallery.answers import Evidence

pytest.importorskip("lancedb")


def crops(people, per_person, seed, dimension=12):
    """Labelled crops of people seen by cameras 1 and 2."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(1, people + 1), per_person)
    faces = rng.normal(size=(people + 1, dimension))
    features = faces[pids] + 0.35 * rng.normal(size=(len(pids), dimension))
    return Embeddings(features, pids=pids, camids=1 + np.arange(len(pids)) % 2, meta={"model": "m"})


@pytest.fixture(scope="module")
def calibration():
    table = crops(60, 8, 0)
    return calibrate(table.features, table.pids, table.camids, fmr=0.01, cross_camera=False, model="m")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, calibration):
    gallery = Gallery.create(tmp_path_factory.mktemp("galleries") / "g", GallerySettings(audit=False))
    table = crops(40, 8, 1)
    gallery.add(Embeddings(table.features, table.pids, table.camids, table.pids, meta=table.meta), source="x")
    return gallery


def test_strangers_are_the_sum_over_tracklets_of_the_false_match_rate(gallery, calibration) -> None:
    index = gallery.index()
    sizes = np.bincount(index.tracklet)
    answer = search([gallery], index.matrix[:1].astype(np.float32), calibration=calibration, top=1000)
    smallest = calibration.curve().false_match[0][0]
    for hit in answer.hits:
        if hit.distance >= smallest:
            expected = sum(size**0.3 * calibration.fmr(hit.distance) for size in sizes.tolist())
            assert hit.strangers == pytest.approx(expected, rel=1e-4)
            prior = 1 / (1 + (sizes**0.3).sum())
            assert hit.probability == pytest.approx(float(calibration.probability(hit.distance, prior=prior)), rel=1e-4)
    strangers = [hit.strangers for hit in answer.hits]
    assert strangers == sorted(strangers)
    assert [hit.accepted for hit in answer.hits] == [value <= 0.1 for value in strangers]


def test_the_pair_of_cameras_is_used_if_it_has_a_curve(gallery, calibration) -> None:
    photo = gallery.index().matrix[:1].astype(np.float32)
    near = search([gallery], photo, camera="cam01", calibration=calibration, top=50).hits[-1]
    looks = gallery.index().looks_by_camera(None)
    expected = sum(looks[code] * calibration.fmr(near.distance, (1, code + 1)) for code in (0, 1))
    assert near.strangers == pytest.approx(expected, rel=1e-4)
    one = search([gallery], photo, scope=Scope(("cam02",)), camera="cam01", calibration=calibration).hits[-1]
    assert one.strangers == pytest.approx(looks[1] * calibration.fmr(one.distance, (1, 2)), rel=1e-4)


def test_the_rate_falls_on_below_the_smallest_that_was_counted(calibration) -> None:
    evidence = Evidence(calibration, {None: 1.0})
    smallest = float(calibration.curve().false_match[0][0])
    values = [evidence.strangers(distance) for distance in np.linspace(0, smallest + 0.05, 30)]
    assert (np.diff(values) > 0).all()
    assert evidence.strangers(smallest) == pytest.approx(calibration.fmr(smallest))
    assert values[0] > 0


@pytest.mark.slow
def test_nobody_is_there_or_somebody_is(gallery, calibration) -> None:
    save_calibration(calibration, gallery.path / "calibration.json")
    try:
        table = crops(40, 8, 1)
        there = [gallery.search(table.features[row : row + 1]) for row in range(0, 320, 32)]
        assert all(answer.found for answer in there)
        assert all(0 <= answer.hits[0].distance < 1e-3 for answer in there)  # the same crops: never below 0
        assert all(answer.hits[0].identity == 1 + 4 * number for number, answer in enumerate(there))
        strangers = crops(40, 1, 7).features
        answers = [gallery.search(photo) for photo in strangers]
        assert 0 < np.mean([answer.found for answer in answers]) <= 0.25  # asked for: 0.1
        nobody = next(answer for answer in answers if not answer.found)
        assert nobody.describe().startswith("Nobody here. The best hit is explained by chance")
        assert nobody.accepted == []
        assert "chance does not explain" in there[0].describe()
        strict = gallery.search(strangers[0], expected_false=1e-9)
        assert strict.found is False
        assert strict.hits[0].strangers == answers[0].hits[0].strangers
    finally:
        (gallery.path / "calibration.json").unlink()


def test_several_photos_count_the_nearest_and_more_strangers(gallery, calibration) -> None:
    features = crops(40, 8, 1).features[:3]
    single = [search([gallery], row[None], calibration=calibration, top=200).hits for row in features]
    both = search([gallery], features, calibration=calibration, top=200).hits
    by_id = [{hit.tracklet: hit for hit in hits} for hits in single]
    for hit in both:
        assert hit.distance == pytest.approx(min(hits[hit.tracklet].distance for hits in by_id), abs=1e-6)
    nearest = min(single, key=lambda hits: hits[0].distance)[0]
    assert both[0].strangers == pytest.approx(3 * nearest.strangers, rel=1e-3)


def test_a_calibration_of_another_model_is_refused(gallery) -> None:
    table = crops(60, 8, 0)
    other = calibrate(table.features, table.pids, table.camids, fmr=0.01, cross_camera=False, model="other")
    with pytest.raises(DataError, match="of model 'other', but the gallery's features come from 'm'"):
        search([gallery], table.features[:1], calibration=other)
