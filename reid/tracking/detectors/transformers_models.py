"""Detection models of the package `transformers`, such as D-FINE, on a GPU or the CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reid.core.distributed import pick_device
from reid.core.errors import ConfigError, ModelError, first_line
from reid.models.zoo import fetch_model
from reid.tracking.detections import LEAST_CONFIDENCE
from reid.tracking.detectors.torch_detector import TorchDetector


def open_published(name: str, device: str, threads: int) -> TorchDetector:
    """Open a published model by name, `transformers:REPOSITORY[@REVISION]` of the hub, or `transformers:FOLDER`.

    Published models (`reid model list --pretrained`) are fetched and verified by `reid.models.zoo`, others by the
    package `transformers` at first use. Images are prepared as its
    `preprocessor_config.json` describes. Weights are only read as safetensors, and no code of the repository is run.

    Raises:
        ConfigError: a model without a class `person`, or an unknown device.
        ModelError: transformers is not installed, or the model is not available or no detector.
    """
    try:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection
    except ImportError as error:
        raise ModelError(f"{name} needs {error.name}. Run: pip install 'reid-toolkit[transformers]'") from error
    if threads:
        torch.set_num_threads(threads)
    if name.startswith("transformers:"):
        where, _, revision = name.removeprefix("transformers:").partition("@")
    else:
        where, revision = str(fetch_model(name, "detector").parent), ""
    chosen = {"revision": revision} if revision else {}
    try:
        processor = AutoImageProcessor.from_pretrained(where, **chosen)
        model = AutoModelForObjectDetection.from_pretrained(where, use_safetensors=True, **chosen)
    except (OSError, ValueError) as error:
        problem = first_line(error).rstrip(".")
        raise ModelError(
            f"{name} cannot be opened: {problem}. Check the name, or copy config.json, "
            "preprocessor_config.json and model.safetensors of the model into a folder and pass transformers:FOLDER."
        ) from error
    labels = {str(label).lower(): int(number) for number, label in model.config.id2label.items()}
    if "person" not in labels:
        raise ConfigError(f"{name} has no class 'person'. Use a model that detects people.")
    target = pick_device(device)
    model = model.to(target).eval()

    def detect(images: list[Tensor]) -> Sequence[Mapping[str, Tensor]]:
        inputs = processor(images=images, return_tensors="pt").to(target)
        sizes = [tuple(image.shape[1:]) for image in images]
        results: Sequence[Mapping[str, Tensor]] = processor.post_process_object_detection(
            model(**inputs), threshold=LEAST_CONFIDENCE, target_sizes=sizes
        )
        return results

    return TorchDetector(f"{Path(where).name}-{_digest(model, processor)}", detect, labels["person"], target)


def _digest(model: Any, processor: Any) -> str:
    """Return a digest of the weights and of the preparation of images."""
    digest = hashlib.sha256(processor.to_json_string().encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
