"""DukeMTMC-reID (Ristani et al., ECCVW 2016; Zheng, Zheng, Yang, ICCV 2017).

    bounding_box_train/  bounding_box_test/  query/
    pid_c<camera>_f<frame>.jpg                      0001_c2_f0046182.jpg

408 of the gallery's 1,110 identities are seen by one camera only and act as distractors; they keep their numbers.
"""

from __future__ import annotations

import re
from pathlib import Path

from reid.data.crops import Benchmark, Crops, SkippedFile
from reid.data.layouts.scanning import SUFFIX, find_root, refuse_empty, scan, with_official

NAME = "dukemtmc"
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
FORM = "0001_c2_f0046182.jpg (identity, camera, frame)"
PATTERN = re.compile(rf"(\d+)_c(\d+)_f(\d+){SUFFIX}", re.IGNORECASE)
WITHDRAWN = (
    "DukeMTMC was withdrawn by its authors in 2019, because the people in it were filmed without their consent. "
    "A local copy is read; nothing here downloads it. Think before you publish pictures from it"
)

OFFICIAL = {
    "train images": 16_522,
    "train ids": 702,
    "query images": 2_228,
    "query ids": 702,
    "gallery images": 17_661,
    "gallery ids": 1_110,
}


def read(root: str | Path) -> Benchmark:
    """Read the tree at `root`, or at `root/DukeMTMC-reID`. `frames` is the frame within the camera's video.

    Raises:
        ReidError: a folder is missing, or a part has no image.
    """
    folder = find_root(root, list(FOLDERS.values()), ["DukeMTMC-reID", "dukemtmc-reid", "dukemtmc"])
    odd: list[SkippedFile] = []
    parts: dict[str, Crops] = {}
    for part, name in FOLDERS.items():
        found = scan(folder / name, PATTERN, FORM, odd)
        pids, camids, frames = ([int(match[i]) for _, match in found] for i in (1, 2, 3))
        parts[part] = Crops.from_columns([path for path, _ in found], pids, camids, frames=frames, source=NAME)
        refuse_empty(parts[part], part, folder / name, FORM, odd)
    benchmark = Benchmark(
        NAME,
        str(folder),
        parts["train"],
        parts["query"],
        parts["gallery"],
        skipped=tuple(odd),
        warnings=(WITHDRAWN,),
    )
    return with_official(benchmark, OFFICIAL)
