"""What `reid test` finds out about one set: scores, verification, and what its pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.core.errors import ReidError
from reid.data.crops import Benchmark
from reid.data.loader import read_batches
from reid.data.pixels import Split
from reid.embedding.calibration_file import load_calibration, stored_calibration
from reid.embedding.embedder import Embedder
from reid.embedding.table import Embeddings
from reid.evaluation import (
    Calibration,
    OpenSetResult,
    RankingResult,
    Reranking,
    VerificationResult,
    evaluate,
    evaluate_distances,
    open_set,
    rerank_blocks,
    top_matches,
    verify,
)
from reid.evaluation.pairs import DISTRACTOR
from reid.evaluation.projection import choose_identities, project
from reid.evaluation.ranking import AveragePrecision
from reid.report import (
    Applied,
    Drawing,
    SetResults,
    choose_queries,
    plot_activations,
    plot_embedding_map,
    plot_rank_lists,
)
from reid.report.evaluation_page import ACTIVATIONS, CALIBRATION, CAMERAS, POINTS, VERIFICATION

LIST_LENGTH = 10
ACTIVATED = 6
"""Queries whose activation maps are shown, each with the first of its list."""


@dataclass(frozen=True)
class UsedCalibration:
    """A calibration, and the file it came from."""

    path: Path
    calibration: Calibration

    @property
    def words(self) -> str:
        """What it rests on."""
        overall, source = self.calibration.overall, self.calibration.source
        return (
            f"{self.path}, made from {source}: {overall.genuine:,} pairs of the same person and "
            f"{overall.impostor:,} of different people. The chances under the rank lists are its p(same | distance) "
            f"({overall.method}) for two crops picked at random, where 1 pair in {1 / overall.prior:,.0f} is the same."
        )


def find_calibration(checkpoint: Path, given: Path | None, model: str) -> tuple[UsedCalibration | None, str]:
    """The calibration to use, and a warning in words where the one beside the checkpoint does not fit the model.

    Raises:
        ReidError: the given file is missing or of another model, or either file is damaged.
    """
    path = given or stored_calibration(checkpoint)
    if path is None:
        return None, ""
    calibration = load_calibration(path)
    try:
        calibration.check_fits(model, str(checkpoint))
    except ReidError as error:
        if given is not None:
            raise ReidError(f"{path}: {error}") from error
        return None, f"{path} is not used. {error}"
    return UsedCalibration(path, calibration), ""


def embed_split(embedder: Embedder, split: Split) -> tuple[Embeddings, Embeddings]:
    """Query and gallery with the columns of their crops."""
    return embedder.table(split.query.crops), embedder.table(split.gallery.crops)


def results_on(
    benchmark: Benchmark,
    split: Split,
    query: Embeddings,
    gallery: Embeddings,
    embedder: Embedder,
    *,
    ap: AveragePrecision,
    rerank_with: Reranking | None,
    calibration: UsedCalibration | None,
    chosen: NDArray[np.int64],
    left_out: Sequence[str],
) -> SetResults:
    """All that the page and the pictures of one set show; a part that cannot be made says why in `notes`.

    Args:
        benchmark, split: the set, and its crops in the rows of `query` and `gallery`.
        chosen: queries to draw rank lists of, beside the worst, the best and some at random.
        left_out: images that were not read, with their reasons.
    """
    labels = _labels(split)
    cameras_known = split.query.crops.has_cameras and split.gallery.crops.has_cameras
    rules: dict[str, Any] = {"cross_camera": split.cross_camera, "ap": ap, "camera_pairs": cameras_known}
    ranking = evaluate(query.features, gallery.features, *labels, **rules)
    reranked = None
    if rerank_with is not None:
        if rerank_with.camera_aware and not cameras_known:
            raise ReidError(f"{benchmark.name} does not tell cameras, which --camera-aware needs. Leave it out.")
        blocks = rerank_blocks(query, gallery, settings=rerank_with)
        reranked = evaluate_distances(blocks, *labels, **rules, metric=rerank_with.describe())
    notes = {}
    distractor = DISTRACTOR if benchmark.n_distractors else None
    verification = None
    try:
        verification = _verify(query, gallery, split, distractor)
    except ReidError as error:
        notes[VERIFICATION] = str(error)
    applied = None if calibration is None else _applied(calibration, verification)
    if calibration is None:
        notes[CALIBRATION] = (
            "None was used: no calibration.json of this model lies beside the checkpoint. `reid calibrate` makes one, "
            "which says below what distance two crops are taken for one person."
        )
    points = _points(query, gallery, split, distractor)
    if points is None:
        notes[POINTS] = "No identity has two crops."
    if not cameras_known:
        notes[CAMERAS] = "The set does not tell cameras."
    elif ranking.pairs is not None and ranking.pairs.mAP.size == 1:
        notes[CAMERAS] = "All crops are of one camera."
    activations = None
    try:
        activations = _activations(query, gallery, split, embedder, ranking)
    except ReidError as error:
        notes[ACTIVATIONS] = str(error)
    return SetResults(
        name=benchmark.name,
        root=str(benchmark.root),
        ranking=ranking,
        reranked=reranked,
        verification=verification,
        open_set=_open_set(query, gallery, split, ranking),
        calibrated=applied,
        lists=_lists(query, gallery, split, ranking, calibration, chosen),
        points=points,
        activations=activations,
        left_out=tuple(left_out),
        notes=notes,
    )


def numbers_of(results: SetResults, calibration: UsedCalibration | None) -> dict[str, Any]:
    """What metrics.json says of a set, as plain Python."""
    numbers: dict[str, Any] = {
        "root": results.root,
        "left_out": list(results.left_out),
        "plain": results.ranking.as_dict(),
    }
    if results.reranked is not None:
        numbers["reranked"] = results.reranked.as_dict()
    if results.verification is not None:
        numbers["verification"] = results.verification.as_dict()
    if results.open_set is not None:
        numbers["open_set"] = results.open_set.as_dict()
    if calibration is not None and results.calibrated is not None:
        used = results.calibrated
        measured = {"false_match_rate": used.measured, "accept_rate": used.accepted}
        numbers["calibration"] = {
            "file": str(calibration.path),
            "model": calibration.calibration.model,
            "source": calibration.calibration.source,
            "threshold": used.threshold,
            "asked_false_match_rate": used.asked,
            **{name: None if np.isnan(value) else value for name, value in measured.items()},
        }
    return numbers


def _labels(split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    query, gallery = split.query.crops, split.gallery.crops
    return query.pids, gallery.pids, query.camids, gallery.camids


def _together(query: Embeddings, gallery: Embeddings, split: Split) -> tuple[NDArray[Any], ...]:
    """Features, pids and cameras of query and gallery, one after the other."""
    query_pids, gallery_pids, query_camids, gallery_camids = _labels(split)
    pairs = ((query.features, gallery.features), (query_pids, gallery_pids), (query_camids, gallery_camids))
    return tuple(np.concatenate(pair) for pair in pairs)


def _verify(query: Embeddings, gallery: Embeddings, split: Split, distractor: int | None) -> VerificationResult:
    features, pids, camids = _together(query, gallery, split)
    return verify(features, pids, camids, cross_camera=split.cross_camera, distractor=distractor)


def _applied(used: UsedCalibration, verification: VerificationResult | None) -> Applied:
    threshold = used.calibration.threshold()
    measured = accepted = float("nan")
    if verification is not None:
        measured, accepted = verification.rates_at(threshold)
    return Applied(used.words, threshold, used.calibration.chosen_fmr, measured, accepted)


def _open_set(query: Embeddings, gallery: Embeddings, split: Split, ranking: RankingResult) -> OpenSetResult | None:
    """Where some queries have nobody to be found; None where all have, or nobody knows."""
    if not ranking.dropped or not (split.query.crops.pids[ranking.first_match == 0] >= 0).any():
        return None
    return open_set(query.features, gallery.features, *_labels(split), cross_camera=split.cross_camera)


def _lists(
    query: Embeddings,
    gallery: Embeddings,
    split: Split,
    ranking: RankingResult,
    used: UsedCalibration | None,
    chosen: NDArray[np.int64],
) -> list[Drawing]:
    """The query's own camera stays in the lists, in grey, so that what the rule leaves out is seen."""
    kinds = {
        "worst": ("Worst queries", "Those of the lowest average precision.", choose_queries(ranking, "worst")),
        "best": ("Best queries", "Those of the highest average precision.", choose_queries(ranking, "best")),
        "random": ("Random queries", "Drawn with seed 0.", choose_queries(ranking, "random")),
    }
    if len(chosen):
        kinds["chosen"] = ("Chosen queries", "Named with --queries.", chosen)
    query_pids, gallery_pids, query_camids, gallery_camids = _labels(split)
    drawings = []
    for name, (title, caption, rows) in kinds.items():
        shown = (query_pids[rows], gallery_pids, query_camids[rows], gallery_camids)
        indices, distances = top_matches(
            query.features[rows], gallery.features, *shown, k=LIST_LENGTH, cross_camera=False
        )
        chances = None
        if used is not None:
            cameras = (np.broadcast_to(query_camids[rows][:, None], indices.shape), gallery_camids[indices])
            chances = used.calibration.probability(np.where(indices < 0, 2, distances), cameras)
        caption += f" Rows {', '.join(map(str, rows))} of the query set. Grey: not counted, by the cross-camera rule."
        draw = partial(
            plot_rank_lists,
            split.query.crops.paths[rows],
            split.gallery.crops.paths,
            indices,
            distances,
            *shown,
            queries=range(len(rows)),
            ap=ranking.ap[rows],
            probabilities=chances,
            cross_camera=split.cross_camera,
            title=f"{split.name}: {title.lower()}",
        )
        drawings.append(Drawing(name, title, caption, draw, photos=True))
    return drawings


def _points(query: Embeddings, gallery: Embeddings, split: Split, distractor: int | None) -> Drawing | None:
    features, pids, camids = _together(query, gallery, split)
    rows = choose_identities(np.where(pids == distractor, -1, pids))
    if not len(rows):
        return None
    maps = {"PCA": project(features[rows], "pca"), "t-SNE": project(features[rows], "tsne")}
    cameras = camids[rows] if split.query.crops.has_cameras else None
    caption = (
        "A few identities drawn with seed 0: colours and numbers are identities, shapes are cameras. PCA keeps what is "
        "far apart far apart; t-SNE keeps neighbours, and distances between its groups mean nothing."
    )
    draw = partial(plot_embedding_map, maps, pids[rows], cameras)
    return Drawing("map", f"{len(np.unique(pids[rows]))} identities in the plane", caption, draw)


def _activations(
    query: Embeddings, gallery: Embeddings, split: Split, embedder: Embedder, ranking: RankingResult
) -> Drawing:
    rows = choose_queries(ranking, "worst", ACTIVATED)
    query_pids, gallery_pids, query_camids, gallery_camids = _labels(split)
    shown = (query_pids[rows], gallery_pids, query_camids[rows], gallery_camids)
    nearest, _ = top_matches(query.features[rows], gallery.features, *shown, k=1, cross_camera=split.cross_camera)
    first = nearest[:, 0]
    images, names = [], []
    for row, item in zip(rows, first, strict=True):
        sign = "✓" if gallery_pids[item] == query_pids[row] else "✗"
        images += [split.query.crops.paths[row], split.gallery.crops.paths[item]]
        names += [f"query {row}", f"{sign} nearest to {row}"]
    pixels = (
        next(read_batches(part.store, at, ACTIVATED)) for part, at in ((split.query, rows), (split.gallery, first))
    )
    maps = np.stack([embedder.model.activation_map(batch).cpu().numpy() for batch in pixels], axis=1)
    caption = (
        "The worst queries and the nearest gallery item that counts. Bright: where the last feature map is most active "
        "(sum over channels of squared activations, over its largest value)."
    )
    draw = partial(plot_activations, images, maps.reshape(-1, *maps.shape[2:]), names=names)
    return Drawing("activations", "Where the model is active", caption, draw, photos=True)
