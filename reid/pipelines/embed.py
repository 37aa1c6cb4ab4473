"""Embed images, a split of a data set, or tracked boxes into one Parquet file."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from reid.core.console import console, warn
from reid.core.distributed import DistributedContext, init_distributed
from reid.core.errors import ConfigError, DataError
from reid.data.box_selection import box_quality
from reid.data.layouts import load_benchmark
from reid.data.videos import Video, find_videos
from reid.embedding.batches import find_images
from reid.embedding.boxes import boxes_to_parquet
from reid.embedding.embedder import Embedder
from reid.embedding.stream import WrittenEmbeddings, embed_to_parquet
from reid.mtmc.track_files import read_tracks
from reid.pipelines.settings import EmbedSettings


@dataclass(frozen=True)
class EmbeddedFile:
    """Result of `embed_files`.

    Attributes:
        done: the file, its rows, and what was skipped.
        embedder: the model that was used.
        rate: crops per second.
    """

    done: WrittenEmbeddings
    embedder: Embedder
    rate: float


def embed_files(model: str, out: Path, settings: EmbedSettings) -> EmbeddedFile | None:
    """Embed what the settings name into a Parquet file; an interrupted run is resumed. Runs under torchrun too.

    Args:
        model: checkpoint, run folder, bundle, .onnx or .xml file, or a backbone's name with `settings.weights`.
        out: the Parquet file.
        settings: what to embed, and how.

    Returns:
        The result; None in all processes but the first.

    Raises:
        ReidError: not exactly one input, or an input, the model or the output cannot be used.
    """
    _check_writable(out)
    inputs = [(settings.images,), (settings.data, settings.split), (settings.videos, settings.tracks)]
    given = [values for values in inputs if any(values)]
    if len(given) != 1 or not all(given[0]):
        raise ConfigError("Pass one input: --images DIR, --data LAYOUT:ROOT with --split, or --videos with --tracks.")
    with init_distributed(settings.device, timeout_minutes=7 * 24 * 60) as distributed:
        console.quiet = not distributed.is_first
        images = find_images(settings.images) if settings.images else []
        if settings.data and settings.split:
            images = getattr(load_benchmark(settings.data), settings.split)
        embedder = Embedder(
            model,
            device=settings.device,
            runtime=settings.runtime,
            weights=settings.weights,
            batch_size=settings.batch_size,
            flip=settings.flip,
            threads=settings.threads,
        )
        start = time.perf_counter()
        if settings.videos and settings.tracks:
            done = _embed_boxes(embedder, settings.videos, settings.tracks, settings.first_frame, out, distributed)
        else:
            unreadable = "skip" if settings.skip_unreadable else "error"
            done = embed_to_parquet(embedder, images, out, unreadable=unreadable, distributed=distributed)
        if done is None:
            return None
        seconds = max(time.perf_counter() - start, 1e-9)
        return EmbeddedFile(done, embedder, max(done.rows - done.finished, 0) / seconds)


def _embed_boxes(
    embedder: Embedder, videos: Path, track_files: Path, first_frame: int, out: Path, distributed: DistributedContext
) -> WrittenEmbeddings | None:
    """Embed every box of the track files, with its quality."""
    tracks = read_tracks(track_files)
    problems: tuple[str, ...] = ()
    if videos.is_file():
        if len(tracks.camera_names) != 1:
            raise DataError(
                f"{track_files} has tracks of the cameras {', '.join(tracks.camera_names)}, but {videos} is one video. "
                "Pass a folder of videos named like the cameras."
            )
        found = {tracks.camera_names[0]: Video(videos)}
    else:
        searched = find_videos(videos, tracks.camera_names)
        found, problems = searched.videos, searched.problems
    for text in (*tracks.warnings, *problems):
        warn(text)
    quality = box_quality(tracks, {name: video.info()[:2] for name, video in found.items()})
    return boxes_to_parquet(
        embedder, found, tracks, out, quality=quality, first_frame=first_frame, distributed=distributed
    )


def _check_writable(out: Path) -> None:
    """Refuse an output that cannot be written before any work is done."""
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"Cannot write --out {out}. Pass a file in a writable folder.")
