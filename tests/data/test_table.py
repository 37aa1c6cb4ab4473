from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from reid.core.arrays import UNKNOWN
from reid.core.errors import ReidError
from reid.data.check import check_benchmark
from reid.data.crops import Benchmark, Crops
from reid.data.layouts import load_benchmark
from tests.data.trees import SPLIT, names, table, write_image


def parquet(folder: Path, **columns: Any) -> Path:
    file = folder / "crops.parquet"
    pa.parquet.write_table(pa.table(columns), file)
    for image in columns["path"]:
        write_image(folder / image)
    return file


def test_a_table_with_all_columns(tmp_path: Path) -> None:
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


def test_csv_and_parquet_give_the_same_benchmark(tmp_path: Path) -> None:
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
        pytest.param(["7", "3", "3", "7"], [7, 3, 3, 7], id="integers are kept"),
        pytest.param(["0007", "3", "3", "7"], [7, 3, 3, 7], id="leading zeros are ignored"),
        pytest.param(["tom", "ann", "ann", "tom"], [1, 0, 0, 1], id="texts are numbered in sorted order"),
        pytest.param(["10", "9b", "9b", "10"], [0, 1, 1, 0], id="one text makes all values texts"),
        pytest.param([" tom", "ann ", "ann", "tom"], [1, 0, 0, 1], id="surrounding spaces are ignored"),
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
    with pytest.raises(ReidError, match=f"needs two known cameras.*there are {len(camera)}"):
        load_benchmark("table", file, cross_camera=True)


def test_cross_camera_can_be_switched_off(tmp_path: Path) -> None:
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
    assert scoring.warnings == ("there are no train crops",)
    training = load_benchmark(
        "table", table(tmp_path / "b", SPLIT.replace("query", "train").replace("gallery", "train"))
    )
    assert len(training.query) == len(training.gallery) == 0
    assert training.warnings == ("there are no query crops",)


def test_junk_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    benchmark = load_benchmark("table", table(tmp_path, SPLIT + "e.jpg,-1,2,4,8,gallery\n"))
    assert benchmark.n_junk == 1
    assert benchmark.gallery.pids.tolist() == [6]
    with pytest.raises(ReidError, match="all 2 are junk"):
        load_benchmark("table", table(tmp_path, "path,pid\na.jpg,-1\nb.jpg,-1\n"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param("z.jpg,,1,,,train", r"row 6, column 'pid': '' is empty", id="no identity"),
        pytest.param(",5,1,,,train", r"row 6, column 'path': '' is empty", id="no path"),
        pytest.param("z.jpg,-2,1,,,train", r"row 6, column 'pid': '-2' is below -1", id="negative identity"),
        pytest.param("z.jpg,5,-3,,,train", r"row 6, column 'camid': '-3' is below -1", id="negative camera"),
        pytest.param("z.jpg,5,1,,1.5,train", r"row 6, column 'frame': '1.5' is not an integer", id="frame"),
        pytest.param("z.jpg,5,1,,,valid", r"row 6, column 'split': 'valid' is none of train, query", id="split"),
        pytest.param("z.jpg,5,1,,,", r"row 6, column 'split': '' is none of", id="no split"),
        pytest.param(
            "a.jpg,6,1,,,gallery", r"row 6: the image 'a.jpg' has another pid than in row 2", id="two identities"
        ),
        pytest.param("z.jpg,5,1,,,test", "has the split 'test' and 'query' or 'gallery'", id="two ways to split"),
        pytest.param("z.jpg,5", "cannot be read as CSV.*Expected 6 columns, got 2", id="too few values"),
    ],
)
def test_an_error_names_the_row(tmp_path: Path, row: str, message: str) -> None:
    file = table(tmp_path, SPLIT + row + "\n")
    with pytest.raises(ReidError, match=message) as error:
        load_benchmark("table", file)
    assert str(file) in str(error.value)


def test_error_rows_are_line_numbers_that_count_blank_lines(tmp_path: Path) -> None:
    text = SPLIT.replace("c.jpg", "\n\nc.jpg") + "\nz.jpg,,1,,,train\ny.jpg,,1,,,train\n"
    with pytest.raises(ReidError, match=r"row 9, column 'pid': '' is empty.*\(1 more rows like it\)"):
        load_benchmark("table", table(tmp_path, text))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,pid", "no column 'path'; it has 'file', 'pid'"),
        ("path,id", "no column 'pid'; it has 'path', 'id'"),
        ("path|pid", r"no column 'path'; it has 'path.pid'.*separated by commas"),
        ("path,pid,pid", "2 columns named 'pid'"),
    ],
)
def test_an_error_names_the_missing_column(tmp_path: Path, header: str, message: str) -> None:
    row = ",".join("1" for _ in header.split(","))
    with pytest.raises(ReidError, match=message):
        load_benchmark("table", table(tmp_path, f"{header}\n{row}\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as CSV"),
        (b"path,pid\n", "no rows below"),
        ("path,pid\nn\u00e9.jpg,1\n".encode("latin-1"), "cannot be read as CSV.*UTF-8"),
    ],
    ids=["empty file", "header only", "not UTF-8"],
)
def test_unreadable_csv_files_raise_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "crops.csv"
    file.write_bytes(content)
    with pytest.raises(ReidError, match=message):
        load_benchmark("table", file)


def test_byte_order_marks_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    file = table(tmp_path, SPLIT)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_benchmark("table", file).train.pids.tolist() == [5, 5]


def test_quoted_paths_with_commas(tmp_path: Path) -> None:
    for name in ("a, b.jpg", "c.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "t.csv").write_text('path,pid,split\n"a, b.jpg",1,train\nc.jpg,1,train\n')
    assert names(load_benchmark("table", tmp_path / "t.csv").train) == ["a, b.jpg", "c.jpg"]


def test_absolute_paths_are_kept(tmp_path: Path) -> None:
    images = [write_image(tmp_path / "images" / f"{i}.jpg") for i in range(4)]
    text = "path,pid\n" + "\n".join(f"{image},{i % 2}" for i, image in enumerate(images))
    benchmark = load_benchmark("table", table(tmp_path / "table", text))
    assert everything(benchmark).paths.tolist() == [str(image) for image in images]


def test_paths_relative_to_another_folder_raise_an_error(tmp_path: Path) -> None:
    (tmp_path / "crops.csv").write_text("path,pid\nimages/a.jpg,1\nimages/b.jpg,2\n")
    with pytest.raises(ReidError, match=r"none of 2 images exists, such as .*images/a\.jpg.*relative to"):
        load_benchmark("table", tmp_path)


def test_some_missing_images_are_no_error(tmp_path: Path) -> None:
    file = table(tmp_path, SPLIT)
    (tmp_path / "b.jpg").unlink()
    assert len(load_benchmark("table", file).train) == 2


def test_a_folder_must_contain_one_table(tmp_path: Path) -> None:
    with pytest.raises(ReidError, match=r"contains no tables.*folder is empty"):
        load_benchmark("table", tmp_path)
    table(tmp_path, SPLIT)
    assert load_benchmark("table", tmp_path).name == "crops"
    table(tmp_path, SPLIT, "other.csv")
    with pytest.raises(ReidError, match=r"contains 2 tables.*crops\.csv, other\.csv"):
        load_benchmark("table", tmp_path)
    table(tmp_path, SPLIT, "table.csv")
    assert load_benchmark("table", tmp_path).name == tmp_path.name
    with pytest.raises(ReidError, match=r"a\.jpg is not a table"):
        load_benchmark("table", tmp_path / "a.jpg")
    with pytest.raises(ReidError, match=r"no folder .*crop\.csv"):
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
    ("pids", "message"),
    [
        (pa.array([1, None, 2]), "row 2, column 'pid': None is empty"),
        (pa.array([1.0, 2.0, 1.5]), r"row 3, column 'pid': 1\.5 is not an integer"),
        (pa.array([1.0, float("inf"), 1.0]), r"row 2, column 'pid': inf is not an integer"),
        (pa.array([[1], [2], [3]]), "column 'pid' contains list"),
    ],
    ids=["missing", "a fraction", "infinite", "lists"],
)
def test_errors_in_parquet_values_name_the_row(tmp_path: Path, pids: Any, message: str) -> None:
    file = parquet(tmp_path, path=["a.jpg", "b.jpg", "c.jpg"], pid=pids)
    with pytest.raises(ReidError, match=message):
        load_benchmark("table", file)


def test_a_damaged_parquet_file_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "crops.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ReidError, match="cannot be read as Parquet"):
        load_benchmark("table", tmp_path)


def test_minus_one_in_a_column_of_names_remains_junk_or_unknown(tmp_path: Path) -> None:
    rows = [("a", "door"), ("-1", "door"), (" -1 ", "till"), ("a", "-1"), ("b", "till"), ("b", "")]
    text = "path,pid,camid,split\n" + "".join(f"{n}.jpg,{pid},{cam},train\n" for n, (pid, cam) in enumerate(rows))
    benchmark = load_benchmark("table", table(tmp_path, text))
    assert benchmark.n_junk == 2
    assert benchmark.train.pids.tolist() == [0, 0, 1, 1]
    assert benchmark.train.camids.tolist() == [0, UNKNOWN, 1, UNKNOWN]
    assert benchmark.warnings[:2] == (
        "column 'pid' contains text, and 2 times -1, which is read as junk (dropped)",
        "column 'camid' contains text, and 1 times -1, which is read as unknown",
    )
    findings = [finding.problem for finding in check_benchmark(benchmark, decode=False).findings]
    assert "Column 'pid' contains text, and 2 times -1, which is read as junk (dropped)." in findings


def test_floats_beyond_the_exact_integers_are_refused(tmp_path: Path) -> None:
    file = parquet(tmp_path, path=["a.jpg", "b.jpg", "c.jpg"], pid=pa.array([1.0, 2.0**53, 3.0]))
    with pytest.raises(ReidError, match=r"row 2, column 'pid': 9007199254740992\.0 is not an integer"):
        load_benchmark("table", file)


def test_a_csv_from_windows_is_read(tmp_path: Path) -> None:
    """Byte order mark, semicolons, spaces around names and values, back-slashes, Windows line ends."""
    for name in ("a", "b"):
        (tmp_path / "crops" / name).mkdir(parents=True)
        write_image(tmp_path / "crops" / name / "1.jpg")
    lines = [
        "\ufeff path ; pid ; camid; split",
        " crops\\a\\1.jpg ; anna ; 1; train",
        "crops\\b\\1.jpg; ben ;2 ;train ",
    ]
    (tmp_path / "table.csv").write_text("\r\n".join(lines) + "\r\n", "utf-8")
    train = load_benchmark("table", tmp_path / "table.csv").train
    assert train.paths.tolist() == [str(tmp_path / "crops" / name / "1.jpg") for name in ("a", "b")]
    assert train.camids.tolist() == [1, 2]
    assert train.pids.tolist() == [0, 1]
