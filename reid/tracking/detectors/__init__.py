"""Detectors by name: each maps RGB frames to boxes of people."""

from __future__ import annotations

import importlib
from pathlib import Path

from reid.core.errors import ConfigError, did_you_mean
from reid.tracking.detectors.detector import Detector
from reid.tracking.detectors.files import SUFFIXES, open_file

DETECTORS = {
    "intel-adas-0002": "files",
    "intel-person-detection-0203": "files",
    "fasterrcnn_resnet50_fpn_v2": "torchvision_models",
    "fasterrcnn_mobilenet_v3_large_fpn": "torchvision_models",
    "retinanet_resnet50_fpn_v2": "torchvision_models",
    "ssdlite320_mobilenet_v3_large": "torchvision_models",
    "dfine-n": "transformers_models",
    "dfine-s": "transformers_models",
    "dfine-m": "transformers_models",
    "dfine-l": "transformers_models",
}
"""Module of this package whose `open_published(name, device, threads)` opens each detector."""


def open_detector(name: str | Path, device: str = "auto", threads: int = 0) -> Detector:
    """Open a detector by its name or file.

    Args:
        name: a key of `DETECTORS`; `transformers:REPOSITORY[@REVISION]` of the Hugging Face hub, or
            `transformers:FOLDER`; or an `.onnx` or OpenVINO `.xml` file with its `NAME.reid.json`.
        device: "auto", "cpu", "cuda" or "cuda:N". "auto" uses a CUDA GPU where the detector supports it.
        threads: of the runtime on the CPU; 0 uses one for each core.

    Raises:
        ConfigError: an unknown name, or a file whose format is not described.
        ModelError: a model that is not available or cannot be read, or a package that is not installed.
    """
    by_prefix = "transformers_models" if str(name).startswith("transformers:") else None
    if module_name := DETECTORS.get(str(name), by_prefix):
        module = importlib.import_module(f"reid.tracking.detectors.{module_name}")
        detector: Detector = module.open_published(str(name), device, threads)
        return detector
    if Path(name).suffix.lower() in SUFFIXES:
        return open_file(Path(name), device, threads)
    hint = did_you_mean(str(name), DETECTORS)
    raise ConfigError(
        f"Unknown detector {str(name)!r}.{hint} Or pass an .onnx or .xml file, or transformers:REPOSITORY."
    )


__all__ = ["DETECTORS", "Detector", "open_detector"]
