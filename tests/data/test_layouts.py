from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from scipy.io import savemat

from reid.core.arrays import UNKNOWN
from reid.core.errors import ReidError
from reid.data.crops import Benchmark, Crops, merge
from reid.data.layouts import LAYOUTS, load_benchmark, parse_options
from reid.data.layouts.dukemtmc import WITHDRAWN
from tests.data.trees import CUHK, DUKE, market, write_image, write_images


def names(crops: Crops) -> list[str]:
    return [os.path.basename(path) for path in crops.paths]


# All layouts


def test_an_unknown_layout_names_the_nearest() -> None:
    with pytest.raises(ReidError, match=r"'market1051'.*Did you mean 'market1501'"):
        load_benchmark("market1051", ".")


def test_an_unknown_option_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ReidError, match=r"cuhk03 has no option 'varient'.*Did you mean 'variant'"):
        load_benchmark("cuhk03", tmp_path, varient="detected")
    with pytest.raises(ReidError, match=r"market1501 has no option 'variant'. It takes none"):
        load_benchmark("market1501", tmp_path, variant="detected")


@pytest.mark.parametrize(
    ("layout", "option", "value"),
    [("table", "fraction", "much"), ("table", "seed", 1.5), ("msmt17", "combine", "yes"), ("cuhk03", "variant", 3)],
)
def test_an_option_of_the_wrong_type_is_named(tmp_path: Path, layout: str, option: str, value: Any) -> None:
    with pytest.raises(ReidError, match=f"'{option}' of the layout {layout} is {value!r}"):
        load_benchmark(layout, tmp_path, **{option: value})


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "table"])
def test_a_root_that_is_not_there(tmp_path: Path, layout: str) -> None:
    write_image(tmp_path / "near.jpg")
    with pytest.raises(ReidError, match=r"no folder .*typo/deeper.*nearest that exists is .*near\.jpg"):
        load_benchmark(layout, tmp_path / "typo" / "deeper")


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "table"])
def test_a_root_that_is_an_archive(tmp_path: Path, layout: str) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(ReidError, match=r"set\.zip is a file, not a folder.*reid prepare unpack"):
        load_benchmark(layout, tmp_path / "set.zip")


def test_a_wrong_root_says_what_is_missing_and_what_is_there(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.jpg")
    with pytest.raises(ReidError, match=r"lacks bounding_box_train, query, bounding_box_test\. In it: photos/"):
        load_benchmark("market1501", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReidError, match=r"In it: nothing \(the folder is empty\)"):
        load_benchmark("dukemtmc", tmp_path / "empty")


def test_options_are_written_as_key_and_value() -> None:
    texts = ["variant=detected", "fraction=0.3", "combine=false", "seed=7"]
    assert parse_options(texts) == {"variant": "detected", "fraction": 0.3, "combine": False, "seed": 7}
    with pytest.raises(ReidError, match="'detected' is not of the form KEY=VALUE"):
        parse_options(["detected"])


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


def test_market_double_suffixes_and_system_files_are_survived(tmp_path: Path) -> None:
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


def test_identity_and_camera_come_from_the_base_name_whatever_the_folders_are_called(tmp_path: Path) -> None:
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
    (odd,) = benchmark.skipped
    assert odd.path == str(root / "bounding_box_train" / name)
    assert reason in odd.reason


def test_folders_and_broken_links_among_images_are_listed(tmp_path: Path) -> None:
    root = market(tmp_path)
    (root / "query" / "0001_c1s1_001051_00").mkdir()
    (root / "query" / "0001_c1s1_001051_09.jpg").symlink_to(tmp_path / "gone.jpg")
    reasons = {os.path.basename(odd.path): odd.reason for odd in load_benchmark("market1501", root).skipped}
    assert "a folder" in reasons["0001_c1s1_001051_00"]
    assert "link" in reasons["0001_c1s1_001051_09.jpg"]


@pytest.mark.parametrize("part", ["bounding_box_train", "query", "bounding_box_test"])
def test_an_empty_part_names_the_folder_and_what_is_there(tmp_path: Path, part: str) -> None:
    root = market(tmp_path)
    for file in (root / part).iterdir():
        file.unlink()
    with pytest.raises(ReidError, match=rf"No \w+ image in .*{part}: it is empty"):
        load_benchmark("market1501", root)
    write_image(root / part / "0001_c2_f0046182.jpg")
    with pytest.raises(ReidError, match=r"1 were not taken, such as 0001_c2_f0046182\.jpg"):
        load_benchmark("market1501", root)


def test_a_gallery_of_junk_only_is_empty(tmp_path: Path) -> None:
    root = market(tmp_path)
    for file in (root / "bounding_box_test").glob("0*"):
        file.unlink()
    with pytest.raises(ReidError, match=r"No gallery image in .*bounding_box_test\. Of what is there, 1 are junk"):
        load_benchmark("market1501", root)


def test_the_root_may_be_the_folder_above(tmp_path: Path) -> None:
    inside = market(tmp_path / "Market-1501-v15.09.15")
    assert load_benchmark("market1501", tmp_path).root == str(inside)
    assert load_benchmark("market1501", str(inside)).root == str(inside)


def test_counts_that_are_not_the_official_ones_are_a_warning_with_both(tmp_path: Path) -> None:
    (warning,) = load_benchmark("market1501", market(tmp_path)).warnings
    for both in ("train images 3 (official 12,936)", "query ids 2 (official 750)", "junk 1 (official 3,819)"):
        assert both in warning


def test_made_data_is_not_compared_with_official_counts(tmp_path: Path) -> None:
    root = market(tmp_path)
    (root / "made.json").write_text("{}")
    benchmark = load_benchmark("market1501", root)
    assert benchmark.warnings == ()
    assert benchmark.official == {}


def test_junk_in_train_and_people_numbered_0000_are_told(tmp_path: Path) -> None:
    root = market(tmp_path)
    (root / "made.json").write_text("{}")
    write_image(root / "bounding_box_train" / "-1_c1s1_000451_03.jpg")
    write_image(root / "query" / "0000_c1s1_001051_00.jpg")
    benchmark = load_benchmark("market1501", root)
    assert -1 not in benchmark.train.pids
    junk, zero = benchmark.warnings
    assert "1 junk images" in junk
    assert "1 queries carry pid 0000" in zero


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


def test_duke_says_once_that_it_was_withdrawn(tmp_path: Path) -> None:
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
def test_a_bad_line_of_a_list_is_named(tmp_path: Path, line: str) -> None:
    root = msmt(tmp_path)
    (root / "list_query.txt").write_text(f"{MSMT['list_query.txt'][0]}\n\n{line}\n")
    with pytest.raises(ReidError, match=r"list_query\.txt, line 3: "):
        load_benchmark("msmt17", root)


def test_a_list_that_is_a_folder(tmp_path: Path) -> None:
    root = msmt(tmp_path)
    (root / "list_val.txt").unlink()
    (root / "list_val.txt").mkdir()
    with pytest.raises(ReidError, match=r"Cannot read .*list_val\.txt"):
        load_benchmark("msmt17", root)


def test_an_empty_list_and_missing_image_folders(tmp_path: Path) -> None:
    root = msmt(tmp_path)
    (root / "test").rename(root / "elsewhere")
    with pytest.raises(ReidError, match=r"train and test \(V1\).*In it: elsewhere/"):
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
    held = {f"{part}_idx": np.array([[1 + files.index(name)] for name in CUHK[part]]) for part in CUHK}
    filelist = np.empty((len(files), 1), dtype=object)
    filelist[:, 0] = files
    labels = np.array([[cuhk_labels()[name]] for name in files], dtype=np.uint16)
    camids = np.array([[int(name.split("_")[2])] for name in files], dtype=np.uint8)
    savemat(file, {**held, "filelist": filelist, "labels": labels, "camId": camids, **changed})


def cuhk_json(file: Path, *, in_list: bool = True, **changed: Any) -> None:
    """The form of splits_new_labeled.json: train people numbered from 0, test people as the label says."""
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


def test_cuhk03_labelled_is_read_unless_detected_is_asked_for(tmp_path: Path) -> None:
    root = cuhk(cuhk(tmp_path, "labeled"), "detected")
    assert "images_labeled" in load_benchmark("cuhk03", root).train.paths[0]
    with pytest.raises(ReidError, match=r"no variant 'labelled'.*Did you mean 'labeled'"):
        load_benchmark("cuhk03", root, variant="labelled")


def test_cuhk03_missing_pieces_are_named(tmp_path: Path) -> None:
    root = cuhk(tmp_path)
    with pytest.raises(ReidError, match=r"lacks images_detected.*images_detected/1_001_1_01\.png"):
        load_benchmark("cuhk03", root, variant="detected")
    (root / "cuhk03_new_protocol_config_labeled.mat").unlink()
    with pytest.raises(
        ReidError, match=r"no split file: cuhk03_new_protocol_config_labeled\.mat or splits_new_labeled\.json"
    ):
        load_benchmark("cuhk03", root)


def test_the_release_of_cuhk03_as_hdf5_says_which_form_is_read(tmp_path: Path) -> None:
    (tmp_path / "cuhk03_release").mkdir()
    (tmp_path / "cuhk03_release" / "cuhk-03.mat").write_bytes(b"\x89HDF")
    with pytest.raises(ReidError, match=r"cuhk-03\.mat is the release.*not read.*extracted images: images_labeled"):
        load_benchmark("cuhk03", tmp_path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        pytest.param({"query_idx": np.array([[99]])}, "query_idx points outside", id="index too large"),
        pytest.param({"query_idx": np.array([[0]])}, "query_idx points outside", id="0-based index"),
        pytest.param({"gallery_idx": np.zeros((0, 0))}, "lists no gallery image", id="empty part"),
        pytest.param({"labels": np.ones((7, 1))}, "which the names contradict", id="one label for several people"),
        pytest.param(
            {"labels": np.arange(7)[:, None]}, "which the names contradict", id="several labels for one person"
        ),
    ],
)
def test_a_split_that_cannot_be_is_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    root = cuhk(tmp_path)
    file = root / "cuhk03_new_protocol_config_labeled.mat"
    cuhk_mat(file, **changed)
    with pytest.raises(ReidError, match=words) as error:
        load_benchmark("cuhk03", root)
    assert str(file) in str(error.value)


def test_a_split_without_its_variables_or_not_matlab(tmp_path: Path) -> None:
    root = cuhk(tmp_path)
    file = root / "cuhk03_new_protocol_config_labeled.mat"
    savemat(file, {"train_idx": [1]})
    with pytest.raises(ReidError, match="has no variable 'filelist'"):
        load_benchmark("cuhk03", root)
    for content in (b"", b"nothing of the kind" * 50):
        file.write_bytes(content)
        with pytest.raises(ReidError, match="cannot be read as a MATLAB file"):
            load_benchmark("cuhk03", root)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["portrait.png", 1, 0]], "entry 1 of 'query'.*not named like"),
        ([["1_002_1_01.png", 1, 0], ["1_003_1_01.png", 2, 0]], "entry 2 of 'query'.*is not there"),
        ([["1_002_1_01.png"]], r"entry 1 of 'query' is \['1_002_1_01.png'\]"),
        ("all", 'under "train", "query" and "gallery"'),
    ],
)
def test_a_bad_entry_of_a_json_split_is_named(tmp_path: Path, rows: Any, words: str) -> None:
    root = cuhk(tmp_path, form="json")
    cuhk_json(root / "splits_new_labeled.json", query=rows)
    with pytest.raises(ReidError, match=words):
        load_benchmark("cuhk03", root)


def test_a_split_that_is_not_json(tmp_path: Path) -> None:
    root = cuhk(tmp_path, form="json")
    (root / "splits_new_labeled.json").write_text('{"train": [')
    with pytest.raises(ReidError, match="is not JSON"):
        load_benchmark("cuhk03", root)


# Tables


def table(folder: Path, text: str, name: str = "crops.csv") -> Path:
    """A CSV, and the images that its first column names."""
    file = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    for line in text.splitlines()[1:]:
        image = line.split(",")[0].strip('"')
        if image.endswith(".jpg"):
            write_image(folder / image)
    return file


def parquet(folder: Path, **columns: Any) -> Path:
    file = folder / "crops.parquet"
    pa.parquet.write_table(pa.table(columns), file)
    for image in columns["path"]:
        write_image(folder / image)
    return file


SPLIT = """path,pid,camid,track,frame,split
a.jpg,5,1,9,100,train
b.jpg,5,2,,,train
c.jpg,6,1,3,7,query
d.jpg,6,2,4,8,gallery
"""


def test_a_table_with_everything(tmp_path: Path) -> None:
    benchmark = load_benchmark("table", table(tmp_path / "shop", SPLIT))
    assert benchmark.name == "crops"
    assert benchmark.root == str(tmp_path / "shop")
    assert benchmark.train.paths.tolist() == [str(tmp_path / "shop" / name) for name in ("a.jpg", "b.jpg")]
    assert benchmark.train.pids.tolist() == [5, 5]
    assert benchmark.train.camids.tolist() == [1, 2]
    assert benchmark.train.tracks.tolist() == [9, UNKNOWN]
    assert benchmark.train.frames.tolist() == [100, UNKNOWN]
    assert (benchmark.query.pids.tolist(), benchmark.gallery.pids.tolist()) == ([6], [6])
    assert benchmark.cross_camera
    assert benchmark.warnings == ()


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows = {"path": [f"{i}.jpg" for i in range(40)], "pid": [f"p{i % 8}" for i in range(40)]}
    rows["camid"] = [["north", "south"][i // 8 % 2] for i in range(40)]
    text = "path,pid,camid\n" + "\n".join(",".join(row) for row in zip(*rows.values(), strict=True))
    one = load_benchmark("table", table(tmp_path, text), fraction=0.5)
    other = load_benchmark("table", parquet(tmp_path, **rows), fraction=0.5)
    for part in ("train", "query", "gallery"):
        for column in ("paths", "pids", "camids"):
            assert getattr(getattr(one, part), column).tolist() == getattr(getattr(other, part), column).tolist()


def everything(benchmark: Benchmark) -> Crops:
    """All rows of a table, in order of path."""
    parts = [benchmark.train, benchmark.query, benchmark.gallery]
    whole = Crops.from_columns(
        [path for part in parts for path in part.paths],
        *(np.concatenate([getattr(part, column) for part in parts]) for column in ("pids", "camids", "tracks")),
    )
    return whole.take(np.argsort(whole.paths.astype(str)))


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        pytest.param(["7", "3", "3", "7"], [7, 3, 3, 7], id="whole numbers are kept"),
        pytest.param(["0007", "3", "3", "7"], [7, 3, 3, 7], id="zeros in front count for nothing"),
        pytest.param(["tom", "ann", "ann", "tom"], [1, 0, 0, 1], id="texts are numbered in sorted order"),
        pytest.param(["10", "9b", "9b", "10"], [0, 1, 1, 0], id="one text makes all of them texts"),
        pytest.param([" tom", "ann ", "ann", "tom"], [1, 0, 0, 1], id="spaces around count for nothing"),
        pytest.param(["é", "z", "z", "é"], [1, 0, 0, 1], id="order of code points"),
    ],
)
def test_identities_of_a_table(tmp_path: Path, texts: list[str], numbers: list[int]) -> None:
    text = "path,pid\n" + "\n".join(f"{i}.jpg,{pid}" for i, pid in enumerate(texts))
    whole = everything(load_benchmark("table", table(tmp_path, text), fraction=0.5))
    assert whole.pids.tolist() == numbers


def test_a_table_without_cameras_is_matched_in_the_whole_gallery(tmp_path: Path) -> None:
    text = "path,pid\n" + "\n".join(f"{i}.jpg,shoe{i % 6}" for i in range(24))
    benchmark = load_benchmark("table", table(tmp_path, text), fraction=0.5)
    assert not benchmark.cross_camera
    assert not benchmark.train.has_cameras
    assert len(benchmark.query) == 3
    assert len(benchmark.gallery) == 9
    assert not set(benchmark.train.pids) & set(benchmark.gallery.pids)


@pytest.mark.parametrize("camera", ["", "4"])
def test_cameras_empty_or_all_equal(tmp_path: Path, camera: str) -> None:
    text = "path,pid,camid\n" + "\n".join(f"{i}.jpg,{i % 6},{camera}" for i in range(24))
    file = table(tmp_path, text)
    benchmark = load_benchmark("table", file)
    assert not benchmark.cross_camera
    assert len(benchmark.query)
    assert benchmark.query.camids[0] == (int(camera) if camera else UNKNOWN)
    assert bool(benchmark.warnings) == bool(camera)
    with pytest.raises(ReidError, match=f"needs two cameras.*there are {len(camera)}"):
        load_benchmark("table", file, cross_camera=True)


def test_cameras_can_be_set_aside(tmp_path: Path) -> None:
    text = "path,pid,camid\n" + "\n".join(f"{i}.jpg,{i % 6},{i % 6}" for i in range(24))
    file = table(tmp_path, text)
    with pytest.raises(ReidError, match="No identity can be held out"):
        load_benchmark("table", file)
    assert len(load_benchmark("table", file, cross_camera=False).query) == 1


def test_test_rows_are_divided_into_query_and_gallery(tmp_path: Path) -> None:
    text = "path,pid,camid,split\n" + "\n".join(
        f"{i}.jpg,{i % 6},{i // 6 % 2},{'train' if i % 6 < 3 else 'Test '}" for i in range(24)
    )
    benchmark = load_benchmark("table", table(tmp_path, text))
    assert len(benchmark.train) == 12
    assert (len(benchmark.query), len(benchmark.gallery)) == (6, 6)


def test_a_table_for_scoring_only_or_for_training_only(tmp_path: Path) -> None:
    scoring = load_benchmark("table", table(tmp_path / "a", SPLIT.replace("train", "gallery")))
    assert len(scoring.train) == 0
    assert scoring.warnings == ("the table has no train rows",)
    training = load_benchmark(
        "table", table(tmp_path / "b", SPLIT.replace("query", "train").replace("gallery", "train"))
    )
    assert len(training.query) == len(training.gallery) == 0
    assert training.warnings == ("the table has no query rows",)


def test_junk_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    benchmark = load_benchmark("table", table(tmp_path, SPLIT + "e.jpg,-1,2,4,8,gallery\n"))
    assert benchmark.n_junk == 1
    assert benchmark.gallery.pids.tolist() == [6]
    with pytest.raises(ReidError, match="2 rows, all of them junk"):
        load_benchmark("table", table(tmp_path, "path,pid\na.jpg,-1\nb.jpg,-1\n"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        pytest.param("z.jpg,,1,,,train", r"row 6, column 'pid': '' is empty", id="no identity"),
        pytest.param(",5,1,,,train", r"row 6, column 'path': '' is empty", id="no path"),
        pytest.param("z.jpg,-2,1,,,train", r"row 6, column 'pid': '-2' is below -1", id="negative identity"),
        pytest.param("z.jpg,5,-3,,,train", r"row 6, column 'camid': '-3' is below -1", id="negative camera"),
        pytest.param("z.jpg,5,1,,1.5,train", r"row 6, column 'frame': '1.5' is not a whole number", id="frame"),
        pytest.param("z.jpg,5,1,,,valid", r"row 6, column 'split': 'valid' is none of train, query", id="split"),
        pytest.param("z.jpg,5,1,,,", r"row 6, column 'split': '' is none of", id="no split"),
        pytest.param(
            "a.jpg,6,1,,,gallery", r"row 6: the image 'a.jpg' has another pid than in row 2", id="two identities"
        ),
        pytest.param("z.jpg,5,1,,,test", "has both 'test' and 'query' or 'gallery'", id="two ways to split"),
        pytest.param("z.jpg,5", "cannot be read as CSV.*Expected 6 columns, got 2", id="too few values"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, words: str) -> None:
    file = table(tmp_path, SPLIT + row + "\n")
    with pytest.raises(ReidError, match=words) as error:
        load_benchmark("table", file)
    assert str(file) in str(error.value)


def test_rows_are_numbered_as_lines_blank_ones_counted(tmp_path: Path) -> None:
    text = SPLIT.replace("c.jpg", "\n\nc.jpg") + "\nz.jpg,,1,,,train\ny.jpg,,1,,,train\n"
    with pytest.raises(ReidError, match=r"row 9, column 'pid': '' is empty.*\(1 more rows are like it\)"):
        load_benchmark("table", table(tmp_path, text))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("file,pid", "no column 'path'; it has 'file', 'pid'"),
        ("path,id", "no column 'pid'; it has 'path', 'id'"),
        ("path;pid", r"no column 'path'; it has 'path;pid'.*separated by commas"),
        ("path,pid,pid", "2 columns named 'pid'"),
    ],
)
def test_a_bad_header_is_named(tmp_path: Path, header: str, words: str) -> None:
    row = ",".join("1" for _ in header.split(","))
    with pytest.raises(ReidError, match=words):
        load_benchmark("table", table(tmp_path, f"{header}\n{row}\n"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as CSV"),
        (b"path,pid\n", "no rows below"),
        ("path,pid\nn\u00e9.jpg,1\n".encode("latin-1"), "cannot be read as CSV.*UTF-8"),
    ],
    ids=["empty file", "header only", "not UTF-8"],
)
def test_a_table_that_is_no_table(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "crops.csv"
    file.write_bytes(content)
    with pytest.raises(ReidError, match=words):
        load_benchmark("table", file)


def test_a_byte_order_mark_and_windows_lines_are_survived(tmp_path: Path) -> None:
    file = table(tmp_path, SPLIT)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_benchmark("table", file).train.pids.tolist() == [5, 5]


def test_quoted_paths_with_commas(tmp_path: Path) -> None:
    for name in ("a, b.jpg", "c.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "t.csv").write_text('path,pid,split\n"a, b.jpg",1,train\nc.jpg,1,train\n')
    assert names(load_benchmark("table", tmp_path / "t.csv").train) == ["a, b.jpg", "c.jpg"]


def test_absolute_paths_are_kept(tmp_path: Path) -> None:
    images = [write_image(tmp_path / "far" / f"{i}.jpg") for i in range(4)]
    text = "path,pid\n" + "\n".join(f"{image},{i % 2}" for i, image in enumerate(images))
    benchmark = load_benchmark("table", table(tmp_path / "near", text))
    assert everything(benchmark).paths.tolist() == [str(image) for image in images]


def test_a_wrong_folder_is_noticed_at_once(tmp_path: Path) -> None:
    (tmp_path / "crops.csv").write_text("path,pid\nimages/a.jpg,1\nimages/b.jpg,2\n")
    with pytest.raises(ReidError, match=r"none of 2 images looked for is there, such as .*images/a\.jpg.*relative to"):
        load_benchmark("table", tmp_path)


def test_missing_images_are_left_for_check_to_list(tmp_path: Path) -> None:
    file = table(tmp_path, SPLIT)
    (tmp_path / "b.jpg").unlink()
    assert len(load_benchmark("table", file).train) == 2


def test_which_table_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ReidError, match=r"holds no tables.*folder is empty"):
        load_benchmark("table", tmp_path)
    table(tmp_path, SPLIT)
    assert load_benchmark("table", tmp_path).name == "crops"
    table(tmp_path, SPLIT, "other.csv")
    with pytest.raises(ReidError, match=r"holds 2 tables.*crops\.csv, other\.csv"):
        load_benchmark("table", tmp_path)
    table(tmp_path, SPLIT, "table.csv")
    assert load_benchmark("table", tmp_path).name == tmp_path.name
    with pytest.raises(ReidError, match=r"a\.jpg is not a table"):
        load_benchmark("table", tmp_path / "a.jpg")
    with pytest.raises(ReidError, match="no file or folder"):
        load_benchmark("table", tmp_path / "crop.csv")


@pytest.mark.parametrize(
    "pids",
    [
        pytest.param(pa.array([1, 2, 1, 2], pa.int32()), id="int32"),
        pytest.param(pa.array([1.0, 2.0, 1.0, 2.0]), id="whole floats, as pandas writes"),
        pytest.param(pa.array(["1", "2", "1", "2"]).dictionary_encode(), id="categories"),
        pytest.param(pa.array(["1", "2", "1", "2"], pa.large_string()), id="large strings"),
    ],
)
def test_types_of_parquet_columns(tmp_path: Path, pids: Any) -> None:
    camids = pa.array([1.0, float("nan"), None, 2.0])
    file = parquet(tmp_path, path=["a.jpg", "b.jpg", "c.jpg", "d.jpg"], pid=pids, camid=camids, split=["train"] * 4)
    train = load_benchmark("table", file).train
    assert train.pids.tolist() == [1, 2, 1, 2]
    assert train.camids.tolist() == [1, UNKNOWN, UNKNOWN, 2]


@pytest.mark.parametrize(
    ("pids", "words"),
    [
        (pa.array([1, None, 2]), "row 2, column 'pid': None is empty"),
        (pa.array([1.0, 2.0, 1.5]), r"row 3, column 'pid': 1\.5 is not a whole number"),
        (pa.array([1.0, float("inf"), 1.0]), r"row 2, column 'pid': inf is not a whole number"),
        (pa.array([[1], [2], [3]]), "column 'pid' holds list"),
    ],
    ids=["missing", "a fraction", "infinite", "lists"],
)
def test_bad_parquet_values_are_named(tmp_path: Path, pids: Any, words: str) -> None:
    file = parquet(tmp_path, path=["a.jpg", "b.jpg", "c.jpg"], pid=pids)
    with pytest.raises(ReidError, match=words):
        load_benchmark("table", file)


def test_a_parquet_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "crops.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ReidError, match="cannot be read as Parquet"):
        load_benchmark("table", tmp_path)


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
