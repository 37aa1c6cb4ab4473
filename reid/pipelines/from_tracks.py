"""Cut the boxes of tracks out of videos: a table of crops to train on, to score or to adapt to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import pixels_of_boxes
from reid.core.atomic import atomic_folder, write_csv
from reid.core.console import progress_bar
from reid.core.errors import ConfigError, DataError
from reid.data.box_selection import choose_boxes
from reid.data.crops import SPLITS, Crops
from reid.data.images import cut_out, encode_jpeg
from reid.data.layouts.market1501 import LAYOUT
from reid.data.layouts.scanning import DISTRACTOR
from reid.data.splits import query_and_gallery
from reid.data.tracks import Tracks
from reid.data.videos import Video
from reid.mtmc.track_files import read_tracks
from reid.pipelines.embed import open_videos
from reid.pipelines.settings import CutSettings

TABLE = "table.csv"
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class CutTracks:
    """Result of `cut_tracks`.

    Attributes:
        table: the CSV file; its folder contains the crops.
        data: the data set as LAYOUT:ROOT.
        crops: number of crops of each split.
        identities: number of identities of each split; 1 (pid 0) where people are unknown.
        warnings: what was left out, and why.
    """

    table: Path
    data: str
    crops: dict[str, int]
    identities: dict[str, int]
    warnings: tuple[str, ...]


def cut_tracks(out: Path, settings: CutSettings) -> CutTracks:
    """Cut boxes of tracks out of videos, and write a table with the columns path, pid, camid, track, frame and split.

    Of each track the best boxes are taken, spread over time (`choose_boxes`). With `settings.global_ids`, equal ids are
    one person: those whose first box is latest are the test people, and no other person is in query or gallery
    (`query_and_gallery`). Otherwise pid is 0 and the split train for all crops.

    With `settings.layout` "market1501", the crops are named and placed as in Market-1501: with pid + 1 if a pid is 0
    (which the layout reserves for distractors), the cameras numbered from 1 in the order of their names, and sequence
    1. The table has the given pids and the names of the cameras.

    Args:
        out: a new or empty folder: table.csv, and the crops as CAMERA/TRACK_FRAME.jpg or in the folders of Market-1501.
        settings: tracks, videos and split.

    Raises:
        ConfigError: the layout market1501 without `global_ids`.
        DataError: a file cannot be used, no box can be cut, or there are too few people to split.
    """
    if settings.layout == "market1501" and not settings.global_ids:
        raise ConfigError("The layout market1501 needs identities. Add --global-ids, or use --layout table.")
    tracks = read_tracks(settings.tracks, first_frame=settings.first_frame, skip_untracked=settings.skip_untracked)
    videos, quality, problems = open_videos(settings.videos, tracks)
    chosen = tracks.take(choose_boxes(tracks, quality, per_track=settings.per_track))
    with atomic_folder(out) as folder:
        kept, left_out = _write_crops(chosen, videos, folder)
        if not len(kept):
            raise DataError(f"None of the {len(chosen)} boxes can be cut out. The first: {next(iter(left_out), '')}.")
        found = chosen.take(kept)
        split, pids = np.full(len(found), "train", object), np.zeros(len(found), np.int64)
        if settings.global_ids:
            pids = found.track
            split = _split(found, settings.test)
        names = [_name(found, row) for row in range(len(found))]
        if settings.layout == "market1501":
            names = _arrange_as_market1501(found, split, names, folder)
        write_csv(
            folder / TABLE,
            {
                "path": names,
                "pid": pids,
                "camid": np.array(found.camera_names, object)[found.camera],
                "track": found.track,
                "frame": found.frame,
                "split": split,
            },
        )
    counts = {name: int((split == name).sum()) for name in SPLITS}
    identities = {name: len(np.unique(pids[split == name])) for name in SPLITS}
    lines = [f"{reason}: {count:,} boxes left out" for reason, count in left_out.items()]
    data = f"table:{out / TABLE}" if settings.layout == "table" else f"market1501:{out}"
    return CutTracks(out / TABLE, data, counts, identities, (*tracks.warnings, *problems, *lines))


def _arrange_as_market1501(tracks: Tracks, split: NDArray[np.object_], names: list[str], folder: Path) -> list[str]:
    """Move the crops to the folders and names of Market-1501; return the names."""
    for part in LAYOUT.folders.values():
        (folder / part).mkdir()
    shift = int(tracks.track.min() == DISTRACTOR)
    box: Counter[tuple[int, int, int]] = Counter()
    moved = []
    rows = zip(names, split, tracks.track.tolist(), tracks.camera.tolist(), tracks.frame.tolist(), strict=True)
    for name, part, pid, camera, frame in rows:
        box[pid, camera, frame] += 1
        file = f"{pid + shift:04d}_c{camera + 1}s1_{frame:06d}_{box[pid, camera, frame]:02d}.jpg"
        moved.append(f"{LAYOUT.folders[str(part)]}/{file}")
        (folder / name).rename(folder / moved[-1])
    for camera, camera_name in enumerate(tracks.camera_names):
        (folder / _folder(camera_name, camera)).rmdir()
    return moved


def _name(tracks: Tracks, row: int) -> str:
    camera = int(tracks.camera[row])
    return f"{_folder(tracks.camera_names[camera], camera)}/{tracks.track[row]}_{tracks.frame[row]:06d}.jpg"


def _folder(name: str, camera: int) -> str:
    """Return the folder of a camera: its name, or a number if the name does not suit folders and spreadsheets."""
    return name if re.fullmatch(r"\w[\w .-]*", name) else f"camera{camera}"


def _write_crops(tracks: Tracks, videos: Mapping[str, Video], folder: Path) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Write the crops; return the rows that were written, and the number of the others by reason."""
    pixels = pixels_of_boxes(tracks.boxes)
    kept: list[int] = []
    left_out: dict[str, int] = {}
    with progress_bar() as bar:
        task = bar.add_task("Cutting boxes", total=len(tracks))
        for camera, name in enumerate(tracks.camera_names):
            rows = np.flatnonzero(tracks.camera == camera)
            if name not in videos:
                left_out[f"camera {name!r} has no video"] = len(rows)
                continue
            (folder / _folder(name, camera)).mkdir()
            frames = tracks.frame[rows]
            for frame in videos[name].read(frames, first_frame=tracks.first_frame):
                start, end = np.searchsorted(frames, [frame.number, frame.number + 1])
                for row in rows[start:end].tolist():
                    crop = None if frame.image is None else cut_out(frame.image, pixels[row])
                    if crop is None or not crop.size:
                        reason = frame.reason if crop is None else "the box is outside the frame"
                        left_out[f"{name}: {reason}"] = left_out.get(f"{name}: {reason}", 0) + 1
                        continue
                    (folder / _name(tracks, row)).write_bytes(encode_jpeg(crop, _JPEG_QUALITY))
                    kept.append(row)
                bar.advance(task, int(end - start))
    return np.sort(np.array(kept, np.int64)), {reason: count for reason, count in left_out.items() if count}


def _split(tracks: Tracks, fraction: float) -> NDArray[np.object_]:
    """Return the split of each box: the people whose first box is latest are query and gallery.

    Raises:
        DataError: fewer than two people on either side, or no query has a match.
    """
    people, code = np.unique(tracks.track, return_inverse=True)
    first = np.full(len(people), np.iinfo(np.int64).max)
    np.minimum.at(first, code, tracks.frame)
    number = round(fraction * len(people))
    if min(number, len(people) - number) < 2:
        raise DataError(
            f"The tracks show {len(people)} people, of whom {number} would be for the test. Two for each of training "
            "and test are needed: pass more tracks, or leave out --global-ids."
        )
    test = np.isin(code, np.argsort(first, kind="stable")[len(people) - number :])
    rows = np.flatnonzero(test)
    crops = Crops.from_columns([str(row) for row in rows], tracks.track[rows], tracks.camera[rows])
    several = len(np.unique(tracks.camera)) > 1
    query, _ = query_and_gallery(crops, np.random.default_rng(0), cross_camera=several)
    if not len(query):
        where = "two cameras" if several else "two crops"
        raise DataError(f"None of the {number} test people has {where}, so there is no query. Raise --test.")
    split = np.where(test, "gallery", "train").astype(object)
    split[query.paths.astype(np.int64)] = "query"
    return split
