"""`Crops`: images of persons as columns, and `Benchmark`: a data set divided into train, query and gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import UNKNOWN, integer_column, text_column
from reid.core.errors import DataError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, compared in lower case."""

SPLITS = ("train", "query", "gallery")
"""Names of the splits of a `Benchmark`."""

_COLUMNS = ("paths", "pids", "camids", "tracks", "frames", "sources")


def as_rows(index: ArrayLike) -> NDArray[np.int64] | NDArray[np.bool_]:
    """Return row numbers or a boolean mask as an array that can index columns; an empty list selects no rows."""
    rows = np.asarray(index)
    return rows if rows.dtype == np.bool_ or rows.size else rows.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Crops:
    """`N` images, each of one person (or object), as columns of length `N`.

    Attributes:
        paths: `[N]` str objects, absolute file paths.
        pids: `[N]` int64, identity numbers of the data set (0 is a distractor in Market-1501).
        camids: `[N]` int64, camera numbers of the data set; `UNKNOWN` (-1) where unknown.
        tracks: `[N]` int64, tracklet or sequence; -1 where unknown.
        frames: `[N]` int64, frame number in the camera's video; -1 where unknown.
        sources: `[N]` int64, index into `source_names`: the data set that the row comes from.
        source_names: names of the data sets.
        names: for columns (`pids`, `camids`, `tracks`) whose numbers replace texts: the text of number 0, 1, …

    Example:
        >>> crops = Crops.from_columns(["a.jpg", "b.jpg", "c.jpg"], pids=[7, 7, 9], camids=[1, 2, 1])
        >>> crops.take(crops.pids == 7).paths.tolist()
        ['a.jpg', 'b.jpg']
        >>> crops.labels()[0].tolist()
        [0, 0, 1]
    """

    paths: NDArray[np.object_]
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]
    tracks: NDArray[np.int64]
    frames: NDArray[np.int64]
    sources: NDArray[np.int64]
    source_names: tuple[str, ...] = ("",)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def from_columns(
        cls,
        paths: Sequence[str | Path],
        pids: ArrayLike,
        camids: ArrayLike | None = None,
        tracks: ArrayLike | None = None,
        frames: ArrayLike | None = None,
        source: str = "",
        names: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Crops:
        """Create crops of one source. A column that is None is `UNKNOWN` for all rows.

        Raises:
            DataError: a column whose length differs from the number of paths, or that does not contain integers.
        """
        n = len(paths)
        columns = {"pids": pids, "camids": camids, "tracks": tracks, "frames": frames}
        integers = {
            name: np.full(n, UNKNOWN) if values is None else integer_column(f"Crops.{name}", values, n)
            for name, values in columns.items()
        }
        sources = np.zeros(n, np.int64)
        return cls(
            text_column("Crops.paths", paths), **integers, sources=sources, source_names=(source,), names=names or {}
        )

    def __len__(self) -> int:
        """The number of crops."""
        return len(self.paths)

    def take(self, index: ArrayLike) -> Crops:
        """Return the rows of an index array or boolean mask, in that order."""
        rows = as_rows(index)
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})

    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return training labels `[N]`, counted from 0 in sorted order of pid, and the pid of each label `[C]`."""
        pid_of_label, labels = np.unique(self.pids, return_inverse=True)
        return labels.reshape(-1).astype(np.int64), pid_of_label

    def camera_name(self, camid: int) -> str:
        """Return the text of a camera, or its number if cameras have none or it is unknown (-1)."""
        texts = self.names.get("camids")
        return str(camid) if texts is None or camid < 0 else texts[camid]

    @property
    def has_cameras(self) -> bool:
        """Whether any camera is known."""
        return bool((self.camids != UNKNOWN).any())


def merge(parts: Sequence[Crops]) -> Crops:
    """Concatenate several data sets. Identities and cameras are renumbered so that no number occurs in two of them.

    One part is returned unchanged. The first part keeps its numbers; the pids of part `i` are shifted by one more than
    the largest pid before it, and known cameras in the same way. Tracks and frames keep their numbers: they count
    within a camera, or within a source that has none.

    Raises:
        DataError: no parts, or a negative pid (junk cannot be trained on).

    Example:
        >>> both = merge([Crops.from_columns(["a.jpg"], [5]), Crops.from_columns(["b.jpg"], [5])])
        >>> both.pids.tolist()
        [5, 11]
    """
    if not parts:
        raise DataError("No data set to merge. Pass at least one.")
    for part in parts:
        if (part.pids < 0).any():
            raise DataError(
                f"{', '.join(part.source_names)}: {int((part.pids < 0).sum())} crops have a negative pid, which marks "
                "junk. Remove these crops; training needs identities from 0 on."
            )
    if len(parts) == 1:
        return parts[0]
    shifted = []
    next_pid = next_cam = 0
    names: list[str] = []
    for part in parts:
        moved = replace(
            part,
            pids=part.pids + next_pid,
            camids=np.where(part.camids != UNKNOWN, part.camids + next_cam, UNKNOWN),
            sources=part.sources + len(names),
        )
        next_pid = int(moved.pids.max(initial=next_pid - 1)) + 1
        next_cam = int(moved.camids.max(initial=next_cam - 1)) + 1
        names.extend(part.source_names)
        shifted.append(moved)
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in shifted]) for name in _COLUMNS}
    return Crops(**joined, source_names=tuple(names))


@dataclass(frozen=True)
class SkippedFile:
    """A file that was not read as an image of the data set, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A data set with its protocol: train on `train`, rank `gallery` for every `query`.

    Attributes:
        name: of the layout, or of the table; "synthetic" for synthetic data.
        root: folder of the data set.
        train, query, gallery: without junk (pid -1).
        cross_camera: whether gallery images of the query's identity and camera are excluded, as the person
            re-identification protocol requires; False for sets without cameras.
        n_junk: images with pid -1 that were dropped.
        n_distractors: gallery images with pid 0 where the layout uses it for distractors.
        skipped: files that were not read as images of the set.
        warnings: problems to know about, such as counts that differ from the official ones.
        official: published counts by name ("train images", "train ids", ..., "junk", "distractors"); empty if none.

    Example:
        >>> train = Crops.from_columns(["a.jpg", "b.jpg"], pids=[0, 0], camids=[1, 2])
        >>> empty = Crops.from_columns([], [])
        >>> Benchmark("mine", "/data", train, empty, empty).cross_camera
        True
    """

    name: str
    root: str
    train: Crops
    query: Crops
    gallery: Crops
    cross_camera: bool = True
    n_junk: int = 0
    n_distractors: int = 0
    skipped: tuple[SkippedFile, ...] = ()
    warnings: tuple[str, ...] = ()
    official: Mapping[str, int] = field(default_factory=dict)
