"""Images in, one feature each out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from reid.console import track
from reid.data.crops import UNKNOWN, Crops
from reid.data.images import resize
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
        if batch_size < 1:
            raise ReidError(f"batch_size must be 1 or more; got {batch_size}.")
        names, batches = self._batches(images, batch_size)
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

    def table(self, images: Images, *, flip: bool = False, batch_size: int = 64) -> Embeddings:
        """The features with the columns that the images bring, and `meta` that says how they were made.

        Of `Crops`, cameras, tracks and frames that are unknown throughout are left out. Paths give the column
        `paths`; arrays give none. Arguments and errors as in a call.
        """
        features = self(images, flip=flip, batch_size=batch_size)
        meta = self.describe(flip=flip)
        if isinstance(images, Crops):
            return Embeddings.of_crops(features, images, meta)
        return Embeddings(features, paths=images if _are_paths(images) else None, meta=meta)

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

    def _batches(self, images: Images, batch_size: int) -> tuple[Sequence[str], Iterator[torch.Tensor]]:
        """What to call each image in an error, and the uint8 `[B, h, w, 3]` batches."""
        size = self.model.preprocessing.size
        if isinstance(images, str | Path):
            raise ReidError(f"One path was given where a list of paths is asked: write [{str(images)!r}].")
        if isinstance(images, Crops) or _are_paths(images):
            from reid.data.loader import read_batches
            from reid.data.packed import open_store

            if not isinstance(images, Crops):
                images = Crops.of([str(path) for path in images], np.full(len(images), UNKNOWN))
            store = open_store(images, kind="files", size=size, folder=None)
            return images.paths.tolist(), read_batches(store, np.arange(len(images)), batch_size)
        arrays = [np.asarray(image) for image in images]
        for number, array in enumerate(arrays):
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
                raise ReidError(
                    f"Image {number} is {array.dtype} of shape {list(array.shape)}; an image is a uint8 array "
                    "[H, W, 3] in RGB, 0..255. Several are a list of them, or one array [N, H, W, 3]."
                )
        names = [f"number {number}" for number in range(len(arrays))]
        return names, (
            torch.from_numpy(np.stack([resize(image, size) for image in arrays[start : start + batch_size]]))
            for start in range(0, len(arrays), batch_size)
        )


def _are_paths(images: Any) -> bool:
    return len(images) > 0 and isinstance(images[0], str | Path)
