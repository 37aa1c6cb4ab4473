"""MSMT17 (Wei et al., CVPR 2018), V1 and V2. Lists of images, not folders, define the splits.

    list_train.txt  list_val.txt  list_query.txt  list_gallery.txt
    train/  test/                       (V1)
    mask_train_v2/  mask_test_v2/       (V2)

A line is `0000/0000_000_01_0303morning_0008_0.jpg 0`: the path below `train` or `test`, then the identity. The third
number of the file name is the camera. The lists number both train and test people from 0.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from reid.core.errors import DataError
from reid.data.crops import Benchmark, Crops
from reid.data.layouts.scanning import (
    NUMBER,
    SUFFIX,
    find_root,
    list_folder,
    official_counts,
    read_lines,
    with_official,
)

NAME = "msmt17"
LISTS = {"train": "list_train.txt", "val": "list_val.txt", "query": "list_query.txt", "gallery": "list_gallery.txt"}
FOLDERS = {"V2": ("mask_train_v2", "mask_test_v2"), "V1": ("train", "test")}
"""Folders of the train and test images; V2 is used if both versions are present."""
PATTERN = re.compile(rf"(\d+)_(\d+)_({NUMBER})_.+{SUFFIX}", re.IGNORECASE)

OFFICIAL = official_counts(train=(32_621, 1_041), query=(11_659, 3_060), gallery=(82_161, 3_060))
WITHOUT_VAL = 30_248
"""Images in `list_train.txt` alone; its 1,041 identities are also those of `list_val.txt`."""

Row = tuple[str, int, int]


def read(root: str | Path, *, combine: bool = True) -> Benchmark:
    """Read the lists at `root`, or at `root/MSMT17_V1` or `root/MSMT17_V2`.

    Args:
        root: the folder of the four lists.
        combine: train on train + val (32,621 images, the number in the paper), else on `list_train.txt` alone
            (30,248), as several published results do.

    Test identities are shifted by one more than the largest train identity, so that no number means two people.

    Raises:
        DataError: a list or image folder is missing, or a line cannot be parsed (file, line number, text).
    """
    folder = find_root(root, list(LISTS.values()), ["MSMT17_V2", "MSMT17_V1", "MSMT17", "msmt17"])
    present = [pair for pair in FOLDERS.values() if all((folder / name).is_dir() for name in pair)]
    if not present:
        required = " or ".join(f"{train} and {test} ({version})" for version, (train, test) in FOLDERS.items())
        raise DataError(f"{folder} has no image folders: it needs {required}. It contains {list_folder(folder)}.")
    train_folder, test_folder = present[0]
    rows = {
        part: _read_list(folder / name, folder / (train_folder if part in ("train", "val") else test_folder))
        for part, name in LISTS.items()
    }
    shift = 1 + max(pid for part in ("train", "val") for _, pid, _ in rows[part])
    benchmark = Benchmark(
        NAME,
        str(folder),
        train=_crops(rows["train"] + rows["val"] if combine else rows["train"]),
        query=_crops(rows["query"], shift),
        gallery=_crops(rows["gallery"], shift),
    )
    return with_official(benchmark, OFFICIAL if combine else {**OFFICIAL, "train images": WITHOUT_VAL})


def _read_list(file: Path, images: Path) -> list[Row]:
    """Return the rows of a list as `(absolute path, pid, camid)`."""
    rows = []
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        name, _, pid = line.strip().rpartition(" ")
        match = PATTERN.fullmatch(name.rpartition("/")[2])
        if match is None or not re.fullmatch("[0-9]{1,15}", pid):
            raise DataError(
                f"{file}, line {number}: {line!r} is not of the form "
                "'0000/0000_000_01_0303morning_0008_0.jpg 0' (path, then identity). Unpack the lists again."
            )
        rows.append((os.path.join(images, name), int(pid), int(match[3])))
    if not rows:
        raise DataError(f"{file} lists no image. Unpack the lists again.")
    return rows


def _crops(rows: list[Row], shift: int = 0) -> Crops:
    paths, pids, camids = zip(*rows, strict=True)
    return Crops.from_columns(paths, np.array(pids) + shift, camids, source=NAME)
