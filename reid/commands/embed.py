"""`reid embed`: embed crops or tracked boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from reid.commands.options import Command, model_option, out_option, settings_options
from reid.core.console import console, warn
from reid.pipelines.settings import EmbedSettings

SHOWN = 20
"""Skipped files that are printed; the file's metadata lists all."""

GROUPS = {
    "Input": [
        "images",
        "listing",
        "data",
        "split",
        "videos",
        "tracks",
        "first_frame",
        "skip_untracked",
        "skip_unreadable",
    ],
    "Model": ["weights", "flip", "runtime", "trust"],
    "Computation": ["device", "batch_size", "threads", "engine", "workers", "gpus"],
}


@click.command("embed", cls=Command)
@model_option(
    type=str, required=False, metavar="MODEL",
    help="Checkpoint, run folder, bundle, .onnx or OpenVINO .xml file, or the name of a published model or backbone.  "
    "[default: intel-0287]"
)  # fmt: skip
@settings_options(EmbedSettings, GROUPS)
@out_option("Parquet file to write.", required=True)
def cli(model: str | None, out: Path, **options: Any) -> None:
    """Embed the images of a folder, a split of a data set, or boxes in videos, into a Parquet file.

    \b
    reid embed --images crops/ --out crops.parquet
    reid embed --model runs/x/best.pt --images crops/ --out crops.parquet
    reid embed --model runs/x/best.pt --data market1501:DIR --split query --out query.parquet
    reid embed --model runs/x/best.pt --videos cam01.mp4 --tracks cam01.txt --out cam01.parquet
    reid embed --model best.pt --listing s3://bucket/crops.csv --engine ray --out crops.parquet

    Names of published models: reid model list --pretrained. Run an interrupted command again to resume it.
    """
    settings = EmbedSettings(**options)
    from reid.pipelines.embed import embed_files

    done, embedder, rate = embed_files(model, out, settings)
    for note in done.notes:
        warn(note)
    if done.left_out:
        more = f"\n  … and {len(done.left_out) - SHOWN}, see left_out in the file" * (len(done.left_out) > SHOWN)
        warn("Skipped:\n  " + "\n  ".join(done.left_out[:SHOWN]) + more)
    earlier = f" ({done.finished} by an earlier run)" if done.finished else ""
    console.print(
        f"{done.rows} crops{earlier} → {embedder.dimension} dimensions, {rate:.0f} crops/s on "
        f"{embedder.device}, model {embedder.describe()['model']}: {done.path}"
    )
