"""Images in, one feature each out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.console import track
from reid.data.crops import UNKNOWN, Crops
from reid.data.images import resize
from reid.data.loader import read_batches
from reid.data.packed import FileStore, Store, without_unreadable
from reid.embedding.runtimes import FORMATS, ForeignModel
from reid.embedding.table import Embeddings
from reid.errors import ReidError, did_you_mean
from reid.models import ReIDModel
from reid.models.preprocessing import Preprocessing
from reid.training.distributed import pick_device

RUNTIMES = ("auto", "torch", "onnx", "openvino")

Images: TypeAlias = Crops | NDArray[np.uint8] | Sequence[str | Path] | Sequence[NDArray[np.uint8]]


class Embedder:
    """A trained model as a function from images to features.

    Args:
        model: a checkpoint of this package, the folder of a run (its best.pt, else its last.pt), a `ReIDModel`, an
            `.onnx` file, or the `.xml` of an OpenVINO model (see `ForeignModel`).
        device: "auto" (a CUDA GPU, else an Apple one, else the CPU; a `ReIDModel` stays where it is), or a torch
            device by name, to which the model is moved. ONNX and OpenVINO files run on the CPU; ONNX also on "cuda".
        runtime: "auto", or by name: "torch" for our own models, "onnx" (onnxruntime) or "openvino" for files.
        preprocessing: of an ONNX or OpenVINO file, in place of the `NAME.reid.json` beside it.

    Attributes:
        device: the torch device it runs on.
        preprocessing: what is done to an image first.
        dimension: D.

    Raises:
        ReidError: unknown runtime, a device that is not there, a file that does not load.
    """

    def __init__(
        self,
        model: str | Path | ReIDModel,
        device: str = "auto",
        runtime: str = "auto",
        *,
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    ) -> None:
        if runtime not in RUNTIMES:
            raise ReidError(f"There is no runtime {runtime!r}.{did_you_mean(runtime, RUNTIMES)}")
        self._model: ReIDModel | ForeignModel
        if not isinstance(model, ReIDModel) and Path(model).suffix.lower() in FORMATS:
            self._model = ForeignModel(model, preprocessing=preprocessing, device=device, runtime=runtime)
            self.device = self._model.device
        else:
            if runtime not in ("auto", "torch"):
                raise ReidError(f"Runtime {runtime!r} reads {' and '.join(FORMATS)} files; this model runs in torch.")
            if preprocessing is not None:
                raise ReidError("A model of this package brings its own preprocessing: give none.")
            self._model, self.device = _own_model(model, device)
        self.preprocessing: Preprocessing = self._model.preprocessing
        self.dimension: int = self._model.embedding_size

    @property
    def model(self) -> ReIDModel:
        """The `ReIDModel`. Its mode does not matter: it is put in evaluation for each pass, and then back.

        Raises:
            ReidError: the features come from an ONNX or OpenVINO file, which holds none.
        """
        if isinstance(self._model, ForeignModel):
            raise ReidError(f"{self._model.path} is not a checkpoint of this package: name one, such as best.pt.")
        return self._model

    def __call__(self, images: Images, *, flip: bool = False, batch_size: int = 64) -> NDArray[np.float32]:
        """Features of images, in their order.

        Files are decoded by threads while the model works; arrays are taken as they are. Images of any size: each is
        resized to the model's own, in the same way for files and arrays.

        Args:
            images: `Crops`; paths of image files; uint8 `[N, H, W, 3]` in RGB; or a list of uint8 `[H, W, 3]` in RGB,
                each of its own size.
            flip: average with the embedding of the mirrored image before normalising.
            batch_size: images a forward pass; changes memory and speed, and nothing else beyond rounding.

        Returns:
            `[N, D]` float32, L2-normalised; `[0, D]` for no images.

        Raises:
            ReidError: an image that cannot be read (its path is named) or is not uint8 RGB (its number is named), a
                model whose output is not finite, a batch size below 1.
        """
        _check_batch_size(batch_size)
        crops = _files(images)
        if crops is not None:
            store = FileStore(crops, size=self.preprocessing.size)
            return self._embed_files(crops, store, flip, batch_size)
        arrays = _checked(images)
        parts = (arrays[start : start + batch_size] for start in range(0, len(arrays), batch_size))
        size = self.preprocessing.size
        batches = (torch.from_numpy(np.stack([resize(array, size) for array in part])) for part in parts)
        return self._run([f"number {number}" for number in range(len(arrays))], batches, flip, batch_size)

    def table(
        self, images: Images, *, flip: bool = False, batch_size: int = 64, unreadable: str = "error"
    ) -> Embeddings:
        """The features with the columns that the images bring, and `meta` that says how they were made.

        Of `Crops`, cameras, tracks and frames that are unknown throughout are left out. Paths give the column
        `paths`; arrays give none. Arguments and errors as in a call, and:

        Args:
            unreadable: "error", or "skip" to leave out the files whose header shows that they will not decode;
                `meta["left_out"]` lists them with the reasons. A file that only fails later is still an error.
        """
        crops = _files(images)
        meta = self.describe(flip=flip)
        if crops is None:
            return Embeddings(self(images, flip=flip, batch_size=batch_size), meta=meta)
        _check_batch_size(batch_size)
        store: Store = FileStore(crops, size=self.preprocessing.size, unreadable=unreadable)
        if store.unreadable:
            meta["left_out"] = [f"{odd.path}: {odd.reason}" for odd in store.unreadable]
        crops, store = without_unreadable(crops, store)
        features = self._embed_files(crops, store, flip, batch_size)
        if isinstance(images, Crops):
            return Embeddings.of_crops(features, crops, meta)
        return Embeddings(features, paths=crops.paths, meta=meta)

    def describe(self, *, flip: bool = False) -> dict[str, Any]:
        """What `Embeddings.meta` says of features made here, as plain Python.

        `model` is the backbone's name and a digest of the weights that shape an embedding, so that equal ids mean
        comparable features, whatever the file was called. Of an ONNX or OpenVINO file it is the file's stem and a
        digest of its content and preprocessing.
        """
        model = self._model
        return {
            "model": model.name if isinstance(model, ForeignModel) else _model_id(model),
            "preprocessing": self.preprocessing.as_dict(),
            "dimension": self.dimension,
            "metric": "cosine",
            "normalised": True,
            "flip": flip,
        }

    def embed_batch(self, images: NDArray[np.uint8], *, flip: bool = False) -> NDArray[np.float32]:
        """Features of one batch, in one forward pass, without checks or progress.

        uint8 `[B, h, w, 3]` RGB of the size of `preprocessing` → float32 `[B, D]`, L2-normalised; NaN or
        infinite where the model is broken (see `check_finite`).
        """
        return self._model.embed(torch.from_numpy(images).to(self.device), flip=flip).cpu().numpy()

    def _embed_files(self, crops: Crops, store: Store, flip: bool, batch_size: int) -> NDArray[np.float32]:
        batches = read_batches(store, np.arange(len(crops)), batch_size)
        return self._run(crops.paths, batches, flip, batch_size)

    def _run(
        self, names: Sequence[str] | NDArray[np.object_], batches: Iterator[Tensor], flip: bool, batch_size: int
    ) -> NDArray[np.float32]:
        features = np.empty((len(names), self.dimension), dtype=np.float32)
        done = 0
        for batch in track(batches, "Embedding", total=-(-len(names) // batch_size)):
            rows = self._model.embed(batch.to(self.device), flip=flip)
            features[done : done + len(rows)] = rows.cpu().numpy()
            done += len(rows)
        check_finite(features, names)
        return features


def check_finite(features: NDArray[np.float32], names: Sequence[str] | NDArray[np.object_]) -> None:
    """Refuse NaN and infinity.

    Raises:
        ReidError: with the number of such features and the name of the first.
    """
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise ReidError(
            f"The model gives NaN or infinity for {len(bad)} of {len(features)} images, the first {names[bad[0]]}. "
            "Its weights are damaged, or its training diverged: use another checkpoint."
        )


def _own_model(model: str | Path | ReIDModel, device: str) -> tuple[ReIDModel, torch.device]:
    if isinstance(model, ReIDModel):
        place = next(model.parameters()).device if device == "auto" else pick_device(device)
        return model.to(place), place
    from reid.training.checkpoints import load_model

    place = pick_device(device)
    path = Path(model)
    if path.is_dir():
        inside = [path / name for name in ("best.pt", "last.pt") if (path / name).is_file()]
        path = inside[0] if inside else path
    return load_model(path, place), place


def _model_id(model: ReIDModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not name.startswith("classifier."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"{model.spec['backbone']}-{digest.hexdigest()[:12]}"


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ReidError(f"batch_size must be 1 or more; got {batch_size}.")


def _files(images: Images) -> Crops | None:
    """Crops as they are, paths as crops of nobody; None for arrays."""
    if isinstance(images, Crops):
        return images
    if isinstance(images, str | Path):
        raise ReidError(f"One path was given where a list of paths is asked: write [{str(images)!r}].")
    if isinstance(images, np.ndarray) and images.dtype != object:
        return None
    if len(images) == 0 or not all(isinstance(image, str | Path) for image in images):
        return None
    return Crops.of([str(image) for image in images], np.full(len(images), UNKNOWN))


def _checked(images: Any) -> list[NDArray[np.uint8]]:
    arrays = [np.asarray(image) for image in images]
    for number, array in enumerate(arrays):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            raise ReidError(
                f"Image {number} is {array.dtype} of shape {list(array.shape)}; an image is a uint8 array [H, W, 3] "
                "in RGB, 0..255. Several are a list of them, or one array [N, H, W, 3]. Or give paths alone."
            )
    return arrays
