"""Models of other file formats: bundles that `reid export` wrote, and other people's ONNX and OpenVINO files."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.core.errors import ReidError, did_you_mean
from reid.embedding.bundle import Bundle
from reid.models.preprocessing import Preprocessing

FORMATS = {".onnx": ("onnx", "openvino"), ".xml": ("openvino",)}
"""The runtimes that read a file, by its suffix, the preferred one first."""

_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
_SCALES = {"0-1": 1.0, "0-255": 255.0}
_KEYS = ("size", "mean", "std", "scale", "channel_order", "output")
_FLOATS: dict[str, type[np.floating[Any]]] = {
    "float": np.float32,
    "float16": np.float16,
    "f32": np.float32,
    "f16": np.float16,
}

Network = Callable[[NDArray[Any]], NDArray[Any]]


class _OwnBundle(Bundle):
    error = ReidError


def open_bundle(path: str | Path, runtime: str = "auto", threads: int | None = None, device: str = "cpu") -> Bundle:
    """Open what `reid export` wrote; see `Bundle` (reid/embedding/bundle.py), whose errors are `ReidError` here.

    The bundle's own run.py is not executed.
    """
    return _OwnBundle(Path(path), runtime, threads, device)


class ForeignModel:
    """An ONNX or OpenVINO file as a function from images to embeddings.

    The network takes one float input `[B, 3, H, W]`; B and, H and W may each be fixed or open. It gives `[B, D]`, or
    `[B, D, 1, 1]`. A fixed B is filled up with black images.

    Attributes:
        preprocessing: how images must come in; always in the values 0..1 of `Preprocessing`.
        embedding_size: D.
        output_number: of the output that is taken, from 0.
        name: the file's stem and a digest of its content, of the preprocessing and of the output chosen: equal names
            mean comparable embeddings.
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
            path: `.onnx`, or OpenVINO's `.xml` with its `.bin` beside it.
            preprocessing: a `Preprocessing`, or the mapping that is otherwise read from `NAME.reid.json` beside the
                file. Keys: `size` [height, width] (may be left out where the file fixes it), `mean` and `std` of the
                channels, `scale` "0-1" or "0-255" (the values that mean and std are of, and the network is fed:
                (x − mean) / std), `channel_order` "rgb" or "bgr" (of the network's input, and of mean and std), and
                `output`, the name of the one to take, where there are several.
            device: "auto", "cpu", or "cuda" (onnxruntime-gpu).
            runtime: "onnx", "openvino", or "auto", the first installed one that reads the file.

        Raises:
            ReidError: no such file, a runtime that is not installed, a file that the runtime refuses, inputs or outputs
                of another kind than told above, no preprocessing or one that does not fit.
        """
        path = Path(path)
        if not path.is_file():
            raise ReidError(f"There is no model file {path}.")
        runtime = _pick(path, runtime)
        self.path, self.runtime = path, runtime
        open_file = _open_onnx if runtime == "onnx" else _open_openvino
        inputs, outputs, load = open_file(path, device)
        if len(inputs) != 1:
            raise ReidError(f"{path} has {len(inputs)} inputs ({', '.join(inputs)}): an embedder has one, the images.")
        (kind, shape), *_ = inputs.values()
        if kind not in _FLOATS or len(shape) != 4 or shape[1] not in (3, None):
            raise ReidError(
                f"{path} takes {kind} {_in_words(shape)}: an embedder takes float32 or float16 [B, 3, H, W]. "
                "Convert it to channels-first floats."
            )
        self._dtype: type[np.floating[Any]] = _FLOATS[kind]
        self._batch = shape[0]
        fixed = (shape[2], shape[3])
        self.preprocessing, chosen = _preprocessing(path, preprocessing, fixed)
        output = _output(path, list(outputs), chosen)
        self.output_number = list(outputs).index(output)
        self._network: Network = load(output)
        self.device = torch.device("cuda" if device.startswith("cuda") else "cpu")
        self.name = f"{path.stem}-{_digest(path, self.preprocessing, output)}"
        self.embedding_size = self._pass(np.zeros((1, 3, *self.preprocessing.size), self._dtype)).shape[1]

    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        """uint8 `[B, H, W, 3]` RGB → float32 `[B, D]` of length 1, as `ReIDModel.embed` does."""
        x = self.preprocessing(images.cpu()).contiguous().numpy().astype(self._dtype, copy=False)
        embeddings = self._pass(x)
        if flip:
            embeddings = np.float32(0.5) * (embeddings + self._pass(x[..., ::-1]))
        return torch.nn.functional.normalize(torch.from_numpy(embeddings), eps=1e-12)

    def _pass(self, x: NDArray[Any]) -> NDArray[np.float32]:
        size = self._batch or len(x)
        parts = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            rows = len(part)
            if self._batch and rows < size:
                part = np.concatenate([part, np.zeros((size - rows, *part.shape[1:]), part.dtype)])
            got = self._network(np.ascontiguousarray(part)).astype(np.float32)
            if got.ndim < 2 or len(got) != len(part) or got[0].size != got.shape[1]:
                raise ReidError(
                    f"{self.path} gives {list(got.shape)} for {len(part)} images: an embedder gives [B, D]. "
                    'Name the right output: "output" in the preprocessing.'
                )
            parts.append(got.reshape(len(part), -1)[:rows].copy())
        return np.concatenate(parts)


def _pick(path: Path, runtime: str) -> str:
    if path.suffix.lower() not in FORMATS:
        raise ReidError(f"{path}: the suffixes of model files are {', '.join(FORMATS)}.")
    able = FORMATS[path.suffix.lower()]
    if runtime != "auto" and runtime not in able:
        raise ReidError(f"Runtime {runtime!r} does not read {path.name}; {' or '.join(map(repr, able))} does.")
    wanted = able if runtime == "auto" else (runtime,)
    for name in wanted:
        if _module(name) is not None:
            return name
    raise ReidError(f"{path.name} needs {_PACKAGES[wanted[0]]}: pip install {_PACKAGES[wanted[0]]}")


def _module(runtime: str) -> Any:
    try:
        return importlib.import_module(_PACKAGES[runtime])
    except ImportError:
        return None


Inputs = dict[str, tuple[str, list[int | None]]]


def _open_onnx(path: Path, device: str) -> tuple[Inputs, list[str], Callable[[str], Network]]:
    runtime = _module("onnx")
    providers = {"auto": "CPUExecutionProvider", "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    provider = providers.get(device)
    if provider is None:
        raise ReidError(f"device {device!r}: an ONNX file runs on {', '.join(providers)}.")
    if provider not in runtime.get_available_providers():
        raise ReidError("This onnxruntime has no CUDA: pip install onnxruntime-gpu, or take device cpu.")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime raises kinds of its own
        raise _refused(path, "onnxruntime", error) from error

    def kind(text: str) -> str:
        return text.removeprefix("tensor(").removesuffix(")")

    inputs: Inputs = {
        one.name: (kind(one.type), [side if isinstance(side, int) and side > 0 else None for side in one.shape])
        for one in session.get_inputs()
    }
    (name, *_) = inputs

    def load(output: str) -> Network:
        return lambda x: session.run([output], {name: x})[0]

    return inputs, [one.name for one in session.get_outputs()], load


def _open_openvino(path: Path, device: str) -> tuple[Inputs, list[str], Callable[[str], Network]]:
    runtime = _module("openvino")
    if device not in ("auto", "cpu"):
        raise ReidError(f"device {device!r}: an OpenVINO file runs on the CPU here; take device auto or cpu.")
    weights = path.with_suffix(".bin")
    if path.suffix.lower() == ".xml" and not weights.is_file():
        raise ReidError(f"{path} needs its weights beside it: there is no {weights.name}.")
    core = runtime.Core()
    try:
        model = core.read_model(path)
        compiled = core.compile_model(model, "CPU")
    except Exception as error:  # OpenVINO raises kinds of its own
        raise _refused(path, "OpenVINO", error) from error
    inputs: Inputs = {
        _name(one, number): (
            one.element_type.get_type_name(),
            [side.get_length() if side.is_static else None for side in one.partial_shape],
        )
        for number, one in enumerate(model.inputs)
    }
    outputs = {_name(one, number): one for number, one in enumerate(compiled.outputs)}

    def load(output: str) -> Network:
        return lambda x: compiled([x])[outputs[output]]

    return inputs, list(outputs), load


def _name(port: Any, number: int) -> str:
    return min(port.get_names(), default=f"number {number}")


def _refused(path: Path, runtime: str, error: Exception) -> ReidError:
    words = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return ReidError(f"{path} cannot be read by {runtime} ({words}). It is damaged, or of a newer format.")


def _preprocessing(
    path: Path, given: Preprocessing | Mapping[str, Any] | None, fixed: tuple[int | None, int | None]
) -> tuple[Preprocessing, str | None]:
    """The preprocessing, and the output's name where it is said."""
    where = "preprocessing"
    if given is None:
        sidecar = path.with_suffix(".reid.json")
        where = str(sidecar)
        if not sidecar.is_file():
            raise ReidError(
                f"How must images come into {path.name}? The file does not say. Write {sidecar} as its maker trained "
                f"it, or give preprocessing. An example:\n{_example(fixed)}"
            )
        try:
            given = json.loads(sidecar.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ReidError(f"{sidecar} cannot be read as JSON: {error}. An example:\n{_example(fixed)}") from error
    if isinstance(given, Preprocessing):
        preprocessing, output = given, None
    else:
        if not isinstance(given, Mapping):
            raise ReidError(f"{where} must be a mapping of keys and values. An example:\n{_example(fixed)}")
        preprocessing, output = _of_mapping(where, given, fixed)
    if any(side not in (None, own) for side, own in zip(fixed, preprocessing.size, strict=True)):
        raise ReidError(
            f"{where}: size is {list(preprocessing.size)}, but {path.name} takes "
            f"{_in_words(list(fixed))} (height, width). Leave size out, or correct it."
        )
    return preprocessing, output


def _of_mapping(
    where: str, given: Mapping[str, Any], fixed: tuple[int | None, int | None]
) -> tuple[Preprocessing, str | None]:
    for key in given:
        if key not in _KEYS:
            raise ReidError(f"{where}: there is no key {key!r}.{did_you_mean(str(key), _KEYS)}")
    needed = ["mean", "std", "scale", "channel_order"] + (["size"] if None in fixed else [])
    absent = [key for key in needed if key not in given]
    if absent:
        raise ReidError(f"{where} does not say {', '.join(absent)}. An example:\n{_example(fixed)}")
    if given["scale"] not in _SCALES:
        raise ReidError(f'{where}: scale is {given["scale"]!r}: it must be "0-1" or "0-255".')
    unit = _SCALES[given["scale"]]
    try:
        mean, std = (tuple(float(value) / unit for value in given[key]) for key in ("mean", "std"))
        preprocessing = Preprocessing.from_dict(
            {"size": given.get("size", fixed), "mean": mean, "std": std, "channel_order": given["channel_order"]}
        )
    except (TypeError, ValueError) as error:
        raise ReidError(f"{where}: {error}") from error
    return preprocessing, given.get("output")


def _example(fixed: tuple[int | None, int | None]) -> str:
    size = [fixed[0] or 256, fixed[1] or 128]
    example = {
        "size": size,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "scale": "0-1",
        "channel_order": "rgb",
    }
    return json.dumps(example)


def _output(path: Path, names: list[str], chosen: str | None) -> str:
    if chosen is None:
        if len(names) == 1:
            return names[0]
        raise ReidError(f'{path} has {len(names)} outputs: say which with "output". They are {", ".join(names)}.')
    if chosen not in names:
        raise ReidError(f"{path} has no output {chosen!r}.{did_you_mean(str(chosen), names)}")
    return chosen


def _digest(path: Path, preprocessing: Preprocessing, output: str) -> str:
    digest = hashlib.sha256()
    weights = path.with_suffix(".bin")
    for part in (path, weights) if path.suffix.lower() == ".xml" else (path,):
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    digest.update(json.dumps([preprocessing.as_dict(), output]).encode())
    return digest.hexdigest()[:12]


def _in_words(shape: list[int | None]) -> str:
    return "[" + ", ".join("open" if side is None else str(side) for side in shape) + "]"
