"""Backbones, pooling, BNNeck, and the model that carries its preprocessing."""

from __future__ import annotations

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
