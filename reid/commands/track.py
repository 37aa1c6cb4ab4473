"""`reid track`: detect and track people in videos."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reid.commands.options import PATH, Command, out_option, settings_options
from reid.core.console import console
from reid.pipelines.settings import TrackSettings

if TYPE_CHECKING:
    from reid.pipelines.track import TrackedVideos

GROUPS = {
    "Detector": ["detector", "detections"],
    "Tracker": ["tracker", "floor"],
    "Video": ["rate", "fps"],
    "Computation": ["workers", "device"],
}


@click.command("track", cls=Command)
@click.argument("videos", nargs=-1, required=True, type=PATH, metavar="VIDEO...")
@settings_options(TrackSettings, GROUPS)
@out_option("Folder for the results.", required=True)
def cli(videos: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Detect the people in videos and track them, each camera on its own.

    \b
    reid track cam01.mp4 cam02.mp4 --out tracked/
    reid track videos/ --out tracked/ --tracker bytetrack
    reid match --tracks tracked/tracks --videos videos/ --model best.pt --out matched/

    VIDEO is a video file, a folder of numbered images, or a folder of these. A camera is called like its file or
    folder. A camera that cannot be read is reported and left out.

    Writes detections/ (all boxes), tracks/ (MOTChallenge text, one file a camera), cameras.yaml and track.json. Run it
    again to resume, or with another --tracker: detections are kept.

    To give each person one identity across the cameras, use `reid run`, or `reid match` on these tracks.
    """
    from reid.pipelines.track import track_videos

    began = time.perf_counter()
    print_tracks(track_videos(videos, out, TrackSettings(**options)))
    console.print(f"done in {time.perf_counter() - began:.1f} s")


def print_tracks(result: TrackedVideos) -> None:
    """Print the result of each camera, and the files written."""
    for name, camera in result.summary.items():
        speed = camera["frames_per_second"]
        console.print(
            f"{name}: {camera['tracks']:,} tracks, {camera['tracked_boxes']:,} boxes in {camera['analysed_frames']:,} "
            f"frames" + (f", detected at {speed:.1f} frames/s" if speed else "")
        )
    for path in result.written:
        console.print(f"  {path}")
