"""Crops as columns, and a benchmark as three of them. No object per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import ReidError

UNKNOWN = -1
"""Stands in `camids`, `tracks` and `frames` where the data set does not tell."""


@dataclass(frozen=True, eq=False)
class Crops:
    """`N` images of one person (or object) each, in columns of length `N`.

    Attributes:
        paths: `[N]` str objects, absolute file paths.
        pids: `[N]` int64, identity as the data set numbers it (0 is Market's distractor).
        camids: `[N]` int64, camera as the data set numbers it; `UNKNOWN` (-1) without cameras.
        tracks: `[N]` int64, tracklet or sequence; -1 where unknown.
        frames: `[N]` int64, frame within the camera's video; -1 where unknown.
        sources: `[N]` int64, index into `source_names`; which data set a row came from.
        source_names: one name a source.
    """

    paths: NDArray[np.object_]
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]
    tracks: NDArray[np.int64]
    frames: NDArray[np.int64]
    sources: NDArray[np.int64]
    source_names: tuple[str, ...] = ("",)

    @classmethod
    def from_columns(
        cls,
        paths: Sequence[str | Path],
        pids: ArrayLike,
        camids: ArrayLike | None = None,
        tracks: ArrayLike | None = None,
        frames: ArrayLike | None = None,
        source: str = "",
    ) -> Crops:
        """Make crops of one source; a column left out is `UNKNOWN` throughout.

        Raises:
            ReidError: a column's length differs from the number of paths, or it does not hold integers.
        """
        n = len(paths)

        def column(name: str, values: ArrayLike | None) -> NDArray[np.int64]:
            array = np.full(n, UNKNOWN) if values is None else np.asarray(values)
            if array.shape != (n,):
                raise ReidError(f"Column {name!r} has shape {array.shape}, but there are {n} paths.")
            if n and array.dtype.kind not in "iu":
                words = f"{array.dtype}, such as {array[0]!r}"
                raise ReidError(f"Column {name!r} holds {words}; it must hold whole numbers.")
            return array.astype(np.int64)

        names = np.empty(n, dtype=object)
        names[:] = [str(path) for path in paths]
        return cls(
            names,
            column("pids", pids),
            column("camids", camids),
            column("tracks", tracks),
            column("frames", frames),
            np.zeros(n, dtype=np.int64),
            (source,),
        )

    def __len__(self) -> int:
        """The number of crops."""
        return len(self.paths)

    def take(self, index: ArrayLike) -> Crops:
        """The rows of an index array or boolean mask, in that order."""
        index = np.asarray(index)
        if index.size == 0:
            index = index.astype(np.int64)
        columns = ("paths", "pids", "camids", "tracks", "frames", "sources")
        return replace(self, **{name: getattr(self, name)[index] for name in columns})

    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Train labels `[N]`, 0-based in sorted order of pid, and the pid of each label `[C]`."""
        pid_of_label, labels = np.unique(self.pids, return_inverse=True)
        return labels.reshape(-1).astype(np.int64), pid_of_label

    @property
    def has_cameras(self) -> bool:
        """Whether any camera is known."""
        return bool((self.camids != UNKNOWN).any())


def merge(parts: Sequence[Crops]) -> Crops:
    """Put several sources in one, shifting positive pids and known camids so that none collide.

    One part is returned as it is. The first part keeps its numbers; pids of part `i` are shifted by one more than
    the largest pid before it, and cameras likewise. Tracks and frames keep their numbers: they count within a camera,
    or within a source that has none. Junk has no place in a train set, so a pid below 0 is refused.

    Raises:
        ReidError: no parts, or a negative pid.
    """
    if not parts:
        raise ReidError("No data set to merge: name at least one.")
    for part in parts:
        if (part.pids < 0).any():
            raise ReidError(
                f"{', '.join(part.source_names)}: {int((part.pids < 0).sum())} crops have a negative pid, the mark of "
                "junk. Train sets hold identities from 0 on: leave these crops out."
            )
    if len(parts) == 1:
        return parts[0]
    shifted = []
    next_pid = next_cam = next_source = 0
    names: list[str] = []
    for part in parts:
        known = part.camids != UNKNOWN
        moved = replace(
            part,
            pids=part.pids + next_pid,
            camids=np.where(known, part.camids + next_cam, UNKNOWN),
            sources=part.sources + next_source,
        )
        next_pid = int(moved.pids.max(initial=next_pid - 1)) + 1
        next_cam = int(moved.camids.max(initial=next_cam - 1)) + 1
        next_source += len(part.source_names)
        names.extend(part.source_names)
        shifted.append(moved)
    columns = ("paths", "pids", "camids", "tracks", "frames", "sources")
    joined = {name: np.concatenate([getattr(part, name) for part in shifted]) for name in columns}
    return Crops(**joined, source_names=tuple(names))


@dataclass(frozen=True)
class SkippedFile:
    """A file that is not an image of the set as its rules say, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A data set with its protocol: train on one part, rank `gallery` for every `query`.

    `train` and `gallery` never hold junk (pid -1). `cross_camera` says whether a query's own camera is left out of
    its matches, as the person re-identification protocol asks; it is False for sets without cameras.
    `skipped` lists the files that were not taken, and why. `official` holds the published counts by name
    ("train images", "train ids", ..., "junk", "distractors"), and is empty where there are none.
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
