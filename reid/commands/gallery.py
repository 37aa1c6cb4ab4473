"""`reid gallery create|add|info|check|log|erase|expire|copy`: store tracklets of many cameras and search them later."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from reid.commands.options import PATH, Command, option, out_option, settings_options
from reid.core.console import console, make_table
from reid.gallery.settings import GallerySettings
from reid.pipelines.settings import GalleryAddSettings

GROUPS = {"Gallery": ["zone", "store"], "Privacy": ["retention", "pictures", "require_purpose", "audit"]}

gallery_argument = click.argument("gallery", type=PATH)


@click.group("gallery")
def cli() -> None:
    """Store tracklets of many cameras, to search them by photo."""


@cli.command("create", cls=Command)
@gallery_argument
@settings_options(GallerySettings, GROUPS)
@option("Gallery", "--calibration", type=PATH, help="Calibration of the model, copied into the gallery.")
@option("Gallery", "--cameras", type=PATH, help="cameras.yaml for additions and trajectories, copied into the gallery.")
def create(gallery: Path, calibration: Path | None, cameras: Path | None, **options: Any) -> None:
    """Create an empty GALLERY: a new folder.

    \b
    reid gallery create shop --zone Europe/Berlin --calibration runs/x/calibration.json --cameras cameras.yaml
    reid gallery create city --store milvus://localhost:19530/city
    """
    from reid.embedding.calibration_file import NAME, load_calibration
    from reid.gallery import Gallery
    from reid.gallery.gallery import CAMERAS
    from reid.mtmc.cameras import read_cameras

    if calibration is not None:
        load_calibration(calibration)
    if cameras is not None:
        read_cameras(cameras, ())
    created = Gallery.create(gallery, GallerySettings(**options))
    for given, name in ((calibration, NAME), (cameras, CAMERAS)):
        if given is not None:
            shutil.copyfile(given, created.path / name)
    console.print(f"created {gallery}")


@cli.command("add", cls=Command)
@gallery_argument
@click.argument("features", type=PATH, metavar="EMBEDDINGS|MATCH")
@settings_options(GalleryAddSettings, {"Input": ["source", "embeddings", "images"], "Time": ["cameras", "start"]})
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
        f"{done.erased:,} tracklets left out because they were erased before" * bool(done.erased),
        f"{done.expired:,} tracklets left out because their retention is over" * bool(done.expired),
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


@cli.command("log", cls=Command)
@gallery_argument
@out_option("JSON file to write.")
def log(gallery: Path, out: Path | None) -> None:
    """Print the audit log of a GALLERY after checking that no line was changed.

    Lines removed from the end cannot be detected from the log alone: keep the printed hash elsewhere.
    """
    from reid.core.atomic import write_json
    from reid.gallery import Gallery

    entries, last = Gallery.open(gallery).log()
    if out is not None:
        write_json(out, entries)
    rows = [
        (entry["time"], entry["user"], entry["action"], entry.get("purpose") or entry.get("reason") or "",
         str(sum(len(entry.get(name, ())) for name in ("hits", "hashes", "confirmed", "rejected"))))
        for entry in entries
    ]  # fmt: skip
    console.print(
        make_table(("time", "user", "action", "purpose", "tracklets"), rows, text=("time", "user", "purpose"))
    )
    console.print(f"{len(entries):,} entries, no line was changed. Hash of the last line: {last}")


@cli.command("erase", cls=Command)
@gallery_argument
@option(
    "Which tracklets", "--tracklet", multiple=True, metavar="ID", help="Id, as `reid search` writes it; repeatable."
)
@option("Which tracklets", "--source", metavar="NAME", help="All of a source, or with --identity one person of it.")
@option("Which tracklets", "--identity", type=int, help="Identity that `reid match` gave in --source.")
@option(
    "Which tracklets", "--answer", type=PATH, help="All hits of a .json file of `reid search` (see --within there)."
)
@option(
    "Which tracklets", "--camera", multiple=True, metavar="NAME", help="Only of this camera; repeat it for several."
)
@option("Which tracklets", "--from", "after", metavar="TIME", help="Only seen at this time or later.")
@option("Which tracklets", "--to", "before", metavar="TIME", help="Only seen at this time or earlier.")
@option("Erasure", "--reason", default="", help="For the receipt and the audit log.")
@option("Erasure", "--dry-run", is_flag=True, help="Count the tracklets and scan the files; erase nothing.")
@out_option("JSON file for the receipt.")
def erase(gallery: Path, reason: str, dry_run: bool, out: Path | None, **options: Any) -> None:
    """Erase tracklets of a GALLERY from the table and from the disk.

    \b
    reid gallery erase shop --source monday --identity 17 --dry-run
    reid search shop --photo person.jpg --model best.pt --within 0.2 --top 100 --out hits.json
    reid gallery erase shop --answer hits.json --reason "request 42" --out receipt.json
    reid gallery erase shop --camera door --to 2026-11-01

    The receipt states how many features the bytes of all files contained before and after. Erased tracklets stay out
    when they are added again. Backups and the files that were added are not touched. Of a gallery in Milvus the receipt
    is pending, because the server removes the bytes later.
    """
    from reid.core.atomic import write_json
    from reid.gallery import Gallery
    from reid.gallery.erasure import check_complete
    from reid.pipelines.gallery import select_tracklets

    opened = Gallery.open(gallery)
    receipt = opened.erase(select_tracklets(opened, **options), reason=reason, dry_run=dry_run)
    if out is not None:
        write_json(out, receipt.as_dict())
    done = "would be erased" if dry_run else "erased"
    console.print(f"{receipt.tracklets:,} tracklets ({receipt.rows:,} rows) {done}")
    if receipt.pending is not None:
        console.print(receipt.pending if not dry_run else "The features are stored by a server, so no file is scanned.")
        return
    after = "" if dry_run else f", after {receipt.found_after:,}"
    console.print(
        f"scan of {receipt.files:,} files ({receipt.scanned_bytes:,} bytes): of {receipt.vectors:,} features, "
        f"{receipt.found_before:,} found before{after}"
    )
    check_complete(receipt)


@cli.command("expire", cls=Command)
@gallery_argument
@option("Expiry", "--dry-run", is_flag=True, help="Count only.")
def expire(gallery: Path, dry_run: bool) -> None:
    """Remove the tracklets of a GALLERY whose retention is over. Run it daily.

    They are not searched from the moment they expire.
    """
    from reid.gallery import Gallery

    n = Gallery.open(gallery).expire(dry_run=dry_run)
    console.print(f"{n:,} tracklets {'would be removed' if dry_run else 'removed'}")


@cli.command("copy", cls=Command)
@gallery_argument
@click.argument("target", type=PATH)
@option("Copy", "--store", metavar="ADDRESS", help="Milvus server and collection for the rows of the copy.")
def copy(gallery: Path, target: Path, store: str | None) -> None:
    """Copy a GALLERY to a new folder TARGET: as a backup, in the newest format, or to another engine.

    \b
    reid gallery copy shop backup
    reid gallery copy shop shop-milvus --store milvus://localhost:19530/shop
    """
    from reid.gallery import Gallery

    copied = Gallery.open(gallery).copy(target, store)
    console.print(f"{len(copied):,} rows copied to {target}")
