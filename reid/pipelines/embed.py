"""Embed images, a split of a data set, or tracked boxes into one Parquet file."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.core.console import warn
from reid.core.errors import ConfigError, DataError
from reid.core.locks import exclusive
from reid.data.box_selection import box_quality
from reid.data.crop_list import read_crop_list
from reid.data.crops import Crops
from reid.data.layouts import load_benchmark
from reid.data.tracks import Tracks, check_frame_numbers
from reid.data.videos import Video, find_videos
from reid.embedding.batches import find_images
from reid.embedding.boxes import boxes_to_parquet
from reid.embedding.embedder import Embedder
from reid.embedding.stream import WrittenEmbeddings, embed_to_parquet
from reid.models.zoo import default_model
from reid.mtmc.track_files import read_tracks
from reid.pipelines.settings import EmbedSettings

_WITHOUT_IMAGE = 1e-6
"""Factor of the quality of boxes whose frame has no image. Above 0, so that chosen ones are reported."""


def embed_files(model: str | None, out: Path, settings: EmbedSettings) -> tuple[WrittenEmbeddings, Embedder, float]:
    """Embed what the settings name into a Parquet file; an interrupted run is resumed.

    Args:
        model: checkpoint, run folder, bundle, .onnx or .xml file, name of a published model, or a backbone's name with
            `settings.weights`; None: the default model.
        out: the Parquet file.
        settings: what to embed, and how.

    Returns:
        The written file, the model and the crops per second.

    Raises:
        ReidError: not exactly one input, or an input, the model or the output cannot be used.
    """
    _check_writable(out)
    inputs = [
        (settings.images,),
        (settings.listing,),
        (settings.data, settings.split),
        (settings.videos, settings.tracks),
    ]
    chosen = [values for values in inputs if any(values)]
    if len(chosen) != 1 or not all(chosen[0]):
        raise ConfigError(
            "Pass one input: --images DIR, --listing FILE, --data LAYOUT:ROOT with --split, or --videos with --tracks."
        )
    with exclusive(out, in_parent=True):
        images: Crops | list[str] = find_images(settings.images) if settings.images else []
        root: str | Path | None = settings.images
        pixels = None
        if settings.listing:
            crop_list = read_crop_list(settings.listing)
            images, pixels = crop_list.crops, crop_list.pixels
            root = os.path.dirname(os.path.abspath(settings.listing))
        if settings.data and settings.split:
            benchmark = load_benchmark(settings.data)
            images, root = getattr(benchmark, settings.split), benchmark.root
        if settings.videos and settings.tracks:
            tracks = read_tracks(
                settings.tracks, first_frame=settings.first_frame, skip_untracked=settings.skip_untracked
            )
            videos, quality, problems = open_videos(settings.videos, tracks)
            for text in (*tracks.warnings, *problems):
                warn(text)
        options = settings.model_dump(include={"device", "weights", "batch_size", "flip", "threads"})
        given = model or default_model()
        given = os.path.abspath(given) if os.path.exists(given) else given
        options["runtime"] = settings.runtime_for(settings.runtime)
        embedder = Embedder(given, **options)
        cluster = None
        if settings.engine == "ray":
            from reid.embedding.ray_cluster import RayCluster

            on_worker = options | {"threads": settings.threads or 1}
            cluster = RayCluster(partial(Embedder, given, **on_worker), settings.workers, settings.gpus)
        start = time.perf_counter()
        if settings.videos:
            done = boxes_to_parquet(embedder, videos, tracks, out, quality=quality, cluster=cluster)
        else:
            unreadable = "skip" if settings.skip_unreadable else "error"
            done = embed_to_parquet(
                embedder, images, out, unreadable=unreadable, root=root, pixels=pixels, cluster=cluster
            )
        seconds = max(time.perf_counter() - start, 1e-9)
        return done, embedder, max(done.rows - done.finished, 0) / seconds


def open_videos(
    path: Path | Mapping[str, Video], tracks: Tracks
) -> tuple[dict[str, Video], NDArray[np.float64], tuple[str, ...]]:
    """Open the videos of tracks.

    Args:
        path: a folder of videos or frame folders named like the cameras, the video of a single camera, or the videos
            by camera name.
        tracks: boxes in the videos.

    Returns:
        The videos by camera, the quality of each box `[N]`, and warnings. Boxes whose frame a folder of images lacks
        have almost no quality, so that others are chosen where there are any.

    Raises:
        DataError: a video cannot be opened, `path` is one video but the tracks are of several cameras, or the images of
            a folder are numbered differently from the tracks.
    """
    problems: tuple[str, ...] = ()
    if isinstance(path, Mapping):
        videos = {name: path[name] for name in tracks.camera_names if name in path}
    elif path.is_dir():
        found = find_videos(path, tracks.camera_names)
        videos, problems = dict(found.videos), found.problems
    elif len(tracks.camera_names) == 1:
        videos = {tracks.camera_names[0]: Video(path)}
    else:
        raise DataError(
            f"The tracks are of the cameras {', '.join(tracks.camera_names)}, but {path} is one video. Pass a folder "
            "of videos named like the cameras."
        )
    without_image = np.zeros(len(tracks), np.bool_)
    for camera, name in enumerate(tracks.camera_names):
        frames = tracks.frame[tracks.camera == camera]
        if name in videos and len(frames):
            first = tracks.first_frame
            has = {d: videos[name].has_frames(frames + d, first_frame=first) for d in (0, -1, 1)}
            fits = {d: int(found.sum()) for d, found in has.items()}
            fix = f"The first frame is taken to be {first}: pass another --first-frame, or rename the images."
            check_frame_numbers(str(videos[name].path), "boxes", fits, fix)
            without_image[np.flatnonzero(tracks.camera == camera)[~has[0]]] = True
    quality = box_quality(tracks, {name: video.info()[:2] for name, video in videos.items()})
    quality[without_image] *= _WITHOUT_IMAGE
    return videos, quality, problems


def _check_writable(out: Path) -> None:
    """Refuse an output that cannot be written before any work is done."""
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"Cannot write --out {out}. Pass a file in a writable folder.")
