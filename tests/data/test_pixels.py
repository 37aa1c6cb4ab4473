from __future__ import annotations

from typing import Any

from reid.data.crops import Crops
from reid.data.pixels import Pixels, TrainingData


def test_fingerprint_contains_no_local_paths() -> None:
    """It is stored in every checkpoint."""
    nothing: Any = None
    crops = Crops.from_columns(["/home/me/data/p0/a.jpg"], [0], source="data")
    data = TrainingData(Pixels(crops, nothing), (), ("/home/me/data/p0/b.jpg: is truncated: a/b",))
    assert data.fingerprint()["left_out"] == ["p0/b.jpg: is truncated: a/b"]
    assert "/home" not in str(data.fingerprint())
    assert not data.changed_since(data.fingerprint())
