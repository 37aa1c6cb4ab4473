"""Batches of images for a model: image files found and decoded, arrays resized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reid.core.arrays import UNKNOWN
from reid.core.console import warn
from reid.core.errors import DataError, check_choice
from reid.core.storage import MissingObject, is_remote, read_object
from reid.core.workers import available_cores
from reid.data.crops import IMAGE_SUFFIXES, Crops
from reid.data.images import UnreadableImage, cut_out, decode, decode_bytes, resize
from reid.data.listing import find_files, summarise
from reid.data.store import FileStore

Images: TypeAlias = Crops | NDArray[np.uint8] | str | Path | Sequence[str | Path] | Sequence[NDArray[np.uint8]]


class ImageBatch(NamedTuple):
    """Images of the size that the model takes.

    Attributes:
        rows: row number of each of the B images.
        images: uint8 `[B, h, w, 3]` RGB.
        names: of the images, for error messages.
        failed: rows without an image, and the reason.
        columns: other values of the images, B each.
    """

    rows: list[int]
    images: NDArray[np.uint8]
    names: list[str]
    failed: dict[int, str]
    columns: Mapping[str, pa.Array] = {}


EmbeddedBatch: TypeAlias = tuple[ImageBatch, NDArray[np.float32]]
"""A batch and the features `[B, D]` of its images."""


def file_batches(
    paths: NDArray[np.object_],
    batches: Iterable[NDArray[np.int64]],
    size: tuple[int, int],
    unreadable: str,
    threads: int = 0,
    pixels: NDArray[np.int64] | None = None,
) -> Iterator[ImageBatch]:
    """Decode image files with several threads and resize them to `size`.

    Args:
        paths: `[N]` image files, or addresses such as `s3://bucket/a.jpg`.
        batches: the rows of each batch.
        size: height and width in pixels.
        unreadable: "error", or "skip" to report files that cannot be decoded in `ImageBatch.failed`.
        threads: number of threads; 0 uses one for each CPU.
        pixels: `[N, 4]` left, top, right, bottom to cut out of the images; None for whole images.

    Raises:
        DataError: a file cannot be decoded, or a box is outside of its image, and `unreadable` is "error"; or object
            storage refuses access.
    """

    def load(row: int) -> NDArray[np.uint8] | str:
        path = paths[row]
        try:
            image = decode_bytes(read_object(path), path) if is_remote(path) else decode(path)
            crop = image if pixels is None else cut_out(image, pixels[row])
            if not crop.size:
                raise UnreadableImage(path, "the box is outside of the image")
            return resize(crop, size)
        except (UnreadableImage, MissingObject) as error:
            if unreadable == "error":
                text = str(error).removesuffix(".")
                raise DataError(f"{text}. Repair or remove it, or pass unreadable='skip'.") from error
            return error.reason if isinstance(error, UnreadableImage) else "does not exist"

    with ThreadPoolExecutor(threads or available_cores(), "reid-decode") as pool:
        for rows in batches:
            loaded = dict(zip(rows.tolist(), pool.map(load, rows.tolist()), strict=True))
            images = {row: image for row, image in loaded.items() if not isinstance(image, str)}
            yield ImageBatch(
                list(images),
                np.stack(list(images.values())) if images else np.zeros((0, *size, 3), np.uint8),
                [str(paths[row]) for row in images],
                {row: reason for row, reason in loaded.items() if isinstance(reason, str)},
            )


def open_images(
    images: Any, batch_size: int, size: tuple[int, int], unreadable: str, threads: int = 0
) -> tuple[Crops | None, int, Iterator[ImageBatch]]:
    """Return the crops (see `list_files`), the number of images, and their batches.

    Args:
        images: as in a call of `Embedder`.
        batch_size: images in a batch.
        size: height and width to resize to, in pixels.
        unreadable: "error", or "skip" to report files that cannot be decoded in `ImageBatch.failed`.
        threads: number of threads that decode files; 0 uses one for each CPU.

    Raises:
        ConfigError, DataError: as `check_files` and `list_files`, or an image that is not uint8 `[H, W, 3]`.
    """
    crops = list_files(images)
    if crops is not None:
        check_files(crops, size, unreadable)
        rows = np.split(np.arange(len(crops)), range(batch_size, len(crops), batch_size))
        return crops, len(crops), file_batches(crops.paths, rows, size, unreadable, threads)
    arrays = [np.asarray(image) for image in images]
    for number, array in enumerate(arrays):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            given = f"Image {number} is {array.dtype} of shape {list(array.shape)}"
            raise DataError(f"{given}. Pass uint8 RGB [N, H, W, 3], a list of uint8 [H, W, 3], or only paths.")
    return None, len(arrays), _array_batches(arrays, batch_size, size)


def _array_batches(arrays: list[NDArray[np.uint8]], batch_size: int, size: tuple[int, int]) -> Iterator[ImageBatch]:
    for start in range(0, len(arrays), batch_size):
        rows = list(range(start, min(start + batch_size, len(arrays))))
        images = np.stack([resize(arrays[row], size) for row in rows])
        yield ImageBatch(rows, images, [f"number {row}" for row in rows], {})


def check_files(crops: Crops, size: tuple[int, int], unreadable: str) -> None:
    """Check the header and the end of each file before embedding starts, if unreadable files are an error.

    Raises:
        ConfigError: `unreadable` is neither "error" nor "skip".
        DataError: files that cannot be read; lists the first ten.
    """
    check_choice("value of unreadable", unreadable, ("error", "skip"))
    if unreadable == "error":
        FileStore(crops, size=size)


def find_images(folder: str | Path) -> list[str]:
    """Return the image files in a folder and its subfolders, as absolute paths in sorted order.

    A file is an image if its suffix is in `IMAGE_SUFFIXES`. Links to files and folders are followed; a folder is read
    once, even if several links lead to it. Hidden files and folders are ignored. Everything else that is passed over
    is counted and named in a warning.

    Raises:
        DataError: not a folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder of images.")
    found, skipped = find_files(folder, IMAGE_SUFFIXES)
    if not found:
        content = f" It contains {summarise(skipped)}." if skipped else ""
        raise DataError(f"{folder} contains no image ({', '.join(IMAGE_SUFFIXES)}).{content} Pass a folder of images.")
    if skipped:
        number = f"{len(skipped)} of {len(found) + len(skipped)}"
        warn(f"{folder}: {number} entries were passed over: {summarise(skipped)}.")
    return found


def list_files(images: Any) -> Crops | None:
    """Return `Crops` unchanged, and paths and folders as crops of unknown identity; None for arrays.

    Raises:
        DataError: a single path that is not a folder, or a folder without images.
    """
    if isinstance(images, Crops):
        return images
    if isinstance(images, str | Path):
        if not Path(images).is_dir():
            raise DataError(f"{images} is not a folder. Pass single files as a list of paths: [{str(images)!r}].")
        images = [images]
    if isinstance(images, np.ndarray) and images.dtype != object:
        return None
    if len(images) == 0 or not all(isinstance(image, str | Path) for image in images):
        return None
    paths = [path for image in images for path in (find_images(image) if Path(image).is_dir() else [str(image)])]
    return Crops.from_columns(paths, np.full(len(paths), UNKNOWN))
