"""Person re-identification: train, score, and match people across cameras."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reid.core.errors import ReidError
    from reid.data.layouts import load_benchmark
    from reid.embedding.embedder import Embedder
    from reid.embedding.table import Embeddings
    from reid.evaluation import calibrate, evaluate, rerank
    from reid.losses import TripletLoss

from reid.core.version import __version__

__all__ = [
    "Embedder",
    "Embeddings",
    "ReidError",
    "TripletLoss",
    "__version__",
    "calibrate",
    "evaluate",
    "load_benchmark",
    "rerank",
]

_HOMES = {
    "load_benchmark": "reid.data.layouts",
    "Embedder": "reid.embedding.embedder",
    "Embeddings": "reid.embedding.table",
    "ReidError": "reid.core.errors",
    "TripletLoss": "reid.losses",
    "calibrate": "reid.evaluation",
    "evaluate": "reid.evaluation",
    "rerank": "reid.evaluation",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import reid` costs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'reid' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
