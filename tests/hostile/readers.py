"""What reads files that users receive, by name. Run as a program, it reads files one by one and reports how it went.

Each line of standard input is a JSON list of reader and path; each line of the answer is a JSON object: `outcome` is
"read", "refused" (a `ReidError`) or the traceback; `seconds` of CPU time; `memory` in bytes beyond what was used.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reid.config import load_config
from reid.core.errors import ReidError
from reid.data.archives import unpack_archive, verify_archive
from reid.data.images import decode
from reid.data.layouts import load_benchmark
from reid.data.videos import Video
from reid.embedding.calibration_file import load_calibration
from reid.embedding.learned_metric import LearnedMetric
from reid.embedding.runtimes import ForeignModel, open_bundle
from reid.embedding.table import Embeddings
from reid.models.checkpoints import load_model
from reid.models.preprocessing import Preprocessing
from reid.models.pretrained import read_weights
from reid.mtmc.cameras import read_cameras
from reid.mtmc.constraints import read_constraints
from reid.mtmc.track_files import read_tracks

PREPROCESSING = Preprocessing.from_dict({"size": (16, 8), "mean": [0.4] * 3, "std": [0.2] * 3, "channel_order": "rgb"})


def read_video(path: str) -> None:
    video = Video(Path(path))
    list(video.read([1, 2, 3]))
    video.info()


def unpack(path: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        unpack_archive(path, Path(folder) / "out")


READERS: dict[str, Callable[[str], Any]] = {
    "image": decode,
    "verified archive": lambda path: verify_archive(path, "market1501"),
    "unpacked archive": unpack,
    "table": lambda path: load_benchmark("table", path),
    "cuhk03 split": lambda path: load_benchmark("cuhk03", Path(path).parent),
    "msmt17 list": lambda path: load_benchmark("msmt17", Path(path).parent),
    "tracks": read_tracks,
    "cameras": lambda path: read_cameras(path, ["cam01", "cam02"]),
    "constraints": read_constraints,
    "training settings": load_config,
    "calibration": load_calibration,
    "learned metric": LearnedMetric.load,
    "embeddings": Embeddings.load,
    "weights": read_weights,
    "checkpoint": load_model,
    "bundle": lambda path: open_bundle(Path(path).parent),
    "video": read_video,
    "ONNX model in onnxruntime": lambda path: ForeignModel(path, preprocessing=PREPROCESSING, runtime="onnx"),
    "ONNX model in OpenVINO": lambda path: ForeignModel(path, preprocessing=PREPROCESSING, runtime="openvino"),
    "OpenVINO model": lambda path: ForeignModel(path, preprocessing=PREPROCESSING),
}


def _status(field: str) -> int:
    """Return a size in bytes from /proc/self/status; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def read(reader: str, path: str) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = _status("VmRSS"), time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            READERS[reader](path)
        outcome = "read"
    except ReidError:
        outcome = "refused"
    except BaseException:
        outcome = traceback.format_exc()
    return {"outcome": outcome, "seconds": time.process_time() - start, "memory": _status("VmHWM") - before}


if __name__ == "__main__":
    answers = sys.stdout
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(read(*json.loads(line))), file=answers, flush=True)
