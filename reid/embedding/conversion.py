"""Convert a network to ONNX, TorchScript or OpenVINO with its preprocessing inside, and quantise it to int8."""

from __future__ import annotations

import copy
import io
import logging
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from reid.core.errors import ModelError, first_line, last_line
from reid.embedding.bundle import on_own_thread
from reid.embedding.runtimes import ForeignModel
from reid.models import ReIDModel


class _ExportedModel(nn.Module):
    """`ReIDModel.embed` in a form that can be traced: uint8 [N, h, w, 3] RGB → float32 [N, D]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: ReIDModel, *, normalise: bool) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float()
        self.normalise = normalise
        preprocessing = model.preprocessing
        self.swap = preprocessing.channel_order == "bgr"
        std, mean = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.std, preprocessing.mean))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).float()
        if self.swap:
            x = x.flip(1)
        embeddings: Tensor = self.model(x * self.scale + self.shift).embeddings
        return functional.normalize(embeddings, eps=1e-12) if self.normalise else embeddings


def trace(model: ReIDModel, path: Path, form: str, *, normalise: bool = True) -> None:
    """Write the model as "onnx" or "torchscript".

    Raises:
        ModelError: the model cannot be converted.
    """
    exported = _ExportedModel(model, normalise=normalise).eval()
    example = torch.zeros(2, *model.preprocessing.size, 3, dtype=torch.uint8)
    script = b""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about its deprecation and about fixed shapes
        try:
            if form == "torchscript":
                script = torch.jit.freeze(torch.jit.trace(exported, (example,), check_trace=False)).save_to_buffer()
            else:
                # The tracing exporter is part of every torch from 2.4 on and only needs onnx.
                names: dict[str, Any] = {"input_names": ["images"], "output_names": ["embeddings"]}
                names["dynamic_axes"] = {"images": {0: "N"}, "embeddings": {0: "N"}}
                torch.onnx.export(exported, (example,), str(path), opset_version=17, dynamo=False, **names)
        except Exception as error:  # tracing runs the code of the model, which can raise any exception
            raise ModelError(f"{model.spec['backbone']} cannot be converted to {form}: {first_line(error)}") from error
    if script:
        _write_script(script, path)


def _write_script(script: bytes, path: Path) -> None:
    """Write TorchScript without the call stacks of its tracing, which contain local paths and vary by caller.

    torch's own writer would also abort the process if the disk is full.
    """
    with zipfile.ZipFile(io.BytesIO(script)) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if not name.endswith((".debug_pkl", "/serialization_id")):  # the id is a digest of all entries
                target.writestr(zipfile.ZipInfo(name), source.read(name))


def openvino_network(model: ReIDModel | ForeignModel, scratch: Path) -> Any:
    """Return the model as an OpenVINO network without normalisation. It may keep files in `scratch` open.

    Raises:
        ModelError: the model cannot be converted.
    """
    import openvino

    if isinstance(model, ForeignModel):
        return _add_preprocessing(model)
    trace(model, scratch / "model.onnx", "onnx", normalise=False)
    return openvino.Core().read_model(scratch / "model.onnx")


def _add_preprocessing(model: ForeignModel) -> Any:
    """Return the network of a file with its preprocessing inside and an open batch size."""
    import openvino
    from openvino.preprocess import ColorFormat, PrePostProcessor

    network = openvino.Core().read_model(model.path)
    try:
        network.reshape([-1, 3, *model.preprocessing.size])
    except RuntimeError as error:
        raise ModelError(f"{model.path} has a fixed batch size that cannot be changed: {last_line(error)}") from error
    steps = PrePostProcessor(network)
    given = steps.input().tensor()
    given.set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC")).set_color_format(ColorFormat.RGB)
    change = steps.input().preprocess().convert_element_type(openvino.Type.f32)
    if model.preprocessing.channel_order == "bgr":
        change.convert_color(ColorFormat.BGR)
    change.mean([255 * value for value in model.preprocessing.mean])
    change.scale([255 * value for value in model.preprocessing.std])
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    network = steps.build()
    output = network.get_results()[model.output_number].input_value(0)
    return openvino.Model([output], network.get_parameters(), model.path.stem)


def save_openvino(network: Any, path: Path) -> None:
    """Add the normalisation and write the network. It comes after quantisation, which would round the lengths."""
    import openvino
    from openvino import opset8 as ops

    rows = ops.convert(network.get_results()[0].input_value(0), "f32")
    rows = ops.reshape(rows, np.array([0, -1], np.int64), True)
    rows = ops.normalize_l2(rows, np.array([1], np.int64), 1e-24, "max")
    normalised = openvino.Model([rows], network.get_parameters(), "reid")
    normalised.inputs[0].get_tensor().set_names({"images"})
    normalised.outputs[0].get_tensor().set_names({"embeddings"})
    openvino.save_model(normalised, path, compress_to_fp16=False)


def quantise(network: Any, calibration: NDArray[np.uint8]) -> Any:
    """Return an OpenVINO network in int8, with ranges measured on `calibration [N, h, w, 3]`.

    Gates and the operations after the last pooling stay in float: they take little time and lose most by rounding.
    """
    os.environ.setdefault("NNCF_CI", "1")  # otherwise NNCF reports its use over the network
    import nncf

    nncf.set_log_level(logging.ERROR)
    ignored = nncf.IgnoredScope(names=_operations_after_pooling(network), types=["Multiply"], validate=False)
    crops = nncf.Dataset([crop[None] for crop in calibration])
    return on_own_thread(lambda: nncf.quantize(network, crops, subset_size=len(calibration), ignored_scope=ignored))


def _operations_after_pooling(network: Any) -> list[str]:
    """Return the names of the operations between the last feature map and the embedding."""
    found: dict[str, None] = {}
    waiting = [network.get_results()[0].input_value(0)]
    while waiting:
        output = waiting.pop()
        node, shape = output.get_node(), output.get_partial_shape()
        is_map = shape.rank.is_static and len(shape) == 4 and any(side != 1 for side in list(shape)[2:])
        if node.get_type_name() == "Constant" or node.get_friendly_name() in found or is_map:
            continue
        found[node.get_friendly_name()] = None
        waiting += [port.get_source_output() for port in node.inputs()]
    return list(found)
