"""Images in, one feature each out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import UNKNOWN
from reid.core.console import track, warn
from reid.core.distributed import pick_device
from reid.core.errors import ReidError, did_you_mean
from reid.data.crops import IMAGE_SUFFIXES, Crops
from reid.data.images import UnreadableImage, decode, resize
from reid.data.loader import ahead
from reid.data.store import FileStore, cores
from reid.data.videos import Video
from reid.embedding.runtimes import FORMATS, ForeignModel, open_bundle
from reid.embedding.shards import Batch, digest_of
from reid.embedding.table import Embeddings
from reid.models import BACKBONES, ReIDModel, build_model
from reid.models.preprocessing import Preprocessing

RUNTIMES = ("auto", "torch", "onnx", "openvino")
UNREADABLE = ("error", "skip")

Images: TypeAlias = Crops | NDArray[np.uint8] | str | Path | Sequence[str | Path] | Sequence[NDArray[np.uint8]]


class Embedder:
    """A trained model as a function from images to features.

    Args:
        model: a checkpoint of this package, the folder of a run (its best.pt, else its last.pt), a `ReIDModel`, an
            exported bundle, an `.onnx` file, the `.xml` of an OpenVINO model (see `ForeignModel`), or the name of a
            backbone (a key of `BACKBONES`, or "timm:NAME") with `weights`; a file or folder so called goes before it.
        device: "auto" (a CUDA GPU, under torchrun the one of this process; else an Apple one, else the CPU; a
            `ReIDModel` stays where it is), or a torch device by name, to which the model is moved. Bundles and files
            run on the CPU; with onnxruntime-gpu, and bundles of TorchScript, also on "cuda".
        runtime: "auto" (of a bundle the fastest that passes its check), or by name: "torch" for our own models, "onnx"
            (onnxruntime) or "openvino" for files and bundles.
        weights: of a backbone that was named: "imagenet", "none" (random ones, from seed 0), or a file of weights. Its
            embedding is the pooled last feature map, without a neck.
        preprocessing: of an ONNX or OpenVINO file, in place of the `NAME.reid.json` beside it.
        batch_size: images a forward pass; changes memory and speed, and nothing else beyond rounding.
        flip: average with the embedding of the mirrored image before normalising (of a bundle, whose output is
            normalised inside, after). Twice the work.
        threads: that decode images while the model works, and that the runtime of a file may use; 0 is one for each
            CPU. torch counts its own (`OMP_NUM_THREADS`).

    Attributes:
        device: the torch device it runs on.
        preprocessing: what is done to an image first.
        dimension: D.

    Raises:
        ReidError: unknown runtime, a device that is not there, a file that does not load, weights that cannot be had, a
            number out of range.
    """

    def __init__(
        self,
        model: str | Path | ReIDModel,
        device: str = "auto",
        runtime: str = "auto",
        *,
        weights: str | Path | None = None,
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
        batch_size: int = 64,
        flip: bool = False,
        threads: int = 0,
    ) -> None:
        if runtime not in RUNTIMES:
            raise ReidError(f"There is no runtime {runtime!r}.{did_you_mean(runtime, RUNTIMES)}")
        if batch_size < 1:
            raise ReidError(f"batch_size must be 1 or more; got {batch_size}.")
        if threads < 0:
            raise ReidError(f"threads must be 0 (one for each CPU) or more; got {threads}.")
        self.batch_size, self.flip, self.threads = batch_size, flip, threads
        self._what = str(model)
        if isinstance(model, ReIDModel) or not _is_file_of_others(Path(model)):
            if runtime not in ("auto", "torch"):
                raise ReidError(
                    f"Runtime {runtime!r} reads {' and '.join(FORMATS)} files and bundles; this model runs in torch."
                )
            if preprocessing is not None:
                raise ReidError("A model of this package brings its own preprocessing: give none.")
            self._network = _open_own(model, weights, device)
        else:
            _refuse_weights(weights)
            opener = _open_foreign if Path(model).suffix.lower() in FORMATS else _open_bundle
            self._network = opener(Path(model), device, runtime, preprocessing, threads)
        self.device = self._network.device
        self.preprocessing: Preprocessing = self._network.preprocessing
        self.dimension: int = self._network.dimension

    @property
    def model(self) -> ReIDModel:
        """The `ReIDModel`. Its mode does not matter: it is put in evaluation for each pass, and then back.

        Raises:
            ReidError: the features come from a file of another format, which holds none.
        """
        if self._network.own is None:
            raise ReidError(f"{self._what} is not a checkpoint of this package: name one, such as best.pt.")
        return self._network.own

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """Features of images, in their order.

        Files are decoded by threads while the model works; arrays are taken as they are. Images of any size: each is
        resized to the model's own, in the same way for files and arrays.

        Args:
            images: `Crops`; a folder (see `find_images`), or a list of paths of image files and such folders; uint8
                `[N, H, W, 3]` in RGB; or a list of uint8 `[H, W, 3]` in RGB, each of its own size.

        Returns:
            `[N, D]` float32, L2-normalised; `[0, D]` for no images.

        Raises:
            ReidError: an image that cannot be read (its path is named) or is not uint8 RGB (its number is named), a
                folder without images, a model whose output is not finite.
        """
        crops = list_files(images)
        if crops is not None:
            return self._of_files(crops, "error")[0]
        arrays = _checked(images)
        return self._collect(len(arrays), self._array_batches(arrays))[0]

    def table(self, images: Images, *, unreadable: str = "error") -> Embeddings:
        """The features with the columns that the images bring, and `meta` that says how they were made.

        Of `Crops`, cameras, tracks and frames that are unknown throughout are left out. Paths give the column
        `paths`; arrays give none. All of it is in memory: see `embed_to_parquet` for more than fits there. Arguments
        and errors as in a call, and:

        Args:
            unreadable: "error", or "skip" to leave out the files that will not decode; `meta["left_out"]` lists them
                with the reasons.
        """
        crops = list_files(images)
        meta = self.describe()
        if crops is None:
            return Embeddings(self(images), meta=meta)
        features, failed = self._of_files(crops, unreadable)
        if failed:
            meta["left_out"] = [f"{crops.paths[row]}: {reason}" for row, reason in failed.items()]
            kept = np.setdiff1d(np.arange(len(crops)), list(failed))
            crops, features = crops.take(kept), features[kept]
        if isinstance(images, Crops):
            return Embeddings.from_crops(features, crops, meta)
        return Embeddings(features, paths=crops.paths, meta=meta)

    def boxes(
        self, video: str | Path, frame: ArrayLike, boxes: ArrayLike, *, first_frame: int = 1
    ) -> NDArray[np.float32]:
        """Features of boxes in one video, in their order. See `reid.embedding.boxes` for many videos and a cache.

        Args:
            video: a video file.
            frame: `[N]` integers, in any order.
            boxes: `[N, 4]` x, y, width, height in pixels, as MOT text has them; clipped to the picture.
            first_frame: the number of the first picture.

        Returns:
            `[N, D]` float32, L2-normalised.

        Raises:
            ReidError: boxes that cannot be had (outside the picture, without area, of a frame after the end), by
                reason and row; columns of different lengths; a model whose output is not finite.
        """
        from reid.embedding.boxes import embed_boxes

        nobody, name = np.zeros(np.asarray(boxes).size // 4, np.int64), str(video)
        videos = {name: Video(Path(video))}
        done = embed_boxes(videos, [name], nobody, nobody, frame, boxes, self, first_frame=first_frame)
        if len(done.left_out):
            raise ReidError("; ".join(done.problems()) + ". Leave these boxes out.")
        return done.embeddings.features

    def describe(self) -> dict[str, Any]:
        """What `Embeddings.meta` says of features made here, as plain Python.

        `model` is the backbone's name and a digest of the weights that shape an embedding, so that equal ids mean
        comparable features, whatever the file was called. Of a file of another format it is the file's stem and a
        digest of its content and preprocessing. `preprocessing_hash` is a digest of `preprocessing`.
        """
        preprocessing = self.preprocessing.as_dict()
        return {
            "model": self._network.id,
            "preprocessing": preprocessing,
            "preprocessing_hash": digest_of(preprocessing)[:12],
            "dimension": self.dimension,
            "metric": "cosine",
            "normalised": True,
            "flip": self.flip,
        }

    def embed_batch(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of one batch, in one forward pass, without checks or progress.

        uint8 `[B, h, w, 3]` RGB of the size of `preprocessing` → float32 `[B, D]`, L2-normalised; NaN or infinite
        where the model is broken (see `check_finite`).
        """
        return self._network.embed(images, self.flip)

    def _of_files(self, crops: Crops, unreadable: str) -> tuple[NDArray[np.float32], dict[int, str]]:
        rows = np.arange(len(crops))
        check_files(crops, self.preprocessing.size, unreadable)
        grid = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        return self._collect(
            len(rows), file_batches(crops.paths, grid, self.preprocessing.size, unreadable, self.threads)
        )

    def _array_batches(self, arrays: Sequence[NDArray[np.uint8]]) -> Iterator[Batch]:
        for start in range(0, len(arrays), self.batch_size):
            rows = list(range(start, min(start + self.batch_size, len(arrays))))
            images = np.stack([resize(arrays[row], self.preprocessing.size) for row in rows])
            yield Batch(rows, images, [f"number {row}" for row in rows], {})

    def _collect(self, n: int, batches: Iterator[Batch]) -> tuple[NDArray[np.float32], dict[int, str]]:
        features = np.zeros((n, self.dimension), dtype=np.float32)
        failed: dict[int, str] = {}
        for batch, own in track(embed_batches(self, batches), "Embedding", total=-(-n // self.batch_size)):
            features[batch.rows] = own
            failed |= batch.failed
        return features, failed


def embed_batches(embedder: Embedder, batches: Iterator[Batch]) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
    """Each batch and the features of its images, the next ones made ahead by a thread while the model works.

    Raises:
        ReidError: a model whose output is not finite.
    """
    for batch in ahead(batches, 2):
        features = np.zeros((0, embedder.dimension), np.float32)
        if batch.rows:
            features = embedder.embed_batch(batch.images)
            check_finite(features, batch.names)
        yield batch, features


def file_batches(
    paths: Sequence[str] | NDArray[np.object_],
    grid: Iterable[NDArray[np.int64]],
    size: tuple[int, int],
    unreadable: str,
    threads: int = 0,
) -> Iterator[Batch]:
    """Image files, decoded by threads and resized to `size`; a batch for each array of rows in `grid`.

    Raises:
        ReidError: a file that does not decode, where `unreadable` is "error".
    """
    with ThreadPoolExecutor(threads or cores(), "reid-decode") as pool:
        for rows in grid:
            images = np.empty((len(rows), *size, 3), np.uint8)

            def one(place: int, rows: NDArray[np.int64] = rows, images: NDArray[np.uint8] = images) -> str:
                try:
                    images[place] = decode(paths[rows[place]], size)
                except UnreadableImage as error:
                    if unreadable == "error":
                        raise ReidError(f"{error}. Mend or remove it, or say unreadable 'skip'.") from error
                    return error.reason
                return ""

            reasons = list(pool.map(one, range(len(rows))))
            good = [place for place, reason in enumerate(reasons) if not reason]
            yield Batch(
                rows[good].tolist(),
                images[good] if len(good) < len(rows) else images,
                [str(paths[row]) for row in rows[good]],
                {int(row): reason for row, reason in zip(rows, reasons, strict=True) if reason},
            )


def check_files(crops: Crops, size: tuple[int, int], unreadable: str) -> None:
    """Where unreadable files are an error, look at the header and end of each before any work is done.

    Raises:
        ReidError: files that cannot be read, the first ten by name; `unreadable` is neither "error" nor "skip".
    """
    if unreadable not in UNREADABLE:
        raise ReidError(f"unreadable is {unreadable!r}; it must be one of {', '.join(map(repr, UNREADABLE))}.")
    if unreadable == "error":
        FileStore(crops, size=size)


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


def find_images(folder: str | Path) -> list[str]:
    """The image files under a folder and its subfolders, as absolute paths in sorted order.

    An image is what has one of the suffixes in `IMAGE_SUFFIXES`; hidden files are passed over, other files are counted
    aloud.

    Raises:
        ReidError: not a folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ReidError(f"{folder} is not a folder of images.")
    files = sorted(path for path in folder.absolute().rglob("*") if path.is_file() and not path.name.startswith("."))
    found = [str(path) for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise ReidError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}) among its {len(files)} files.")
    if len(found) < len(files):
        other = next(path for path in files if path.suffix.lower() not in IMAGE_SUFFIXES)
        warn(f"Not images, left out of {folder}: {len(files) - len(found)} of {len(files)} files, e.g. {other.name}.")
    return found


def list_files(images: Any) -> Crops | None:
    """Crops as they are, paths and folders as crops of nobody; None for arrays.

    Raises:
        ReidError: one path that is no folder where a list is asked; a folder without images.
    """
    if isinstance(images, Crops):
        return images
    if isinstance(images, str | Path):
        if not Path(images).is_dir():
            raise ReidError(f"{images} is not a folder. Of single files give a list of paths: [{str(images)!r}].")
        images = [images]
    if isinstance(images, np.ndarray) and images.dtype != object:
        return None
    if len(images) == 0 or not all(isinstance(image, str | Path) for image in images):
        return None
    paths = [path for image in images for path in (find_images(image) if Path(image).is_dir() else [str(image)])]
    return Crops.from_columns(paths, np.full(len(paths), UNKNOWN))


class _Network(NamedTuple):
    """What any kind of model is to an `Embedder`. `embed` takes uint8 `[B, h, w, 3]` RGB, and whether to flip."""

    id: str
    preprocessing: Preprocessing
    dimension: int
    device: torch.device
    embed: Callable[[NDArray[np.uint8], bool], NDArray[np.float32]]
    own: ReIDModel | None = None


def _is_file_of_others(path: Path) -> bool:
    return path.suffix.lower() in FORMATS or (path / "bundle.json").is_file()


def _open_foreign(path: Path, device: str, runtime: str, preprocessing: Any, threads: int) -> _Network:
    model = ForeignModel(path, preprocessing=preprocessing, device=device, runtime=runtime)

    def embed(images: NDArray[np.uint8], flip: bool) -> NDArray[np.float32]:
        return model.embed(torch.from_numpy(images), flip=flip).numpy()

    return _Network(model.name, model.preprocessing, model.embedding_size, model.device, embed)


def _open_bundle(path: Path, device: str, runtime: str, preprocessing: Any, threads: int) -> _Network:
    if preprocessing is not None:
        raise ReidError(f"{path} is a bundle and has its preprocessing inside: give none.")
    device = "cpu" if device == "auto" else device
    bundle = open_bundle(path, runtime, threads or None, device)

    def embed(images: NDArray[np.uint8], flip: bool) -> NDArray[np.float32]:
        features = bundle.embed(images)
        if not flip:
            return features
        both = torch.from_numpy(features + bundle.embed(images[:, :, ::-1]))
        return torch.nn.functional.normalize(both, eps=1e-12).numpy()

    preprocessing = Preprocessing(**bundle.manifest["preprocessing"])
    return _Network(bundle.model_id, preprocessing, bundle.dimension, torch.device(device), embed)


def _open_own(model: str | Path | ReIDModel, weights: str | Path | None, device: str) -> _Network:
    place = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if not isinstance(model, ReIDModel):
        own = _load(model, weights, place)
    else:
        _refuse_weights(weights)
        own = model if device == "auto" else model.to(place)
        place = next(own.parameters()).device

    def embed(images: NDArray[np.uint8], flip: bool) -> NDArray[np.float32]:
        return own.embed(torch.from_numpy(images), flip=flip).cpu().numpy()

    return _Network(_model_id(own), own.preprocessing, own.embedding_size, place, embed, own)


def _load(model: str | Path, weights: str | Path | None, place: torch.device) -> ReIDModel:
    from reid.models.checkpoints import checkpoint_in, load_model

    path = Path(model)
    if not path.exists() and (str(model) in BACKBONES or str(model).startswith("timm:")):
        if weights is None:
            raise ReidError(
                f"{model} is a backbone: say its weights, 'imagenet', a file, or 'none' for random ones. A trained "
                "model is a file, such as best.pt."
            )
        return build_model(str(model), weights=weights, neck="none").to(place).eval()
    _refuse_weights(weights)
    if path.name == str(model) and not path.suffix and not path.exists():
        raise ReidError(f"There is no file, folder or backbone {str(model)!r}.{did_you_mean(str(model), BACKBONES)}")
    return load_model(checkpoint_in(path), place)


def _refuse_weights(weights: str | Path | None) -> None:
    if weights is not None:
        raise ReidError(f"weights={weights} is for a backbone that is named, such as resnet50; this model has its own.")


def _model_id(model: ReIDModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not name.startswith("classifier."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"{model.spec['backbone']}-{digest.hexdigest()[:12]}"


def _checked(images: Any) -> list[NDArray[np.uint8]]:
    arrays = [np.asarray(image) for image in images]
    for number, array in enumerate(arrays):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            raise ReidError(
                f"Image {number} is {array.dtype} of shape {list(array.shape)}; an image is a uint8 array [H, W, 3] "
                "in RGB, 0..255. Several are a list of them, or one array [N, H, W, 3]. Or give paths alone."
            )
    return arrays
