"""`reid test`: evaluate a model on data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reid.commands.options import Command, model_option, option, out_option, settings_options
from reid.core.console import console, make_table
from reid.core.errors import ConfigError
from reid.pipelines.settings import ReassociationSettings, TestSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from reid.evaluation import ReassociationResult
    from reid.report import SetResults

GROUPS = {
    "Protocol": ["ap", "any_camera", "skip_unreadable"],
    "Re-ranking": ["rerank", "camera_aware", "k1", "k2", "lambda_value", "neighbour_search"],
    "Distance": ["flip", "learned_metric", "calibration"],
    "Report": ["queries", "page"],
    "Computation": ["device", "batch_size", "trust"],
}
REASSOCIATION = "Re-association (recognition some frames later, instead of ranking)"


@click.command("test", cls=Command)
@model_option(required=False)
@option(
    "Input", "--data", multiple=True, metavar="LAYOUT:ROOT",
    help="Data set to evaluate on. Repeatable.  [default: the model's data.test, else its data.train]"
)  # fmt: skip
@out_option("Folder for the results.  [default: test/ next to the model]")
@settings_options(TestSettings, GROUPS)
@settings_options(ReassociationSettings, {REASSOCIATION: list(ReassociationSettings.model_fields)})
def cli(model: Path | None, data: tuple[str, ...], out: Path | None, **options: Any) -> None:
    """Evaluate a model across cameras: CMC, mAP, re-ranking, verification.

    \b
    reid test --model runs/x/best.pt --rerank
    reid test --model runs/x/best.pt --data market1501:/data/market --data dukemtmc:/data/duke
    reid test --model runs/x/best.pt --tracks truth/ --videos videos/ --gaps 10 --gaps 100
    reid test --embeddings boxes.parquet

    Writes metrics.json, evaluation.html and cmc.png, and for each data set its pictures and embeddings (Parquet); with
    --tracks or --embeddings reassociation.json.
    """
    gaps = ReassociationSettings(**{name: options.pop(name) for name in ReassociationSettings.model_fields})
    settings = TestSettings(**options)
    if gaps.embeddings or gaps.tracks or gaps.videos:
        if data:
            raise ConfigError("--data cannot be combined with --embeddings, --tracks or --videos. Run two commands.")
        _reassociate(model, gaps, out, settings)
        return
    if model is None:
        raise ConfigError("No model is given. Pass --model FILE, or --embeddings FILE.")
    from reid.pipelines.test import test

    out = out or _results_folder(model)
    print_results(test(model, data, out, settings), out)


def _results_folder(source: Path) -> Path:
    """Return the default folder of the results, next to a file or in a folder."""
    return (source if source.is_dir() else source.parent) / "test"


def _reassociate(model: Path | None, gaps: ReassociationSettings, out: Path | None, settings: TestSettings) -> None:
    from reid.pipelines.reassociation import reassociation_embeddings, score_reassociation

    options = settings.model_dump(include={"device", "batch_size", "flip"})
    table = reassociation_embeddings(model, gaps, runtime=settings.runtime_for(), **options)
    model_or_table = gaps.embeddings or model
    if out is None and model_or_table is not None:
        out = _results_folder(model_or_table)
    result = score_reassociation(table, gaps, out)
    console.print(reassociation_table(result))
    console.print(f"numbers: {out / 'reassociation.json' if out else ''}")


def reassociation_table(result: ReassociationResult) -> Table:
    """Return a rich table of the scores by gap, in percent."""

    def cell(value: float | None, factor: float = 100) -> str:
        return "not enough data" if value is None else f"{factor * value:.1f}"

    rows = []
    for one in result.gaps:
        scores = [cell(value) for value in (one.rank1, one.mrr, one.chance)]
        dropped = " + ".join(f"{number:,}" for number in one.dropped.values())
        rows.append([f"{one.gap:,}", *scores, cell(one.candidates, 1), f"{one.n_valid:,}", dropped])
    reasons = " + ".join(result.gaps[0].dropped) if result.gaps else ""
    rules = result.protocol
    caption = (
        f"{rules['queries']:,} queries: each crop in every {rules['stride']:,} frames of {rules['cameras']:,} cameras. "
        f"Gallery: {rules['gallery']}. Ties {rules['ties']}. Distance: {rules['metric']}. Dropped: {reasons}."
    )
    headings = ["gap (frames)", "R1", "MRR", "chance R1", "candidates", "scored", "dropped"]
    return make_table(headings, rows, caption=caption)


def print_results(results: Sequence[SetResults], out: Path) -> None:
    """Print the table of scores, and the files written to `out`."""
    from reid.report import Scored, results_table, set_drawings

    rows = []
    for one in results:
        rows.append(Scored(one.name, one.model, one.ranking))
        if one.reranked is not None:
            rows.append(Scored(one.name, one.model, one.reranked, reranked=True))
            console.print(f"{one.name}: about {one.identity_size:.1f} crops per identity, estimated without labels")
            console.print(f"{one.name}: {one.reranked.protocol['metric']}")
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
