"""`reid test`: a checkpoint and data sets in; scores, pictures, a page that holds them all, and features out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reid.core.errors import ReidError

if TYPE_CHECKING:
    from reid.commands._test_set import Reranking
    from reid.evaluation.ranking import AveragePrecision
    from reid.report import Scored, SetResults


@click.command("test")
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="A model: best.pt, .onnx, .xml.")
@click.option(
    "--data", "texts", multiple=True, metavar="LAYOUT:ROOT",
    help="A data set to score on; may be repeated.  [default: the checkpoint's data.test, else its data.train]",
)  # fmt: skip
@click.option("--rerank", is_flag=True, help="Score once more after k-reciprocal re-ranking.")
@click.option("--camera-aware", is_flag=True, help="Re-rank by camera (CA-Jaccard) instead; k1 and k2 are its own.")
@click.option("--k1", default=20, show_default=True, type=click.IntRange(1), help="Of re-ranking: neighbours.")
@click.option("--k2", default=6, show_default=True, type=click.IntRange(1), help="Of re-ranking: query expansion.")
@click.option(
    "--lambda", "lambda_value", default=0.3, show_default=True, type=click.FloatRange(0, 1),
    help="Of re-ranking: share of the original distance.",
)  # fmt: skip
@click.option("--flip", is_flag=True, help="Average each feature with its mirror image's: twice the work.")
@click.option(
    "--ap", default="precision", show_default=True, type=click.Choice(["precision", "trapezoid"]),
    help="Average precision as papers' code has it, or as the official Market-1501 code.",
)  # fmt: skip
@click.option("--any-camera", is_flag=True, help="Let a query match its own camera too.")
@click.option("--skip-unreadable", is_flag=True, help="List images that will not decode and leave them out.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(1), help="Crops a forward pass.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="FILE",
    help="What distance means the same person.  [default: calibration.json beside the checkpoint, if there]",
)  # fmt: skip
@click.option(
    "--learned-metric", type=click.Path(path_type=Path), metavar="FILE",
    help="Compare features by a distance that `reid fit-metric` learned.",
)  # fmt: skip
@click.option(
    "--queries", multiple=True, metavar="LIST",
    help='Draw the rank lists of these too: rows of the query set, from 0 ("3,17"), or identities ("pid:42").',
)  # fmt: skip
@click.option("--page/--no-page", default=True, help="Write evaluation.html, one page with all.  [default: page]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [default: RUN/test]")
def command(
    checkpoint: Path,
    texts: tuple[str, ...],
    rerank: bool,
    camera_aware: bool,
    k1: int,
    k2: int,
    lambda_value: float,
    flip: bool,
    ap: AveragePrecision,
    any_camera: bool,
    skip_unreadable: bool,
    device: str,
    batch_size: int,
    calibration: Path | None,
    learned_metric: Path | None,
    queries: tuple[str, ...],
    page: bool,
    out: Path | None,
) -> None:
    """Score a checkpoint across camera views: CMC, mAP, re-ranking, verification.

    \b
    reid test --checkpoint runs/x/best.pt --rerank
    reid test --checkpoint runs/x/best.pt --data market1501:/data/market --data dukemtmc:/data/duke

    Leaves evaluation.html, metrics.json, cmc.png and, of every set, pictures and the features (Parquet) in the
    results folder.
    """
    from reid.commands._test_set import Reranking

    score_checkpoint(
        checkpoint,
        list(texts),
        out or checkpoint.parent / "test",
        rerank_with=Reranking(k1, k2, lambda_value, camera_aware=camera_aware) if rerank or camera_aware else None,
        flip=flip,
        ap=ap,
        any_camera=any_camera,
        skip_unreadable=skip_unreadable,
        device=device,
        batch_size=batch_size,
        calibration=calibration,
        learned_metric=learned_metric,
        queries=queries,
        page=page,
    )


def score_checkpoint(
    checkpoint: Path,
    texts: list[str],
    out: Path,
    *,
    rerank_with: Reranking | None = None,
    flip: bool = False,
    ap: AveragePrecision = "precision",
    any_camera: bool = False,
    skip_unreadable: bool = False,
    device: str = "auto",
    batch_size: int = 128,
    calibration: Path | None = None,
    learned_metric: Path | None = None,
    queries: Sequence[str] = (),
    page: bool = True,
) -> list[Scored]:
    """Embed, rank, print, and write everything to `out`; the rows of the printed table come back."""
    from reid.commands._test_set import embed_split, find_calibration, numbers_of, results_on
    from reid.config import DataConfig
    from reid.core.atomic import write_json
    from reid.core.console import console, warn
    from reid.core.version import __version__
    from reid.data.layouts import load_benchmarks
    from reid.data.pixels import open_test_split
    from reid.embedding.embedder import Embedder
    from reid.embedding.learned_metric import LearnedMetric
    from reid.report import (
        Scored,
        cmc_drawing,
        describe_protocol,
        find_queries,
        read_queries,
        results_table,
        set_drawings,
        write_evaluation,
    )

    wanted = read_queries(queries)
    texts = texts or _sets_of(checkpoint)
    embedder = Embedder(checkpoint, device=device, batch_size=batch_size, flip=flip)
    metric = None if learned_metric is None else LearnedMetric.load(learned_metric)
    described = embedder.describe() if metric is None else metric.describe(embedder.describe())
    used, unfit = find_calibration(checkpoint, calibration, described["model"])
    if unfit:
        warn(unfit)
    data = DataConfig(store="files", unreadable="skip" if skip_unreadable else "error")
    sets: list[SetResults] = []
    for benchmark in load_benchmarks(texts):
        for text in benchmark.warnings:
            warn(text)
        left_out: list[str] = []
        split = open_test_split(data, benchmark, embedder.preprocessing.size, left_out)
        for line in left_out:
            console.print(f"left out: {line}")
        chosen = find_queries(wanted, split.query.crops.pids, benchmark.name)
        if any_camera:
            split = replace(split, cross_camera=False)
        query, gallery = embed_split(embedder, split)
        if metric is not None:
            query, gallery = metric.apply(query), metric.apply(gallery)
        query.save(out / f"{benchmark.name}-query.parquet")
        gallery.save(out / f"{benchmark.name}-gallery.parquet")
        found = results_on(
            benchmark,
            split,
            query,
            gallery,
            embedder,
            ap=ap,
            rerank_with=rerank_with,
            calibration=used,
            chosen=chosen,
            left_out=left_out,
        )
        for drawing in set_drawings(found):
            drawing.draw(out / f"{found.name}-{drawing.name}.png")
        sets.append(found)
    cmc_drawing(sets).draw(out / "cmc.png")
    write_json(
        out / "metrics.json",
        {
            "checkpoint": str(checkpoint),
            "model": described,
            "protocol": describe_protocol(sets[0].ranking),
            "sets": {found.name: numbers_of(found, used) for found in sets},
        },
    )
    name = described["model"].rpartition("-")[0]
    rows = []
    for found in sets:
        rows.append(Scored(found.name, name, found.ranking))
        if found.reranked is not None:
            rows.append(Scored(found.name, name, found.reranked, reranked=True))
    console.print(results_table(rows))
    console.print(f"CMC curve: {out / 'cmc.png'}")
    for found in sets:
        names = sorted({drawing.name for drawing in set_drawings(found)} - {"worst"})
        also = ", ".join(f"-{name}.png" for name in names)
        console.print(f"rank lists: {out / f'{found.name}-worst.png'} (also {also})")
    console.print(f"numbers: {out / 'metrics.json'}")
    if page:
        settings = {
            "checkpoint": checkpoint,
            "sets": texts,
            "average precision": ap,
            "re-ranking": None if rerank_with is None else rerank_with.describe(),
            "own camera": "any camera" if any_camera else "as the set's protocol says",
            "unreadable images": data.unreadable,
            "calibration": None if used is None else used.path,
            "learned metric": learned_metric,
            "device": embedder.device,
            "batch size": batch_size,
            "reid": __version__,
        }
        write_evaluation(out / "evaluation.html", sets, described=described, settings=settings)
        console.print(f"page with all of it: {out / 'evaluation.html'}")
    return rows


def _sets_of(checkpoint: Path) -> list[str]:
    """The sets that a checkpoint was meant to be tested on."""
    from reid.embedding.runtimes import FORMATS
    from reid.models.checkpoints import load_checkpoint

    if checkpoint.suffix.lower() in (*FORMATS, ".bundle"):
        raise ReidError(f"{checkpoint} does not say what it is to be tested on: name a set with --data LAYOUT:ROOT.")
    saved = load_checkpoint(checkpoint).get("config", {}).get("data", {})
    texts: list[str] = saved.get("test") or saved.get("train") or []
    if not texts:
        raise ReidError(f"{checkpoint} does not say what it was trained on: name a set with --data LAYOUT:ROOT.")
    return texts
