"""Detectors in ONNX and OpenVINO files, of any project: a small JSON file describes input and output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.config import Settings
from reid.core.arrays import boxes_of_corners
from reid.core.errors import ConfigError, ModelError, did_you_mean
from reid.core.reading import read_json
from reid.data.tracks import Floats
from reid.embedding.bundle import RuntimeFailure, compile_openvino, digest, installed, onnx_session
from reid.embedding.model_files import opening, weight_files
from reid.embedding.shards import json_digest
from reid.tracking.detections import LEAST_CONFIDENCE
from reid.tracking.detectors.detector import clean_boxes

SUFFIXES = (".onnx", ".xml")
_GRAY = 114


class DetectorFormat(Settings):
    """Input and output of a detector file, as stored in `NAME.reid.json`.

    The network gets (x − mean) / std. Its output has one of these forms, B images, N boxes and C classes:

    - `ssd`: one output `[…, 7]`: image, label, confidence, left, top, right, bottom; corners as fractions of the image.
    - `boxes`: `[N, 5]` left, top, right, bottom in pixels of the input, confidence; optionally labels `[N]`. One image.
    - `corners`: boxes `[B, N, 4]` left, top, right, bottom in pixels of the input, scores `[B, N]`, labels `[B, N]`.
    - `detr`: boxes `[B, N, 4]` centre x, y, width, height as fractions, and logits `[B, N, C]`.
    - `yolo`: `[B, 4 + C, N]` or `[B, N, 4 + C]`: centre x, y, width, height in pixels of the input, and C scores;
      non-maximum suppression at IoU 0.6 follows.
    """

    form: Literal["ssd", "boxes", "corners", "detr", "yolo"]
    """Form of the output."""
    mean: tuple[float, float, float]
    """Mean of each channel, in the order of `channel_order`."""
    std: tuple[float, float, float]
    """Standard deviation of each channel, in the order of `channel_order`."""
    scale: Literal["0-1", "0-255"]
    """The range of pixel values that `mean` and `std` refer to."""
    channel_order: Literal["rgb", "bgr"]
    """Order of the channels in the input of the network."""
    resize: Literal["stretch", "letterbox"] = "stretch"
    """How a frame gets the size of the input; `letterbox` keeps its shape and pads the right and lower border."""
    size: tuple[int, int] | None = None
    """Height and width of the input in pixels; needed if the file does not define them."""
    person: int = 0
    """Label, or index of the class, of people."""
    outputs: tuple[str, ...] = ()
    """Names of the outputs in the order of `form`; by default the outputs in the order of the file."""


Arrays = list[NDArray[Any]]
Opened = tuple[list[int | None], list[str], Callable[[NDArray[np.float32], list[str]], Arrays]]
"""Shape of the input, names of the outputs, and a function from the input to named outputs."""


class FileDetector:
    """Detector of a file; see `Detector`. Threads that call it at the same time need one each.

    Args:
        path: `.onnx`, or OpenVINO's `.xml` with its `.bin` in the same folder.
        form: input and output.
        device: "auto", "cpu", "cuda" or "cuda:N" (ONNX with onnxruntime-gpu).
        threads: of the runtime; 0 uses its default.

    Raises:
        ConfigError: a format that does not fit, or a device that is not available.
        ModelError: a file that is missing or damaged, or a runtime that is not installed.
    """

    def __init__(self, path: Path, form: DetectorFormat, device: str = "auto", threads: int = 0) -> None:
        for file in (files := [path, *weight_files(path)]):
            if not file.is_file():
                raise ModelError(f"There is no file {file}, which the detector needs. Restore it.")
        self._path, self._format = path, form
        self.name = f"{path.stem}-{json_digest([[digest(file) for file in files], form.as_dict()])[:12]}"
        with opening(path):
            shape, names, self._run = _open(path, device, threads, form.size)
        size = form.size or (shape[2], shape[3])
        if len(shape) != 4 or shape[1] not in (3, None) or None in size:
            raise ModelError(f"The input of {path} is {shape}, not [B, 3, H, W]. Convert it, or give its size.")
        self._size = int(size[0] or 0), int(size[1] or 0)
        for wanted in form.outputs:
            if wanted not in names:
                raise ConfigError(f"{path} has no output {wanted!r}.{did_you_mean(wanted, names)}")
        self._outputs = list(form.outputs) or names
        self.batch_size = 1 if form.form in ("boxes", "ssd") else shape[0] or (8 if device.startswith("cuda") else 1)
        self._fixed = shape[0] is not None
        # Reused in all calls: new memory for each frame costs more than the conversion.
        self._input = np.zeros((self.batch_size, 3, *self._size), np.float32)
        self._small = np.zeros((*self._size, 3), np.uint8)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Floats]:
        """Return the people of each image, `[n, 5]`: x, y, width, height in pixels, and confidence."""
        found: list[Floats] = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            scales = [self._prepare(image, self._input[place]) for place, image in enumerate(batch)]
            x = self._input if self._fixed else self._input[: len(batch)]
            for (corners, confidence), scale in zip(self._decode(self._run(x, self._outputs)), scales, strict=False):
                found.append(clean_boxes(corners * np.tile(scale, 2), confidence, LEAST_CONFIDENCE))
        return found

    def _prepare(self, image: NDArray[np.uint8], x: NDArray[np.float32]) -> Floats:
        """Write `[3, h, w]` to `x`; return the pixels of the image for a pixel of the input, along x and y."""
        (height, width), form = self._size, self._format
        sides = np.array([width, height])
        if form.resize == "letterbox":
            ratio = min(height / image.shape[0], width / image.shape[1])
            sides = np.maximum(np.rint(np.array([image.shape[1], image.shape[0]]) * ratio), 1).astype(int)
            self._small[:] = _GRAY
        part = self._small[: sides[1], : sides[0]]
        cv2.resize(image, (int(sides[0]), int(sides[1])), dst=part)
        unit = 255 if form.scale == "0-1" else 1
        for channel, (mean, std) in enumerate(zip(form.mean, form.std, strict=True)):
            x[channel] = self._small[..., 2 - channel if form.channel_order == "bgr" else channel]
            if (mean, std * unit) != (0, 1):
                x[channel] -= np.float32(unit) * np.float32(mean)
                x[channel] /= np.float32(unit) * np.float32(std)
        return np.array([image.shape[1], image.shape[0]]) / sides

    def _decode(self, outputs: Arrays) -> list[tuple[Floats, Floats]]:
        """Return for each image the corners `[n, 4]` in pixels of the input, and the confidence of people `[n]`."""
        try:
            return _DECODERS[self._format.form](outputs, self._format, np.array(self._size[::-1] * 2, float))
        except (IndexError, ValueError) as error:
            shapes = ", ".join(str(list(output.shape)) for output in outputs)
            raise ConfigError(
                f"{self._path} gives outputs {shapes}, which are not of the form {self._format.form!r}. Correct form, "
                "outputs or person in its .reid.json."
            ) from error


def _decode_ssd(outputs: Arrays, form: DetectorFormat, size: Floats) -> list[tuple[Floats, Floats]]:
    rows = np.asarray(outputs[0], float).reshape(-1, 7)
    rows = rows[(rows[:, 0] >= 0) & (rows[:, 1] == form.person)]
    return [(rows[:, 3:] * size, rows[:, 2])]


def _decode_boxes(outputs: Arrays, form: DetectorFormat, size: Floats) -> list[tuple[Floats, Floats]]:
    rows = np.asarray(outputs[0], float).reshape(-1, 5)
    if len(outputs) > 1:
        rows = rows[np.asarray(outputs[1]).reshape(-1) == form.person]
    return [(rows[:, :4], rows[:, 4])]


def _decode_corners(outputs: Arrays, form: DetectorFormat, size: Floats) -> list[tuple[Floats, Floats]]:
    boxes, scores, labels = (np.asarray(output, float) for output in outputs[:3])
    return [
        (b.reshape(-1, 4)[k == form.person], s[k == form.person]) for b, s, k in zip(boxes, scores, labels, strict=True)
    ]


def _decode_detr(outputs: Arrays, form: DetectorFormat, size: Floats) -> list[tuple[Floats, Floats]]:
    boxes, logits = (np.asarray(output, float) for output in outputs[:2])
    confidence = 1 / (1 + np.exp(-logits[..., form.person]))
    return [(_corners(b.reshape(-1, 4)) * size, c) for b, c in zip(boxes, confidence, strict=True)]


def _decode_yolo(outputs: Arrays, form: DetectorFormat, size: Floats) -> list[tuple[Floats, Floats]]:
    rows = np.asarray(outputs[0], float)
    rows = rows.transpose(0, 2, 1) if rows.shape[1] < rows.shape[2] else rows
    found = []
    for image in rows:
        image = image[image[:, 4 + form.person] >= LEAST_CONFIDENCE]
        corners, confidence = _corners(image[:, :4]), image[:, 4 + form.person]
        kept = np.asarray(
            cv2.dnn.NMSBoxes(boxes_of_corners(corners).tolist(), confidence.tolist(), LEAST_CONFIDENCE, 0.6), int
        ).reshape(-1)
        found.append((corners[kept], confidence[kept]))
    return found


def _corners(boxes: Floats) -> Floats:
    """Left, top, right, bottom of boxes `[N, 4]` centre x, y, width, height."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


_DECODERS = {
    "ssd": _decode_ssd,
    "boxes": _decode_boxes,
    "corners": _decode_corners,
    "detr": _decode_detr,
    "yolo": _decode_yolo,
}


def open_file(path: Path, device: str, threads: int) -> FileDetector:
    """Open an `.onnx` or `.xml` file that is described by `NAME.reid.json` in its folder.

    Raises:
        ConfigError: no description, or one that does not fit.
        ModelError: as `FileDetector`.
    """
    described = path.with_suffix(".reid.json")
    keys = ", ".join(DetectorFormat.model_fields)
    fix = f"Create {described.name} with the keys {keys}; see docs/tracking.md."
    if not path.is_file():
        raise ModelError(f"There is no detector {path}. Check the path.")
    form = DetectorFormat.from_dict(read_json(described, fix, ConfigError), str(described))
    return FileDetector(path, form, device, threads)


def open_published(name: str, device: str, threads: int) -> FileDetector:
    """Fetch a published detector, unless it is in the cache, and open it."""
    from reid.models.zoo import fetch_model, find_model

    row = find_model(name, "detector")
    form = DetectorFormat.from_dict({**row.input, **row.options}, name)
    return FileDetector(fetch_model(name, "detector"), form, device, threads)


def _open(path: Path, device: str, threads: int, size: tuple[int, int] | None) -> Opened:
    is_onnx = path.suffix.lower() == ".onnx"
    if device.startswith("cuda") and not is_onnx:
        raise RuntimeFailure(f"OpenVINO does not run on device {device!r} here. Use device 'cpu' or an .onnx file.")
    if not device.startswith("cuda") and installed("openvino"):
        return _open_openvino(path, threads, size)
    if is_onnx and installed("onnx"):
        return _open_onnx(path, "cpu" if device == "auto" else device, threads)
    raise ModelError(f"{path.name} needs openvino. Run: pip install 'reid-toolkit[video]'")


def _open_openvino(path: Path, threads: int, size: tuple[int, int] | None) -> Opened:
    import openvino

    model = openvino.Core().read_model(path)
    shape = model.inputs[0].partial_shape
    if shape.is_dynamic and len(shape) == 4 and size is not None:
        model.reshape([1, 3, *size])
        shape = model.inputs[0].partial_shape
    compiled = compile_openvino(model, {"INFERENCE_NUM_THREADS": threads} if threads else None)
    names = [min(port.get_names(), default=f"number {number}") for number, port in enumerate(model.outputs)]

    def run(x: NDArray[np.float32], outputs: list[str]) -> Arrays:
        result = compiled(x)
        return [np.array(result[names.index(output)]) for output in outputs]

    return [side.get_length() if side.is_static else None for side in shape], names, run


def _open_onnx(path: Path, device: str, threads: int) -> Opened:
    session = onnx_session(path, threads, device)
    port = session.get_inputs()[0]

    def run(x: NDArray[np.float32], outputs: list[str]) -> Arrays:
        return list(session.run(outputs, {port.name: x}))

    shape = [side if isinstance(side, int) and side > 0 else None for side in port.shape]
    return shape, [output.name for output in session.get_outputs()], run
