"""MSMT17 (Wei et al., CVPR 2018), V1 and V2: lists of images, not folders, say which part an image is of.

    list_train.txt  list_val.txt  list_query.txt  list_gallery.txt
    train/  test/                       (V1)
    mask_train_v2/  mask_test_v2/       (V2)

A line is `0000/0000_000_01_0303morning_0008_0.jpg 0`: the path below `train` or `test`, and the identity; the third
number of the base name is the camera. The lists number test people from 0 again, as they do train people.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from reid.core.errors import ReidError
from reid.data.crops import Benchmark, Crops
from reid.data.layouts.scanning import SUFFIX, find_root, read_lines, what_is_in, with_official

NAME = "msmt17"
LISTS = {"train": "list_train.txt", "val": "list_val.txt", "query": "list_query.txt", "gallery": "list_gallery.txt"}
IMAGES = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}
PATTERN = re.compile(rf"(\d+)_(\d+)_(\d+)_.+{SUFFIX}", re.IGNORECASE)

OFFICIAL = {
    "train images": 32_621,
    "train ids": 1_041,
    "query images": 11_659,
    "query ids": 3_060,
    "gallery images": 82_161,
    "gallery ids": 3_060,
}
WITHOUT_VAL = 30_248
"""Images in `list_train.txt` alone; its 1,041 identities are those of `list_val.txt` too."""


def read(root: str | Path, *, combine: bool = True) -> Benchmark:
    """Read the lists at `root`, or at `root/MSMT17_V1` or `root/MSMT17_V2`.

    Args:
        root: the folder of the four lists.
        combine: train on train + val (32,621 images, the count the paper gives), or else on `list_train.txt` alone
            (30,248), which several published results use.

    Test identities are moved up by one more than the largest train identity, so that no number means two people.

    Raises:
        ReidError: a list or image folder is missing; a line that does not parse (file, line number, text).
    """
    folder = find_root(root, list(LISTS.values()), ["MSMT17_V2", "MSMT17_V1", "MSMT17", "msmt17"])
    train_folder, test_folder = _image_folders(folder)
    rows = {
        part: _read_list(folder / name, train_folder if part in ("train", "val") else test_folder)
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


Row = tuple[str, int, int]


def _image_folders(folder: Path) -> tuple[Path, Path]:
    """The folders of train and of test images, of V1 or V2; of V2 where both are there."""
    for version in ("V2", "V1"):
        train, test = (folder / name for name in IMAGES[version])
        if train.is_dir() and test.is_dir():
            return train, test
    looked_for = " or ".join(f"{train} and {test} ({version})" for version, (train, test) in IMAGES.items())
    raise ReidError(f"{folder} lacks the image folders: {looked_for}. In it: {what_is_in(folder)}.")


def _read_list(file: Path, images: Path) -> list[Row]:
    """The rows of a list as `(absolute path, pid, camid)`."""
    rows = []
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        name, _, pid = line.strip().rpartition(" ")
        match = PATTERN.fullmatch(name.rpartition("/")[2])
        if match is None or not pid.isdecimal():
            raise ReidError(
                f"{file}, line {number}: {line!r} is not of the form "
                "'0000/0000_000_01_0303morning_0008_0.jpg 0' (path, then identity). Unpack the lists anew."
            )
        rows.append((os.path.join(images, name), int(pid), int(match[3])))
    if not rows:
        raise ReidError(f"{file} lists no image. Unpack the lists anew.")
    return rows


def _crops(rows: list[Row], shift: int = 0) -> Crops:
    """The rows as columns, their identities moved up by `shift`."""
    paths, pids, camids = zip(*rows, strict=True)
    return Crops.from_columns(paths, np.array(pids) + shift, camids, source=NAME)
