"""Small bundles for several test files, exported once per session."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.data.crops import Crops
from reid.data.pixels import Pixels, Split
from reid.data.store import PackedStore
from reid.embedding.export import Quantisation, export_bundle
from reid.models import ReIDModel, build_model

SIZE = (64, 32)
NEEDS = {"onnx": "onnxruntime", "openvino": "openvino", "torchscript": "torch"}


def crops(n=9, seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8)


@functools.cache
def small_model(channel_order: str = "rgb") -> ReIDModel:
    """Random weights and batch-norm statistics; mean and std differ between channels."""
    model = build_model(
        "light14",
        height=SIZE[0],
        width=SIZE[1],
        num_classes=3,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
        channel_order=channel_order,
    )
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=draw))
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
    return model


@functools.cache
def bundle(form: str, channel_order: str = "rgb") -> Path:
    pytest.importorskip(NEEDS[form], reason=f"{NEEDS[form]} is not installed (pip install {NEEDS[form]})")
    out = Path(tempfile.mkdtemp(prefix="reid-test-")) / f"small-{form}.bundle"
    export_bundle(small_model(channel_order), out, to=form, model_id=f"small-{channel_order}")
    return out


def expected_features(images, **options):
    return small_model(**options).embed(torch.from_numpy(images)).numpy()


def quantisation(folder: Path, largest_loss: float = 100.0) -> Quantisation:
    """Twelve random crops of four identities as queries and gallery, and twenty more for calibration."""
    import cv2

    paths = []
    for number, image in enumerate(crops(12, seed=5)):
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), cv2.GaussianBlur(image, (0, 0), 6))
    people = Crops.from_columns(paths, np.arange(12) // 3, np.arange(12) % 3)
    pixels = Pixels(people, PackedStore.build(people, folder / "store", size=SIZE))
    return Quantisation(crops(20, seed=6), Split("random", pixels, pixels, True), largest_loss)
