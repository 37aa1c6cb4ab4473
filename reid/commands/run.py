"""`reid run`: from videos to identities."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from reid.commands.match import print_matches
from reid.commands.options import PATH, Command, out_option, settings_options
from reid.commands.track import GROUPS as TRACK_GROUPS
from reid.commands.track import print_tracks
from reid.config import load_settings
from reid.core.console import console
from reid.pipelines.settings import MatchKeys, RunSettings

GROUPS = TRACK_GROUPS | {
    "Identities": ["model", "per_track", "encounters", "cameras", "calibration", "constraints", "truth", "online"],
    "Tracks": ["split", "stitch", "self_calibrate"],
    "Pictures": ["draw", "pixelate_heads"],
    "Computation": [*TRACK_GROUPS["Computation"], "batch_size", "trust"],
}


@click.command("run", cls=Command)
@click.argument("videos", nargs=-1, required=True, type=PATH, metavar="VIDEO... [key=value]...")
@settings_options(RunSettings, GROUPS)
@out_option("Folder for the results.", required=True)
def cli(videos: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Give every person in the videos of several cameras one identity: track, embed, match, report.

    \b
    reid run cam01.mp4 cam02.mp4 --out matched/
    reid run videos/ --out matched/ --cameras cameras.yaml --draw
    reid run videos/ --out matched/ --model best.pt solver=correlation

    VIDEO is a video file, a folder of numbered images, or a folder of these. A camera is called like its file or
    folder. A camera that cannot be read is reported and left out.

    Open report.html first. identities.csv has a row for each sighting, tracks/ the boxes with identities, tracked/ the
    tracks before matching. Run the same command again to resume.

    key=value are the settings of `reid match`, such as threshold=0.4.
    """
    from reid.pipelines.run import run_videos

    began = time.perf_counter()
    keys = [str(word) for word in videos if "=" in word.name and not word.exists()]
    matching = load_settings(MatchKeys, overrides=keys)
    paths = [path for path in videos if str(path) not in keys]
    result = run_videos(paths, out, RunSettings(**options), matching.matching(), matching.stream)
    print_tracks(result.tracked)
    print_matches(result.matched)
    console.print(f"done in {time.perf_counter() - began:.1f} s")
