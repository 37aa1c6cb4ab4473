"""The page of an evaluation: scores, pictures, protocol and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reid.evaluation import OpenSetResult, RankingResult, VerificationResult
from reid.evaluation.pairs import RatePoint
from reid.report.camera_pairs import plot_camera_pairs
from reid.report.curves import plot_cmc
from reid.report.distance_histograms import plot_distances, plot_roc
from reid.report.page import Block, Drawing, Section, Table, flatten, write_page
from reid.report.tables import describe_protocol


@dataclass(frozen=True)
class Applied:
    """A calibration, and the error rates of its threshold on a data set.

    Attributes:
        description: source of the calibration, in one sentence.
        threshold: distance up to which two crops count as the same person.
        target_fmr: false-match rate for which the threshold was chosen.
        fmr: false-match rate on this data set; None without impostor pairs.
        tmr: true-match rate on this data set; None without genuine pairs.
    """

    description: str
    threshold: float
    target_fmr: float
    fmr: float | None
    tmr: float | None


@dataclass(frozen=True, eq=False)
class SetResults:
    """Results on one data set. Parts that are None or empty do not appear in the page.

    Attributes:
        name: name of the data set.
        root: folder of the data set; the page shows only its last component.
        ranking: scores without re-ranking.
        reranked: scores with re-ranking.
        verification: as from `verify`.
        open_set: as from `open_set`.
        calibrated: the threshold of a calibration.
        lists: drawings of rank lists.
        points: drawing of some identities' embeddings.
        activations: drawing of activation maps.
        left_out: images that could not be read, with reasons.
        notes: reason why a part is missing, by the title of the part.
        model: name of the model.
        identity_size: estimated crops per identity of queries and gallery together, with re-ranking.
    """

    name: str
    root: str
    ranking: RankingResult
    reranked: RankingResult | None = None
    verification: VerificationResult | None = None
    open_set: OpenSetResult | None = None
    calibrated: Applied | None = None
    lists: Sequence[Drawing] = ()
    points: Drawing | None = None
    activations: Drawing | None = None
    left_out: Sequence[str] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    identity_size: float | None = None


VERIFICATION, CALIBRATION, OPEN_SET, CAMERAS = "Verification", "Calibration", "Open set", "Camera pairs"
LISTS, POINTS, ACTIVATIONS = "Rank lists", "Map of some identities", "Activation maps"


def _rankings(sets: Sequence[SetResults]) -> Iterator[tuple[str, RankingResult]]:
    """Yield the name and result of each data set, without and with re-ranking."""
    for one in sets:
        yield one.name, one.ranking
        if one.reranked is not None:
            yield f"{one.name}, re-ranked", one.reranked


def cmc_drawing(sets: Sequence[SetResults]) -> Drawing:
    """Return the CMC curves of all data sets, with and without re-ranking."""
    caption = "Fraction of queries with a right match among the first k gallery crops."
    return Drawing("cmc", "CMC", caption, partial(plot_cmc, dict(_rankings(sets))))


def set_drawings(results: SetResults) -> list[Drawing]:
    """Return all pictures of one data set, in the order of the page."""
    parts = [*_pair_drawings(results), _cameras(results), *results.lists, results.points, results.activations]
    return [drawing for drawing in parts if drawing is not None]


def write_evaluation(
    path: str | Path, sets: Sequence[SetResults], *, described: Mapping[str, Any], settings: Mapping[str, Any]
) -> Path:
    """Write all results of an evaluation as one page.

    Args:
        path: output file, such as evaluation.html.
        sets: results on each data set.
        described: description of the model from `Embedder.describe`; its `model` appears in the title.
        settings: settings of the evaluation, by name.

    Raises:
        ReidError: a picture cannot be drawn, or the file cannot be written.
    """
    rows = [
        [name, *(f"{100 * score:.2f}" for score in (r.mAP, r.mINP, r.rank(1), r.rank(5), r.rank(10)))]
        for name, r in _rankings(sets)
    ]
    scores = Table(["data set", "mAP", "mINP", "rank-1", "rank-5", "rank-10"], rows, "Scores in percent.")
    protocols = {name: describe_protocol(result) for name, result in _rankings(sets)}
    texts = [text if len(protocols) == 1 else f"{name}: {text}" for name, text in protocols.items()]
    sections = [Section("Scores", [scores, cmc_drawing(sets), *texts])]
    for results in sets:
        sections += _sections(results)
    facts = [list(fact) for fact in flatten({**described, **settings})]
    sections.append(Section("Model and settings", [Table(["setting", "value"], facts, numbers=False)]))
    return write_page(path, f"Evaluation of {described['model']} on {', '.join(one.name for one in sets)}", sections)


def _sections(results: SetResults) -> list[Section]:
    ranking = results.ranking
    folder = Path(results.root).name
    about: list[Block] = [
        f"Folder {folder}: {ranking.n_valid:,} queries were scored, {ranking.n_dropped:,} were dropped."
    ]
    if ranking.dropped:
        dropped = [[reason, f"{count:,}"] for reason, count in ranking.dropped.items()]
        about.append(Table(["reason", "dropped queries"], dropped))
    if results.left_out:
        shown = [f"{len(results.left_out):,} images could not be read and were skipped:", *results.left_out[:50]]
        about += shown + (["…"] if len(results.left_out) > 50 else [])
    drawn, verified = _pair_drawings(results), results.verification
    parts: dict[str, list[Block | None]] = {
        VERIFICATION: [] if verified is None else [drawn[0], *_verification(verified), drawn[1]],
        CALIBRATION: [] if results.calibrated is None else _calibration(results.calibrated),
        OPEN_SET: [] if results.open_set is None else _open_set(results.open_set),
        CAMERAS: [_cameras(results)],
        LISTS: list(results.lists),
        POINTS: [results.points],
        ACTIVATIONS: [results.activations],
    }
    sections = [Section(results.name, about)]
    for title, given in parts.items():
        blocks = [block for block in given if block is not None]
        if not blocks and title in results.notes:
            blocks = [results.notes[title]]
        if blocks:
            sections.append(Section(title, blocks, level=3))
    return sections


def _pair_drawings(results: SetResults) -> list[Drawing]:
    """Return the histograms of distances and the ROC curve, if there is a verification."""
    if results.verification is None:
        return []
    thresholds = {"equal error rate": results.verification.eer_threshold}
    if results.calibrated is not None:
        thresholds = {"calibrated threshold": results.calibrated.threshold, **thresholds}
    caption = (
        "Distances of genuine and impostor pairs, each in percent of its own pairs. Pairs to the left of a threshold "
        "count as the same person."
    )
    draw = partial(plot_distances, results.verification.counts, thresholds=thresholds)
    roc_caption = "True-match rate over false-match rate, for all thresholds."
    return [
        Drawing("distances", "Distances of pairs", caption, draw),
        Drawing("roc", "ROC", roc_caption, partial(plot_roc, {results.name: results.verification})),
    ]


def _cameras(results: SetResults) -> Drawing | None:
    pairs = results.ranking.pairs
    if pairs is None or not np.isfinite(pairs.mAP).any() or pairs.mAP.size == 1:
        return None
    caption = "Queries of one camera in the gallery of one other camera. Empty cells: no query has a match there."
    return Drawing("cameras", "mAP and rank-1 by camera pair", caption, partial(plot_camera_pairs, pairs))


def _verification(found: VerificationResult) -> list[Block | None]:
    counts = found.counts
    return [
        f"{counts.n_genuine:,} genuine and {counts.n_impostor:,} impostor pairs: {counts.pairs}. "
        f"AUC {100 * found.auc:.3f} %; equal error rate {100 * found.eer:.2f} % at distance {found.eer_threshold:.4f}.",
        _rates(
            ("false-match rate", "true-match rate"),
            found.tar,
            f"True-match rate (TAR) at false-match rates (FAR). Intervals: {found.protocol['intervals']}.",
        ),
    ]


def _calibration(used: Applied) -> list[Block | None]:
    return [
        used.description,
        Table(
            ["threshold", "target false-match rate", "false-match rate here", "true-match rate here"],
            [[f"{used.threshold:.4f}", _percent(used.target_fmr, 3), _percent(used.fmr, 3), _percent(used.tmr)]],
        ),
    ]


def _open_set(found: OpenSetResult) -> list[Block | None]:
    return [
        f"{found.n_mated:,} queries have a match in the gallery, {found.n_unmated:,} have none.",
        _rates(
            ("false-alarm rate", f"identified at rank {found.protocol['rank']}"),
            found.points,
            "Detection and identification rate (DIR) at false-alarm rates: the fraction of queries with a match in the "
            "gallery that are identified within the threshold. At this threshold, the given fraction of the other "
            "queries raises a false alarm.",
        ),
    ]


def _percent(fraction: float | None, digits: int = 2) -> str:
    return "not enough data" if fraction is None or np.isnan(fraction) else f"{100 * fraction:.{digits}f} %"


def _rates(names: tuple[str, str], points: Sequence[RatePoint], caption: str) -> Table:
    """Return a table of points; `names` are those of the error rate and of the rate of interest."""
    rows = []
    for point in points:
        interval = "–" if point.low is None else f"{100 * point.low:.2f} to {_percent(point.high)}"
        threshold = point.note or f"{point.threshold:.4f}"
        rows.append([f"{point.far:g}", threshold, _percent(point.rate), interval])
    return Table([names[0], "threshold", names[1], "95 % interval"], rows, caption)
