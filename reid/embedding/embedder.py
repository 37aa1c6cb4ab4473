"""`Embedder`: from images to features with any kind of model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from reid.core.console import track
from reid.core.distributed import pick_device
from reid.core.errors import ConfigError, DataError, ModelError, check_choice, check_number, did_you_mean
from reid.core.prefetch import prefetch
from reid.data.crops import Crops
from reid.embedding.batches import EmbeddedBatch, ImageBatch, Images, open_images
from reid.embedding.bundle import installed
from reid.embedding.runtimes import FORMATS, ForeignModel, open_bundle
from reid.embedding.shards import json_digest
from reid.embedding.table import Embeddings, known_columns, known_names
from reid.models import BACKBONES, ReIDModel, build_model, import_model
from reid.models.checkpoints import checkpoint_in, load_model
from reid.models.preprocessing import Preprocessing
from reid.models.zoo import fetch_model, find_model, is_published, read_table

_HAS_PREPROCESSING = "This model contains its preprocessing. Remove the argument preprocessing."
Detections = TypeVar("Detections", bound=Any)
RUNTIMES = ("auto", "torch", "torchscript", "onnx", "openvino")


class Embedder:
    """Turn images into features with a trained model.

    Args:
        model: a checkpoint, the folder of a run (its best.pt, else its last.pt), a `ReIDModel`, an exported bundle, an
            `.onnx` file, the `.xml` file of an OpenVINO model (see `ForeignModel`), the name of a published model such
            as "intel-0287" (`reid model list --pretrained`), which is downloaded once, or the name of a backbone (a key
            of `BACKBONES`, or "timm:NAME") together with `weights`. A file or folder with that name takes precedence.
        device: "auto" or the name of a torch device, such as "cuda:1". "auto" uses a CUDA GPU (under torchrun the one
            of this process), else an Apple GPU, else the CPU; a `ReIDModel` stays on its device. Bundles and files run
            on "cpu"; with onnxruntime-gpu and as TorchScript also on GPUs.
        runtime: "auto", "torch" (checkpoints), "onnx" (onnxruntime) or "openvino". For a bundle, "auto" is the fastest
            one that passes its check. "torchscript" consents to open a bundle of TorchScript, which can execute any
            code when it is loaded; any other model opens as with "auto".
        weights: of a backbone given by name: "imagenet", "none" (random, seed 0) or a file. The feature is the pooled
            last feature map, without a neck.
        preprocessing: of an ONNX or OpenVINO file; replaces the file `NAME.reid.json`.
        batch_size: images in a forward pass. It affects memory and speed, and features only by rounding.
        flip: average with the embedding of the mirrored image before normalisation (for a bundle, which normalises
            its output, after it). Takes twice the time.
        threads: threads that decode images while the model works, and of the runtime of a bundle; 0 uses one for each
            CPU. torch has its own setting (`OMP_NUM_THREADS`).

    Attributes:
        device: the torch device of the model.
        preprocessing: how images are prepared.
        dimension: D.

    Raises:
        ConfigError: an unknown runtime or device, a number out of range, or arguments that do not fit the model.
        ModelError: a file that cannot be loaded, or weights that are not available.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from reid.models import build_model
        >>> from reid.models.checkpoints import save_checkpoint
        >>> checkpoint = tempfile.mkdtemp() + "/best.pt"
        >>> save_checkpoint(checkpoint, build_model("light10", height=64, width=32))
        >>> embedder = Embedder(checkpoint, device="cpu")
        >>> embedder(np.zeros((2, 128, 64, 3), dtype=np.uint8)).shape  # two RGB crops
        (2, 256)
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
        check_choice("runtime", runtime, RUNTIMES)
        trust, runtime = runtime == "torchscript", "auto" if runtime == "torchscript" else runtime
        check_number("batch_size", batch_size, 1)
        check_number("threads (0: one for each CPU)", threads)
        self.batch_size, self.flip, self.threads = batch_size, flip, threads
        self._name = str(model)
        if not isinstance(model, ReIDModel) and is_published(model):
            model, preprocessing = _open_published(str(model), weights, preprocessing)
        network: ReIDModel | ForeignModel | _BundleModel
        is_foreign = not isinstance(model, ReIDModel) and Path(model).suffix.lower() in FORMATS
        if preprocessing is not None and not is_foreign:
            raise ConfigError(_HAS_PREPROCESSING)
        if isinstance(model, ReIDModel) or not (is_foreign or (Path(model) / "bundle.json").is_file()):
            if runtime not in ("auto", "torch"):
                raise ConfigError(
                    f"Runtime {runtime!r} reads {' and '.join(FORMATS)} files and bundles, but this model runs in "
                    "torch. Export it with `reid model export`, or use runtime 'auto'."
                )
            network = _open_reid_model(model, weights, device)
            self._id, self.device = _model_id(network), next(network.parameters()).device
        else:
            _check_unused(weights)
            network = (
                ForeignModel(model, preprocessing=preprocessing, device=device, runtime=runtime)
                if is_foreign
                else _BundleModel(Path(model), device, runtime, threads, trust)
            )
            self._id, self.device = network.name, network.device
        self._network = network
        self.preprocessing: Preprocessing = network.preprocessing
        self.dimension: int = network.embedding_size

    @property
    def model(self) -> ReIDModel:
        """The `ReIDModel`. It is put in evaluation mode for each pass, and then back in its own mode.

        Raises:
            ModelError: the features come from a bundle or a file of another format.
        """
        if not isinstance(self._network, ReIDModel):
            raise ModelError(f"{self._name} is not a checkpoint of this package. Use a checkpoint, such as best.pt.")
        return self._network

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """Return the features of images, in their order.

        Files are decoded by threads while the model works. Images can have any size; files and arrays are resized to
        the model's input size in the same way.

        Args:
            images: `Crops`; a folder (see `find_images`) or a list of image files and folders; uint8 `[N, H, W, 3]` in
                RGB; or a list of uint8 `[H, W, 3]` in RGB of different sizes.

        Returns:
            `[N, D]` float32, L2-normalised; `[0, D]` without images.

        Raises:
            DataError: an image that cannot be read (gives its path) or is not uint8 RGB (gives its number), or a
                folder without images.
            ModelError: the output of the model is not finite.
        """
        return self.table(images).features

    def table(self, images: Images, *, unreadable: str = "error") -> Embeddings:
        """Return the features with the columns of the images, and with `describe()` as `meta`.

        `Crops` give their identities, paths, and the cameras, tracks and frames that are known. Paths give `paths`;
        arrays give no column. Everything is in memory; see `embed_to_parquet` for larger sets.

        Args:
            images: as in a call.
            unreadable: "error", or "skip" to leave out files that cannot be decoded; `meta["left_out"]` lists them
                with the reasons.

        Raises:
            DataError, ModelError: as in a call.
        """
        meta, size = self.describe(), self.preprocessing.size
        crops, n, batches = open_images(images, self.batch_size, size, unreadable, self.threads)
        features, failed = np.zeros((n, self.dimension), np.float32), dict[int, str]()
        for batch, rows in track(self.embed_batches(batches), "Embedding", total=-(-n // self.batch_size)):
            features[batch.rows] = rows
            failed |= batch.failed
        if crops is None:
            return Embeddings(features, meta=meta)
        if failed:
            meta["left_out"] = [f"{crops.paths[row]}: {reason}" for row, reason in failed.items()]
            kept = np.setdiff1d(np.arange(n), list(failed))
            crops, features = crops.take(kept), features[kept]
        labelled = isinstance(images, Crops)
        meta |= known_names(crops, labelled=labelled)
        return Embeddings(features, **known_columns(crops, labelled=labelled), meta=meta)

    def embed_detections(
        self, frame: NDArray[np.uint8], detections: Detections, *, channel_order: str = "bgr"
    ) -> Detections:
        """Return supervision's `Detections` of a frame with the features of their boxes in `data["embedding"]`.

        A box is rounded to whole pixels and clipped to the frame. The features `[N, D]` are float32, L2-normalised, and
        NaN for a box without a pixel in the frame. Everything else in `detections` is kept; the argument is unchanged.

        Args:
            frame: uint8 `[H, W, 3]`.
            detections: an `sv.Detections`: any dataclass with `xyxy [N, 4]` in pixels and a dict `data`.
            channel_order: of the frame: "bgr" (OpenCV and supervision) or "rgb".

        Raises:
            ConfigError: another `channel_order`.
            DataError: a frame of another type, or boxes that are not finite.
            ModelError: the output of the model is not finite.

        Example:
            >>> import numpy as np
            >>> import supervision as sv
            >>> from reid import Embedder
            >>> embedder = Embedder("light10", weights="none", device="cpu")
            >>> frame = np.zeros((120, 160, 3), dtype=np.uint8)
            >>> found = sv.Detections(xyxy=np.array([[10, 20, 40, 100], [50, 20, 80, 100]]))
            >>> embedder.embed_detections(frame, found).data["embedding"].shape
            (2, 256)
        """
        check_choice("channel_order", channel_order, ("bgr", "rgb"))
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise DataError(f"The frame must be uint8 [H, W, 3]; this one is {frame.dtype} {list(frame.shape)}.")
        boxes = np.asarray(detections.xyxy, np.float64).reshape(-1, 4)
        if not np.isfinite(boxes).all():
            row = int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0])
            raise DataError(f"Box {row} of the detections is {boxes[row].tolist()}. Remove boxes that are not finite.")
        height, width = frame.shape[:2]
        x1, y1, x2, y2 = np.clip(np.rint(boxes), 0, [width, height, width, height]).astype(np.int64).T
        rows = np.flatnonzero((x2 > x1) & (y2 > y1))
        image = frame[:, :, ::-1] if channel_order == "bgr" else frame
        features = np.full((len(boxes), self.dimension), np.nan, np.float32)
        if len(rows):
            features[rows] = self([np.ascontiguousarray(image[y1[i] : y2[i], x1[i] : x2[i]]) for i in rows])
        return replace(detections, data={**detections.data, "embedding": features})

    def describe(self) -> dict[str, Any]:
        """Return `Embeddings.meta` for features of this model, as plain Python.

        `model` identifies the weights: features with the same id can be compared. It is the name of the backbone with
        a digest of the weights that affect an embedding, or the stem of a file with a digest of its content and
        preprocessing. `preprocessing_hash` is a digest of `preprocessing`.
        """
        preprocessing = self.preprocessing.as_dict()
        return {
            "model": self._id,
            "preprocessing": preprocessing,
            "preprocessing_hash": json_digest(preprocessing)[:12],
            "dimension": self.dimension,
            "metric": "cosine",
            "normalised": True,
            "flip": self.flip,
        }

    def embed_batch(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the features of one batch, in one forward pass, without checks or progress.

        uint8 `[B, h, w, 3]` RGB of the size of `preprocessing` → float32 `[B, D]`, L2-normalised. The result contains
        NaN or infinity if the weights are damaged.
        """
        return self._network.embed(torch.from_numpy(images), flip=self.flip).cpu().numpy()

    def embed_batches(self, batches: Iterator[ImageBatch]) -> Iterator[EmbeddedBatch]:
        """Yield each batch with its features. A thread prepares the next batches while the model works.

        Raises:
            ModelError: the output of the model is not finite.
        """
        for batch in prefetch(batches, 2):
            features = np.zeros((0, self.dimension), np.float32)
            if batch.rows:
                features = self.embed_batch(batch.images)
                bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
                if len(bad):
                    images = f"{len(bad)} of {len(features)} images, the first {batch.names[bad[0]]}"
                    raise ModelError(f"The model gives NaN or infinity for {images}. Use another checkpoint.")
            yield batch, features


class _BundleModel:
    """A bundle with the attributes and the `embed` of a `ForeignModel`."""

    def __init__(self, path: Path, device: str, runtime: str, threads: int, trust: bool) -> None:
        device = "cpu" if device == "auto" else device
        self._bundle = open_bundle(path, runtime, threads or None, device, trust=trust)
        self.preprocessing = Preprocessing.from_dict(self._bundle.manifest["preprocessing"], f"{path}/bundle.json")
        if self.preprocessing.size != self._bundle.size:
            size = list(self.preprocessing.size)
            raise ModelError(f"{path}/bundle.json is damaged: size and preprocessing.size {size} differ. Export again.")
        self.name, self.embedding_size = self._bundle.model_id, self._bundle.dimension
        self.device = torch.device(device)

    def embed(self, images: Tensor, *, flip: bool) -> Tensor:
        features = self._bundle.embed(images.numpy())
        if not flip:
            return torch.from_numpy(features)
        both = torch.from_numpy(features + self._bundle.embed(images.numpy()[:, :, ::-1]))
        return functional.normalize(both, eps=1e-12)


def _open_published(
    name: str, weights: str | Path | None, preprocessing: Preprocessing | Mapping[str, Any] | None
) -> tuple[Path | ReIDModel, Mapping[str, Any] | None]:
    """Return the file of a published model with its preprocessing, or the model of a checkpoint."""
    row = find_model(name, "embedder")
    _check_unused(weights)
    if preprocessing is not None:
        raise ConfigError(_HAS_PREPROCESSING)
    if row.format == "openvino" and not installed("openvino"):
        raise ModelError(f"{name} needs OpenVINO. Run: pip install 'reid-toolkit[openvino]'")
    path = fetch_model(name)
    if row.format == "torchreid":
        return import_model(path, size=row.input["size"])[0], None
    return path, row.preprocessing


def _open_reid_model(given: str | Path | ReIDModel, weights: str | Path | None, device: str) -> ReIDModel:
    target = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if isinstance(given, ReIDModel):
        _check_unused(weights)
        return given if device == "auto" else given.to(target)
    name, path = str(given), Path(given)
    if not path.exists() and (name in BACKBONES or name.startswith("timm:")):
        if weights is None:
            raise ConfigError(
                f"{name} is a backbone. Pass its weights: 'imagenet', a file, or 'none' for random ones. For a trained "
                "model pass its file, such as best.pt."
            )
        return build_model(name, weights=weights, neck="none").to(target).eval()
    _check_unused(weights)
    known = [*BACKBONES, *(row.name for row in read_table().values() if row.kind == "embedder")]
    if path.name == name and not path.suffix and not path.exists():
        raise ModelError(f"There is no file, folder, backbone or published model {name!r}.{did_you_mean(name, known)}")
    return load_model(checkpoint_in(path), target)


def _check_unused(weights: str | Path | None) -> None:
    if weights is not None:
        raise ConfigError(
            f"weights={weights} is only used with the name of a backbone, such as resnet50; this model contains its "
            "weights. Remove the argument weights."
        )


def _model_id(model: ReIDModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not name.startswith("classifier."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"{model.spec['backbone']}-{digest.hexdigest()[:12]}"
