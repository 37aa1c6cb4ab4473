"""Detectors of torchvision, with its COCO weights (BSD-3-Clause), on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from reid.core.distributed import pick_device
from reid.core.errors import ModelError
from reid.data.tracks import Floats
from reid.tracking.detections import LEAST_CONFIDENCE
from reid.tracking.detectors.detector import clean_boxes


class TorchvisionDetector:
    """A detection model of torchvision; see `Detector`.

    Args:
        name: identifies the weights.
        model: from uint8-scaled float images to dicts of boxes, labels and scores, as torchvision's models.
        person: label of people.
        device: a torch device.
    """

    def __init__(self, name: str, model: torch.nn.Module, person: int, device: torch.device) -> None:
        self.name = name
        self.batch_size = 8 if device.type == "cuda" else 1
        self._model, self._person, self._device = model.to(device).eval(), person, device

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Floats]:
        """Return the people of each image, `[n, 5]`: x, y, width, height in pixels, and confidence."""
        found: list[Floats] = []
        for start in range(0, len(images), self.batch_size):
            batch = [
                torch.from_numpy(np.ascontiguousarray(image)).to(self._device).permute(2, 0, 1).float() / 255
                for image in images[start : start + self.batch_size]
            ]
            with torch.inference_mode():
                results = self._model(batch)
            for result in results:
                rows = result["labels"] == self._person
                corners, scores = (result[key][rows].double().cpu().numpy() for key in ("boxes", "scores"))
                found.append(clean_boxes(corners, scores, LEAST_CONFIDENCE))
        return found


def open_published(name: str, device: str, threads: int) -> TorchvisionDetector:
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
    label = weights.meta["categories"].index("person")
    return TorchvisionDetector(
        f"{name}-{weights.url.rsplit('-', 1)[-1].split('.')[0]}", model, label, pick_device(device)
    )
