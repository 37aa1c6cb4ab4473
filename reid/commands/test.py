"""`reid test`: a checkpoint and data sets in; scores, curves, rank lists and features out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reid.errors import ReidError

if TYPE_CHECKING:
    from reid.embedding.table import Embeddings
    from reid.report import Scored
    from reid.training.material import Split


@click.command("test")
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="A trained model, e.g. best.pt.")
@click.option(
    "--data", "texts", multiple=True, metavar="LAYOUT:ROOT",
    help="A data set to score on; may be repeated.  [default: the checkpoint's data.test, else its data.train]",
)  # fmt: skip
@click.option("--rerank", is_flag=True, help="Score once more after k-reciprocal re-ranking.")
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
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [default: RUN/test]")
def command(
    checkpoint: Path,
    texts: tuple[str, ...],
    rerank: bool,
    k1: int,
    k2: int,
    lambda_value: float,
    flip: bool,
    ap: str,
    any_camera: bool,
    skip_unreadable: bool,
    device: str,
    batch_size: int,
    out: Path | None,
) -> None:
    """Score a checkpoint across camera views: CMC, mAP, re-ranking.

    \b
    reid test --checkpoint runs/x/best.pt --rerank
    reid test --checkpoint runs/x/best.pt --data market1501:/data/market --data dukemtmc:/data/duke

    Leaves metrics.json, cmc.png, rank lists and the features (Parquet) of every set in the results folder.
    """
    score_checkpoint(
        checkpoint,
        list(texts),
        out or checkpoint.parent / "test",
        rerank_with=(k1, k2, lambda_value) if rerank else None,
        flip=flip,
        ap=ap,
        any_camera=any_camera,
        skip_unreadable=skip_unreadable,
        device=device,
        batch_size=batch_size,
    )


def score_checkpoint(
    checkpoint: Path,
    texts: list[str],
    out: Path,
    *,
    rerank_with: tuple[int, int, float] | None = None,
    flip: bool = False,
    ap: str = "precision",
    any_camera: bool = False,
    skip_unreadable: bool = False,
    device: str = "auto",
    batch_size: int = 128,
) -> list[Scored]:
    """Embed, rank, print, and write everything to `out`; the rows of the printed table come back."""
    from reid.config import DataConfig
    from reid.console import console, warn
    from reid.data.sources import load_sources
    from reid.embedding.embedder import Embedder
    from reid.embedding.table import Embeddings
    from reid.evaluation import evaluate, evaluate_distances, rerank, rerank_in_words
    from reid.report import Scored, plot_cmc, protocol_in_words, results_table
    from reid.training.checkpoints import load_checkpoint
    from reid.training.distributed import Ranks
    from reid.training.inference import embed_pixels
    from reid.training.material import open_test_split
    from reid.wholefile import write_json

    if not texts:
        saved = load_checkpoint(checkpoint).get("config", {}).get("data", {})
        texts = saved.get("test") or saved.get("train") or []
    if not texts:
        raise ReidError(f"{checkpoint} does not say what it was trained on: name a set with --data LAYOUT:ROOT.")
    embedder = Embedder(checkpoint, device=device)
    data = DataConfig(store="files", unreadable="skip" if skip_unreadable else "error")
    alone = Ranks(0, 1, embedder.device)
    described = embedder.describe(flip=flip)
    rows: list[Scored] = []
    report: dict[str, dict[str, object]] = {}
    for benchmark in load_sources(texts):
        for text in benchmark.warnings:
            warn(text)
        left_out: list[str] = []
        split = open_test_split(data, benchmark, embedder.model.preprocessing.size, left_out)
        for line in left_out:
            console.print(f"left out: {line}")
        if any_camera:
            split = replace(split, cross_camera=False)
        query, gallery = (
            Embeddings.of_crops(
                embed_pixels(
                    embedder.model, pixels, alone, batch_size=batch_size, flip=flip, precision="fp32", label=split.name
                ),
                pixels.crops,
                described,
            )
            for pixels in (split.query, split.gallery)
        )
        query.save(out / f"{benchmark.name}-query.parquet")
        gallery.save(out / f"{benchmark.name}-gallery.parquet")
        crops = (split.query.crops, split.gallery.crops)
        labels = (crops[0].pids, crops[1].pids, crops[0].camids, crops[1].camids)
        plain = evaluate(query.features, gallery.features, *labels, cross_camera=split.cross_camera, ap=ap)  # type: ignore[arg-type]
        rows.append(Scored(benchmark.name, embedder.model.spec["backbone"], plain))
        report[benchmark.name] = {"root": benchmark.root, "left_out": left_out, "plain": plain.as_dict()}
        _draw_rank_lists(out, benchmark.name, split, query, gallery, rows[-1])
        if rerank_with is not None:
            k1, k2, lambda_value = rerank_with
            distances = rerank(query.features, gallery.features, k1=k1, k2=k2, lambda_value=lambda_value)
            words = rerank_in_words(k1=k1, k2=k2, lambda_value=lambda_value)
            again = evaluate_distances(distances, *labels, cross_camera=split.cross_camera, ap=ap, metric=words)  # type: ignore[arg-type]
            rows.append(Scored(benchmark.name, embedder.model.spec["backbone"], again, reranked=True))
            report[benchmark.name]["reranked"] = again.as_dict()
    plot_cmc({f"{row.data_set}{', re-ranked' if row.reranked else ''}": row.result for row in rows}, out / "cmc.png")
    write_json(
        out / "metrics.json",
        {
            "checkpoint": str(checkpoint),
            "model": described,
            "protocol": protocol_in_words(rows[0].result),
            "sets": report,
        },
    )
    console.print(results_table(rows))
    console.print(f"CMC curve: {out / 'cmc.png'}")
    for benchmark_name in report:
        console.print(f"rank lists: {out / f'{benchmark_name}-worst.png'} (also -best.png, -random.png)")
    console.print(f"numbers: {out / 'metrics.json'}")
    return rows


def _draw_rank_lists(
    out: Path, name: str, split: Split, query: Embeddings, gallery: Embeddings, scored: Scored, k: int = 10
) -> None:
    """Three pictures; the query's own camera stays in the lists, in grey, so that what the rule leaves out is seen."""
    from reid.evaluation import top_matches
    from reid.report import choose_queries, plot_rank_lists

    crops = (split.query.crops, split.gallery.crops)
    labels = (crops[0].pids, crops[1].pids, crops[0].camids, crops[1].camids)
    for choice in ("worst", "best", "random"):
        chosen = choose_queries(scored.result, choice)
        shown = (labels[0][chosen], labels[1], labels[2][chosen], labels[3])
        indices, distances = top_matches(query.features[chosen], gallery.features, *shown, k, cross_camera=False)
        plot_rank_lists(
            crops[0].paths[chosen],
            crops[1].paths,
            indices,
            distances,
            *shown,
            out / f"{name}-{choice}.png",
            queries=range(len(chosen)),
            ap=scored.result.ap[chosen],
            cross_camera=split.cross_camera,
            title=f"{name}: {choice} queries",
        )
