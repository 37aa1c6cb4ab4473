"""The scripts in examples/ run without arguments, in an empty folder."""

from __future__ import annotations

import os
import runpy
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
def test_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(ROOT / "examples" / f"{name}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REID_CACHE", str(tmp_path / "cache"))
    if name == "export_without_torch":  # it must not import torch
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    else:
        monkeypatch.setattr(sys, "argv", [script])
        runpy.run_path(script, run_name="__main__")
        printed = capsys.readouterr().out
    assert PRINTED[name] in printed


def test_every_example_is_tested() -> None:
    assert sorted(PRINTED) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
