"""A process that has used and released OpenVINO models still handles signals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.embedding.bundles import bundle
from tests.embedding.test_runtimes import make_openvino

# Two models per reader, released in the order of opening: this leaves a thread with an unmapped signal stack.
PROGRAM = """
import os, signal, sys
from reid.embedding.runtimes import ForeignModel, open_bundle
preprocessing = {"size": [16, 8], "mean": [0.5] * 3, "std": [0.2] * 3, "scale": "0-1", "channel_order": "rgb"}
for opened in (
    lambda: open_bundle(sys.argv[1], "openvino"),
    lambda: ForeignModel(sys.argv[2], preprocessing=preprocessing, runtime="openvino"),
):
    first, second = opened(), opened()
    del first
    del second
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_sigterm_is_handled_after_openvino_models_are_released(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed (pip install openvino)")
    files = [str(bundle("openvino")), str(make_openvino(tmp_path / "tiny.xml"))]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
