from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from reid.core.arrays import UNKNOWN
from reid.core.errors import ReidError
from reid.data.crops import merge
from reid.data.layouts import LAYOUTS, load_benchmark, load_benchmarks
from reid.data.layouts.dukemtmc import WITHDRAWN
from tests.data.trees import CUHK, DUKE, SPLIT, market, names, table, write_image, write_images

# All layouts


def test_an_unknown_layout_names_the_nearest() -> None:
    with pytest.raises(ReidError, match=r"'market1051'.*Did you mean 'market1501'"):
        load_benchmark("market1051", ".")


def test_an_unknown_option_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ReidError, match=r"option of the layout cuhk03 'varient'.*Did you mean 'variant'"):
        load_benchmark("cuhk03", tmp_path, varient="detected")
    with pytest.raises(ReidError, match=r"option of the layout market1501 'variant'. Known: none"):
        load_benchmark("market1501", tmp_path, variant="detected")


@pytest.mark.parametrize(
    ("layout", "option", "value"),
    [("table", "fraction", "much"), ("table", "seed", 1.5), ("msmt17", "combine", "maybe"), ("cuhk03", "variant", 3)],
)
def test_an_option_of_the_wrong_type_is_named(tmp_path: Path, layout: str, option: str, value: Any) -> None:
    with pytest.raises(ReidError, match=f"'{option}' of the layout {layout} is {value!r}"):
        load_benchmark(layout, tmp_path, **{option: value})


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "table"])
def test_a_missing_root_names_the_folder_that_exists(tmp_path: Path, layout: str) -> None:
    write_image(tmp_path / "other.jpg")
    with pytest.raises(ReidError, match=r"no folder .*typo/deeper.*Check the path: .* contains other\.jpg"):
        load_benchmark(layout, tmp_path / "typo" / "deeper")


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "table"])
def test_an_archive_as_root_raises_an_error(tmp_path: Path, layout: str) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(ReidError, match=r"set\.zip is a file, not a folder.*reid data unpack"):
        load_benchmark(layout, tmp_path / "set.zip")


def test_a_wrong_root_lists_what_is_missing_and_what_exists(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.jpg")
    with pytest.raises(ReidError, match=r"does not contain bounding_box_train, query, .*\. It contains photos/"):
        load_benchmark("market1501", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReidError, match=r"It contains nothing \(the folder is empty\)"):
        load_benchmark("dukemtmc", tmp_path / "empty")


def test_layout_and_root_can_be_one_text(tiny_market: Path) -> None:
    benchmark = load_benchmark(f"market1501:{tiny_market}")
    assert (len(benchmark.train), len(benchmark.query), len(benchmark.gallery)) == (120, 20, 60)


def test_options_follow_a_question_mark(tmp_path: Path) -> None:
    names = {f"{pid}_{shot}.jpg": pid for pid in range(20) for shot in range(3)}
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "t.csv").write_text("path,pid\n" + "".join(f"{name},{pid}\n" for name, pid in names.items()))
    half, fifth = (load_benchmark(f"table:{tmp_path / 't.csv'}?fraction={fraction}") for fraction in (0.5, 0.2))
    assert len(half.train) == 30
    assert len(fifth.train) == 48


def test_names_that_occur_twice_are_numbered(tiny_market: Path) -> None:
    names = [benchmark.name for benchmark in load_benchmarks([f"market1501:{tiny_market}"] * 2)]
    assert names == ["synthetic#1", "synthetic#2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("market1501", "LAYOUT:ROOT"),  # no root
        ("market1501:", "LAYOUT:ROOT"),  # an empty root
        ("/data/market", "LAYOUT:ROOT"),  # no layout
        ("market:/data", "Did you mean 'market1501'"),  # misspelt
        ("market1501:/data?fast", "fast"),  # an option without a value
        ("market1501:/data?fast=1", "fast"),  # an option that the layout does not take
    ],
)
def test_a_malformed_text_raises_an_error(text: str, message: str) -> None:
    with pytest.raises(ReidError, match=message):
        load_benchmark(text)


# Market-1501


def test_market_columns(tmp_path: Path) -> None:
    benchmark = load_benchmark("market1501", market(tmp_path))
    train = benchmark.train
    assert names(train) == ["0002_c1s1_000451_03.jpg", "0002_c2s1_000776_01.jpg", "0007_c3s3_077419_03.jpg"]
    assert train.pids.tolist() == [2, 2, 7]
    assert train.camids.tolist() == [1, 2, 3]
    assert train.tracks.tolist() == [1, 1, 3]
    assert train.frames.tolist() == [451, 776, 77419]
    assert train.labels()[0].tolist() == [0, 0, 1]
    assert benchmark.cross_camera
    assert all(os.path.isabs(path) for path in train.paths)


def test_market_junk_is_dropped_and_distractors_are_kept(tmp_path: Path) -> None:
    benchmark = load_benchmark("market1501", market(tmp_path))
    assert benchmark.gallery.pids.tolist() == [0, 1, 3]
    assert (benchmark.n_junk, benchmark.n_distractors) == (1, 1)


def test_market_accepts_double_suffixes_and_ignores_system_files(tmp_path: Path) -> None:
    root = market(tmp_path)
    write_image(root / "bounding_box_test" / "0003_c4s6_022316_11.jpg.jpg")
    write_image(root / "bounding_box_test" / "-1_c4s6_022316_11.jpg.jpg")
    write_image(root / "bounding_box_train" / "0008_c1s1_000001_00.JPG")
    write_image(root / "bounding_box_train" / "0008_c1s1_000001_01.png")
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder / "Thumbs.db").write_bytes(b"\0")
        (root / folder / ".DS_Store").write_bytes(b"\0")
        (root / folder / "._0002_c1s1_000451_03.jpg").write_bytes(b"\0")
    benchmark = load_benchmark("market1501", root)
    assert benchmark.skipped == ()
    assert "0003_c4s6_022316_11.jpg.jpg" in names(benchmark.gallery)
    assert benchmark.n_junk == 2
    assert len(benchmark.train) == 5


def test_folder_names_do_not_change_identity_and_camera(tmp_path: Path) -> None:
    root = market(tmp_path / "run_12_c3s4_000001_00.jpg" / "0009_c5")
    train = load_benchmark("market1501", root).train
    assert train.pids.tolist() == [2, 2, 7]
    assert train.camids.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("portrait.jpg", "not of the form 0002_c1s1_000451_03.jpg"),
        ("x0002_c1s1_000451_03.jpg", "not of the form"),  # something before
        ("0002_c1s1_000451_03_copy.jpg", "not of the form"),  # something after
        ("0002_c1s1_000451_03 (1).jpg", "not of the form"),
        ("-2_c1s1_000451_03.jpg", "not of the form"),  # only -1 is junk
        ("0002_c1_000451_03.jpg", "not of the form"),  # no sequence
        ("0002_c1s1_000451_03", "not an image file"),
        ("0002_c1s1_000451_03.jpg.txt", "not an image file"),
        ("notes.txt", "not an image file"),
    ],
)
def test_a_name_that_does_not_parse_is_listed_not_skipped(tmp_path: Path, name: str, reason: str) -> None:
    root = market(tmp_path)
    (root / "bounding_box_train" / name).write_bytes(b"x")
    benchmark = load_benchmark("market1501", root)
    assert len(benchmark.train) == 3
    (skipped,) = benchmark.skipped
    assert skipped.path == str(root / "bounding_box_train" / name)
    assert reason in skipped.reason


def test_folders_and_broken_links_among_images_are_listed(tmp_path: Path) -> None:
    root = market(tmp_path)
    (root / "query" / "0001_c1s1_001051_00").mkdir()
    (root / "query" / "0001_c1s1_001051_09.jpg").symlink_to(tmp_path / "gone.jpg")
    reasons = {os.path.basename(item.path): item.reason for item in load_benchmark("market1501", root).skipped}
    assert "a folder" in reasons["0001_c1s1_001051_00"]
    assert "link" in reasons["0001_c1s1_001051_09.jpg"]


@pytest.mark.parametrize("part", ["bounding_box_train", "query", "bounding_box_test"])
def test_an_empty_split_raises_an_error_with_its_content(tmp_path: Path, part: str) -> None:
    root = market(tmp_path)
    for file in (root / part).iterdir():
        file.unlink()
    with pytest.raises(ReidError, match=rf"No \w+ image in .*{part} \(0 are junk\). It contains nothing"):
        load_benchmark("market1501", root)
    write_image(root / part / "0001_c2_f0046182.jpg")
    with pytest.raises(ReidError, match=r"It contains 0001_c2_f0046182\.jpg. Names must"):
        load_benchmark("market1501", root)


def test_a_gallery_of_junk_only_is_empty(tmp_path: Path) -> None:
    root = market(tmp_path)
    for file in (root / "bounding_box_test").glob("0*"):
        file.unlink()
    with pytest.raises(ReidError, match=r"No gallery image in .*bounding_box_test \(1 are junk\)"):
        load_benchmark("market1501", root)


def test_the_root_may_be_the_folder_above(tmp_path: Path) -> None:
    inside = market(tmp_path / "Market-1501-v15.09.15")
    assert load_benchmark("market1501", tmp_path).root == str(inside)
    assert load_benchmark("market1501", str(inside)).root == str(inside)


def test_counts_that_differ_from_the_official_ones_are_a_warning(tmp_path: Path) -> None:
    (warning,) = load_benchmark("market1501", market(tmp_path)).warnings
    for both in ("train images 3 (official 12,936)", "query ids 2 (official 750)", "junk 1 (official 3,819)"):
        assert both in warning


def test_synthetic_data_is_named_synthetic_and_not_compared_with_official_counts(tmp_path: Path) -> None:
    root = market(tmp_path)
    (root / "made.json").write_text("{}")
    benchmark = load_benchmark("market1501", root)
    assert benchmark.name == "synthetic"
    assert benchmark.train.source_names == ("synthetic",)
    assert benchmark.warnings == ()
    assert benchmark.official == {}


def test_junk_in_train_and_queries_numbered_0000_are_warnings(tmp_path: Path) -> None:
    root = market(tmp_path)
    (root / "made.json").write_text("{}")
    write_image(root / "bounding_box_train" / "-1_c1s1_000451_03.jpg")
    write_image(root / "query" / "0000_c1s1_001051_00.jpg")
    benchmark = load_benchmark("market1501", root)
    assert -1 not in benchmark.train.pids
    junk, zero = benchmark.warnings
    assert "1 junk images" in junk
    assert "1 queries have pid 0000" in zero


def test_the_real_market(market_root: Path) -> None:
    started = time.perf_counter()
    benchmark = load_benchmark("market1501", market_root)
    seconds = time.perf_counter() - started
    assert (len(benchmark.train), len(benchmark.query), len(benchmark.gallery)) == (12_936, 3_368, 15_913)
    assert (benchmark.n_junk, benchmark.n_distractors) == (3_819, 2_798)
    assert benchmark.warnings == ()
    assert benchmark.skipped == ()
    assert sum(name.endswith(".jpg.jpg") for part in (benchmark.query, benchmark.gallery) for name in names(part)) > 0
    assert seconds < 2


# DukeMTMC-reID


def test_duke(tmp_path: Path) -> None:
    benchmark = load_benchmark("dukemtmc", write_images(tmp_path / "DukeMTMC-reID", DUKE))
    assert benchmark.train.pids.tolist() == [1, 1, 5]
    assert benchmark.train.camids.tolist() == [1, 2, 8]
    assert benchmark.train.frames.tolist() == [46302, 46182, 46182]
    assert (benchmark.train.tracks == UNKNOWN).all()
    assert load_benchmark("dukemtmc", tmp_path).root == benchmark.root


def test_duke_warns_once_that_it_was_withdrawn(tmp_path: Path) -> None:
    warnings = load_benchmark("dukemtmc", write_images(tmp_path, DUKE)).warnings
    assert warnings.count(WITHDRAWN) == 1
    assert "2019" in WITHDRAWN
    assert any("gallery ids 2 (official 1,110)" in warning for warning in warnings)


# MSMT17

MSMT = {
    "list_train.txt": ("0000/0000_000_01_0303morning_0008_0.jpg 0", "0001/0001_000_14_0302noon_0012_1.jpg 1"),
    "list_val.txt": ("0001/0001_003_15_0302noon_0019_0.jpg 1",),
    "list_query.txt": ("0000/0000_001_02_0303morning_0010_0.jpg 0",),
    "list_gallery.txt": ("0000/0000_002_03_0303morning_0011_0.jpg 0", "0005/0005_000_07_0114noon_0011_0.jpg 5"),
}


def msmt(root: Path, version: str = "V1") -> Path:
    train, test = ("train", "test") if version == "V1" else ("mask_train_v2", "mask_test_v2")
    for name, lines in MSMT.items():
        for line in lines:
            write_image(root / (train if name in ("list_train.txt", "list_val.txt") else test) / line.split()[0])
        (root / name).write_text("\n".join(lines) + "\n\n")
    return root


@pytest.mark.parametrize("version", ["V1", "V2"])
@pytest.mark.parametrize("above", [True, False])
def test_msmt17(tmp_path: Path, version: str, above: bool) -> None:
    inside = msmt(tmp_path / f"MSMT17_{version}", version)
    benchmark = load_benchmark("msmt17", tmp_path if above else inside)
    assert benchmark.train.pids.tolist() == [0, 1, 1]
    assert benchmark.train.camids.tolist() == [1, 14, 15]
    assert benchmark.query.camids.tolist() == [2]
    for part in (benchmark.train, benchmark.query, benchmark.gallery):
        assert all(os.path.exists(path) for path in part.paths)


def test_msmt17_train_and_test_people_do_not_share_numbers(tmp_path: Path) -> None:
    benchmark = load_benchmark("msmt17", msmt(tmp_path))
    assert not set(benchmark.train.pids) & (set(benchmark.query.pids) | set(benchmark.gallery.pids))
    assert benchmark.query.pids.tolist() == [2]
    assert benchmark.gallery.pids.tolist() == [2, 7]
    assert benchmark.n_distractors == 0


def test_msmt17_without_val(tmp_path: Path) -> None:
    benchmark = load_benchmark("msmt17", msmt(tmp_path), combine=False)
    assert len(benchmark.train) == 2
    assert any("train images 2 (official 30,248)" in warning for warning in benchmark.warnings)
    assert benchmark.query.pids.tolist() == [2], "test identities do not move with the option"


@pytest.mark.parametrize(
    "line",
    [
        "0000/0000_000_01_0303morning_0008_0.jpg",  # no identity
        "0000/0000_000_01_0303morning_0008_0.jpg x",
        "0000/portrait.jpg 0",
        "0000/0000_000_cam_0303morning_0008_0.jpg 0",
        "0000/0000_000_01_0303morning_0008_0.txt 0",
    ],
)
def test_an_error_in_a_list_names_the_line(tmp_path: Path, line: str) -> None:
    root = msmt(tmp_path)
    (root / "list_query.txt").write_text(f"{MSMT['list_query.txt'][0]}\n\n{line}\n")
    with pytest.raises(ReidError, match=r"list_query\.txt, line 3: "):
        load_benchmark("msmt17", root)


def test_a_folder_in_place_of_a_list_raises_an_error(tmp_path: Path) -> None:
    root = msmt(tmp_path)
    (root / "list_val.txt").unlink()
    (root / "list_val.txt").mkdir()
    with pytest.raises(ReidError, match=r"Cannot read .*list_val\.txt"):
        load_benchmark("msmt17", root)


def test_an_empty_list_and_missing_image_folders(tmp_path: Path) -> None:
    root = msmt(tmp_path)
    (root / "test").rename(root / "elsewhere")
    with pytest.raises(ReidError, match=r"train and test \(V1\).*It contains elsewhere/"):
        load_benchmark("msmt17", root)
    (root / "elsewhere").rename(root / "test")
    (root / "list_gallery.txt").write_text("\n")
    with pytest.raises(ReidError, match=r"list_gallery\.txt lists no image"):
        load_benchmark("msmt17", root)


# CUHK03


def cuhk_labels() -> dict[str, int]:
    people = sorted({name[:5] for part in CUHK.values() for name in part})
    return {name: 1 + people.index(name[:5]) for part in CUHK.values() for name in part}


def cuhk_mat(file: Path, **changed: Any) -> None:
    """The authors' form: 1-based column vectors, a cell array of names."""
    files = sorted(cuhk_labels())
    indices = {f"{part}_idx": np.array([[1 + files.index(name)] for name in CUHK[part]]) for part in CUHK}
    filelist = np.empty((len(files), 1), dtype=object)
    filelist[:, 0] = files
    labels = np.array([[cuhk_labels()[name]] for name in files], dtype=np.uint16)
    camids = np.array([[int(name.split("_")[2])] for name in files], dtype=np.uint8)
    savemat(file, {**indices, "filelist": filelist, "labels": labels, "camId": camids, **changed})


def cuhk_json(file: Path, *, in_list: bool = True, **changed: Any) -> None:
    """The form of splits_new_labeled.json: train people numbered from 0, test people by label."""
    split: dict[str, Any] = {
        part: [
            [f"/data/images_labeled/{name}", cuhk_labels()[name] - (part == "train"), int(name[6]) - 1] for name in rows
        ]
        for part, rows in CUHK.items()
    }
    split |= {"num_train_pids": 2} | changed
    file.write_text(json.dumps([split] if in_list else split))


def cuhk(root: Path, variant: str = "labeled", form: str = "mat") -> Path:
    write_images(root, {f"images_{variant}": [name for part in CUHK.values() for name in part]})
    if form == "mat":
        cuhk_mat(root / f"cuhk03_new_protocol_config_{variant}.mat")
    else:
        cuhk_json(root / f"splits_new_{variant}.json", in_list=form == "json list")
    return root


@pytest.mark.parametrize("form", ["mat", "json list", "json"])
@pytest.mark.parametrize("variant", ["labeled", "detected"])
def test_cuhk03(tmp_path: Path, variant: str, form: str) -> None:
    benchmark = load_benchmark("cuhk03", cuhk(tmp_path / "cuhk03", variant, form).parent, variant=variant)
    for part in CUHK:
        assert names(getattr(benchmark, part)) == CUHK[part]
    assert benchmark.train.pids.tolist() == [1001, 1001, 2001]
    assert benchmark.train.camids.tolist() == [1, 2, 1]
    assert benchmark.query.pids.tolist() == [1002, 1002]
    assert not set(benchmark.train.pids) & set(benchmark.gallery.pids)
    images = {"labeled": "7,368", "detected": "7,365"}[variant]
    assert any(f"train images 3 (official {images})" in warning for warning in benchmark.warnings)


def test_cuhk03_labeled_is_the_default_variant(tmp_path: Path) -> None:
    root = cuhk(cuhk(tmp_path, "labeled"), "detected")
    assert "images_labeled" in load_benchmark("cuhk03", root).train.paths[0]
    with pytest.raises(ReidError, match=r"Unknown variant of CUHK03 'labelled'.*Did you mean 'labeled'"):
        load_benchmark("cuhk03", root, variant="labelled")


def test_cuhk03_missing_pieces_are_named(tmp_path: Path) -> None:
    root = cuhk(tmp_path)
    with pytest.raises(ReidError, match=r"does not contain images_detected.*images_detected/1_001_1_01\.png"):
        load_benchmark("cuhk03", root, variant="detected")
    (root / "cuhk03_new_protocol_config_labeled.mat").unlink()
    with pytest.raises(
        ReidError, match=r"no split file: it needs cuhk03_new_protocol_config_labeled\.mat or splits_new_labeled\.json"
    ):
        load_benchmark("cuhk03", root)


def test_the_hdf5_release_of_cuhk03_is_an_error_that_names_the_supported_form(tmp_path: Path) -> None:
    (tmp_path / "cuhk03_release").mkdir()
    (tmp_path / "cuhk03_release" / "cuhk-03.mat").write_bytes(b"\x89HDF")
    with pytest.raises(ReidError, match=r"cuhk-03\.mat is the release.*not supported.*Extract the images"):
        load_benchmark("cuhk03", tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"query_idx": np.array([[99]])}, "query_idx exceeds", id="index too large"),
        pytest.param({"query_idx": np.array([[0]])}, "query_idx exceeds", id="0-based index"),
        pytest.param({"gallery_idx": np.zeros((0, 0))}, "lists no gallery image", id="empty part"),
        pytest.param({"labels": np.ones((7, 1))}, "which contradicts the names", id="one label for several people"),
        pytest.param(
            {"labels": np.arange(7)[:, None]}, "which contradicts the names", id="several labels for one person"
        ),
    ],
)
def test_an_inconsistent_split_raises_an_error(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    root = cuhk(tmp_path)
    file = root / "cuhk03_new_protocol_config_labeled.mat"
    cuhk_mat(file, **changed)
    with pytest.raises(ReidError, match=message) as error:
        load_benchmark("cuhk03", root)
    assert str(file) in str(error.value)


def test_a_split_without_its_variables_or_not_matlab(tmp_path: Path) -> None:
    root = cuhk(tmp_path)
    file = root / "cuhk03_new_protocol_config_labeled.mat"
    savemat(file, {"train_idx": [1]})
    with pytest.raises(ReidError, match=r"MATLAB file of .*: KeyError\('filelist'\)"):
        load_benchmark("cuhk03", root)
    for content in (b"", b"nothing of the kind" * 50):
        file.write_bytes(content)
        with pytest.raises(ReidError, match="cannot be read as a MATLAB file"):
            load_benchmark("cuhk03", root)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["portrait.png", 1, 0]], "entry 1 of 'query'.*not named like"),
        ([["1_002_1_01.png", 1, 0], ["1_003_1_01.png", 2, 0]], "entry 2 of 'query'.*does not exist"),
        ([["1_002_1_01.png"]], "entry 1 of 'query' is .*Field required"),
        ([["1_002_1_01.png", "1", 0]], r"entry 1 of 'query' is '1'"),
        ("all", "'query' is 'all'"),
    ],
)
def test_an_error_in_a_json_split_names_the_entry(tmp_path: Path, rows: Any, message: str) -> None:
    root = cuhk(tmp_path, form="json")
    cuhk_json(root / "splits_new_labeled.json", query=rows)
    with pytest.raises(ReidError, match=message):
        load_benchmark("cuhk03", root)


def test_a_split_that_is_not_json(tmp_path: Path) -> None:
    root = cuhk(tmp_path, form="json")
    (root / "splits_new_labeled.json").write_text('{"train": [')
    with pytest.raises(ReidError, match="Invalid JSON"):
        load_benchmark("cuhk03", root)


# Several sets


def test_train_sets_of_several_layouts_in_one(tmp_path: Path) -> None:
    parts = [
        load_benchmark("market1501", market(tmp_path / "m")).train,
        load_benchmark("dukemtmc", write_images(tmp_path / "d", DUKE)).train,
        load_benchmark("table", table(tmp_path / "t", SPLIT)).train,
    ]
    merged = merge(parts)
    assert merged.source_names == ("market1501", "dukemtmc", "crops")
    assert len(merged) == sum(map(len, parts))
    assert len(np.unique(merged.pids)) == 2 + 2 + 1
    assert len(np.unique(merged.camids)) == 3 + 3 + 2
    assert merged.labels()[0].max() == 4
