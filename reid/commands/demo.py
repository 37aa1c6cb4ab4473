"""`reid demo`: every step on synthetic data."""

from __future__ import annotations

import time
from pathlib import Path

import click

from reid.commands.options import PATH, Command, option, out_option, overrides_argument
from reid.core.console import console


@click.command("demo", cls=Command)
@option("Input", "--config", type=PATH, help="YAML file with settings.  [default: configs/demo.yaml]")
@out_option("Folder for all results.  [default: runs/demo-DATE]")
@overrides_argument
def cli(config: Path | None, out: Path | None, overrides: tuple[str, ...]) -> None:
    """Run every step on synthetic data: generate, train, test, match, videos, search. Takes minutes on two CPU cores.

    \b
    reid demo
    reid demo --out runs/demo seed=1 training.schedule.epochs=4

    Synthetic pedestrians walk past six cameras. A small network is trained and tested on unseen identities, with and
    without re-ranking, and the tracks of all cameras are matched with it. Then two videos are tracked, with the true
    boxes as detections, matched and drawn, and at last one person is found by photo. Nothing is downloaded.
    configs/demo.yaml lists the settings.
    """
    from reid.commands.match import print_matches
    from reid.commands.search import print_answer
    from reid.commands.test import print_results
    from reid.config import load_settings, shipped_configs
    from reid.pipelines.demo import DemoSettings, demo

    began = time.monotonic()
    settings = load_settings(DemoSettings, config or shipped_configs()["demo.yaml"], overrides)
    out = out or Path(f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}")
    photo = demo(out, settings, print_results, print_matches, print_answer)
    console.print(f"Open {out / 'matched' / 'report.html'} to see who was where and when.")
    if photo is not None:
        console.print(f"Search again: reid search {out / 'gallery'} --photo {photo} --model {out / 'run'}")
        console.print(f"In a browser: reid serve {out / 'gallery'} --model {out / 'run'}")
    console.print(f"done in {(time.monotonic() - began) / 60:.1f} minutes; everything is in {out}")
