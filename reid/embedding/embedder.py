"""Images in, one feature each out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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
from reid.embedding.table import Embeddings
from reid.errors import ReidError, did_you_mean
from reid.models import ReIDModel
from reid.training.distributed import pick_device

RUNTIMES = ("auto", "torch")

Images: TypeAlias = Crops | NDArray[np.uint8] | Sequence[str | Path] | Sequence[NDArray[np.uint8]]


class Embedder:
    """A trained model as a function from images to features.

    Args:
        model: a checkpoint of this package, or a `ReIDModel`.
        device: "auto" (a CUDA GPU, else an Apple one, else the CPU; a `ReIDModel` stays where it is), or a torch
            device by name, to which the model is moved.
        runtime: "torch", or "auto", which is the same.

    Attributes:
        model: the `ReIDModel`. Its mode does not matter: it is put in evaluation for each pass, and then back.
        device: the torch device it runs on.

    Raises:
        ReidError: unknown runtime, a device that is not there, a checkpoint that does not load.
    """

    def __init__(self, model: str | Path | ReIDModel, device: str = "auto", runtime: str = "auto") -> None:
        if runtime not in RUNTIMES:
            raise ReidError(f"There is no runtime {runtime!r}.{did_you_mean(runtime, RUNTIMES)}")
        if isinstance(model, ReIDModel):
            self.device = next(model.parameters()).device if device == "auto" else pick_device(device)
            self.model = model.to(self.device)
        else:
            from reid.training.checkpoints import load_model

            self.device = pick_device(device)
            self.model = load_model(model, self.device)

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
            store = FileStore(crops, size=self.model.preprocessing.size)
            return self._embed_files(crops, store, flip, batch_size)
        arrays = _checked(images)
        parts = (arrays[start : start + batch_size] for start in range(0, len(arrays), batch_size))
        size = self.model.preprocessing.size
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
        store: Store = FileStore(crops, size=self.model.preprocessing.size, unreadable=unreadable)
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
        comparable features, whatever the file was called.
        """
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            if not name.startswith("classifier."):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return {
            "model": f"{self.model.spec['backbone']}-{digest.hexdigest()[:12]}",
            "preprocessing": self.model.preprocessing.as_dict(),
            "dimension": self.model.embedding_size,
            "metric": "cosine",
            "normalised": True,
            "flip": flip,
        }

    def _embed_files(self, crops: Crops, store: Store, flip: bool, batch_size: int) -> NDArray[np.float32]:
        batches = read_batches(store, np.arange(len(crops)), batch_size)
        return self._run(crops.paths, batches, flip, batch_size)

    def _run(
        self, names: Sequence[str] | NDArray[np.object_], batches: Iterator[Tensor], flip: bool, batch_size: int
    ) -> NDArray[np.float32]:
        features = np.empty((len(names), self.model.embedding_size), dtype=np.float32)
        done = 0
        for batch in track(batches, "Embedding", total=-(-len(names) // batch_size)):
            rows = self.model.embed(batch.to(self.device), flip=flip)
            features[done : done + len(rows)] = rows.cpu().numpy()
            done += len(rows)
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            raise ReidError(
                f"The model gives NaN or infinity for {len(bad)} of {len(features)} images, the first {names[bad[0]]}. "
                "Its weights are damaged, or its training diverged: use another checkpoint."
            )
        return features


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
