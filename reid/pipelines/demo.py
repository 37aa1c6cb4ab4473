"""Every step on synthetic data: generate, train, test, match."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from reid.config import load_config
from reid.core.console import console
from reid.core.distributed import init_distributed
from reid.pipelines.match import MatchedFiles, match_files
from reid.pipelines.settings import MatchFiles, TestSettings
from reid.pipelines.test import test
from reid.report import SetResults
from reid.synthetic import synthesize
from reid.training.trainer import LAST, train

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


def demo(
    out: Path,
    seed: int,
    epochs: int | None,
    on_test: Callable[[list[SetResults], Path], object],
    on_match: Callable[[MatchedFiles], object],
) -> None:
    """Generate a data set, train on it, test on unseen identities, and match the tracks of all cameras."""
    began = time.monotonic()
    console.print("[bold]1. Generate synthetic pedestrians[/bold]")
    root = synthesize(out / "synthetic", seed=seed, stills=CROPS_OF_A_TRACK, workers=os.cpu_count() or 1)
    console.print(f"generated {root} in {time.monotonic() - began:.0f} s")
    console.print("[bold]2. Train[/bold]")
    overrides = [*SETTINGS, f"data.train=market1501:{root}", f"data.store_dir={out / 'store'}", f"seed={seed}"]
    if epochs is not None:
        overrides += [f"schedule.epochs={epochs}", f"schedule.warmup_epochs={min(2, epochs / 4)}"]
    with init_distributed("auto") as distributed:
        train(load_config(None, overrides), out / "run", distributed)
    console.print("[bold]3. Test on unseen identities[/bold]")
    model = out / "run" / LAST
    on_test(test(model, out=out / "test", settings=TestSettings(rerank=True)), out / "test")
    console.print("[bold]4. Match the tracks of six cameras[/bold]")
    files = MatchFiles(
        tracks=root / "tracks",
        videos=root / "stills",
        model=model,
        truth=root / "truth",
        per_track=CROPS_OF_A_TRACK,
    )
    on_match(match_files(files, out / "matched"))
