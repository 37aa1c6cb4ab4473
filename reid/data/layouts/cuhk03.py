"""CUHK03 (Li et al., CVPR 2014) in the new protocol, 767/700 (Zhong et al., "Re-ranking Person Re-identification
with k-reciprocal Encoding", CVPR 2017): several gallery images per person, scored like Market-1501.

    images_labeled/  images_detected/               1_001_1_01.png
    cuhk03_new_protocol_config_labeled.mat  cuhk03_new_protocol_config_detected.mat
    or splits_new_labeled.json  splits_new_detected.json

The name is `<camera pair>_<person>_<view>_<number>.png`: (camera pair, person) is an identity, the view (1 or 2) is
the camera. The old protocol (20 splits of 100 people with one gallery image each) is not supported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, StrictInt, StrictStr, TypeAdapter, ValidationError

from reid.core.errors import DataError, check_choice
from reid.data.crops import SPLITS, Benchmark, Crops, SkippedFile
from reid.data.layouts.scanning import SUFFIX, find_root, list_folder, official_counts, read_lines, scan, with_official

NAME = "cuhk03"
FORM = "1_001_1_01.png (camera pair, person, view, number)"
PATTERN = re.compile(rf"(\d{{1,15}})_(\d{{3}})_([12])_(\d+){SUFFIX}", re.IGNORECASE)
SPLIT_FILES = ("cuhk03_new_protocol_config_{}.mat", "splits_new_{}.json")

TRAIN_IMAGES = {"labeled": 7_368, "detected": 7_365}
GALLERY_IMAGES = {"labeled": 5_328, "detected": 5_332}

Row = tuple[str, int]
"""File name of an image, and its identity in the split file."""


def read(root: str | Path, *, variant: str = "labeled") -> Benchmark:
    """Read one variant of the extracted folders and its split file at `root`.

    Args:
        root: the folder that contains `images_<variant>` and one of the split files.
        variant: "labeled" (manual boxes) or "detected" (boxes of a detector).

    Identities are numbered 1000 × camera pair + person, from the file names, because split files number train and test
    people in colliding ways. A split in which two people share a number, or a person has two numbers, is an error.

    Raises:
        ConfigError: unknown variant.
        DataError: folder or split file missing; an entry that cannot be parsed or has no image.
    """
    check_choice("variant of CUHK03", variant, TRAIN_IMAGES)
    try:
        folder = find_root(root, [f"images_{variant}"], ["cuhk03", "CUHK03"])
    except DataError as error:
        archive = sorted(Path(root).expanduser().glob("**/cuhk-03.mat"))
        other = f"{archive[0]} is the release as one HDF5 file, which is not supported. " if archive else ""
        raise DataError(
            f"{error} {other}Extract the images first: images_{variant}/1_001_1_01.png and so on, next to "
            f"{SPLIT_FILES[0].format(variant)} or {SPLIT_FILES[1].format(variant)}."
        ) from error
    images = folder / f"images_{variant}"
    files = [folder / name.format(variant) for name in SPLIT_FILES]
    split_file = next((file for file in files if file.exists()), None)
    if split_file is None:
        names = " or ".join(file.name for file in files)
        raise DataError(f"{folder} has no split file: it needs {names}. It contains {list_folder(folder)}.")
    rows = _read_mat(split_file) if split_file.suffix == ".mat" else _read_json(split_file)
    skipped: list[SkippedFile] = []
    matches = {os.path.basename(path): match for path, match in scan(images, PATTERN, FORM, skipped)}
    train, query, gallery = (_crops(rows[split], matches, images, split_file, split) for split in SPLITS)
    official = official_counts(
        train=(TRAIN_IMAGES[variant], 767), query=(1_400, 700), gallery=(GALLERY_IMAGES[variant], 700)
    )
    return with_official(Benchmark(NAME, str(folder), train, query, gallery, skipped=tuple(skipped)), official)


def _read_mat(file: Path) -> dict[str, list[Row]]:
    """Return the rows of each split from the authors' MATLAB file, whose indices count from 1."""
    from scipy.io import loadmat

    try:
        content = loadmat(str(file))
        names = [str(np.asarray(cell).reshape(-1)[0]) for cell in content["filelist"].reshape(-1)]
        labels = content["labels"].reshape(-1).astype(np.int64)
        indices = {split: content[f"{split}_idx"].reshape(-1).astype(np.int64) - 1 for split in SPLITS}
    except Exception as error:  # loadmat raises many types on damaged files
        raise DataError(
            f"{file} cannot be read as a MATLAB file of train_idx, query_idx, gallery_idx, labels and filelist: "
            f"{error!r}. Download it again."
        ) from error
    for split, index in indices.items():
        if len(index) and (index.min() < 0 or index.max() >= min(len(names), len(labels))):
            raise DataError(f"{file}: {split}_idx exceeds the {len(names)} names of filelist. Download the file again.")
    return {split: [(names[i], int(labels[i])) for i in index] for split, index in indices.items()}


class _SplitFile(BaseModel):
    """Content of a JSON split file: `[name, pid, camid]` lists."""

    train: list[tuple[StrictStr, StrictInt, Any]]
    query: list[tuple[StrictStr, StrictInt, Any]]
    gallery: list[tuple[StrictStr, StrictInt, Any]]


def _read_json(file: Path) -> dict[str, list[Row]]:
    """Return the rows of each split. The object may be the only item of a list."""
    alone_or_in_list = BeforeValidator(lambda content: content[0] if isinstance(content, list) and content else content)
    try:
        adapter: TypeAdapter[_SplitFile] = TypeAdapter(Annotated[_SplitFile, alone_or_in_list])
        content = adapter.validate_json("\n".join(read_lines(file)))
    except ValidationError as error:
        problem = error.errors()[0]
        split, *places = problem["loc"] or ("the content",)
        entry = f"entry {int(places[0]) + 1} of " if places else ""
        raise DataError(
            f"{file}: {entry}{split!r} is {str(problem['input'])[:80]!r}. {problem['msg']}. Use JSON with lists of "
            '[name, pid, camid] under "train", "query" and "gallery".'
        ) from error
    return {
        split: [(name.replace("\\", "/").rpartition("/")[2], pid) for name, pid, _ in getattr(content, split)]
        for split in SPLITS
    }


def _crops(rows: Sequence[Row], matches: dict[str, re.Match[str]], images: Path, file: Path, split: str) -> Crops:
    """Return the rows of a split. Identity and camera come from the file name; the split's identities must agree."""
    if not rows:
        raise DataError(f"{file} lists no {split} image. Download it again.")
    pids, camids = [], []
    label_of: dict[int, int] = {}
    person_of: dict[int, int] = {}
    for number, (name, label) in enumerate(rows, start=1):
        match = matches.get(name)
        if match is None:
            why = "does not exist" if PATTERN.fullmatch(name) else f"is not named like {FORM}"
            raise DataError(f"{file}: entry {number} of {split!r} is {name!r}, but {images / name} {why}.")
        pair, person, view, _ = match.groups()
        pid = 1000 * int(pair) + int(person)
        if label_of.setdefault(pid, label) != label or person_of.setdefault(label, pid) != pid:
            raise DataError(
                f"{file}: entry {number} of {split!r}, {name!r}, has identity {label}, which contradicts the names: "
                f"identity {label} is also person {person_of.get(label, pid)}, or the person is also identity "
                f"{label_of[pid]}. This split file belongs to another copy of CUHK03."
            )
        pids.append(pid)
        camids.append(int(view))
    return Crops.from_columns([os.path.join(images, name) for name, _ in rows], pids, camids, source=NAME)
