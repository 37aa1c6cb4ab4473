"""`reid test`: evaluate a model on data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reid.commands.options import Command, model_option, option, out_option, settings_options
from reid.core.console import console
from reid.pipelines.settings import TestSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reid.report import SetResults

GROUPS = {
    "Protocol": ["ap", "any_camera", "skip_unreadable"],
    "Re-ranking": ["rerank", "camera_aware", "k1", "k2", "lambda_value"],
    "Distance": ["flip", "learned_metric", "calibration"],
    "Report": ["queries", "page"],
    "Computation": ["device", "batch_size", "trust"],
}


@click.command("test", cls=Command)
@model_option()
@option(
    "Input", "--data", multiple=True, metavar="LAYOUT:ROOT",
    help="Data set to evaluate on. Repeatable.  [default: the model's data.test, else its data.train]"
)  # fmt: skip
@out_option("Folder for the results.  [default: test/ next to the model]")
@settings_options(TestSettings, GROUPS)
def cli(model: Path, data: tuple[str, ...], out: Path | None, **options: Any) -> None:
    """Evaluate a model across cameras: CMC, mAP, re-ranking, verification.

    \b
    reid test --model runs/x/best.pt --rerank
    reid test --model runs/x/best.pt --data market1501:/data/market --data dukemtmc:/data/duke

    Writes metrics.json, evaluation.html and cmc.png, and for each data set its pictures and embeddings (Parquet).
    """
    settings = TestSettings(**options)
    from reid.pipelines.test import test

    out = out or (model if model.is_dir() else model.parent) / "test"
    print_results(test(model, data, out, settings), out)


def print_results(results: Sequence[SetResults], out: Path) -> None:
    """Print the table of scores, and the files written to `out`."""
    from reid.report import Scored, results_table, set_drawings

    rows = []
    for one in results:
        rows.append(Scored(one.name, one.model, one.ranking))
        if one.reranked is not None:
            rows.append(Scored(one.name, one.model, one.reranked, reranked=True))
    console.print(results_table(rows))
    console.print(f"CMC curve: {out / 'cmc.png'}")
    for one in results:
        others = ", ".join(
            f"-{name}.png" for name in sorted({drawing.name for drawing in set_drawings(one)} - {"worst"})
        )
        console.print(f"rank lists: {out / f'{one.name}-worst.png'} (also {others})")
    console.print(f"numbers: {out / 'metrics.json'}")
    if (out / "evaluation.html").is_file():
        console.print(f"page: {out / 'evaluation.html'}")
