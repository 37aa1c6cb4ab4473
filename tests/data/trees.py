"""Small data sets in the published layouts. Every image is different."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from reid.data.crops import Crops

_number = itertools.count()

MARKET = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c2s1_000776_01.jpg", "0007_c3s3_077419_03.jpg"],
    "query": ["0001_c1s1_001051_00.jpg", "0003_c2s1_001051_00.jpg"],
    "bounding_box_test": [
        "0001_c2s1_000301_00.jpg",
        "0003_c1s1_000301_01.jpg",
        "0000_c1s6_023071_04.jpg",
        "-1_c1s1_000401_03.jpg",
    ],
}
DUKE = {
    "bounding_box_train": ["0001_c2_f0046182.jpg", "0001_c1_f0046302.jpg", "0005_c8_f0046182.jpg"],
    "query": ["0002_c1_f0044158.jpg"],
    "bounding_box_test": ["0002_c2_f0044200.jpg", "0009_c3_f0044200.jpg"],
}
CUHK = {
    "train": ["1_001_1_01.png", "1_001_2_06.png", "2_001_1_02.png"],
    "query": ["1_002_1_01.png", "1_002_2_07.png"],
    "gallery": ["1_002_1_02.png", "1_002_2_08.png"],
}


def write_image(path: Path, size: tuple[int, int] = (16, 8)) -> Path:
    """Write an image of random pixels; `size` is (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(next(_number)).integers(0, 256, (*size, 3), dtype=np.uint8)
    written, data = cv2.imencode(path.suffix if path.suffix in (".png", ".bmp") else ".jpg", pixels)
    assert written
    path.write_bytes(data.tobytes())
    return path


def write_images(root: Path, folders: dict[str, Iterable[str]]) -> Path:
    """Write images; `folders` maps a folder to file names."""
    for folder, names in folders.items():
        for name in names:
            write_image(root / folder / name)
    return root


def market(root: Path) -> Path:
    """A Market-1501 tree: 3 train, 2 query, 4 gallery images one of them junk and one a distractor."""
    return write_images(root, MARKET)


def table(folder: Path, text: str, name: str = "crops.csv") -> Path:
    """Write a CSV file and the images in its first column."""
    file = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    for line in text.splitlines()[1:]:
        image = line.split(",")[0].strip('"')
        if image.endswith(".jpg"):
            write_image(folder / image)
    return file


SPLIT = """path,pid,camid,track,frame,split
a.jpg,5,1,9,100,train
b.jpg,5,2,,,train
c.jpg,6,1,3,7,query
d.jpg,6,2,4,8,gallery
"""


def names(crops: Crops) -> list[str]:
    """File names of the crops."""
    return [os.path.basename(path) for path in crops.paths]
