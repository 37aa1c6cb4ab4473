"""`reid fit-metric`: labelled embeddings in; a distance learned on them out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from reid.core.errors import ReidError

if TYPE_CHECKING:
    from reid.embedding.learned_metric import LearnedMetric
    from reid.embedding.table import Embeddings


@click.command("fit-metric")
@click.argument("embeddings", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--method", default="xqda", show_default=True, type=click.Choice(["kissme", "xqda"]),
    help="KISSME (Köstinger 2012), or XQDA (Liao 2015), which also drops directions that do not tell people apart.",
)  # fmt: skip
@click.option("--dimensions", type=click.IntRange(1), help="Keep at most this many.  [default: all that help]")
@click.option(
    "--ridge", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True),
    help="Added to the diagonal, in mean eigenvalues: more is safer, less is more daring.",
)  # fmt: skip
@click.option("--any-camera", is_flag=True, help="Learn from pairs of one camera too.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .npz file to write.")
def command(
    embeddings: tuple[Path, ...], method: str, dimensions: int | None, ridge: float, any_camera: bool, out: Path
) -> None:
    """Learn a distance on labelled EMBEDDINGS, with no training: a closed form, in seconds.

    \b
    reid embed --checkpoint runs/x/best.pt --layout market1501 --root DIR --part train --out train.parquet
    reid fit-metric train.parquet --out metric.npz
    reid test --checkpoint runs/x/best.pt --learned-metric metric.npz

    Worth most where a model meets cameras that it was not trained on, and some people there are labelled. Files are
    taken together. Rows of pid -1 and 0 (nobody, anybody) are left out.
    """
    from reid.core.console import console, warn
    from reid.embedding.table import Embeddings

    if out.suffix != ".npz":
        raise ReidError(f"--out {out} must end in .npz.")
    table = Embeddings.concat([Embeddings.load(path) for path in embeddings])
    metric = fit_table(table, method, dimensions=dimensions, ridge=ridge, any_camera=any_camera)
    metric.save(out)
    about = metric.about
    console.print(
        f"{method}: {about['rows']:,} embeddings of {about['identities']:,} identities, {about['pairs']}; "
        f"{metric.factor.shape[1]} → {metric.factor.shape[0]} dimensions"
    )
    if not about["model"]:
        warn("The embeddings do not say which model they are of, so nobody can tell if the metric fits others.")
    console.print(f"learned metric: {out}")


def fit_table(
    table: Embeddings, method: str, *, dimensions: int | None = None, ridge: float = 1.0, any_camera: bool = False
) -> LearnedMetric:
    """Fit on the labelled rows, made of length 1.

    Raises:
        ReidError: no pid or camid column, a feature that is not finite, or as `kissme` and `xqda`.
    """
    from reid.core.arrays import unit_rows
    from reid.embedding.learned_metric import LearnedMetric
    from reid.evaluation.pairs import DISTRACTOR
    from reid.losses import kissme, xqda

    if table.pids is None:
        raise ReidError("A metric is learned from labels, and the embeddings have no pid column.")
    if table.camids is None and not any_camera:
        raise ReidError(
            "The embeddings have no camid column, so pairs across cameras cannot be told. Add it, or learn from all "
            "pairs with --any-camera."
        )
    known = table.check().take((table.pids != -1) & (table.pids != DISTRACTOR))
    assert known.pids is not None
    fit = {"kissme": kissme, "xqda": xqda}[method]
    camids = None if any_camera else known.camids
    layer = fit(unit_rows(known.features), known.pids, camids, dimensions=dimensions, ridge=ridge)
    about = {
        "method": method,
        "model": str(table.meta.get("model") or ""),
        "rows": len(known),
        "identities": len(np.unique(known.pids)),
        "pairs": "all pairs" if any_camera else "pairs across cameras",
        "ridge": ridge,
    }
    return LearnedMetric(layer.factor.detach().numpy(), about)
