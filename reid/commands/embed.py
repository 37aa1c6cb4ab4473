"""`reid embed`: crops in, one Parquet file of features out."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from reid.console import console, warn
from reid.errors import ReidError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@click.command("embed")
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="A trained model, e.g. best.pt.")
@click.option("--images", type=click.Path(path_type=Path), help="A folder of images, searched with its subfolders.")
@click.option("--layout", help="Or: how a data set lies at --root, e.g. market1501.")
@click.option("--root", type=click.Path(path_type=Path), help="The data set's folder.")
@click.option("--part", type=click.Choice(["train", "query", "gallery"]), help="Which part of it.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The Parquet file to write.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Images a forward pass.")
@click.option("--skip-unreadable", is_flag=True, help="Leave out and list images that cannot be read.")
@click.option("--flip", is_flag=True, help="Average with the mirrored image: twice the work, a little better.")
def command(
    checkpoint: Path,
    images: Path | None,
    layout: str | None,
    root: Path | None,
    part: str | None,
    out: Path,
    device: str,
    batch_size: int,
    skip_unreadable: bool,
    flip: bool,
) -> None:
    """Turn crops into a Parquet file of features: a folder's images, or one part of a data set."""
    _check_writable(out)
    from reid.data.crops import Crops
    from reid.data.layouts import load_benchmark
    from reid.embedding.embedder import Embedder

    what: Crops | list[str]
    if images and not (layout or root or part):
        what = find_images(images)
    elif layout and root and part and not images:
        what = getattr(load_benchmark(layout, root), part)
    else:
        raise click.UsageError("Give --images FOLDER, or all of --layout, --root and --part.")
    embedder = Embedder(checkpoint, device=device)
    start = time.perf_counter()
    unreadable = "skip" if skip_unreadable else "error"
    table = embedder.table(what, flip=flip, batch_size=batch_size, unreadable=unreadable)
    rate = len(table) / max(time.perf_counter() - start, 1e-9)
    table.save(out)
    left_out = table.meta.get("left_out", [])
    if left_out:
        warn(f"Unreadable and left out, {len(left_out)} images:\n  " + "\n  ".join(left_out))
    console.print(
        f"{len(table)} crops → {table.dimension} dimensions, {rate:.0f} crops/s on {embedder.device}, "
        f"model {table.meta['model']}: {out}"
    )


def find_images(folder: Path) -> list[str]:
    """The image files under a folder, as absolute paths in sorted order; other files are counted aloud.

    Raises:
        ReidError: not a folder, or no image in it.
    """
    if not folder.is_dir():
        raise ReidError(f"--images {folder} is not a folder.")
    files = sorted(path for path in folder.absolute().rglob("*") if path.is_file() and not path.name.startswith("."))
    found = [str(path) for path in files if path.suffix.lower() in SUFFIXES]
    if not found:
        raise ReidError(f"--images {folder} holds no image ({', '.join(SUFFIXES)}) among its {len(files)} files.")
    if len(found) < len(files):
        other = next(path for path in files if path.suffix.lower() not in SUFFIXES)
        warn(f"Not images, left out of {folder}: {len(files) - len(found)} of {len(files)} files, e.g. {other.name}.")
    return found


def _check_writable(out: Path) -> None:
    """Refuse before the work, not after it, what could not be written."""
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ReidError(f"Cannot write --out {out}: name a file in a folder that you may write to.")
