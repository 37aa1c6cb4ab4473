"""What several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def market_root() -> Path:
    """The real Market-1501, for those who have it: `REID_MARKET1501=/path/to/Market-1501-v15.09.15`."""
    root = os.environ.get("REID_MARKET1501", "")
    if not root:
        pytest.skip("set REID_MARKET1501 to the folder that holds bounding_box_train to run this on real data")
    return Path(root)
