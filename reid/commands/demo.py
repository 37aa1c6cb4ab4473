"""`reid demo`: every step on synthetic data."""

from __future__ import annotations

import time
from pathlib import Path

import click

from reid.commands.options import command, option, out_option


@command("demo")
@option("Settings", "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of data and training.")
@option("Settings", "--epochs", type=click.IntRange(1), help="Training epochs.  [default: 16]")
@out_option("Folder for all results.  [default: runs/demo-DATE]")
def cli(out: Path | None, seed: int, epochs: int | None) -> None:
    """Run every step on synthetic data: generate, train, test, match. Takes a few minutes on two CPU cores.

    Synthetic pedestrians walk past six cameras. A small network is trained and tested on unseen identities, with and
    without re-ranking, and the tracks of all cameras are matched with it. Nothing is downloaded.
    """
    from reid.commands.match import print_matches
    from reid.commands.test import print_results
    from reid.core.console import console
    from reid.pipelines.demo import demo

    began = time.monotonic()
    out = out or Path(f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}")
    demo(out, seed, epochs, print_results, print_matches)
    console.print(f"Open {out / 'matched' / 'report.html'} to see who was where and when.")
    console.print(f"done in {(time.monotonic() - began) / 60:.1f} minutes; everything is in {out}")
