"""`reid live`: follow people through live cameras."""

from __future__ import annotations

from typing import Any

import click

from reid.commands.options import Command, option, settings_options
from reid.config import load_settings
from reid.core.console import console
from reid.core.memory import limit_heap
from reid.pipelines.settings import LiveSettings, MatchKeys

GROUPS = {
    "Detector": ["detector"],
    "Tracker": ["tracker", "floor"],
    "Video": ["sources", "rate", "loop"],
    "Identities": ["model", "per_track", "cameras", "calibration", "longest"],
    "Tracks": ["split", "stitch"],
    "Events": ["every", "gallery", "status"],
    "Computation": ["device", "batch_size", "trust"],
}


@click.command("live", cls=Command)
@click.argument("arguments", nargs=-1, metavar="[SOURCE]... [key=value]...")
@settings_options(LiveSettings, GROUPS)
@option(
    "Output",
    "--out",
    "outputs",
    multiple=True,
    metavar="FILE|-|mqtt://HOST/TOPIC",
    help="File that events are appended to, one JSON object a line; - for standard output (default); or an MQTT "
    "broker. Repeatable.",
)
def cli(arguments: tuple[str, ...], outputs: tuple[str, ...], **options: Any) -> None:
    """Follow people through live cameras and report each with one identity.

    \b
    reid live rtsp://10.0.0.7/stream yard=rtsp://10.0.0.8/stream --out events.jsonl
    reid live 0 --rate 5 stream.period=20 --status 8080
    reid live --sources cameras.live.yaml --out mqtt://broker/shop
    reid live cam01.mp4 cam02.mp4 --out -

    SOURCE is a URL, the number of a webcam, or a video file, which is played in real time. A camera is called like its
    host or file; NAME=SOURCE gives another name.

    Events: `new` and `update` with the box of a track, `end` with its identity, and `camera` when a camera connects or
    fails. An identity is known at most stream.close_after + stream.period (2 + 60) seconds after the last box of a
    track: pass stream.period=20 to know it earlier, less accurately. Other key=value are settings of `reid match`.

    It ends when all files have ended (not with --sources), or with Ctrl-C, which ends all tracks first.
    """
    limit_heap()
    from reid.pipelines.live import name_sources, run_live, split_arguments

    outputs = outputs or ("-",)
    given, keys = split_arguments(arguments)
    settings = load_settings(MatchKeys, overrides=keys)
    console.stderr = "-" in outputs  # messages must not mix with events
    try:
        console.print(f"an identity is known at most {settings.stream.delay:g} s after the last box of a track")
        result = run_live(name_sources(given), outputs, LiveSettings(**options), settings)
        for name, status in result.cameras.items():
            console.print(f"{name}: {status.state}, {status.frames:,} frames, {status.dropped:,} of them dropped")
        console.print(f"{result.identities:,} identities, {result.events.get('end', 0):,} tracks")
    finally:
        console.stderr = False
