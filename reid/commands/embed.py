"""`reid embed`: crops in, one Parquet file of features out."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reid.core.errors import ReidError

if TYPE_CHECKING:
    from reid.core.distributed import DistributedContext
    from reid.embedding.embedder import Embedder
    from reid.embedding.stream import WrittenEmbeddings

SHOWN = 20
"""Lines of what was left out; the file's metadata has all."""


@click.command("embed")
@click.option(
    "--model", "--checkpoint", "model", required=True, metavar="MODEL",
    help="A run's folder, best.pt, a bundle, .onnx, .xml of OpenVINO, or a backbone's name with --weights.",
)  # fmt: skip
@click.option("--weights", help="Of a named backbone: imagenet, none, or a file.")
@click.option("--images", type=click.Path(path_type=Path), help="A folder of images, searched with its subfolders.")
@click.option("--layout", help="Or: how a data set lies at --root, e.g. market1501.")
@click.option("--root", type=click.Path(path_type=Path), help="The data set's folder.")
@click.option("--part", type=click.Choice(["train", "query", "gallery"]), help="Which part of it.")
@click.option(
    "--video", "--videos", "videos", type=click.Path(path_type=Path), help="Or: a video, or a folder of them."
)
@click.option("--boxes", type=click.Path(path_type=Path), help="Of --video: track files, e.g. MOT text, named alike.")
@click.option("--first-frame", default=1, show_default=True, help="The number that --boxes give to the first frame.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The Parquet file to write.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--runtime", default="auto", show_default=True, help="auto, torch, onnx or openvino.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Images a forward pass.")
@click.option("--threads", default=0, type=click.IntRange(0), help="For decoding.  [default: one for each CPU]")
@click.option("--skip-unreadable", is_flag=True, help="Leave out and list images that cannot be read.")
@click.option("--flip", is_flag=True, help="Average with the mirrored image: twice the work, a little better.")
def command(
    model: str,
    weights: str | None,
    images: Path | None,
    layout: str | None,
    root: Path | None,
    part: str | None,
    videos: Path | None,
    boxes: Path | None,
    first_frame: int,
    out: Path,
    device: str,
    runtime: str,
    batch_size: int,
    threads: int,
    skip_unreadable: bool,
    flip: bool,
) -> None:
    """Turn crops into a Parquet file of features: a folder's images, one part of a data set, or boxes in videos.

    \b
    reid embed --model runs/x/best.pt --images crops/ --out crops.parquet
    reid embed --model runs/x/best.pt --video cam01.mp4 --boxes cam01.txt --out cam01.parquet
    torchrun --nproc-per-node=4 tools/embed.py --model runs/x/best.pt --images crops/ --out crops.parquet

    Run it again after a kill: what was finished is not embedded again.
    """
    _check_writable(out)
    from reid.core.console import console, warn
    from reid.core.distributed import init_distributed
    from reid.data.layouts import load_benchmark
    from reid.embedding.batches import find_images
    from reid.embedding.embedder import Embedder
    from reid.embedding.stream import embed_to_parquet

    ways = {"images": (images,), "layout": (layout, root, part), "boxes": (videos, boxes)}
    (way, *others) = [name for name, given in ways.items() if any(given)] or [""]
    if not way or others or not all(ways[way]):
        raise click.UsageError(
            "Give --images FOLDER, or all of --layout, --root and --part, or both --video and --boxes."
        )
    with init_distributed(device, timeout_minutes=7 * 24 * 60) as ranks:
        console.quiet = not ranks.is_first
        what = find_images(images) if images else None
        if layout and root and part:
            what = getattr(load_benchmark(layout, root), part)
        embedder = Embedder(
            model, device=device, runtime=runtime, weights=weights, batch_size=batch_size, flip=flip, threads=threads
        )
        start = time.perf_counter()
        if videos and boxes:
            done = _embed_boxes(embedder, videos, boxes, first_frame, out, ranks)
        else:
            unreadable = "skip" if skip_unreadable else "error"
            done = embed_to_parquet(
                embedder, [] if what is None else what, out, unreadable=unreadable, distributed=ranks
            )
        if done is None:
            return
        rate = max(done.rows - done.finished, 0) / max(time.perf_counter() - start, 1e-9)
        for note in done.notes:
            warn(note)
        if done.left_out:
            more = f"\n  … and {len(done.left_out) - SHOWN}, see left_out in the file" * (len(done.left_out) > SHOWN)
            warn("Left out:\n  " + "\n  ".join(done.left_out[:SHOWN]) + more)
        earlier = f" ({done.finished} by an earlier run)" if done.finished else ""
        console.print(
            f"{done.rows} crops{earlier} → {embedder.dimension} dimensions, {rate:.0f} crops/s on {embedder.device}, "
            f"model {embedder.describe()['model']}: {done.path}"
        )


def _embed_boxes(
    embedder: Embedder, videos: Path, boxes: Path, first_frame: int, out: Path, ranks: DistributedContext
) -> WrittenEmbeddings | None:
    """Every box of the track files, with its quality."""

    from reid.core.console import warn
    from reid.data.box_selection import box_quality
    from reid.data.videos import Video, find_videos
    from reid.embedding.boxes import boxes_to_parquet
    from reid.mtmc.track_files import read_tracks

    tracks = read_tracks(boxes)
    problems: tuple[str, ...] = ()
    if videos.is_file():
        if len(tracks.camera_names) != 1:
            raise ReidError(
                f"--boxes {boxes} are of the cameras {', '.join(tracks.camera_names)}, but --video {videos} is one. "
                "Give a folder of videos that are named like them."
            )
        found = {tracks.camera_names[0]: Video(videos)}
    else:
        searched = find_videos(videos, tracks.camera_names)
        found, problems = searched.videos, searched.problems
    for text in (*tracks.warnings, *problems):
        warn(text)
    quality = box_quality(tracks, {name: video.info()[:2] for name, video in found.items()})
    return boxes_to_parquet(embedder, found, tracks, out, quality=quality, first_frame=first_frame, distributed=ranks)


def _check_writable(out: Path) -> None:
    """Refuse before the work, not after it, what could not be written."""
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ReidError(f"Cannot write --out {out}: name a file in a folder that you may write to.")
