"""Market-1501 (Zheng et al., ICCV 2015), and every tree written in its form, as the made data is.

    bounding_box_train/  bounding_box_test/  query/
    pid_c<camera>s<sequence>_<frame>_<box>.jpg      0002_c1s1_000451_03.jpg

In `bounding_box_test`, pid -1 is junk (a bad detection of nobody's; dropped) and 0000 a distractor (kept: it must be
ranked below the right ones). `gt_bbox`, `gt_query` and the like are not needed.
"""

from __future__ import annotations

import re
from pathlib import Path

from reid.data.crops import Benchmark, Crops, SkippedFile
from reid.data.layouts.scanning import SUFFIX, find_root, refuse_empty, scan, with_official

NAME = "market1501"
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
FORM = "0002_c1s1_000451_03.jpg (identity, camera, sequence, frame, box)"
PATTERN = re.compile(rf"(-1|\d+)_c(\d+)s(\d+)_(\d+)_(\d+){SUFFIX}", re.IGNORECASE)
JUNK = -1
DISTRACTOR = 0
MADE = "made.json"
"""A tree with this file at its root says that it is made data, so official counts do not apply."""

OFFICIAL = {
    "train images": 12_936,
    "train ids": 751,
    "query images": 3_368,
    "query ids": 750,
    "gallery images": 15_913,
    "gallery ids": 750,
    "junk": 3_819,
    "distractors": 2_798,
}


def read(root: str | Path) -> Benchmark:
    """Read the tree at `root`, or at `root/Market-1501-v15.09.15`.

    `tracks` holds the sequence number: `(camid, track)` names a video. `frames` counts within it.

    Raises:
        ReidError: a folder is missing, or a part has no image.
    """
    folder = find_root(root, list(FOLDERS.values()), ["Market-1501-v15.09.15", "market1501", "Market-1501"])
    odd: list[SkippedFile] = []
    parts: dict[str, Crops] = {}
    junk: dict[str, int] = {}
    for part, name in FOLDERS.items():
        found = scan(folder / name, PATTERN, FORM, odd)
        kept = [(path, match.groups()) for path, match in found if match[1] != "-1"]
        junk[part] = len(found) - len(kept)
        columns = [[int(groups[i]) for _, groups in kept] for i in range(4)]
        pids, camids, tracks, frames = columns
        parts[part] = Crops.from_columns([path for path, _ in kept], pids, camids, tracks, frames, source=NAME)
        refuse_empty(parts[part], part, folder / name, FORM, odd, junk[part])
    warnings = [
        f"{junk[part]} junk images (pid -1) in {folder / FOLDERS[part]} were left out"
        for part in ("train", "query")
        if junk[part]
    ]
    n_distractors = int((parts["gallery"].pids == DISTRACTOR).sum())
    if (parts["query"].pids == DISTRACTOR).any():
        warnings.append(
            f"{int((parts['query'].pids == DISTRACTOR).sum())} queries carry pid 0000, which stands for distractors in "
            "this layout: number the people from 0001"
        )
    benchmark = Benchmark(
        NAME,
        str(folder),
        parts["train"],
        parts["query"],
        parts["gallery"],
        n_junk=sum(junk.values()),
        n_distractors=n_distractors,
        skipped=tuple(odd),
        warnings=tuple(warnings),
    )
    return benchmark if (folder / MADE).exists() else with_official(benchmark, OFFICIAL)
