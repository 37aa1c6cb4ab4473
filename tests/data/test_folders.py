from __future__ import annotations

import os
from pathlib import Path

import pytest

from reid.core.arrays import UNKNOWN
from reid.core.errors import DataError
from reid.data.crops import SPLITS, Benchmark
from reid.data.layouts import load_benchmark
from reid.data.layouts.folders import CAMERA
from tests.data.trees import names


def put(root: Path, *files: str) -> Path:
    """Create empty files, because the layout opens no image."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def people(root: Path, *persons: str, cameras: int = 2, crops: int = 2) -> Path:
    return put(
        root,
        *(f"{person}/cam{c}_{i}.jpg" for person in persons for c in range(1, cameras + 1) for i in range(crops)),
    )


def identities(benchmark: Benchmark) -> dict[str, int]:
    """The pid of each folder of a person."""
    crops = [getattr(benchmark, split) for split in SPLITS]
    return {
        os.path.basename(os.path.dirname(path)): pid
        for part in crops
        for path, pid in zip(part.paths, part.pids.tolist(), strict=True)
    }


def test_people_are_split_by_identity(tmp_path: Path) -> None:
    root = people(tmp_path / "shop", *(f"p{i}" for i in range(10)))
    benchmark = load_benchmark(f"folders:{root}?fraction=0.3&seed=1")
    assert benchmark.name == "shop"
    assert benchmark.root == str(root)
    assert benchmark.cross_camera
    assert benchmark.skipped == benchmark.warnings == ()
    assert len(benchmark.train) == 7 * 4
    assert (len(benchmark.query), len(benchmark.gallery)) == (3 * 2, 3 * 2)
    assert not set(benchmark.train.pids) & set(benchmark.gallery.pids)
    assert set(benchmark.query.camids) == {1, 2}
    assert identities(benchmark) == {f"p{i}": i for i in range(10)}
    again = load_benchmark(f"folders:{root}?fraction=0.3&seed=1")
    assert again.query.paths.tolist() == benchmark.query.paths.tolist()


def test_text_names_are_numbered_in_natural_order_and_integers_are_kept(tmp_path: Path) -> None:
    text = people(tmp_path / "text", "p10", "p2", "Ben", "p1")
    assert identities(load_benchmark("folders", text)) == {"Ben": 0, "p1": 1, "p2": 2, "p10": 3}
    numbers = people(tmp_path / "numbers", "0007", "12", "3")
    assert identities(load_benchmark("folders", numbers)) == {"0007": 7, "12": 12, "3": 3}
    mixed = people(tmp_path / "mixed", "0007", "12", "anna")
    assert identities(load_benchmark("folders", mixed)) == {"0007": 0, "12": 1, "anna": 2}


def test_split_folders_share_identities(tmp_path: Path) -> None:
    root = put(
        tmp_path,
        "train/zoe/cam1.jpg", "train/zoe/cam2.jpg", "train/anna/cam1.jpg",
        "query/carl/cam1.jpg",
        "gallery/carl/cam2.jpg", "gallery/anna/cam2.jpg",
    )  # fmt: skip
    benchmark = load_benchmark("folders", root)
    assert benchmark.train.pids.tolist() == [0, 2, 2]
    assert benchmark.query.pids.tolist() == [1]
    assert benchmark.gallery.pids.tolist() == [0, 1]


def test_a_test_folder_is_divided_into_query_and_gallery(tmp_path: Path) -> None:
    people(tmp_path / "Train", "anna", "ben")
    people(tmp_path / "TEST", "carl", "dora")
    benchmark = load_benchmark("folders", tmp_path)
    assert len(benchmark.train) == 8
    assert (len(benchmark.query), len(benchmark.gallery)) == (4, 4)
    put(tmp_path, "query/carl/cam1.jpg")
    with pytest.raises(DataError, match="has the split 'test' and 'query' or 'gallery'"):
        load_benchmark("folders", tmp_path)


def test_data_sets_for_training_or_for_scoring_only(tmp_path: Path) -> None:
    people(tmp_path / "a" / "train", "anna", "ben")
    assert load_benchmark("folders", tmp_path / "a").warnings == ("there are no query crops",)
    put(tmp_path / "b", "query/carl/cam1.jpg", "gallery/carl/cam2.jpg")
    assert load_benchmark("folders", tmp_path / "b").warnings == ("there are no train crops",)
    put(tmp_path / "c", "query/carl/cam1.jpg")
    with pytest.raises(DataError, match="has 'query' crops but no 'gallery' crops"):
        load_benchmark("folders", tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "camera"),
    [
        ("c3.jpg", 3),
        ("cam3.jpg", 3),
        ("camera3.jpg", 3),
        ("Camera_03-0007.png", 3),
        ("cam-12.jpg", 12),
        ("0002_c1s1_000451_03.jpg", 1),
        ("0001_c2_f0046182.jpg", 2),
        ("anna.c042.frame7.jpg", 42),
        ("0007.jpg", None),
        ("abc3.jpg", None),
        ("scam3.jpg", None),
        ("c3f9a8b2.jpg", None),  # hexadecimal
        ("camp3.jpg", None),
        ("c.jpg", None),
        ("clip3.jpg", None),
    ],
)
def test_camera_in_the_file_name(name: str, camera: int | None) -> None:
    match = CAMERA.search(name)
    assert (None if match is None else int(match[1])) == camera


def test_folder_names_do_not_change_the_camera(tmp_path: Path) -> None:
    root = put(tmp_path / "cam9", *(f"c7_person{p}/{i}.jpg" for p in range(4) for i in range(4)))
    benchmark = load_benchmark("folders", root)
    assert not benchmark.cross_camera
    assert (benchmark.train.camids == UNKNOWN).all()
    assert (len(benchmark.query), len(benchmark.gallery)) == (1, 3)


def test_cameras_known_for_some_images_are_a_warning(tmp_path: Path) -> None:
    root = put(people(tmp_path, "anna", "ben", "carl"), "anna/x.jpg", "ben/y.jpg")
    benchmark = load_benchmark("folders", root)
    assert benchmark.warnings == ("the file names of 12 of 14 images contain a camera (c3, cam3 or camera3)",)
    assert benchmark.cross_camera


def test_one_camera_is_matched_within_the_camera(tmp_path: Path) -> None:
    root = people(tmp_path, "anna", "ben", "carl", cameras=1)
    benchmark = load_benchmark("folders", root)
    assert not benchmark.cross_camera
    assert benchmark.warnings == ("every known camera is 1, so queries are also matched in their own camera",)
    with pytest.raises(DataError, match="needs two known cameras, but there are 1"):
        load_benchmark("folders", root, cross_camera=True)


@pytest.mark.parametrize("name", ["anna", "0001"])
def test_the_folder_minus_1_is_junk(tmp_path: Path, name: str) -> None:
    benchmark = load_benchmark("folders", put(people(tmp_path, name, "2", "3"), "-1/a.jpg", "-1/b.jpg"))
    assert benchmark.n_junk == 2
    assert "-1" not in identities(benchmark)
    (tmp_path / "junk").mkdir()
    with pytest.raises(DataError, match="all 1 are junk"):
        load_benchmark("folders", put(tmp_path / "junk", "train/-1/a.jpg"))


def test_skipped_files_are_listed_with_reasons(tmp_path: Path) -> None:
    root = put(
        people(tmp_path, "anna", "ben", "carl"),
        "loose.jpg", "readme.txt", "anna/notes.txt", "anna/more/a.jpg", "dora/clip.mp4",
        "Thumbs.db", ".DS_Store", "anna/._cam1_0.jpg", "__MACOSX/._a.jpg", ".git/a.jpg",
    )  # fmt: skip
    (root / "empty").mkdir()
    (root / "ben" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    benchmark = load_benchmark("folders", root)
    assert sum(len(getattr(benchmark, split)) for split in SPLITS) == 12
    reasons = {os.path.relpath(item.path, root): item.reason for item in benchmark.skipped}
    assert reasons == {
        "loose.jpg": "outside the folders of people",
        "readme.txt": "outside the folders of people",
        "anna/notes.txt": "not an image file",
        "anna/more": "a folder; images inside it are not read",
        "ben/gone.jpg": "a link that leads nowhere: No such file or directory",
        "dora": "a folder without images",
        "dora/clip.mp4": "not an image file",
        "empty": "a folder without images",
        "__MACOSX": "a folder without images",
    }


def test_folders_beside_the_splits_are_skipped(tmp_path: Path) -> None:
    people(tmp_path / "train", "anna", "ben")
    people(tmp_path, "carl")
    put(tmp_path, "train/loose.jpg")
    reasons = {item.path: item.reason for item in load_benchmark("folders", tmp_path).skipped}
    assert reasons == {
        str(tmp_path / "carl"): "a folder outside train/, query/, gallery/ and test/",
        str(tmp_path / "train" / "loose.jpg"): "outside the folders of people",
    }


def test_upper_case_double_and_unicode_names_are_read(tmp_path: Path) -> None:
    root = put(tmp_path, "Zoë/A.JPG", "Zoë/b.jpg.jpg", "李 雷/c.webp", "李 雷/d, e.png", "#x/f.tif", "#x/g.bmp")
    benchmark = load_benchmark("folders", root, fraction=0.5)
    assert identities(benchmark) == {"#x": 0, "Zoë": 1, "李 雷": 2}
    assert "A.JPG" in names(benchmark.train) + names(benchmark.query) + names(benchmark.gallery)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param([], r"has no folder per person\. It contains nothing \(the folder is empty\)", id="empty root"),
        pytest.param(["a.jpg", "b.jpg"], r"has no folder per person\. It contains a\.jpg, b\.jpg", id="images in root"),
        pytest.param(["anna/x.txt", "ben/y.txt"], "The 2 folders in .* contain no image", id="no images"),
        pytest.param(["anna/day1/x.jpg", "ben/day1/y.jpg"], r"contain no image.*it contains day1/", id="too deep"),
        pytest.param(["train/a.jpg", "query/b.jpg"], "has no folder per person", id="images directly in the splits"),
        pytest.param(["anna/a.jpg", "anna/b.jpg"], r"images of one person only \(anna\)", id="one person"),
        pytest.param(["anna/a.jpg", "anna/b.jpg", "-1/c.jpg"], "images of one person only", id="one person and junk"),
        pytest.param(["7/a.jpg", "007/b.jpg"], "'007' and '7' have the same number", id="one number twice"),
        pytest.param(["anna/a.jpg", "ben/b.jpg"], "No identity can be held out", id="one crop per person"),
        pytest.param(["test/anna/a.jpg", "test/ben/b.jpg"], "so there is no query", id="one test crop per person"),
    ],
)
def test_unusable_folders_raise_errors(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_benchmark("folders", put(tmp_path, *files))


def test_images_of_another_layout_in_the_root_name_the_layout_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"such as .*anna; use the layout 'table'"):
        load_benchmark("folders", put(tmp_path, "0002_c1s1_000451_03.jpg"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    root = people(tmp_path, "anna", "ben")
    (root / "anna").chmod(0)
    with pytest.raises(DataError, match="Cannot read the folder"):
        load_benchmark("folders", root)
    (root / "anna").chmod(0o700)
