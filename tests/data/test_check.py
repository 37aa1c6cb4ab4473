from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.core.arrays import UNKNOWN
from reid.data.check import NO_MATCH, SAME_CAMERA, CheckReport, check_benchmark
from reid.data.crops import Benchmark, Crops
from reid.data.layouts import load_benchmark
from reid.data.layouts.dukemtmc import WITHDRAWN
from tests.data.test_images import png_header
from tests.data.trees import DUKE, SPLIT, market, table, write_image, write_images

Damage = Callable[[bytes], bytes] | None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A synthetic tree in the Market-1501 layout without problems."""
    (market(tmp_path / "set") / "made.json").write_text("{}")
    return tmp_path / "set"


def look(root: Path, layout: str = "market1501", **options: bool) -> CheckReport:
    return check_benchmark(load_benchmark(layout, root), **options)


def findings_text(report: CheckReport) -> str:
    return " ".join(f"{finding.problem} {finding.fix}" for finding in report.findings)


def crops_on_disk(folder: Path, pids: list[int], camids: list[int] | None = None) -> Crops:
    paths = [write_image(folder / f"{n}.jpg") for n in range(len(pids))]
    return Crops.from_columns(paths, pids, camids)


@pytest.mark.parametrize("decode", [True, False])
def test_a_valid_data_set_has_no_findings(root: Path, decode: bool) -> None:
    report = look(root, decode=decode)
    assert report.findings == ()
    assert report.synthetic
    assert any("synthetic" in note for note in report.notes)
    assert [(part.name, part.images, part.ids, part.cameras) for part in report.splits] == [
        ("train", 3, 2, 3),
        ("query", 2, 2, 2),
        ("gallery", 3, 2, 2),
    ]
    assert (report.junk, report.distractors) == (1, 1)
    assert report.splits[0].crops_per_id == (1, 1.5, 2)
    assert report.splits[2].crops_per_id == (1, 1.0, 1)
    assert (report.files.examined, report.files.width, report.files.height) == (8, (8, 8.0, 8), (16, 16.0, 16))
    assert report.queries_kept == 2


def test_identities_by_camera_do_not_count_the_distractor(root: Path) -> None:
    report = look(root)
    assert report.cameras == ((1, 1, 1, 1, 1, 2, 1), (2, 1, 1, 1, 1, 1, 1), (3, 1, 1, 0, 0, 0, 0))
    assert report.ids_by_cameras == ((1, 1, 0), (2, 1, 2))


def test_counts_that_differ_from_the_official_ones_are_one_finding(tmp_path: Path) -> None:
    report = look(market(tmp_path))
    assert (
        "official market1501: train images 3 (official 12,936), train ids 2 (official 751)"
        in report.findings[0].problem
    )
    assert report.splits[0].official_images == 12_936
    assert len(report.findings) == 1, "it is reported once"


def test_the_withdrawal_of_duke_is_a_note_and_no_finding(tmp_path: Path) -> None:
    report = look(write_images(tmp_path, DUKE), "dukemtmc")
    assert f"{WITHDRAWN}." in report.notes
    assert "withdrawn" not in findings_text(report)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda data: b"", "0 bytes", id="zero bytes"),
        pytest.param(lambda data: b"<html>not found</html>", "not an image", id="a web page"),
        pytest.param(lambda data: data[: len(data) // 2], "truncated", id="cut short"),
        pytest.param(lambda data: data[:20], "truncated", id="cut in its head"),
        pytest.param(
            lambda _data: png_header(60_000, 60_000),
            "60000×60000 pixels",
            id="a bomb",
        ),
        pytest.param(None, "No such file", id="gone"),
    ],
)
@pytest.mark.parametrize("decode", [True, False])
def test_files_that_cannot_be_read_are_listed(root: Path, damage: Damage, reason: str, decode: bool) -> None:
    benchmark = load_benchmark("market1501", root)
    file = root / "query" / "0001_c1s1_001051_00.jpg"
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    report = check_benchmark(benchmark, decode=decode)
    (item,) = report.files.unreadable
    assert item.path == str(file)
    assert reason in item.reason
    assert "1 of 8 images cannot be read" in findings_text(report)


def test_skipped_files_are_a_finding(root: Path) -> None:
    write_image(root / "query" / "portrait.jpg")
    report = look(root)
    assert [Path(item.path).name for item in report.skipped] == ["portrait.jpg"]
    assert "1 files were skipped" in findings_text(report)


def test_identical_files_in_train_and_test_are_a_finding(root: Path) -> None:
    shutil.copy(root / "query" / "0001_c1s1_001051_00.jpg", root / "bounding_box_train" / "0002_c1s1_000451_03.jpg")
    report = look(root)
    duplicates = report.files.duplicates
    assert (duplicates.groups, duplicates.files, duplicates.between_train_and_test, duplicates.between_identities) == (
        (1, 2, 1, 1)
    )
    assert {Path(path).parent.name for path in duplicates.examples[0]} == {"query", "bounding_box_train"}
    assert "1 images are in both train and test" in findings_text(report)
    assert "1 images belong to several identities" in findings_text(report)
    quick = look(root, decode=False)
    assert quick.files.duplicates.groups == 0
    assert quick.findings == ()


def test_identical_files_of_one_identity_in_one_split_are_counted_only(root: Path) -> None:
    shutil.copy(
        root / "bounding_box_train" / "0002_c1s1_000451_03.jpg", root / "bounding_box_train" / "0002_c1s1_000452_03.jpg"
    )
    report = look(root)
    assert report.files.duplicates.groups == 1
    assert report.findings == ()


def test_repeated_rows_are_a_finding(tmp_path: Path) -> None:
    text = SPLIT + "".join(line + "\n" for line in SPLIT.splitlines()[1:])
    benchmark = load_benchmark("table", table(tmp_path, text))
    for decode in (True, False):
        report = check_benchmark(benchmark, decode=decode)
        assert report.files.duplicates.repeated_rows == 4
        assert "4 rows are repeated: the same image, twice in one split" in findings_text(report)
        assert report.files.duplicates.groups == 0


@pytest.mark.parametrize("decode", [True, False])
def test_one_path_with_two_identities_or_in_train_and_test_is_a_finding(tmp_path: Path, decode: bool) -> None:
    crops = crops_on_disk(tmp_path, [1, 1, 2, 2], [1, 2, 1, 2])
    other = Crops.from_columns([crops.paths[0]], [3], [3])
    report = check_benchmark(
        Benchmark("x", str(tmp_path), crops.take([0, 1]), crops.take([2]), merge_rows(crops.take([3]), other)),
        decode=decode,
    )
    assert report.files.duplicates.between_identities == 1
    assert report.files.duplicates.between_train_and_test == 1
    assert "1 images belong to several identities" in findings_text(report)


def merge_rows(first: Crops, second: Crops) -> Crops:
    columns = [np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("paths", "pids", "camids")]
    return Crops.from_columns(columns[0].tolist(), *columns[1:])


def photo(seed: int) -> Image.Image:
    """A smooth picture of 128 × 64 pixels, different for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((64, 128), Image.Resampling.BICUBIC)


def test_edited_copies_of_train_images_in_test_are_a_finding(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split, pids in (("train", range(20)), ("query", range(20, 30)), ("gallery", range(20, 30))):
        for pid in pids:
            (root / split / str(pid)).mkdir(parents=True)
            photo(pid if split == "gallery" else pid + 100).save(root / split / str(pid) / f"cam{len(split)}.jpg")
    for pid in range(2):
        photo(300 + pid).save(root / "train" / str(pid) / "cam9.jpg")
    assert check_benchmark(load_benchmark("folders", root)).files.duplicates.near_train_and_test == 0
    encoded = root / "query" / "20" / "cam8.jpg"
    photo(300).save(encoded, quality=40)
    resized = root / "gallery" / "20" / "cam8.png"
    photo(301).resize((48, 96)).point(lambda value: min(255, value + 10)).save(resized)
    report = check_benchmark(load_benchmark("folders", root))
    assert report.files.duplicates.near_train_and_test == 2
    assert dict(report.files.duplicates.near_examples) == {
        str(encoded): str(root / "train" / "0" / "cam9.jpg"),
        str(resized): str(root / "train" / "1" / "cam9.jpg"),
    }
    assert "2 test images are nearly identical to a train image" in findings_text(report)


def test_plain_images_are_no_copies_of_each_other(root: Path) -> None:
    for number, name in enumerate(("query/0001_c1s1_001051_00.jpg", "bounding_box_train/0002_c1s1_000451_03.jpg")):
        Image.new("RGB", (64, 128), (number, 0, 0)).save(root / name)
    assert look(root).files.duplicates.near_train_and_test == 0


def test_identities_in_both_train_and_test_are_a_finding(root: Path) -> None:
    write_image(root / "bounding_box_train" / "0003_c6s1_000451_03.jpg")
    assert "1 identities are in both train and test, such as 3." in findings_text(look(root))


def test_the_distractor_is_not_an_identity_of_train_and_test(root: Path) -> None:
    write_image(root / "bounding_box_train" / "0000_c6s1_000451_03.jpg")
    assert "both train and test" not in findings_text(look(root))


def test_dropped_queries_are_listed_with_the_reason(root: Path) -> None:
    write_image(root / "query" / "0020_c1s1_000451_03.jpg")
    write_image(root / "query" / "0021_c1s1_000451_03.jpg")
    write_image(root / "bounding_box_test" / "0021_c1s1_000451_04.jpg")
    report = look(root)
    assert report.queries_kept == 2
    assert [(drop.reason, drop.queries, drop.pids) for drop in report.queries_dropped] == [
        (NO_MATCH, 1, (20,)),
        (SAME_CAMERA, 1, (21,)),
    ]
    assert f"1 of 4 queries will be dropped: {NO_MATCH}" in findings_text(report)
    assert "from another camera" in findings_text(report)


@pytest.mark.parametrize("cross_camera", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_dropped_queries_equal_a_naive_loop(tmp_path: Path, seed: int, cross_camera: bool) -> None:
    rng = np.random.default_rng(seed)
    n_query, n_gallery = int(rng.integers(1, 40)), int(rng.integers(1, 40))
    image = write_image(tmp_path / "a.jpg")

    def draw(n: int) -> Crops:
        return Crops.from_columns([image] * n, rng.integers(0, 15, n), rng.choice([UNKNOWN, 1, 2, 3], n))

    benchmark = Benchmark("x", str(tmp_path), draw(3), draw(n_query), draw(n_gallery), cross_camera)
    report = check_benchmark(benchmark, decode=False)
    gallery = list(zip(benchmark.gallery.pids.tolist(), benchmark.gallery.camids.tolist(), strict=True))
    expected: dict[str, list[int]] = {}
    for pid, camid in zip(benchmark.query.pids.tolist(), benchmark.query.camids.tolist(), strict=True):
        cameras = [other for number, other in gallery if number == pid]
        if not cameras:
            expected.setdefault(NO_MATCH, []).append(pid)
        elif cross_camera and camid != UNKNOWN and set(cameras) == {camid}:
            expected.setdefault(SAME_CAMERA, []).append(pid)
    assert {drop.reason: (drop.queries, drop.pids) for drop in report.queries_dropped} == {
        reason: (len(pids), tuple(sorted(set(pids)))) for reason, pids in expected.items()
    }
    assert report.queries_kept == n_query - sum(map(len, expected.values()))


def test_equal_cameras_are_a_finding_with_a_fix(root: Path) -> None:
    for file in [*root.glob("query/*"), *root.glob("bounding_box_test/*")]:
        file.rename(file.with_name(file.name.replace("_c2", "_c1")))
    report = look(root)
    assert report.queries_kept == 0
    assert "All 2 queries will be dropped" in findings_text(report)
    assert "All cameras are equal (1)" in findings_text(report)
    assert "reid test --any-camera" in findings_text(report)


def test_unknown_cameras_are_never_the_same_camera(tmp_path: Path) -> None:
    crops = crops_on_disk(tmp_path, [1, 1, 2, 2, 3, 3], [UNKNOWN, UNKNOWN, 1, UNKNOWN, 2, 2])
    none = Crops.from_columns([], [])
    report = check_benchmark(Benchmark("x", str(tmp_path), none, crops.take([0, 2, 4]), crops.take([1, 3, 5])))
    assert report.queries_kept == 2
    assert [(drop.reason, drop.pids) for drop in report.queries_dropped] == [(SAME_CAMERA, (3,))]
    assert "from another camera" in findings_text(report)


def test_a_query_in_the_gallery_is_a_finding(tmp_path: Path) -> None:
    crops = crops_on_disk(tmp_path, [1, 1, 2])
    benchmark = Benchmark(
        "faces", str(tmp_path), Crops.from_columns([], []), crops.take([0]), crops.take([0, 1, 2]), False
    )
    report = check_benchmark(benchmark)
    assert "1 queries are also in the gallery" in findings_text(report)
    assert report.files.examined == 3
    assert report.files.duplicates.groups == 0, "one file in two parts is no duplicate of itself"


@pytest.mark.parametrize("camids", [None, [1, 2, 1, 2]], ids=["no cameras", "cameras"])
def test_empty_splits_are_no_finding(tmp_path: Path, camids: list[int] | None) -> None:
    crops = crops_on_disk(tmp_path, [1, 1, 2, 2], camids)
    none = Crops.from_columns([], [])
    training = check_benchmark(Benchmark("x", str(tmp_path), crops, none, none, camids is not None))
    assert training.findings == ()
    assert training.queries_kept == 0
    assert training.splits[1].crops_per_id == (0, 0.0, 0)
    scoring = check_benchmark(
        Benchmark("x", str(tmp_path), none, crops.take([0, 2]), crops.take([1, 3]), camids is not None)
    )
    assert scoring.findings == ()
    assert scoring.queries_kept == 2
    assert sum(row.ids for row in scoring.crops_per_train_id) == 0
    assert scoring.cameras[0][0] == (UNKNOWN if camids is None else 1)


def test_histogram_of_crops_per_identity(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.jpg")
    per_id = [1, 2, 3, 3, 5, 7, 8, 200]
    pids = np.repeat(np.arange(len(per_id)), per_id)
    none = Crops.from_columns([], [])
    report = check_benchmark(
        Benchmark("x", str(tmp_path), Crops.from_columns([image] * len(pids), pids), none, none), decode=False
    )
    assert [(row.low, row.high, row.ids) for row in report.crops_per_train_id if row.ids] == [
        (1, 1, 1),
        (2, 2, 1),
        (3, 3, 2),
        (4, 7, 2),
        (8, 15, 1),
        (128, None, 1),
    ]
    assert any("4 of 8 train identities have fewer than 4 crops" in note for note in report.notes)


@pytest.mark.parametrize(
    ("pids", "message"),
    [([5, 5, 5], "Train has only one identity"), ([1, 2, 3, 3], "2 of 3 train identities have a single crop")],
)
def test_train_sets_without_positive_pairs_are_a_finding(tmp_path: Path, pids: list[int], message: str) -> None:
    none = Crops.from_columns([], [])
    report = check_benchmark(Benchmark("x", str(tmp_path), crops_on_disk(tmp_path, pids), none, none))
    assert message in findings_text(report)


def test_warnings_of_the_layout_are_findings(root: Path) -> None:
    benchmark = replace(load_benchmark("market1501", root), warnings=("all is strange",))
    assert "All is strange." in findings_text(check_benchmark(benchmark))


def test_the_report_can_be_written_as_json(root: Path) -> None:
    write_image(root / "query" / "0020_c1s1_000451_03.jpg")
    written = json.dumps(look(root).as_dict(), allow_nan=False)
    assert json.loads(written)["queries_dropped"][0]["pids"] == [20]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_report_does_not_depend_on_the_number_of_threads(root: Path, workers: int) -> None:
    (root / "query" / "0001_c1s1_001051_00.jpg").write_bytes(b"")
    assert check_benchmark(load_benchmark("market1501", root), workers=workers) == look(root)


def test_the_real_market(market_root: Path) -> None:
    report = check_benchmark(load_benchmark("market1501", market_root), decode=False)
    assert report.findings == ()
    assert [(part.images, part.ids) for part in report.splits] == [(12_936, 751), (3_368, 750), (15_913, 750)]
    assert report.queries_kept == 3_368
    assert report.splits[0].crops_per_id == (2, 15.0, 72)
    assert report.files.width == (64, 64.0, 64)
    assert report.files.height == (128, 128.0, 128)
