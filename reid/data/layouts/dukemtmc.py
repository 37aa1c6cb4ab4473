"""DukeMTMC-reID (Ristani et al., ECCVW 2016; Zheng, Zheng, Yang, ICCV 2017).

    bounding_box_train/  bounding_box_test/  query/
    pid_c<camera>_f<frame>.jpg                      0001_c2_f0046182.jpg

408 of the gallery's 1,110 identities are seen by one camera only. They act as distractors and keep their numbers.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from reid.data.crops import Benchmark
from reid.data.layouts.scanning import NUMBER, SUFFIX, NamedImages, official_counts, with_official

LAYOUT = NamedImages(
    name="dukemtmc",
    folders={"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"},
    inside=("DukeMTMC-reID", "dukemtmc-reid", "dukemtmc"),
    pattern=re.compile(rf"(?P<pid>{NUMBER})_c(?P<camid>{NUMBER})_f(?P<frame>{NUMBER}){SUFFIX}", re.IGNORECASE),
    form="0001_c2_f0046182.jpg (identity, camera, frame)",
    official=official_counts(train=(16_522, 702), query=(2_228, 702), gallery=(17_661, 1_110)),
)
WITHDRAWN = (
    "DukeMTMC was withdrawn by its authors in 2019, because the people in it were filmed without their consent. "
    "A local copy is read; nothing is downloaded. Do not publish pictures of it without checking that you may"
)


def read(root: str | Path) -> Benchmark:
    """Read the tree at `root`, or at `root/DukeMTMC-reID`. `frames` is the frame in the camera's video.

    Raises:
        DataError: a folder is missing, or a split has no image.
    """
    return with_official(replace(LAYOUT.read(root), warnings=(WITHDRAWN,)), LAYOUT.official)
