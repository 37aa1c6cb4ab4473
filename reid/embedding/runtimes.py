"""Models in other file formats: bundles of `reid model export`, and ONNX and OpenVINO files of other projects."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.config import Settings
from reid.core.errors import ConfigError, ModelError, did_you_mean
from reid.core.reading import read_json
from reid.embedding import bundle as reader
from reid.embedding.bundle import Bundle
from reid.embedding.model_files import opening, weight_files
from reid.models.preprocessing import Preprocessing

FORMATS = {".onnx": ("onnx", "openvino"), ".xml": ("openvino",)}
"""Runtimes that read a file, by its suffix; the preferred one first."""

MOST_VALUES = 2**28
"""Most values in a batch of the size that a file fixes, 1 GiB as float32."""

_FLOATS = {"float": "float32", "float16": "float16", "f32": "float32", "f16": "float16"}

_EXAMPLE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": "0-1", "channel_order": "rgb"}

Network = Callable[[NDArray[Any]], NDArray[Any]]
Shape = list[int | None]
"""Sides of an array; None if any length is accepted."""


class _Bundle(Bundle):
    error = ModelError


def open_bundle(
    path: str | Path, runtime: str = "auto", threads: int | None = None, device: str = "cpu", *, trust: bool = False
) -> Bundle:
    """Open a bundle of `reid model export`; see `Bundle` (reid/embedding/bundle.py). Its errors are `ModelError` here.

    The bundle's own run.py is not executed. TorchScript needs `trust`, because loading it can execute any code.
    """
    return _Bundle(Path(path), runtime, threads, device, trust=trust)


class InputFormat(Settings):
    """Preprocessing of an ONNX or OpenVINO file, as stored in `NAME.reid.json`. The network gets (x − mean) / std."""

    mean: tuple[float, float, float]
    """Mean of each channel, in the order of `channel_order`."""
    std: tuple[float, float, float]
    """Standard deviation of each channel, in the order of `channel_order`."""
    scale: Literal["0-1", "0-255"]
    """The range of pixel values that `mean` and `std` refer to."""
    channel_order: Literal["rgb", "bgr"]
    """Order of the channels in the input of the network."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; needed if the file does not define them."""
    output: str | None = None
    """Name of the output to use; needed if there are several."""


class ForeignModel:
    """ONNX or OpenVINO file as a function from images to embeddings.

    The network has one float input `[B, 3, H, W]`, in which B, H and W are fixed or open, and an output `[B, D]` or
    `[B, D, 1, 1]`. If B is fixed, batches are padded with black images.

    Attributes:
        preprocessing: how images are prepared.
        embedding_size: D.
        output_number: number of the output that is used, from 0.
        name: stem of the file and a digest of its content, the preprocessing and the output. Embeddings of equal names
            can be compared.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
        device: str = "auto",
        runtime: str = "auto",
    ) -> None:
        """Load the file and pass one black image through it.

        Args:
            path: `.onnx`, or OpenVINO's `.xml` with its `.bin` in the same folder.
            preprocessing: a `Preprocessing`, or a mapping with the keys of `InputFormat`; None reads `NAME.reid.json`
                in the folder of the file.
            device: "auto", "cpu", "cuda" or "cuda:N" (onnxruntime-gpu).
            runtime: "onnx", "openvino", or "auto" for the first installed one that reads the file.

        Raises:
            ConfigError: preprocessing that is missing or does not fit, or an unknown device or runtime.
            ModelError: no such file, a runtime that is not installed, a file that the runtime rejects, or inputs or
                outputs of another kind.
        """
        path = Path(path)
        if not path.is_file():
            raise ModelError(f"There is no model file {path}.")
        runtime = _pick_runtime(path, runtime)
        files = [path, *weight_files(path)]
        device = "cpu" if device == "auto" else device
        self.path, self.runtime = path, runtime
        with opening(path, f" by {runtime}"):
            reader.check_device(runtime, device)
            inputs, outputs, connect = (_open_onnx if runtime == "onnx" else _open_openvino)(path, device)
        if len(inputs) != 1:
            raise ModelError(f"{path} has {len(inputs)} inputs ({', '.join(inputs)}); it must have one, the images.")
        (kind, shape), *_ = inputs.values()
        if kind not in _FLOATS or len(shape) != 4 or shape[1] not in (3, None):
            raise ModelError(f"The input of {path} is {kind} {_describe(shape)}. Convert it to float32 [B, 3, H, W].")
        self._dtype, self._batch = _FLOATS[kind], shape[0]
        self.preprocessing, wanted = _find_preprocessing(path, preprocessing, shape[2:])
        if (values := (self._batch or 1) * 3 * math.prod(self.preprocessing.size)) > MOST_VALUES:
            problem = (
                f"{path} takes {_describe(shape)}, {values:.1e} values at a time; at most {MOST_VALUES} are allowed"
            )
            raise ModelError(f"{problem}. Export it with an open batch size and a usual image size.")
        output = wanted or (outputs[0] if len(outputs) == 1 else "")
        if output not in outputs:
            problem = f"{path} has {len(outputs)} outputs, and none is called {output!r}"
            raise ConfigError(f"{problem}. Set the key output of its preprocessing.{did_you_mean(output, outputs)}")
        self.output_number = outputs.index(output)
        self._network = connect(output)
        self.device = torch.device(device)
        self.name = f"{path.stem}-{_digest(files, self.preprocessing, output)}"
        self.embedding_size = self._run(np.zeros((1, 3, *self.preprocessing.size), self._dtype)).shape[1]

    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        """Return embeddings float32 `[B, D]`, L2-normalised, of uint8 `[B, H, W, 3]` RGB, like `ReIDModel.embed`."""
        x = self.preprocessing(images.cpu()).contiguous().numpy().astype(self._dtype, copy=False)
        embeddings = self._run(x)
        if flip:
            embeddings = np.float32(0.5) * (embeddings + self._run(x[..., ::-1]))
        return torch.nn.functional.normalize(torch.from_numpy(embeddings), eps=1e-12)

    def _run(self, x: NDArray[Any]) -> NDArray[np.float32]:
        size = self._batch or len(x)
        results = []
        for start in range(0, len(x), size):
            rows = x[start : start + size]
            padding = size - len(rows) if self._batch else 0
            batch = np.concatenate([rows, np.zeros((padding, *x.shape[1:]), x.dtype)])
            result = self._network(np.ascontiguousarray(batch)).astype(np.float32)
            if result.ndim < 2 or len(result) != len(batch) or result[0].size != result.shape[1]:
                shape = f"{list(result.shape)} for {len(batch)} images"
                raise ModelError(f"{self.path} gives {shape}, not [B, D]. Set the key output of its preprocessing.")
            results.append(result.reshape(len(batch), -1)[: len(rows)].copy())
        return np.concatenate(results)


def _pick_runtime(path: Path, runtime: str) -> str:
    if path.suffix.lower() not in FORMATS:
        raise ModelError(f"{path} is not a model file. Use a file with the suffix {' or '.join(FORMATS)}.")
    readers = FORMATS[path.suffix.lower()]
    if runtime != "auto" and runtime not in readers:
        raise ConfigError(f"Runtime {runtime!r} does not read {path.name}. Use {' or '.join(map(repr, readers))}.")
    wanted = readers if runtime == "auto" else (runtime,)
    for name in wanted:
        if reader.installed(name):
            return name
    raise ModelError(f"{path.name} needs {reader.PACKAGES[wanted[0]]}. Run: pip install {reader.PACKAGES[wanted[0]]}")


Opened = tuple[dict[str, tuple[str, Shape]], list[str], Callable[[str], Network]]
"""Type and shape of each input, names of the outputs, and a function from an output to the network."""


def _open_onnx(path: Path, device: str) -> Opened:
    session = reader.onnx_session(path, 0, device)
    inputs = {}
    for port in session.get_inputs():
        shape = [side if isinstance(side, int) and side > 0 else None for side in port.shape]
        inputs[port.name] = port.type.removeprefix("tensor(").removesuffix(")"), shape
    outputs = [port.name for port in session.get_outputs()]
    return inputs, outputs, lambda output: lambda x: session.run([output], {next(iter(inputs)): x})[0]


def _open_openvino(path: Path, device: str) -> Opened:
    import openvino

    weights = path.with_suffix(".bin")
    if path.suffix.lower() == ".xml" and not weights.is_file():
        raise ModelError(f"{path} needs its weights in the same folder, but there is no {weights.name}.")
    model = openvino.Core().read_model(path)
    compiled = reader.compile_openvino(model)

    def name(port: Any, number: int) -> str:
        return min(port.get_names(), default=f"number {number}")

    inputs = {}
    for number, port in enumerate(model.inputs):
        shape = [side.get_length() if side.is_static else None for side in port.partial_shape]
        inputs[name(port, number)] = port.element_type.get_type_name(), shape
    outputs = {name(port, number): port for number, port in enumerate(compiled.outputs)}
    return inputs, list(outputs), lambda output: lambda x: compiled([x])[outputs[output]]


def _find_preprocessing(
    path: Path, given: Preprocessing | Mapping[str, Any] | None, fixed: Shape
) -> tuple[Preprocessing, str | None]:
    """Return the preprocessing and the name of the output, if given; `fixed` is the height and width in the file."""
    sidecar, output = path.with_suffix(".reid.json"), None
    source = str(sidecar) if given is None else "preprocessing"
    example = f"Example:\n{json.dumps(_EXAMPLE | {'size': [fixed[0] or 256, fixed[1] or 128]})}"
    if given is None and not sidecar.is_file():
        fix = f"Create {sidecar} with the values of its training, or pass preprocessing. {example}"
        raise ConfigError(f"{path.name} does not contain its preprocessing. {fix}")
    given = read_json(sidecar, example, ConfigError) if given is None else given
    try:
        if not isinstance(given, Preprocessing):
            if not isinstance(given, Mapping):
                raise ConfigError("it must be a mapping of keys and values.")
            values = InputFormat.from_dict(dict(given))
            size, output = values.size or fixed, values.output
            unit = 1.0 if values.scale == "0-1" else 255.0
            mean, std = ([value / unit for value in one] for one in (values.mean, values.std))
            content = {"size": size, "mean": mean, "std": std, "channel_order": values.channel_order}
            given = Preprocessing.from_dict(content)
    except ValueError as error:
        raise ConfigError(f"{source} is invalid: {error} {example}") from error
    if any(side not in (None, own) for side, own in zip(fixed, given.size, strict=True)):
        needed = f"{_describe(fixed)} (height, width)"
        raise ConfigError(f"{source}: size is {list(given.size)}, but {path.name} takes {needed}. Correct it.")
    return given, output


def _digest(files: Sequence[Path], preprocessing: Preprocessing, output: str) -> str:
    content = [*(file.read_bytes() for file in files), json.dumps([preprocessing.as_dict(), output]).encode()]
    return hashlib.sha256(b"".join(content)).hexdigest()[:12]


def _describe(shape: Shape) -> str:
    return "[" + ", ".join("open" if side is None else str(side) for side in shape) + "]"
