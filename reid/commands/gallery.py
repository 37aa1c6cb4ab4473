"""`reid gallery create|add|info|check|copy`: store tracklets of many cameras and search them later."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from reid.commands.options import PATH, Command, option, settings_options
from reid.core.console import console, make_table
from reid.gallery.settings import GallerySettings
from reid.pipelines.settings import GalleryAddSettings

gallery_argument = click.argument("gallery", type=PATH)


@click.group("gallery")
def cli() -> None:
    """Store tracklets of many cameras, to search them by photo."""


@cli.command("create", cls=Command)
@gallery_argument
@settings_options(GallerySettings, {"Gallery": ["zone"]})
@option("Gallery", "--calibration", type=PATH, help="Calibration of the model, copied into the gallery.")
def create(gallery: Path, calibration: Path | None, **options: Any) -> None:
    """Create an empty GALLERY: a new folder.

    \b
    reid gallery create shop --zone Europe/Berlin --calibration runs/x/calibration.json
    """
    from reid.embedding.calibration_file import NAME, load_calibration
    from reid.gallery import Gallery

    if calibration is not None:
        load_calibration(calibration)
    created = Gallery.create(gallery, GallerySettings(**options))
    if calibration is not None:
        shutil.copyfile(calibration, created.path / NAME)
    console.print(f"created {gallery}")


@cli.command("add", cls=Command)
@gallery_argument
@click.argument("features", type=PATH, metavar="EMBEDDINGS|MATCH")
@settings_options(GalleryAddSettings, {"Input": ["source", "embeddings"], "Time": ["cameras", "start"]})
def add(gallery: Path, features: Path, **options: Any) -> None:
    """Add a file of EMBEDDINGS, or the folder of a MATCH, to a GALLERY.

    \b
    reid embed --model best.pt --videos videos --tracks tracks --out monday.parquet
    reid gallery add shop monday.parquet --cameras cameras.yaml --start 2026-11-23T08:00+01:00
    reid gallery add shop matched --start 2026-11-23T08:00+01:00

    Up to four crops of each tracklet are stored. Adding the same tracks again replaces them.
    """
    from reid.gallery import Gallery
    from reid.pipelines.gallery import add_files

    done = add_files(Gallery.open(gallery), features, GalleryAddSettings(**options))
    notes = [
        f"{done.replaced:,} of them replaced" * bool(done.replaced),
        f"{done.left_out:,} crops without a valid feature left out" * bool(done.left_out),
    ]
    console.print("; ".join([f"{done.tracklets:,} tracklets ({done.rows:,} rows) added", *filter(None, notes)]))


@cli.command("info", cls=Command)
@gallery_argument
def info(gallery: Path) -> None:
    """Print what a GALLERY contains: model, settings, cameras and times."""
    from reid.gallery import Gallery
    from reid.gallery.times import show_time

    content = Gallery.open(gallery).describe()
    zone = content["settings"]["zone"]
    for key in ("model", "settings"):
        for name, value in (content[key] or {"model": "none yet"}).items():
            console.print(f"{name}: {value}")
    rows = [
        (
            entry["camera"] or "unknown",
            f"{entry['tracklets']:,}",
            show_time(entry["first"], zone),
            show_time(entry["last"], zone),
        )
        for entry in content["cameras"]
    ]
    console.print(make_table(("camera", "tracklets", "first", "last"), rows, text=("camera", "first", "last")))
    console.print(f"{content['tracklets']:,} tracklets, {content['rows']:,} rows")


@cli.command("check", cls=Command)
@gallery_argument
def check(gallery: Path) -> None:
    """Check a GALLERY: readable rows, valid features, unique ids, times in order."""
    from reid.core.errors import DataError, first_few
    from reid.gallery import Gallery

    opened = Gallery.open(gallery)
    problems = opened.check()
    if problems:
        raise DataError(f"{gallery}: {len(problems)} problems: {first_few(problems)}. Restore it from a copy.")
    console.print(f"{gallery}: {len(opened):,} rows, no problems")


@cli.command("copy", cls=Command)
@gallery_argument
@click.argument("target", type=PATH)
def copy(gallery: Path, target: Path) -> None:
    """Copy a GALLERY to a new folder TARGET, as a backup or to write it in the newest format."""
    from reid.gallery import Gallery

    copied = Gallery.open(gallery).copy(target)
    console.print(f"{len(copied):,} rows copied to {target}")
