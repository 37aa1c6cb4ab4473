"""All that is known of one evaluation: its pictures as files, and as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reid.evaluation import RankingResult
from reid.report.camera_pairs import plot_camera_pairs
from reid.report.curves import plot_cmc
from reid.report.distance_histograms import plot_distances, plot_roc
from reid.report.page import Block, Drawing, Section, Table, write_page
from reid.report.tables import describe_protocol

if TYPE_CHECKING:
    from reid.evaluation import OpenSetResult, VerificationResult
    from reid.evaluation.identification import DirPoint
    from reid.evaluation.verification import TarPoint


@dataclass(frozen=True)
class Applied:
    """A calibration and how its threshold fared on a set.

    Attributes:
        words: where it comes from and what it rests on.
        threshold: the distance below which two crops are taken for one person.
        asked: the false-match rate that it was chosen for.
        measured: the share of pairs of different people below it on this set; nan without pairs.
        accepted: the share of pairs of the same person below it; nan without pairs.
    """

    words: str
    threshold: float
    asked: float
    measured: float
    accepted: float


@dataclass(frozen=True, eq=False)
class SetResults:
    """What was found on one set. What is None or empty is left out of the page, and `notes` may say why.

    Attributes:
        name, root: of the set.
        ranking, reranked: scores, without and with re-ranking.
        verification, open_set: as from `verify` and `open_set`.
        calibrated: the threshold in use.
        lists, points, activations: drawings of rank lists, of the map of some identities, of activation maps.
        left_out: images that were not read, with their reasons.
        notes: by the title of a part, why it is not there.
        model: name of the model.
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


VERIFICATION, CALIBRATION, OPEN_SET, CAMERAS = "Verification", "Calibration", "Open set", "Camera pairs"
LISTS, POINTS, ACTIVATIONS = "Rank lists", "Map of some identities", "Activation maps"


def cmc_drawing(sets: Sequence[SetResults]) -> Drawing:
    """The CMC curves of all sets, with and without re-ranking, over each other."""
    curves = {one.name: one.ranking for one in sets}
    curves |= {f"{one.name}, re-ranked": one.reranked for one in sets if one.reranked is not None}
    caption = "For each k, the share of queries that have a right match among the first k."
    return Drawing("cmc", "CMC", caption, partial(plot_cmc, curves))


def set_drawings(results: SetResults) -> list[Drawing]:
    """Every picture of one set, in the order of the page."""
    parts = [_distances(results), _roc(results), _cameras(results), *results.lists, results.points, results.activations]
    return [drawing for drawing in parts if drawing is not None]


def write_evaluation(
    path: str | Path,
    sets: Sequence[SetResults],
    *,
    described: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Path:
    """Write one page that holds all of an evaluation.

    Args:
        path: where to, such as evaluation.html.
        sets: what was found on each set.
        described: of the model, as `Embedder.describe` gives it; its `model` stands in the title.
        settings: of the evaluation, by name.

    Raises:
        ReidError: a picture cannot be drawn, or the file cannot be written.
    """
    sections = [Section("Scores", [_scores(sets), *_protocols(sets), cmc_drawing(sets)])]
    for results in sets:
        sections += _sections(results)
    facts = [[name, _words(value)] for group in (described, settings) for name, value in group.items()]
    sections.append(Section("Model and settings", [Table(["", ""], facts, numbers=False)]))
    return write_page(path, f"Evaluation of {described['model']} on {', '.join(one.name for one in sets)}", sections)


def _scores(sets: Sequence[SetResults]) -> Table:
    rows = []
    for one in sets:
        for name, result in ((one.name, one.ranking), (f"{one.name}, re-ranked", one.reranked)):
            if result is not None:
                scores = (result.mAP, result.mINP, *(result.rank(k) for k in (1, 5, 10)))
                rows.append([name, *(f"{100 * score:.2f}" for score in scores)])
    return Table(["set", "mAP", "mINP", "rank-1", "rank-5", "rank-10"], rows, "In percent.")


def _protocols(sets: Sequence[SetResults]) -> list[str]:
    words = {}
    for one in sets:
        words[one.name] = describe_protocol(one.ranking)
        if one.reranked is not None:
            words[f"{one.name}, re-ranked"] = describe_protocol(one.reranked)
    return [text if len(words) == 1 else f"{name}: {text}" for name, text in words.items()]


def _sections(results: SetResults) -> list[Section]:
    ranking = results.ranking
    about: list[Block] = [f"{results.root}. {ranking.n_valid:,} queries scored, {ranking.n_dropped:,} dropped."]
    if ranking.dropped:
        dropped = [[reason, f"{count:,}"] for reason, count in ranking.dropped.items()]
        about.append(Table(["dropped queries", "number"], dropped))
    if results.left_out:
        shown = [f"{len(results.left_out):,} images could not be read and were left out:", *results.left_out[:50]]
        about += shown + (["…"] if len(results.left_out) > 50 else [])
    parts: dict[str, list[Block | None]] = {
        VERIFICATION: [_distances(results), *_verification(results), _roc(results)],
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


def _distances(results: SetResults) -> Drawing | None:
    if results.verification is None:
        return None
    thresholds = {"equal errors": results.verification.eer_threshold}
    if results.calibrated is not None:
        thresholds = {"threshold of the calibration": results.calibrated.threshold, **thresholds}
    caption = "Each histogram is in percent of its own pairs. Lines mark distances below which two crops may be taken "
    caption += (
        "for one person; at equal errors, as large a share of different people is accepted as of the same refused."
    )
    draw = partial(plot_distances, results.verification.counts, thresholds=thresholds)
    return Drawing("distances", "Distances of same and of different people", caption, draw)


def _roc(results: SetResults) -> Drawing | None:
    if results.verification is None:
        return None
    caption = "What each threshold accepts, rightly and wrongly."
    return Drawing("roc", "ROC", caption, partial(plot_roc, {results.name: results.verification}))


def _cameras(results: SetResults) -> Drawing | None:
    pairs = results.ranking.pairs
    if pairs is None or not np.isfinite(pairs.mAP).any() or pairs.mAP.size == 1:
        return None
    caption = (
        "Queries of one camera, ranked in the gallery of one other camera only. Empty: no query has a match there."
    )
    return Drawing("cameras", "mAP and rank-1 by camera pair", caption, partial(plot_camera_pairs, pairs))


def _verification(results: SetResults) -> list[Block]:
    found = results.verification
    if found is None:
        return []
    counts = found.counts
    rows = [
        [
            f"{point.far:g}",
            _distance(point),
            _percent(point.tar),
            _interval(point.low, point.high),
        ]
        for point in found.tar
    ]
    return [
        f"{counts.n_genuine:,} pairs of the same person and {counts.n_impostor:,} of different people: {counts.pairs}. "
        f"AUC {100 * found.auc:.3f} %, equal error rate {100 * found.eer:.2f} % at distance {found.eer_threshold:.4f}.",
        Table(
            ["false-accept rate", "distance below", "same accepted", "95 % interval"],
            rows,
            f"TAR at FAR. Intervals: {found.protocol['intervals']}.",
        ),
    ]


def _calibration(used: Applied) -> list[Block | None]:
    return [
        used.words,
        Table(
            ["threshold", "false matches asked", "false matches here", "same accepted here"],
            [[f"{used.threshold:.4f}", _percent(used.asked, 3), _percent(used.measured, 3), _percent(used.accepted)]],
        ),
    ]


def _open_set(found: OpenSetResult) -> list[Block | None]:
    rows = [
        [
            f"{point.far:g}",
            _distance(point),
            _percent(point.dir),
            _interval(point.low, point.high),
        ]
        for point in found.points
    ]
    return [
        f"{found.n_mated:,} queries have somebody to be found in the gallery, {found.n_unmated:,} have nobody.",
        Table(
            ["false-alarm rate", "distance below", f"found at rank {found.protocol['rank']}", "95 % interval"],
            rows,
            "DIR at FAR: of the people who are in the gallery, the share found nearer than the distance at which only "
            "so many of the others raise an alarm.",
        ),
    ]


def _percent(fraction: float | None, digits: int = 2) -> str:
    return "–" if fraction is None or np.isnan(fraction) else f"{100 * fraction:.{digits}f} %"


def _distance(point: TarPoint | DirPoint) -> str:
    return point.note or f"{point.threshold:.4f}"


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f} %"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_words(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_words(one) for one in value)
    return {True: "yes", False: "no", None: "none"}[value] if value is None or isinstance(value, bool) else str(value)
