"""Backbones, pooling, BNNeck, and the model that carries its preprocessing.

The names are imported when they are first used, because they need torch; the table of published models does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reid.models.backbones import BACKBONES
    from reid.models.external import import_model
    from reid.models.model import Counts, ModelOutput, ReIDModel, build_model
    from reid.models.preprocessing import Preprocessing
    from reid.models.pretrained import WeightsReport

__all__ = [
    "BACKBONES",
    "Counts",
    "ModelOutput",
    "Preprocessing",
    "ReIDModel",
    "WeightsReport",
    "build_model",
    "import_model",
]

_MODULES = {
    "backbones": ("BACKBONES",),
    "external": ("import_model",),
    "model": ("Counts", "ModelOutput", "ReIDModel", "build_model"),
    "preprocessing": ("Preprocessing",),
    "pretrained": ("WeightsReport",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'reid.models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"reid.models.{_MODULE_OF[name]}"), name)
