"""`reid data check|verify|unpack|synthesize|from-tracks`: data sets on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from reid.commands.options import PATH, Command, option, out_option, overrides_argument, settings_options
from reid.core.atomic import write_json
from reid.core.console import console, make_table, warn
from reid.core.errors import first_few
from reid.core.workers import available_cores
from reid.data.archives import CONTENTS, read_unpacked, unpack_archive, verify_archive
from reid.data.check import CheckReport, check_benchmark
from reid.data.crops import SkippedFile
from reid.data.layouts import LAYOUTS, load_benchmark
from reid.pipelines.settings import CutSettings

BAR = 40
MOST_CAMERAS = 40


@click.group("data")
def cli() -> None:
    """Check, verify, unpack, synthesize or cut data sets. Nothing is ever downloaded."""


@cli.command("check", cls=Command, epilog=f"Layouts: {', '.join(LAYOUTS)}. Their options are in docs/data.md.")
@click.argument("data", metavar="LAYOUT:ROOT[?key=value&...]")
@option("Check", "--quick", is_flag=True, help="Read only image headers; misses damaged pixels and duplicates.")
@option("Check", "--strict", is_flag=True, help="Exit with status 1 if anything is found.")
@option("Output", "--list", "limit", default=10, show_default=True, metavar="N", help="Files to list of each kind.")
@option("Output", "--json", "json_file", type=PATH, metavar="FILE", help="Also write the report as JSON.")
def check(data: str, json_file: Path | None, quick: bool, strict: bool, limit: int) -> None:
    """Check a data set: counts, cameras, files, queries, and what to fix.

    \b
    reid data check market1501:/data/Market-1501-v15.09.15
    reid data check 'cuhk03:/data/cuhk03?variant=detected'
    reid data check table:crops.csv
    """
    report = check_benchmark(load_benchmark(data), decode=not quick)
    if json_file:
        write_json(json_file, report.as_dict())
    print_report(report, limit)
    if not report.findings:
        console.print(f" Next: reid train data.train={data}")
    if strict and report.findings:
        sys.exit(1)


@cli.command("verify", cls=Command)
@click.argument("archive")
@click.argument("layout", type=click.Choice(sorted(CONTENTS)))
def verify_command(archive: str, layout: str) -> None:
    """Read ARCHIVE without unpacking it and verify that it is undamaged, safe, and contains LAYOUT."""
    found = verify_archive(archive, layout)
    console.print(f"{found.file}: {found.n_bytes:,} bytes, complete")
    console.print(f"sha256 {found.sha256}\nmd5    {found.md5}" + (" (the published one)" if found.md5_agrees else ""))
    console.print(f"{found.n_files:,} files, {found.unpacked_bytes:,} bytes unpacked; all names are safe.")
    for name, number in found.images.items():
        console.print(f"  {name}: {number:,}")
    if found.md5_agrees is False:
        warn("The md5 differs from the published one; the same images may be packed differently. Unpack and check.")


@cli.command("unpack", cls=Command)
@click.argument("archive")
@option("Input", "--layout", type=click.Choice(sorted(CONTENTS)), help="Layout of the contents (detected by default).")
@out_option("New folder to unpack into.", required=True)
def unpack_command(archive: str, layout: str | None, out: Path) -> None:
    """Unpack ARCHIVE (zip, tar, tar.gz, …) into a new folder and count its images."""
    folder = unpack_archive(archive, out)
    console.print(f"Unpacked into {folder}")
    name, benchmark = read_unpacked(folder, layout)
    for warning in benchmark.warnings:
        warn(warning)
    for part in ("train", "query", "gallery"):
        console.print(f"  {part}: {len(getattr(benchmark, part)):,} images")
    console.print(f"Next: reid data check {name}:{benchmark.root}")


@cli.command("synthesize", cls=Command)
@option("Input", "--config", type=PATH, help="YAML file with settings, e.g. configs/synthetic.yaml.")
@out_option("New or empty folder.", required=True)
@overrides_argument
def synthesize_command(config: Path | None, out: Path, overrides: tuple[str, ...]) -> None:
    """Generate a synthetic data set: a Market-1501 tree, tracks with true identities, optional videos.

    \b
    reid data synthesize --out datasets/synthetic
    reid data synthesize --out datasets/synthetic seed=1 ids=100 cameras=4 videos=true

    configs/synthetic.yaml lists all settings. The same settings generate the same bytes. With stills=N the frames of N
    boxes per track are written instead of videos: all that `reid match --videos OUT/stills` needs.
    """
    from reid.config import load_settings
    from reid.synthetic import SyntheticSettings, synthesize

    root = synthesize(out, load_settings(SyntheticSettings, config, overrides), workers=available_cores())
    console.print(f"Generated {root}. Next: reid data check market1501:{root}")


@cli.command("from-tracks", cls=Command)
@settings_options(CutSettings, {"Input": ["tracks", "videos", "first_frame", "skip_untracked"]})
@settings_options(CutSettings, {"Output": ["per_track", "global_ids", "test", "layout"]})
@out_option("New or empty folder.", required=True)
def from_tracks_command(out: Path, **options: Any) -> None:
    """Cut the boxes of tracks out of videos, as a table to train on, to score or to adapt to.

    \b
    reid data from-tracks --tracks tracks/ --videos videos/ --out crops/
    reid data from-tracks --tracks matched/tracks/ --videos videos/ --global-ids --layout market1501 --out benchmark/

    Writes table.csv (path, pid, camid, track, frame, split) and the crops. With --global-ids, people are divided into
    train and test by the time at which they first appear, and test crops into query and gallery.
    """
    from reid.pipelines.from_tracks import cut_tracks

    done = cut_tracks(out, CutSettings(**options))
    for text in done.warnings:
        warn(text)
    for name, count in done.crops.items():
        if count:
            console.print(f"{name}: {count:,} crops of {done.identities[name]:,} identities")
    console.print(f"Next: reid data check {done.data}")


def print_report(report: CheckReport, limit: int = 10) -> None:
    """Print a report, with the first `limit` files of each kind."""
    console.print(Text.assemble((report.name, "bold"), f" at {report.root}"))
    _print_splits(report)
    if any(row[0] >= 0 for row in report.cameras):
        _print_cameras(report)
    else:
        console.print("\nNo cameras.")
    largest = max((row.ids for row in report.crops_per_train_id), default=0)
    if largest:
        console.print("\nTrain identities by number of crops", style="italic")
        for row in report.crops_per_train_id:
            name = f"{row.low}+" if row.high is None else _range((row.low, 0, row.high)).partition(",")[0]
            console.print(f"{name:>9} {'█' * round(BAR * row.ids / largest):<{BAR}} {row.ids:,}")
    _print_files(report, limit)
    total = report.queries_kept + sum(drop.queries for drop in report.queries_dropped)
    rule = "in other cameras only" if report.cross_camera else "in the whole gallery"
    console.print(f"\nQueries: {report.queries_kept:,} of {total:,} can be scored, matched {rule}.")
    for drop in report.queries_dropped:
        console.print(f"  {drop.queries:,} dropped: {drop.reason} (identities {first_few(drop.pids)})")
    for note in report.notes:
        console.print(Text.assemble(("\nNote:", "cyan"), f" {note}"))
    console.print("\nWhat to fix", style="bold")
    for number, finding in enumerate(report.findings, start=1):
        console.print(Text.assemble(f" {number}. ", (finding.problem, "yellow"), f"\n    {finding.fix}"))
    if not report.findings:
        console.print(" Nothing." if report.files.decoded else " Nothing found by the quick check.")


def _with_official(count: int, official: int | None) -> str:
    note = "" if official is None else " ✓" if count == official else f" ≠ {official:,}"
    return f"{count:,}{note}"


def _print_splits(report: CheckReport) -> None:
    rows = []
    for split in report.splits:
        images = _with_official(split.images, split.official_images)
        ids = _with_official(split.ids, split.official_ids)
        rows.append((split.name, images, ids, str(split.cameras), _range(split.crops_per_id)))
    console.print(make_table(("split", "images", "identities", "cameras", "crops per identity"), rows))
    official = report.official
    if report.distractors or report.junk or "junk" in official:
        distractors = _with_official(report.distractors, official.get("distractors"))
        junk = _with_official(report.junk, official.get("junk"))
        console.print(f"Distractors (pid 0, in the gallery): {distractors}. Junk (pid -1, ignored): {junk}.")
    if official:
        console.print("✓ the official count; ≠ differs from the official count on the right.")


def _range(spread: tuple[int, float, int]) -> str:
    least, median, most = spread
    return str(least) if least == most else f"{least}–{most}, median {median:g}"


def _print_cameras(report: CheckReport) -> None:
    rows = [
        ("unknown" if camid < 0 else str(camid), *(f"{counts[i]:,} / {counts[i + 1]:,}" for i in (0, 2, 4)))
        for camid, *counts in report.cameras[:MOST_CAMERAS]
    ]
    title = "Images / identities by camera"
    console.print(make_table(("camera", "train", "query", "gallery"), rows, title=title))
    if len(report.cameras) > MOST_CAMERAS:
        console.print(f"and {len(report.cameras) - MOST_CAMERAS} more cameras (all of them with --json).")
    for column, part in ((1, "train"), (2, "test")):
        seen = [f"{row[column]:,} by {row[0]}" for row in report.ids_by_cameras if row[column]]
        if seen:
            console.print(f"Cameras that see an identity, {part}: {', '.join(seen)}.")


def _print_files(report: CheckReport, limit: int) -> None:
    files = report.files
    console.print(
        f"\nFiles: {files.examined:,} images {'decoded' if files.decoded else 'headers read'}, "
        f"{files.n_bytes / 2**20:,.1f} MiB, {len(files.unreadable):,} unreadable."
    )
    if files.width and files.height:
        console.print(f"Width {_range(files.width)}; height {_range(files.height)} pixels.")
    _print_list(files.unreadable, limit)
    if report.skipped:
        console.print(f"Skipped: {len(report.skipped):,} files.")
        _print_list(report.skipped, limit)
    same = files.duplicates
    if same.examples:
        console.print(f"The same bytes: {same.files:,} files in {same.groups:,} groups.")
    for first, second in same.examples[:limit]:
        console.print(f"  {first} = {second}")
    if same.near_examples:
        console.print(f"Test images nearly identical to a train image: {same.near_train_and_test:,}.")
    for first, second in same.near_examples[:limit]:
        console.print(f"  {first} ≈ {second}")


def _print_list(items: Sequence[SkippedFile], limit: int) -> None:
    for item in items[:limit]:
        console.print(f"  {item.path}: {item.reason}")
    if len(items) > limit:
        console.print(f"  and {len(items) - limit:,} more (--list {len(items)})")
