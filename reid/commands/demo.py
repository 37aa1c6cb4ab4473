"""`reid demo`: the whole way on made data, from drawing it to matched tracks, in some minutes on two CPU cores."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

CROPS_OF_A_TRACK = 4

SETTINGS = [
    "augment.erase=0.3",
    "augment.pad=5",
    "eval.every=8",
    "loss.margin=null",
    "model.backbone=light14",
    "model.height=128",
    "model.width=64",
    "optim.decay_norms=false",
    "optim.lr=1.5e-3",
    "optim.name=adamw",
    "optim.weight_decay=0.05",
    "schedule.epochs=16",
    "schedule.kind=cosine",
    "schedule.per=step",
    "schedule.warmup_epochs=2",
]


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for everything.  [default: runs/demo-DATE]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the data and the training.")
@click.option("--epochs", type=click.IntRange(1), help="Train shorter or longer.  [default: 16]")
def command(out: Path | None, seed: int, epochs: int | None) -> None:
    """Make data, train, score, match and draw, in a few minutes.

    People that nobody knows walk past six made cameras; a small network learns to tell them apart and is scored on
    people it never saw, with and without re-ranking; then the tracks of the six cameras are matched with it. Nothing is
    downloaded.
    """
    from reid.commands._test_set import Reranking
    from reid.commands.match import match_files
    from reid.commands.test import score_checkpoint
    from reid.config import load_config
    from reid.core.console import console
    from reid.core.distributed import init_distributed
    from reid.synthetic import synthesize
    from reid.training.trainer import LAST, train

    began = time.monotonic()
    folder = out or Path(f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}")
    console.print("[bold]1. Making pedestrians[/bold]")
    root = synthesize(folder / "streets", seed=seed, stills=CROPS_OF_A_TRACK, workers=os.cpu_count() or 1)
    console.print(f"made {root} in {time.monotonic() - began:.0f} s")
    console.print("[bold]2. Training[/bold]")
    overrides = [*SETTINGS, f"data.train=market1501:{root}", f"data.store_dir={folder / 'store'}", f"seed={seed}"]
    if epochs is not None:
        overrides += [f"schedule.epochs={epochs}", f"schedule.warmup_epochs={min(2, epochs / 4)}"]
    with init_distributed("auto") as ranks:
        train(load_config(None, overrides), folder / "run", ranks)
    console.print("[bold]3. Testing on people never seen[/bold]")
    score_checkpoint(folder / "run" / LAST, [], folder / "test", rerank_with=Reranking())
    console.print("[bold]4. Matching the tracks of six cameras[/bold]")
    match_files(
        root / "tracks",
        folder / "matched",
        videos=root / "stills",
        checkpoint=folder / "run" / LAST,
        truth=root / "truth",
        per_track=CROPS_OF_A_TRACK,
    )
    console.print(f"Who was where when: open {folder / 'matched' / 'report.html'}")
    console.print(f"all done in {(time.monotonic() - began) / 60:.1f} minutes; everything is in {folder}")
