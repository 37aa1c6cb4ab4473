"""Tiny data sets in the true forms, for tests. Every image differs from the others."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

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
    """Write a picture of its own, (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(next(_number)).integers(0, 256, (*size, 3), dtype=np.uint8)
    written, data = cv2.imencode(path.suffix if path.suffix in (".png", ".bmp") else ".jpg", pixels)
    assert written
    path.write_bytes(data.tobytes())
    return path


def write_images(root: Path, folders: dict[str, Iterable[str]]) -> Path:
    """Write a tree of pictures: names by folder."""
    for folder, names in folders.items():
        for name in names:
            write_image(root / folder / name)
    return root


def market(root: Path) -> Path:
    """A Market-1501 tree: 3 train, 2 query, 4 gallery images of which one junk and one distractor."""
    return write_images(root, MARKET)
