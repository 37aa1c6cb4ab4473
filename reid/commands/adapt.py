"""`reid adapt`: adapt a model to other cameras with unlabelled tracks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from reid.commands.options import PATH, Command, model_option, option, out_option, overrides_argument, settings_options
from reid.core.console import console
from reid.pipelines.settings import AdaptSettings

GROUPS = {
    "Input": ["data", "tracks", "videos", "per_track", "embeddings", "crops", "constraints", "weights"],
    "Method": ["bn_only", "rounds", "minutes", "confidence", "uncertain"],
    "Guard": ["guard", "held_out"],
    "Computation": ["device"],
}


@click.command("adapt", cls=Command)
@model_option(required=False, help="Checkpoint or run folder; or a backbone, with --weights.")
@settings_options(AdaptSettings, GROUPS)
@option("Input", "--resume", type=PATH, metavar="RUN", help="Continue the adaptation in this folder.")
@out_option("Folder of the adaptation, new or empty.")
@overrides_argument
def cli(model: Path | None, out: Path | None, resume: Path | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Adapt a model to your cameras with unlabelled tracks.

    \b
    reid adapt --model best.pt --tracks tracks/ --videos videos/ --out adapted/ --minutes 60
    reid adapt --model best.pt --data table:crops.csv --out adapted/
    reid adapt --model best.pt --data table:crops.csv --out adapted/ --bn-only
    reid adapt --resume adapted/

    Each round embeds the crops, matches their tracks without labels and trains with the identities found. The last
    tracks of each camera are held out: if the adapted model does not separate them better, best.pt is the given model.
    Settings of training: configs/adapt.yaml; of matching: matching.solver, ... (docs/guides/adapt.md).
    """
    from reid.core.errors import ConfigError
    from reid.pipelines.adapt import adapt
    from reid.training.trainer import Interrupted

    settings, folder = AdaptSettings(**options), resume or out
    if resume and (model or out or overrides or settings != AdaptSettings()):
        raise ConfigError("--resume uses the settings of the adaptation. Remove all other options.")
    if folder is None or not (resume or model):
        raise ConfigError("Pass --model and --out to start an adaptation, or --resume to continue one.")
    try:
        done = adapt(str(model), folder, settings, overrides, resume=resume is not None)
    except Interrupted as stop:
        console.print(f"Stopped. Continue with: reid adapt --resume {folder}")
        raise SystemExit(128 + stop.signal) from stop
    console.print(f"rounds: {done.model.with_name('adaptation.html')}")
    console.print(
        f"{done.model} ({'adapted' if done.accepted else 'the given model'}); next: reid test --model {done.model}"
    )
