"""Detectors of torchvision, with its COCO weights (BSD-3-Clause), on the CPU or a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from reid.core.distributed import pick_device
from reid.core.errors import ModelError
from reid.tracking.detections import LEAST_CONFIDENCE
from reid.tracking.detectors.torch_detector import TorchDetector


def open_published(name: str, device: str, threads: int) -> TorchDetector:
    """Open a detection model of torchvision with its default weights, which torch downloads at first use.

    Raises:
        ConfigError: an unknown device.
        ModelError: the weights cannot be downloaded.
    """
    from torchvision.models import get_model, get_model_weights

    if threads:
        torch.set_num_threads(threads)
    weights = get_model_weights(name).DEFAULT
    try:
        # Boxes of low confidence are kept: the tracker decides which to use.
        options = {"score_thresh": LEAST_CONFIDENCE} if not name.startswith("faster") else {}
        options = options or {"box_score_thresh": LEAST_CONFIDENCE}
        model = get_model(name, weights=weights, **options)
    except Exception as error:  # the download raises errors of several libraries
        raise ModelError(
            f"The weights of {name} cannot be downloaded from {weights.url}: {error}. Download that file on another "
            f"machine into {torch.hub.get_dir()}/checkpoints."
        ) from error
    target = pick_device(device)
    model = model.to(target).eval()

    def detect(images: list[Tensor]) -> list[dict[str, Tensor]]:
        results: list[dict[str, Tensor]] = model([image.float() / 255 for image in images])
        return results

    digest = weights.url.rsplit("-", 1)[-1].split(".")[0]
    return TorchDetector(f"{name}-{digest}", detect, weights.meta["categories"].index("person"), target)
