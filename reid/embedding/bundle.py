"""Run an exported bundle with NumPy and one runtime. Needs neither torch nor reid; each bundle has a copy as run.py.

    from run import Bundle                        # run.py of the bundle
    bundle = Bundle("person.bundle")
    features = bundle.embed(crops)                # uint8 [N, h, w, 3] RGB -> float32 [N, D], L2-normalised

`python person.bundle/run.py crops.npy features.npy` does the same with files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FORMAT = "reid-bundle"
VERSION = 1
READERS = {"onnx": ("onnx", "openvino"), "openvino": ("openvino",), "torchscript": ("torch",)}
"""Runtimes that read a model, by its form."""

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
"""Package of each runtime."""

MAX_BATCH = 16
"""Most crops in a forward pass. Larger batches need more memory and are not faster."""

Images = NDArray[np.uint8]
Network = Callable[[Images], NDArray[np.float32]]
Result = TypeVar("Result")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


FIELDS: dict[str, Callable[[Any], bool]] = {
    "model": _is_text,
    "form": lambda value: _is_text(value) and value in READERS,
    "file": _is_text,
    "size": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)),
    "dimension": _is_count,
    "preprocessing": lambda value: isinstance(value, dict),
    "sha256": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    "check": lambda value: (
        isinstance(value, dict)
        and _is_text(value.get("file"))
        and type(value.get("lowest_cosine")) is float
        and 0 < value["lowest_cosine"] <= 1
    ),
    "runtimes": lambda value: isinstance(value, dict),
    "refused": lambda value: isinstance(value, dict),
}
"""Test of each field of bundle.json that is read."""


class Bundle:
    """The model of a bundle as a function from crops to embeddings.

    Attributes:
        size: height and width of the crops, in pixels.
        dimension: D.
        model_id: identifies the exported model. Embeddings of models with the same id can be compared. An int8 model
            has another id than its float model.
        runtime: "onnx" (onnxruntime), "openvino" or "torch".
        manifest: the content of bundle.json: preprocessing, parity proof, speeds, versions.
    """

    error: type[ValueError] = ValueError

    def __init__(
        self,
        folder: str | Path | None = None,
        runtime: str = "auto",
        threads: int | None = None,
        device: str = "cpu",
        *,
        trust: bool = False,
    ) -> None:
        """Read the bundle, compare its digests, and pass its check crops through the network.

        Args:
            folder: the bundle; by default the folder of this file.
            runtime: name of a runtime, or "auto" for the installed one that was fastest at export and passes the check.
            threads: threads of the runtime; by default one for each core that this process may use. torch has one
                number of threads for the whole process; it is only changed if `threads` is given.
            device: "cpu", or "cuda" or "cuda:N" for onnxruntime-gpu and torch.
            trust: whether TorchScript, which can execute any code when it is loaded, may be loaded.

        Raises:
            ValueError: not a bundle, a newer version, a field of bundle.json that is missing or invalid, a file that
                was changed, has no digest or is outside the folder, TorchScript without `trust`, no runtime, or check
                crops whose embeddings differ from those of the exported model.
        """
        self.folder = Path(__file__).resolve().parent if folder is None else Path(folder)
        self.manifest = self._read_manifest()
        self.size: tuple[int, int] = tuple(self.manifest["size"])
        self.dimension: int = self.manifest["dimension"]
        self.model_id: str = self.manifest["model"]
        self._compare_digests()
        if self.manifest["form"] == "torchscript" and not trust:
            raise self.error(
                f"{self.folder} contains TorchScript, which can execute any code when it is loaded. If you trust its "
                "source, pass trust=True (Embedder: runtime='torchscript'; command line: --trust); otherwise use an "
                "ONNX or OpenVINO bundle."
            )
        if threads is not None and threads < 1:
            raise self.error(f"threads is {threads}; it must be 1 or more.")
        self._network, self.runtime = self._open(runtime, threads, device)

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return embeddings float32 `[N, D]`, L2-normalised, of uint8 `[N, h, w, 3]` RGB; `[0, D]` without images.

        Raises:
            ValueError: another type or shape.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*self.size, 3):
            needed = f"uint8 [N, {self.size[0]}, {self.size[1]}, 3] in RGB, values 0..255"
            raise self.error(f"{self.folder.name} takes {needed}; this is {images.dtype} {list(images.shape)}.")
        if len(images) == 0:
            return np.zeros((0, self.dimension), np.float32)
        return self._network(np.ascontiguousarray(images))

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / "bundle.json"
        try:
            manifest = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise self.error(f"{self.folder} is not a bundle: it has no bundle.json.") from error
        except (OSError, ValueError, RecursionError) as error:
            raise self.error(f"{path} cannot be read: {error}. Copy or export the bundle again.") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise self.error(
                f"{path} does not belong to a bundle ('format' is not {FORMAT!r}). Export the model again."
            )
        version = manifest.get("version")
        if type(version) is int and version > VERSION:
            raise self.error(f"{self.folder} has version {version}; this reads {VERSION}. Update reid.")
        invalid = [name for name, is_valid in FIELDS.items() if not is_valid(manifest.get(name))]
        if type(version) is not int or invalid:
            damage = ", ".join(f"{name} is {manifest.get(name, 'missing')!r:.60}" for name in invalid or ["version"])
            raise self.error(f"{path} is damaged: {damage}. Export the model again.")
        return manifest

    def _compare_digests(self) -> None:
        """Compare every file that is read with its digest: the network, its weights and the check crops."""
        digests, model = self.manifest["sha256"], self.manifest["file"]
        weights = [model.removesuffix(".xml") + ".bin"] if self.manifest["form"] == "openvino" else []
        for name in [model, *weights, self.manifest["check"]["file"], *digests]:
            path = self.folder / name
            if Path(name).name != name or name == "..":
                raise self.error(
                    f"{self.folder} refers to {name}, which is outside the folder. Do not use this bundle."
                )
            if not path.is_file():
                raise self.error(f"{self.folder} lacks its file {name}. Copy the whole folder again.")
            if name not in digests:
                raise self.error(f"{self.folder} has no SHA-256 of its file {name}. Export the model again.")
            if digest(path) != digests[name]:
                raise self.error(f"{path} was changed after the export (SHA-256 differs). Copy the bundle again.")
        if unknown := set(external_data(self.folder / model)) - digests.keys():
            raise self.error(
                f"{model} in {self.folder} reads {unknown}, which have no SHA-256. Export the model again."
            )

    def _open(self, runtime: str, threads: int | None, device: str) -> tuple[Network, str]:
        readers = READERS[self.manifest["form"]]
        if runtime != "auto" and runtime not in readers:
            raise self.error(f"Runtime {runtime!r} does not read {self.folder.name}. Use {' or '.join(readers)}.")
        proven = [name for name in self.manifest.get("runtimes", {}) if name in readers]
        order = [*proven, *(name for name in readers if name not in proven)] if runtime == "auto" else [runtime]
        refused = self.manifest.get("refused", {})
        failures = []
        for name in order:
            if not installed(name):
                continue
            try:
                if name in refused:
                    raise RuntimeFailure(f"it was refused at export: {refused[name]}")
                network = open_network(self.folder / self.manifest["file"], name, threads, device)
                self._check(network)
                return network, name
            except RuntimeFailure as failure:
                failures.append(f"{name}: {failure}")
        if failures:
            raise self.error(f"{self.folder} does not run as it was exported. {' '.join(failures)}")
        packages = " or ".join(f"pip install {PACKAGES[name]}" for name in order)
        raise self.error(f"{self.folder.name} needs a runtime that is not installed. Run: {packages}")

    def _check(self, network: Network) -> None:
        check = self.manifest["check"]
        try:
            with np.load(self.folder / check["file"], allow_pickle=False) as arrays:
                images, expected = arrays["images"], arrays["embeddings"]
        except Exception as error:  # NumPy and zipfile raise errors of many types
            raise RuntimeFailure(f"{check['file']} cannot be read ({type(error).__name__}).") from error
        result = network(images)
        if result.shape != expected.shape or result.shape[1] != self.dimension:
            raise RuntimeFailure(f"the check crops give {list(result.shape)}, not {list(expected.shape)}.")
        lowest = float((result * expected).sum(axis=1).min())
        if not lowest >= check["lowest_cosine"]:
            raise RuntimeFailure(
                f"the check crops give other embeddings (cosine {lowest:.5f}, required {check['lowest_cosine']}): "
                "the channel order or the value range is wrong, or the runtime computes wrongly."
            )


class RuntimeFailure(Exception):
    """Reason why one runtime cannot be used. Another may work."""


def installed(runtime: str) -> bool:
    """Return whether the package of a runtime is installed."""
    return importlib.util.find_spec(PACKAGES[runtime]) is not None


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_device(runtime: str, device: str) -> None:
    """Raise `RuntimeFailure` unless the runtime supports the device."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device) or (runtime == "openvino" and device != "cpu"):
        raise RuntimeFailure(f"it does not run on device {device!r} here. Use device 'cpu'.")


def open_network(path: Path, runtime: str, threads: int | None, device: str = "cpu") -> Network:
    """Open a model file whose input is uint8 `[N, h, w, 3]`, with any N of 1 or more."""
    check_device(runtime, device)
    try:
        return {"onnx": _open_onnx, "openvino": _open_openvino, "torch": _open_torch}[runtime](path, threads, device)
    except RuntimeFailure:
        raise
    except Exception as error:  # each runtime has its own exceptions
        text = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise RuntimeFailure(f"{path.name} cannot be read ({text}).") from error


def onnx_session(path: Path, threads: int, device: str) -> Any:
    """Open an ONNX file with onnxruntime; 0 threads uses its default."""
    import onnxruntime

    kind, _, number = device.partition(":")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[kind]
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeFailure("this onnxruntime has no CUDA. Install onnxruntime-gpu, or use device 'cpu'.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    chosen = (provider, {"device_id": number} if number else {})
    return onnxruntime.InferenceSession(str(path), options, providers=[chosen])


def on_own_thread(compute: Callable[[], Result]) -> Result:
    """Return what `compute` returns, called on a thread that ends with the call.

    Everything that compiles with OpenVINO must run this way. OpenVINO's CPU plugin gives the thread that loads it a
    signal stack and unmaps that stack with the plugin, but detaches it from the thread only under conditions that
    garbage collection violates. The next signal on such a thread (Ctrl-C, SIGTERM) ends the process with SIGSEGV.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(compute).result()


def compile_openvino(model: Any, settings: Mapping[str, Any] | None = None) -> Any:
    """Compile a network, or the file of one, with OpenVINO for the CPU. All networks are compiled here.

    They run in float32: processors with bfloat16 would use it, with features that differ by 2e-3.
    """
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    return on_own_thread(lambda: openvino.Core().compile_model(model, "CPU", {**hint, **(settings or {})}))


def external_data(path: Path) -> list[str]:
    """Return the files, relative to its folder, in which an ONNX file stores tensors; nothing for other formats."""
    content = path.read_bytes() if path.suffix.lower() == ".onnx" else b""
    entries = re.finditer(rb"\n\x08location\x12([\x01-\x7f])", content)  # protobuf: a key, and a value of this length
    return sorted({content[one.end() : one.end() + one[1][0]].decode(errors="replace") for one in entries})


def _open_onnx(path: Path, threads: int | None, device: str) -> Network:
    session = onnx_session(path, threads or _cores(), device)
    (name,) = (one.name for one in session.get_inputs())

    return _in_batches(lambda batch: session.run(None, {name: batch})[0])


def _open_openvino(path: Path, threads: int | None, device: str) -> Network:
    """Use one stream for each thread. Each processes its own batches, without waiting for others within a layer."""
    import openvino

    streams = threads or _cores()
    settings = {"INFERENCE_NUM_THREADS": streams, "NUM_STREAMS": str(streams)}
    compiled = compile_openvino(str(path), settings)
    queue = openvino.AsyncInferQueue(compiled, streams)

    def run(images: Images) -> NDArray[np.float32]:
        found: dict[int, NDArray[np.float32]] = {}

        def keep(request: Any, number: int) -> None:
            found[number] = request.get_output_tensor(0).data.copy()

        queue.set_callback(keep)
        for number, batch in enumerate(_split(images, min(MAX_BATCH, -(-len(images) // streams)))):
            queue.start_async([batch], number)
        queue.wait_all()
        return np.concatenate([found[number] for number in range(len(found))])

    return run


def _open_torch(path: Path, threads: int | None, device: str) -> Network:
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise RuntimeFailure("torch finds no CUDA GPU. Use device 'cpu'.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer torch deprecates TorchScript
        network = torch.jit.load(str(path), map_location=device).eval()

    def run(batch: Images) -> NDArray[np.float32]:
        before = torch.get_num_threads()  # of the process; the last bit of other results depends on it
        torch.set_num_threads(threads or before)
        try:
            with torch.inference_mode():
                return network(torch.from_numpy(batch).to(device)).cpu().numpy()
        finally:
            torch.set_num_threads(before)

    return _in_batches(run)


def _in_batches(network: Network) -> Network:
    return lambda images: np.concatenate([network(batch) for batch in _split(images, MAX_BATCH)])


def _split(images: Images, size: int) -> list[Images]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    import sys

    if len(sys.argv) != 3:  # who executes this file trusts the bundle
        sys.exit("Usage: python run.py CROPS.npy FEATURES.npy   (uint8 [N, h, w, 3] RGB -> float32 [N, D])")
    try:
        np.save(sys.argv[2], Bundle(trust=True).embed(np.load(sys.argv[1], allow_pickle=False)))
    except (OSError, ValueError) as failure:
        sys.exit(str(failure))
