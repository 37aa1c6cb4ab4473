"""Tiny videos of bright rectangles that walk, and a detector that finds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZE = (128, 96)
PERSON = (16, 32)
"""Width and height of a rectangle."""
FULL = {"mean": (0, 0, 0), "std": (1, 1, 1), "scale": "0-255", "channel_order": "rgb"}


def boxes_at(frame: int, people: int = 1) -> list[tuple[int, int, int, int]]:
    """Boxes x, y, w, h in frame `frame` (from 1): each person walks 4 pixels every two frames, to and fro."""
    step = (frame // 2) % 48
    return [(4 * min(step, 48 - step) + 4, 4 + 44 * person, *PERSON) for person in range(people)]


def picture(frame: int, people: int = 1) -> Any:
    image = np.full((SIZE[1], SIZE[0], 3), 20, np.uint8)
    for x, y, w, h in boxes_at(frame, people):
        image[y : y + h, x : x + w] = 255
    return image


def write_video(
    path: Path,
    frames: int = 20,
    fps: float = 10,
    people: int = 1,
    fourcc: str = "MJPG",
    *,
    depth: int = cv2.CV_8U,
    gray: bool = False,
) -> Path:
    options = [cv2.VIDEOWRITER_PROP_DEPTH, depth, cv2.VIDEOWRITER_PROP_IS_COLOR, int(not gray)]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*fourcc), fps, SIZE, options)
    assert writer.isOpened()
    for frame in range(1, frames + 1):
        image = picture(frame, people)
        image = image[..., 0] if gray else image
        writer.write(image.astype(np.uint16) * 257 if depth == cv2.CV_16U else image)
    writer.release()
    return path


def write_stamped_video(path: Path, times: Sequence[float], fps: int = 10) -> Path:
    """Write an MP4 whose frames have these times in seconds."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times, 1):
            frame = av.VideoFrame.from_ndarray(picture(number), format="bgr24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_images(folder: Path, numbers: Sequence[int], people: int = 1) -> Path:
    folder.mkdir(parents=True)
    for number in numbers:
        cv2.imwrite(str(folder / f"{number:06d}.png"), picture(number, people))
    return folder


def save_onnx(path: Path, nodes: list[Any], outputs: dict[str, Any], constants: dict[str, Any], batch: Any = 1) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIZE[1], SIZE[0]])
    shown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", [given], shown, tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def describe(path: Path, form: dict[str, Any]) -> Path:
    path.with_suffix(".reid.json").write_text(json.dumps(form))
    return path


def toy_detector(path: Path, *, bias: float = 0.9) -> Path:
    """Write a detector of bright rectangles of the size `PERSON`: mean brightness of each window, above `bias`."""
    from onnx import helper

    make: Callable[..., Any] = helper.make_node
    (w, h), stride = PERSON, 4
    across, down = (SIZE[0] - w) // stride + 1, (SIZE[1] - h) // stride + 1
    y, x = np.mgrid[:down, :across].reshape(2, -1) * stride
    cells = np.stack([x + w / 2, y + h / 2, 0 * x + w, 0 * y + h]).astype(np.float32)[None]
    nodes = [
        make("ReduceMean", ["images"], ["gray"], axes=[1], keepdims=1),
        make("AveragePool", ["gray"], ["windows"], kernel_shape=[h, w], strides=[stride, stride]),
        make("Div", ["windows", "white"], ["filled"]),
        make("Sub", ["filled", "bias"], ["above"]),
        make("Mul", ["above", "gain"], ["gained"]),
        make("Relu", ["gained"], ["score"]),
        make("Reshape", ["score", "row"], ["scores"]),
        make("Concat", ["cells", "scores"], ["found"], axis=1),
    ]
    constants = {
        "white": np.float32(255), "bias": np.float32(bias), "gain": np.float32(1 / (1 - bias)),
        "row": np.array([1, 1, -1]), "cells": cells,
    }  # fmt: skip
    save_onnx(path, nodes, {"found": [1, 5, cells.shape[2]]}, constants)
    return describe(path, {"form": "yolo", **FULL})
