"""Backbones, pooling, BNNeck, and the model that carries its preprocessing.

The names are imported when they are first used, because they need torch; the table of published models does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reid.core.lazy import lazy_names

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
    "reid.models.backbones": ("BACKBONES",),
    "reid.models.external": ("import_model",),
    "reid.models.model": ("Counts", "ModelOutput", "ReIDModel", "build_model"),
    "reid.models.preprocessing": ("Preprocessing",),
    "reid.models.pretrained": ("WeightsReport",),
}
__getattr__ = lazy_names(__name__, _MODULES)
