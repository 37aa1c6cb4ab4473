"""Runs an exported bundle with NumPy and one runtime: no torch, no reid. Every bundle holds a copy of this as run.py.

    from run import Bundle                        # run.py of the bundle
    bundle = Bundle("person.bundle")
    features = bundle.embed(crops)                # uint8 [N, h, w, 3] RGB -> float32 [N, D], rows of length 1

`python person.bundle/run.py crops.npy features.npy` does the same for arrays in files.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "reid-bundle"
VERSION = 1
READERS = {"onnx": ("onnx", "openvino"), "openvino": ("openvino",), "torchscript": ("torch",)}
"""The runtimes that read a model, by its form."""

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
PART = 16
"""Crops that go through a network at a time, at most: larger parts gain nothing and take memory."""

Images = NDArray[np.uint8]
Network = Callable[[Images], NDArray[np.float32]]


class Bundle:
    """The model of a bundle as a function from crops to embeddings.

    Attributes:
        size: (h, w) in pixels, of the crops that it takes.
        dimension: D.
        model_id: of the model that was exported; equal ids mean comparable embeddings. An int8 model has its own.
        runtime: the one in use: "onnx" (onnxruntime), "openvino" or "torch".
        manifest: all of bundle.json: preprocessing, parity proof, speeds, the card.
    """

    error: type[ValueError] = ValueError

    def __init__(
        self, folder: str | Path | None = None, runtime: str = "auto", threads: int | None = None, device: str = "cpu"
    ) -> None:
        """Read the bundle, compare its digests, and pass its check crops through the network.

        Args:
            folder: the bundle; the folder of this file where left out.
            runtime: by name, or "auto": of those installed, the one that was fastest at export and passes the check.
            threads: of the runtime; every core that this process may use where left out. Torch keeps one number of
                threads for the whole process, and it is left alone where this is left out.
            device: "cpu"; "cuda" too for onnxruntime-gpu and torch.

        Raises:
            ValueError: not a bundle, one of a newer version, a file that was changed, no runtime for it, or embeddings
                of the check crops that are not those that the exported model gave.
        """
        self.folder = Path(__file__).resolve().parent if folder is None else Path(folder)
        self.manifest = self._read_manifest()
        self.size: tuple[int, int] = tuple(self.manifest["size"])
        self.dimension: int = self.manifest["dimension"]
        self.model_id: str = self.manifest["model"]
        self._compare_digests()
        if threads is not None and threads < 1:
            raise self.error(f"threads is {threads}: it must be 1 or more.")
        self._network, self.runtime = self._open(runtime, threads, device)

    def embed(self, images: Images) -> NDArray[np.float32]:
        """uint8 `[N, h, w, 3]` RGB -> float32 `[N, D]` of length 1, in order; `[0, D]` for no images.

        Raises:
            ValueError: another type or shape.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*self.size, 3):
            height, width = self.size
            raise self.error(
                f"{self.folder.name} takes uint8 [N, {height}, {width}, 3] in RGB, values 0..255; this is "
                f"{images.dtype} {list(images.shape)}. Resize crops to {height}×{width} (height × width) first."
            )
        if len(images) == 0:
            return np.zeros((0, self.dimension), np.float32)
        return self._network(np.ascontiguousarray(images))

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / "bundle.json"
        try:
            manifest = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise self.error(
                f"{self.folder} is not a bundle: it has no bundle.json. `reid export` writes one."
            ) from error
        except (OSError, ValueError) as error:
            raise self.error(f"{path} cannot be read: {error}. Copy or export the bundle anew.") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise self.error(f"{path} is not of a bundle ('format' is not {FORMAT!r}). Export the model anew.")
        if manifest.get("version", 0) > VERSION:
            raise self.error(f"{self.folder} is of version {manifest['version']}; this reads {VERSION}. Update reid.")
        absent = [
            key for key in ("model", "form", "file", "size", "dimension", "sha256", "check") if key not in manifest
        ]
        if absent or manifest["form"] not in READERS:
            raise self.error(f"{path} is damaged: {', '.join(absent) or 'form'} cannot be used. Export the model anew.")
        return manifest

    def _compare_digests(self) -> None:
        for name, expected in self.manifest["sha256"].items():
            path = self.folder / name
            if Path(name).name != name or not path.is_file():
                raise self.error(f"{self.folder} lacks {name}, which belongs to it. Copy the whole folder anew.")
            if digest(path) != expected:
                raise self.error(
                    f"{path} was changed after the export: its content has another digest than bundle.json says. "
                    "Copy the bundle anew."
                )

    def _open(self, runtime: str, threads: int | None, device: str) -> tuple[Network, str]:
        able = READERS[self.manifest["form"]]
        if runtime != "auto" and runtime not in able:
            raise self.error(
                f"Runtime {runtime!r} does not read {self.folder.name}, which holds {self.manifest['form']}; "
                f"{' or '.join(map(repr, able))} does."
            )
        proven = [name for name in self.manifest.get("runtimes", {}) if name in able]
        order = [*proven, *(name for name in able if name not in proven)] if runtime == "auto" else [runtime]
        refused = self.manifest.get("refused", {})
        failures = []
        for name in order:
            if not installed(name):
                continue
            try:
                if name in refused:
                    raise _RuntimeFailure(f"it was refused at export: {refused[name]}")
                network = open_network(self.folder / self.manifest["file"], name, threads, device)
                self._check(network, name)
                return network, name
            except _RuntimeFailure as failure:
                failures.append(f"{name}: {failure}")
        if failures:
            raise self.error(f"{self.folder} does not run as it was exported. {' '.join(failures)}")
        packages = " or ".join(f"pip install {PACKAGES[name]}" for name in order)
        raise self.error(f"{self.folder.name} needs a runtime that is not installed here: {packages}")

    def _check(self, network: Network, name: str) -> None:
        check = self.manifest["check"]
        with np.load(self.folder / check["file"], allow_pickle=False) as arrays:
            images, expected = arrays["images"], arrays["embeddings"]
        got = network(images)
        if got.shape != expected.shape or got.shape[1] != self.dimension:
            raise _RuntimeFailure(f"the check crops give {list(got.shape)}, not {list(expected.shape)}.")
        lowest = float((got * expected).sum(axis=1).min())
        if not lowest >= check["lowest_cosine"]:
            raise _RuntimeFailure(
                f"the check crops give other embeddings (cosine {lowest:.5f}, at least {check['lowest_cosine']} is "
                "asked): the order of channels or the range of values is wrong, or the runtime computes wrongly."
            )


class _RuntimeFailure(Exception):
    """One runtime that cannot be used; the next may."""


def installed(runtime: str) -> bool:
    """Whether the package of a runtime can be imported."""
    try:
        importlib.import_module(PACKAGES[runtime])
    except ImportError:
        return False
    return True


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def open_network(path: Path, runtime: str, threads: int | None, device: str = "cpu") -> Network:
    """A model file whose input is uint8 `[N, h, w, 3]`, as a function; N may be any from 1."""
    if device not in ("cpu", "cuda") or (runtime == "openvino" and device != "cpu"):
        raise _RuntimeFailure(f"it does not run on device {device!r} here.")
    opener = {"onnx": _open_onnx, "openvino": _open_openvino, "torch": _open_torch}[runtime]
    try:
        return opener(path, threads, device)
    except _RuntimeFailure:
        raise
    except Exception as error:  # every runtime raises kinds of its own
        words = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise _RuntimeFailure(f"{path.name} cannot be read ({words}).") from error


def _open_onnx(path: Path, threads: int | None, device: str) -> Network:
    import onnxruntime

    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        raise _RuntimeFailure("this onnxruntime has no CUDA: pip install onnxruntime-gpu, or take device cpu.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or _cores()
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    (name,) = (one.name for one in session.get_inputs())

    def run(images: Images) -> NDArray[np.float32]:
        parts = [session.run(None, {name: part})[0] for part in _parts(images, PART)]
        return np.concatenate(parts)

    return run


def _open_openvino(path: Path, threads: int | None, device: str) -> Network:
    """One stream a thread: each takes a part of its own, and none waits for another within a layer."""
    import openvino

    streams = threads or _cores()
    settings = {
        "INFERENCE_NUM_THREADS": streams,
        "NUM_STREAMS": str(streams),
        "INFERENCE_PRECISION_HINT": "f32",  # some CPUs would take bfloat16, which is not what was proven
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    queue = openvino.AsyncInferQueue(compiled, streams)

    def run(images: Images) -> NDArray[np.float32]:
        found: dict[int, NDArray[np.float32]] = {}

        def keep(request: Any, number: int) -> None:
            found[number] = request.get_output_tensor(0).data.copy()

        queue.set_callback(keep)
        for number, part in enumerate(_parts(images, min(PART, -(-len(images) // streams)))):
            queue.start_async([part], number)
        queue.wait_all()
        return np.concatenate([found[number] for number in range(len(found))])

    return run


def _open_torch(path: Path, threads: int | None, device: str) -> Network:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise _RuntimeFailure("torch sees no CUDA GPU here; take device cpu.")
    if threads:
        torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer torch says that TorchScript will be gone one day
        network = torch.jit.load(str(path), map_location=device).eval()

    def run(images: Images) -> NDArray[np.float32]:
        with torch.inference_mode():
            parts = [network(torch.from_numpy(part).to(device)).cpu().numpy() for part in _parts(images, PART)]
        return np.concatenate(parts)

    return run


def _parts(images: Images, size: int) -> list[Images]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    import sys

    if len(sys.argv) != 3:
        sys.exit("python run.py CROPS.npy FEATURES.npy   (uint8 [N, h, w, 3] RGB -> float32 [N, D])")
    try:
        np.save(sys.argv[2], Bundle().embed(np.load(sys.argv[1], allow_pickle=False)))
    except (OSError, ValueError) as failure:
        sys.exit(str(failure))
