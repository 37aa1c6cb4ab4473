"""Own crops: one folder of images per person.

    anna/  0001.jpg  0002_cam2.jpg              train/anna/ …  train/ben/ …
    ben/   0001.jpg                      or     query/carl/ …
    carl/  c3_17.png                            gallery/carl/ …  gallery/dora/ …

The folder's name is the identity, in all splits. The camera is the number after `c`, `cam` or `camera` in the file
name, if any.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from reid.core.arrays import UNKNOWN
from reid.core.errors import DataError
from reid.data.crops import Benchmark, Crops, SkippedFile
from reid.data.layouts.own_crops import OWN_SPLITS, divide
from reid.data.layouts.scanning import JUNK, SUFFIX, existing_folder, list_folder, scan
from reid.data.listing import Entry, list_entries
from reid.data.tracks import natural_sort_key

IMAGE = re.compile(rf".+{SUFFIX}", re.IGNORECASE)
CAMERA = re.compile(r"(?<![a-z0-9])c(?:am(?:era)?)?[-_]?(\d{1,6})(?=s\d|[^a-z0-9]|$)", re.IGNORECASE)
"""Camera in a file name. It matches `c1` in `0002_c1s1_000451_03.jpg`, but no part of a word or hexadecimal number."""


def read(root: str | Path, *, fraction: float = 0.2, seed: int = 0, cross_camera: bool | None = None) -> Benchmark:
    """Read a folder of people, or `train/`, `query/` and `gallery/` (or `train/` and `test/`) with such folders.

    Args:
        root: the folder.
        fraction: of the identities that are held out to score on, if there are no split folders.
        seed: of the random choices.
        cross_camera: whether gallery images of the query's identity and camera are excluded; by default they are if at
            least two cameras are known.

    If all folder names are integers, they are the identity numbers. Otherwise identities are numbered from 0 in natural
    sorted order of the names (`p2` before `p10`). The folder `-1` is junk (dropped and counted). `test/` is divided
    into query and gallery. Files that are not images, files outside the folders of people and folders without images
    are listed in `skipped`.

    Raises:
        DataError: no such folder, no folder in it, no image in those, one person only, two folders with the same
            number, or splits that cannot be scored.
    """
    folder = existing_folder(root, "one folder per person")
    skipped: list[SkippedFile] = []
    top = _subfolders(folder, skipped)
    split_folders = {entry.name.lower(): entry for entry in top if entry.name.lower() in OWN_SPLITS}
    if split_folders:
        others = [entry for entry in top if entry.name.lower() not in split_folders]
        skipped += [SkippedFile(entry.path, "a folder outside train/, query/, gallery/ and test/") for entry in others]
        people = [
            (split, person) for split, entry in split_folders.items() for person in _subfolders(entry.path, skipped)
        ]
    else:
        people = [("", person) for person in top]
    if not people:
        raise DataError(
            f"{folder} has no folder per person. It contains {list_folder(folder)}. Move the images of each "
            f"person into a folder, such as {folder / 'anna'}; use the layout 'table' if a table names the identities."
        )
    rows = []
    for split, person in people:
        images = scan(Path(person.path), IMAGE, "an image name", skipped)
        rows += [(split, person.name, path, _camera(os.path.basename(path))) for path, _ in images]
        if not images:
            skipped.append(SkippedFile(person.path, "a folder without images"))
    if not rows:
        raise DataError(
            f"The {len(people)} folders in {folder} contain no image. The first is {people[0][1].path}; it contains "
            f"{list_folder(Path(people[0][1].path))}. Put the images of each person directly into one folder."
        )
    splits, names, paths, camids = zip(*rows, strict=True)
    number = _number_identities(names, folder)
    known_names = tuple(name for name in sorted(number, key=number.__getitem__) if number[name] != JUNK)
    has_names = not all(name.isdecimal() for name in known_names)
    if len(set(number.values()) - {JUNK}) == 1 and not split_folders:
        raise DataError(
            f"{folder} has images of one person only ({names[0]}). Add a folder for each other person: training and "
            "scoring need several."
        )
    known = len(camids) - camids.count(UNKNOWN)
    warnings = []
    if 0 < known < len(camids):
        warnings.append(f"the file names of {known:,} of {len(camids):,} images contain a camera (c3, cam3 or camera3)")
    return divide(
        Crops.from_columns(
            paths,
            [number[name] for name in names],
            camids,
            source=folder.name,
            names={"pids": known_names} if has_names else None,
        ),
        np.array(splits, dtype=object) if split_folders else None,
        folder,
        fraction=fraction,
        seed=seed,
        cross_camera=cross_camera,
        skipped=skipped,
        warnings=warnings,
    )


def _subfolders(folder: str | Path, skipped: list[SkippedFile]) -> list[Entry]:
    """Return the folders in a folder; all other entries are added to `skipped`."""
    entries = list_entries(folder)
    others = [entry for entry in entries if not entry.is_folder]
    skipped += [SkippedFile(entry.path, entry.problem or "outside the folders of people") for entry in others]
    return [entry for entry in entries if entry.is_folder]


def _camera(file_name: str) -> int:
    match = CAMERA.search(file_name)
    return UNKNOWN if match is None else int(match[1])


def _number_identities(names: Iterable[str], folder: Path) -> dict[str, int]:
    """Return the identity number of each folder name."""
    known = sorted(set(names) - {str(JUNK)}, key=lambda name: (natural_sort_key(name), name))
    number = {name: place for place, name in enumerate(known)}
    if all(re.fullmatch("[0-9]{1,18}", name) for name in known):
        number = {name: int(name) for name in known}
        for name, other in itertools.pairwise(known):
            if int(name) == int(other):
                raise DataError(
                    f"{folder}: the folders {name!r} and {other!r} have the same number. Give each person one name."
                )
    return {**number, str(JUNK): JUNK}
