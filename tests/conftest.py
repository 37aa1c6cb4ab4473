"""Fixtures for the tests of several packages."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, and for the processes that tests start. The inputs are small: two threads gain nothing, and
# wait for each other where another process is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# So that `core.memory.limit_heap`, which `reid live` calls, does not change the heap of the tests.
os.environ.setdefault("GLIBC_TUNABLES", "")

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def temporary_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Collect what docstring examples write to temporary folders, and remove it at the end."""
    tmp_path_factory.getbasetemp()  # stays where it is
    folder, before = tempfile.mkdtemp(prefix="reid-tests-"), tempfile.tempdir
    tempfile.tempdir = folder
    yield
    tempfile.tempdir = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def market_root() -> Path:
    """The real Market-1501, for those who have it: `REID_MARKET1501=/path/to/Market-1501-v15.09.15`."""
    root = os.environ.get("REID_MARKET1501", "")
    if not root:
        pytest.skip("set REID_MARKET1501 to the folder that holds bounding_box_train to run this on real data")
    return Path(root)


@pytest.fixture(scope="module")
def few_pictures() -> Iterator[None]:
    """Shorten the rank lists of `reid test`: drawing them takes most of its time on small data sets."""
    from reid.pipelines import test

    with pytest.MonkeyPatch.context() as patch:
        for name in ("LISTED", "LIST_LENGTH", "ACTIVATED"):
            patch.setattr(test, name, 2)
        yield


@pytest.fixture(scope="session")
def tiny_market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Market-1501 tree of 20 train and 10 test identities, 2 cameras, 3 crops each in a camera.

    Each identity is two flat colours under camera light and noise: a small network can tell them apart.
    """
    root = tmp_path_factory.mktemp("tiny_market")
    rng = np.random.default_rng(0)
    for folder in ("bounding_box_train", "bounding_box_test", "query"):
        (root / folder).mkdir()
    for pid in range(1, 31):
        shirt, trousers = rng.integers(30, 226, (2, 3))
        for camera in (1, 2):
            light = rng.uniform(0.8, 1.2)
            for shot in range(4):
                image = np.concatenate([np.full((32, 32, 3), shirt), np.full((32, 32, 3), trousers)]) * light
                image += rng.normal(0, 8, image.shape)
                test_folder = "query" if shot == 3 else "bounding_box_test"
                folder = "bounding_box_train" if pid <= 20 else test_folder
                if pid > 20 or shot < 3:
                    name = f"{pid:04d}_c{camera}s1_{shot + 1:06d}_01.jpg"
                    cv2.imwrite(str(root / folder / name), image.clip(0, 255).astype(np.uint8))
    (root / "made.json").write_text("{}")
    return root
