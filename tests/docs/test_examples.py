"""The scripts in examples/ run without arguments, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

PRINTED = {
    "evaluate_embeddings": "re-ranked  mAP",
    "match_tracks": "24 tracklets, 8 identities",
    "train_own_crops": "synthetic: mAP",
    "export_without_torch": "torch imported: False",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_example_runs(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "REID_CACHE": str(tmp_path / "cache")}
    script = ROOT / "examples" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert PRINTED[name] in done.stdout


def test_every_example_is_tested() -> None:
    assert sorted(PRINTED) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
