"""`reid metric fit`: fit a distance on labelled embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from reid.commands.options import PATH, Command, out_option, settings_options
from reid.core.console import console, warn
from reid.pipelines.settings import MetricSettings


@click.group("metric")
def cli() -> None:
    """Fit a distance on labelled embeddings."""


@cli.command("fit", cls=Command)
@click.argument("embeddings", nargs=-1, required=True, type=PATH)
@settings_options(MetricSettings, {"Metric": ["method", "dimensions", "ridge", "any_camera"]})
@out_option("The .npz file to write.", required=True)
def fit(embeddings: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Fit a distance on labelled EMBEDDINGS in closed form: seconds, no training.

    \b
    reid embed --model runs/x/best.pt --data market1501:DIR --split train --out train.parquet
    reid metric fit train.parquet --out metric.npz
    reid test --model runs/x/best.pt --learned-metric metric.npz

    Most useful when a model meets new cameras and some people there are labelled. Several files are taken together.
    Rows with pid -1 (unknown) and 0 (distractors) are left out.
    """
    from reid.pipelines.metric import fit_metric_files

    metric = fit_metric_files(embeddings, out, MetricSettings(**options))
    about = metric.about
    console.print(
        f"{about['method']}: {about['rows']:,} embeddings of {about['identities']:,} identities, {about['pairs']}; "
        f"{metric.factor.shape[1]} → {metric.factor.shape[0]} dimensions"
    )
    if not about["model"]:
        warn("The embeddings do not name their model, so a mismatch with other embeddings cannot be detected.")
    console.print(f"learned metric: {out}")
