"""What detectors that run in torch have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.data.tracks import Floats
from reid.tracking.detections import LEAST_CONFIDENCE
from reid.tracking.detectors.detector import clean_boxes


class TorchDetector:
    """A detection model in torch; see `Detector`.

    Args:
        name: identifies the weights.
        detect: from uint8 images `[3, H, W]` on the device to `boxes` `[n, 4]` (left, top, right, bottom in pixels),
            `labels` `[n]` and `scores` `[n]` of each.
        person: label of people.
        device: of the images.
    """

    def __init__(
        self,
        name: str,
        detect: Callable[[list[Tensor]], Sequence[Mapping[str, Tensor]]],
        person: int,
        device: torch.device,
    ) -> None:
        self.name = name
        self.batch_size = 8 if device.type == "cuda" else 1
        self._detect, self._person, self._device = detect, person, device

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Floats]:
        """Return the people of each image, `[n, 5]`: x, y, width, height in pixels, and confidence."""
        found: list[Floats] = []
        for start in range(0, len(images), self.batch_size):
            batch = [
                torch.from_numpy(np.ascontiguousarray(image)).to(self._device).permute(2, 0, 1)
                for image in images[start : start + self.batch_size]
            ]
            with torch.inference_mode():
                results = self._detect(batch)
            for result in results:
                rows = result["labels"] == self._person
                corners, scores = (result[key][rows].double().cpu().numpy() for key in ("boxes", "scores"))
                found.append(clean_boxes(corners, scores, LEAST_CONFIDENCE))
        return found
