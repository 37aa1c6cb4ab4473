"""`reid prepare verify|unpack|make`: archives that you downloaded, and the embedded data set. Nothing is fetched."""

from __future__ import annotations

import os

import click

from reid.core.console import console, warn
from reid.data.archives import CONTENTS, read_unpacked, unpack_archive, verify_archive


@click.group()
def command() -> None:
    """Verify or unpack an archive you downloaded, or make the embedded data set. Nothing is ever downloaded."""


@command.command()
@click.argument("archive")
@click.argument("layout")
def verify(archive: str, layout: str) -> None:
    """Read ARCHIVE to its end without unpacking: is it whole, safe, and of LAYOUT?"""
    found = verify_archive(archive, layout)
    console.print(f"{found.file}: {found.n_bytes:,} bytes, whole", markup=False)
    console.print(f"sha256 {found.sha256}\nmd5    {found.md5}" + (" (the published one)" if found.md5_agrees else ""))
    console.print(f"{found.n_files:,} files, {found.unpacked_bytes:,} bytes unpacked; every name is safe.")
    for name, number in found.images.items():
        console.print(f"  {name}: {number:,}", markup=False)
    if found.md5_agrees is False:
        warn("the md5 is not the published one. Another packing of the same images is no harm: unpack and check.")


@command.command()
@click.argument("archive")
@click.argument("destination")
@click.option(
    "--layout", type=click.Choice(sorted(CONTENTS)), help="How to read what was unpacked; if left out, it is found."
)
def unpack(archive: str, destination: str, layout: str | None) -> None:
    """Unpack ARCHIVE (zip, tar, tar.gz, …) into the new folder DESTINATION, and count what it holds."""
    folder = unpack_archive(archive, destination)
    console.print(f"Unpacked into {folder}", markup=False)
    name, benchmark = read_unpacked(folder, layout)
    for warning in benchmark.warnings:
        warn(warning)
    for part in ("train", "query", "gallery"):
        console.print(f"  {part}: {len(getattr(benchmark, part)):,} images")
    console.print(f"Next: reid check {name} {benchmark.root}", markup=False)


@command.command()
@click.argument("out")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same data.")
@click.option("--ids", default=350, show_default=True, help="People to make.")
@click.option("--cameras", default=6, show_default=True, help="Cameras that see them.")
@click.option("--videos", is_flag=True, help="Also write videos in which they walk from camera to camera.")
@click.option(
    "--stills", default=0, show_default=True, type=click.IntRange(0), metavar="N",
    help="Write the frames of N boxes of each track instead: all that `reid match --videos OUT/stills` needs.",
)  # fmt: skip
def make(out: str, seed: int, ids: int, cameras: int, videos: bool, stills: int) -> None:
    """Make the embedded data set at OUT: a Market-1501 tree, and tracks with ground truth."""
    from reid.synthetic import synthesize

    made = synthesize(
        out, seed=seed, ids=ids, cameras=cameras, videos=videos, stills=stills, workers=os.cpu_count() or 1
    )
    console.print(f"Made {made}. Next: reid check market1501 {made}", markup=False)
