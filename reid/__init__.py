"""Person re-identification: train, evaluate, and match people across cameras.

The public names are imported when they are first used, so that `import reid` does not import torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from reid.core.conflicts import check_no_conflict
from reid.core.lazy import lazy_names
from reid.core.version import __version__

if TYPE_CHECKING:
    from reid.core.errors import ConfigError, DataError, ModelError, ReidError
    from reid.data.layouts import load_benchmark
    from reid.embedding.embedder import Embedder
    from reid.embedding.table import Embeddings
    from reid.evaluation import calibrate, evaluate, rerank
    from reid.gallery import Gallery
    from reid.losses import TripletLoss
    from reid.mtmc import match, score_tracks
    from reid.pipelines.run import run_videos
    from reid.pipelines.test import test
    from reid.training.trainer import Trainer, train

check_no_conflict(Path(__file__).parent)
# Otherwise `import openvino` sends an event to Google Analytics; with None, OpenVINO and NNCF use their silent stubs.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__all__ = [
    "ConfigError",
    "DataError",
    "Embedder",
    "Embeddings",
    "Gallery",
    "ModelError",
    "ReidError",
    "Trainer",
    "TripletLoss",
    "__version__",
    "calibrate",
    "evaluate",
    "load_benchmark",
    "match",
    "rerank",
    "run_videos",
    "score_tracks",
    "test",
    "train",
]

_MODULES = {
    "reid.core.errors": ("ConfigError", "DataError", "ModelError", "ReidError"),
    "reid.data.layouts": ("load_benchmark",),
    "reid.embedding.embedder": ("Embedder",),
    "reid.embedding.table": ("Embeddings",),
    "reid.evaluation": ("calibrate", "evaluate", "rerank"),
    "reid.gallery": ("Gallery",),
    "reid.losses": ("TripletLoss",),
    "reid.mtmc": ("match", "score_tracks"),
    "reid.pipelines.run": ("run_videos",),
    "reid.pipelines.test": ("test",),
    "reid.training.trainer": ("Trainer", "train"),
}
__getattr__ = lazy_names(__name__, _MODULES)


def __dir__() -> list[str]:
    return __all__
