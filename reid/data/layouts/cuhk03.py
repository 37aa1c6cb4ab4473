"""CUHK03 (Li et al., CVPR 2014) in the new protocol, 767/700 (Zhong et al., "Re-ranking Person Re-identification
with k-reciprocal Encoding", CVPR 2017): many gallery images a person, scored like Market-1501.

    images_labeled/  images_detected/               1_001_1_01.png
    cuhk03_new_protocol_config_labeled.mat  cuhk03_new_protocol_config_detected.mat
    or splits_new_labeled.json  splits_new_detected.json

The name is `<camera pair>_<person>_<view>_<number>.png`: (camera pair, person) is an identity, the view (1 or 2) a
camera.
The old protocol (20 splits of 100 people, one gallery image each) is another measure and is not read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reid.core.errors import ReidError, did_you_mean
from reid.data.crops import Benchmark, Crops, SkippedFile
from reid.data.layouts.scanning import SUFFIX, find_root, read_lines, scan, what_is_in, with_official

NAME = "cuhk03"
PARTS = ("train", "query", "gallery")
FORM = "1_001_1_01.png (camera pair, person, view, number)"
PATTERN = re.compile(rf"(\d+)_(\d{{3}})_([12])_(\d+){SUFFIX}", re.IGNORECASE)
SPLITS = ("cuhk03_new_protocol_config_{}.mat", "splits_new_{}.json")

TRAIN_IMAGES = {"labeled": 7_368, "detected": 7_365}
GALLERY_IMAGES = {"labeled": 5_328, "detected": 5_332}

Row = tuple[str, int]
"""The base name of an image, and the identity that the split file gives it."""


def read(root: str | Path, *, variant: str = "labeled") -> Benchmark:
    """Read one variant of the extracted folders and its split file at `root`.

    Args:
        root: the folder that holds `images_<variant>` and one of the split files.
        variant: "labeled", boxes drawn by hand, or "detected", boxes of a detector.

    Identities are numbered 1000 × camera pair + person, from the base names; split files number train and test people
    in ways that collide. A split that gives two people one number, or a person two, is an error.

    Raises:
        ReidError: unknown variant; folder or split file missing; an entry that does not parse or has no image.
    """
    if variant not in TRAIN_IMAGES:
        raise ReidError(f"CUHK03 has no variant {variant!r}.{did_you_mean(variant, TRAIN_IMAGES)}")
    folder = _folder(root, variant)
    images = folder / f"images_{variant}"
    split = next((folder / name.format(variant) for name in SPLITS if (folder / name.format(variant)).exists()), None)
    if split is None:
        looked_for = " or ".join(name.format(variant) for name in SPLITS)
        raise ReidError(f"{folder} has no split file: {looked_for}. In it: {what_is_in(folder)}.")
    rows = _read_mat(split) if split.suffix == ".mat" else _read_json(split)
    odd: list[SkippedFile] = []
    matches = {os.path.basename(path): match for path, match in scan(images, PATTERN, FORM, odd)}
    parts = {part: _crops(rows[part], matches, images, split, part) for part in PARTS}
    official = {
        "train images": TRAIN_IMAGES[variant],
        "train ids": 767,
        "query images": 1_400,
        "query ids": 700,
        "gallery images": GALLERY_IMAGES[variant],
        "gallery ids": 700,
    }
    return with_official(
        Benchmark(NAME, str(folder), parts["train"], parts["query"], parts["gallery"], skipped=tuple(odd)), official
    )


def _folder(root: str | Path, variant: str) -> Path:
    """The folder that holds `images_<variant>`; other forms of CUHK03 are named in the error."""
    wanted = [f"images_{variant}"]
    try:
        return find_root(root, wanted, ["cuhk03", "CUHK03"])
    except ReidError as error:
        archive = sorted(Path(root).expanduser().glob("**/cuhk-03.mat"))
        other = f"{archive[0]} is the release as one HDF5 file, which is not read. " if archive else ""
        raise ReidError(
            f"{error} {other}CUHK03 is read from the extracted images: {wanted[0]}/1_001_1_01.png and so on, beside "
            f"{SPLITS[0].format(variant)} or {SPLITS[1].format(variant)}."
        ) from error


def _read_mat(file: Path) -> dict[str, list[Row]]:
    """The rows of each part from the authors' MATLAB file, whose indices count from 1."""
    from scipy.io import loadmat

    try:
        held = loadmat(str(file))
    except Exception as error:  # readers of foreign formats raise whatever they like
        raise ReidError(f"{file} cannot be read as a MATLAB file: {error}. Get it anew.") from error
    try:
        names = [str(np.asarray(cell).reshape(-1)[0]) for cell in held["filelist"].reshape(-1)]
        labels = held["labels"].reshape(-1).astype(np.int64)
        indices = {part: held[f"{part}_idx"].reshape(-1).astype(np.int64) - 1 for part in PARTS}
    except KeyError as error:
        raise ReidError(
            f"{file} has no variable {error}; it must hold train_idx, query_idx, gallery_idx, labels and filelist."
        ) from error
    except (ValueError, TypeError, IndexError) as error:
        raise ReidError(f"{file}: its variables are not of the expected form ({error}). Get it anew.") from error
    for part, index in indices.items():
        if len(index) and (index.min() < 0 or index.max() >= min(len(names), len(labels))):
            raise ReidError(f"{file}: {part}_idx points outside the {len(names)} names of filelist. Get the file anew.")
    return {part: [(names[i], int(labels[i])) for i in index] for part, index in indices.items()}


def _read_json(file: Path) -> dict[str, list[Row]]:
    """The rows of each part from a JSON of `[name, pid, camid]` lists under "train", "query" and "gallery"."""
    try:
        held: Any = json.loads("\n".join(read_lines(file)))
    except ValueError as error:
        raise ReidError(f"{file} is not JSON: {error}. Get it anew.") from error
    if isinstance(held, list) and len(held) == 1:
        held = held[0]
    if not isinstance(held, dict) or not all(isinstance(held.get(part), list) for part in PARTS):
        raise ReidError(f'{file} must hold one object with lists under "train", "query" and "gallery".')
    rows: dict[str, list[Row]] = {}
    for part in PARTS:
        rows[part] = []
        for number, row in enumerate(held[part], start=1):
            if not (isinstance(row, list) and len(row) >= 2 and isinstance(row[0], str) and isinstance(row[1], int)):
                raise ReidError(f"{file}: entry {number} of {part!r} is {row!r}; it must be [name, pid, camid].")
            rows[part].append((row[0].replace("\\", "/").rpartition("/")[2], row[1]))
    return rows


def _crops(rows: Sequence[Row], matches: dict[str, re.Match[str]], images: Path, split: Path, part: str) -> Crops:
    """The rows of a part as columns; identity and camera from the base name, checked against the split's identities."""
    if not rows:
        raise ReidError(f"{split} lists no {part} image. Get it anew.")
    pids, camids = [], []
    label_of: dict[int, int] = {}
    person_of: dict[int, int] = {}
    for number, (name, label) in enumerate(rows, start=1):
        match = matches.get(name)
        if match is None:
            why = "is not there" if PATTERN.fullmatch(name) else f"is not named like {FORM}"
            raise ReidError(f"{split}: entry {number} of {part!r} is {name!r}, but {images / name} {why}.")
        pair, person, view, _ = match.groups()
        pid = 1000 * int(pair) + int(person)
        if label_of.setdefault(pid, label) != label or person_of.setdefault(label, pid) != pid:
            raise ReidError(
                f"{split}: entry {number} of {part!r}, {name!r}, has identity {label}, which the names contradict: "
                f"identity {label} is also person {person_of.get(label, pid)}, or the person is also identity "
                f"{label_of[pid]}. This split is of another copy of CUHK03."
            )
        pids.append(pid)
        camids.append(int(view))
    return Crops.from_columns([os.path.join(images, name) for name, _ in rows], pids, camids, source=NAME)
