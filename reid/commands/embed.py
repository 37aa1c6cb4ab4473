"""`reid embed`: crops in, one Parquet file of features out."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from reid.errors import ReidError


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
    out: Path,
    device: str,
    runtime: str,
    batch_size: int,
    threads: int,
    skip_unreadable: bool,
    flip: bool,
) -> None:
    """Turn crops into a Parquet file of features: a folder's images, or one part of a data set.

    \b
    reid embed --model runs/x/best.pt --images crops/ --out crops.parquet
    torchrun --nproc-per-node=4 tools/embed.py --model runs/x/best.pt --images crops/ --out crops.parquet

    Run it again after a kill: what was finished is not embedded again.
    """
    _check_writable(out)
    from reid.console import console, warn
    from reid.data.layouts import load_benchmark
    from reid.embedding.embedder import Embedder, Images, find_images
    from reid.embedding.stream import embed_to_parquet
    from reid.training.distributed import join_ranks

    with join_ranks(device, timeout_minutes=7 * 24 * 60) as ranks:
        console.quiet = not ranks.is_first
        what: Images
        if images and not (layout or root or part):
            what = find_images(images)
        elif layout and root and part and not images:
            what = getattr(load_benchmark(layout, root), part)
        else:
            raise click.UsageError("Give --images FOLDER, or all of --layout, --root and --part.")
        embedder = Embedder(
            model, device=device, runtime=runtime, weights=weights, batch_size=batch_size, flip=flip, threads=threads
        )
        start = time.perf_counter()
        unreadable = "skip" if skip_unreadable else "error"
        done = embed_to_parquet(embedder, what, out, unreadable=unreadable, ranks=ranks)
        if done is None:
            return
        rate = (done.rows - done.finished) / max(time.perf_counter() - start, 1e-9)
        for note in done.notes:
            warn(note)
        if done.left_out:
            warn(f"Unreadable and left out, {len(done.left_out)} images:\n  " + "\n  ".join(done.left_out))
        earlier = f" ({done.finished} of them by an earlier run)" if done.finished else ""
        console.print(
            f"{done.rows} crops{earlier} → {embedder.dimension} dimensions, {rate:.0f} crops/s on {embedder.device}, "
            f"model {embedder.describe()['model']}: {done.path}"
        )


def _check_writable(out: Path) -> None:
    """Refuse before the work, not after it, what could not be written."""
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ReidError(f"Cannot write --out {out}: name a file in a folder that you may write to.")
