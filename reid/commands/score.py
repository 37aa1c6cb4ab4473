"""`reid score`: score tracks with global identities against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reid.commands.options import PATH, Command, out_option, settings_options
from reid.core.console import console, make_table, warn
from reid.pipelines.settings import ScoreSettings

if TYPE_CHECKING:
    from reid.mtmc import TrackScores

FRACTIONS = ("IDF1", "IDP", "IDR", "HOTA", "DetA", "AssA", "LocA")
COUNTS = ("FP", "FN", "IDSW", "Frag", "MT", "PT", "ML")


@click.command("score", cls=Command)
@click.argument("truth", type=PATH)
@click.argument("predicted", type=PATH)
@settings_options(
    ScoreSettings,
    {
        "Scoring": ["iou", "duplicates", "skip_untracked"],
        "Track files": ["truth_format", "predicted_format", "truth_first_frame", "predicted_first_frame"],
    },
)
@out_option("JSON file for the numbers.  [default: scores.json in the folder of PREDICTED]")
def cli(truth: Path, predicted: Path, out: Path | None, **options: Any) -> None:
    """Score tracks with global identities: IDF1, HOTA and CLEAR over all cameras together, and per camera.

    \b
    reid score synthetic/truth matched/tracks
    reid score gt.txt submission.txt --iou 0.5 --out scores.json

    TRUTH and PREDICTED are folders with one file per camera, or single files, in any format of docs/track-files.md.
    """
    from reid.pipelines.score import score_files

    out = out or (predicted if predicted.is_dir() else predicted.parent) / "scores.json"
    scores, sides = score_files(truth, predicted, out, ScoreSettings(**options))
    for side, tracks in sides.items():
        cameras = len(tracks.camera_names)
        plural = "s" * (cameras != 1)
        console.print(f"{side}: {len(tracks):,} boxes, {cameras} camera{plural}, read as {tracks.format_reason}")
        for text in tracks.warnings:
            warn(text)
    print_scores(scores)
    console.print(f"numbers: {out}")


def print_scores(scores: TrackScores) -> None:
    """Print the scores of all cameras together, then of each camera."""
    for text in scores.warnings:
        warn(text)
    first, second = [], []
    for name, row in {"all": scores.overall, **scores.per_camera}.items():
        fractions = [f"{100 * getattr(row, key):.1f}" for key in FRACTIONS]
        first.append((name, f"{row.truth_boxes:,}", f"{row.truth_ids:,}", *fractions))
        counts = [f"{getattr(row, key):,}" for key in COUNTS]
        second.append((name, f"{100 * row.MOTA:.1f}", f"{100 * row.MOTP:.1f}", *counts))
    for cause in scores.causes:
        warn(cause.describe())
    title = "Identities, % (boxes and people are counts of the truth)"
    console.print(make_table(("cameras", "boxes", "people", *FRACTIONS), first, title=title))
    if len(scores.per_camera) > 1:
        mean = sum(row.IDF1 for row in scores.per_camera.values()) / len(scores.per_camera)
        console.print(
            "Report the row 'all': it assigns identities once over all cameras. Rows of single cameras cannot show "
            f"identities that change between cameras; their mean IDF1 is {100 * mean:.1f}."
        )
    title = f"CLEAR, IoU ≥ {scores.iou:g}"
    console.print(make_table(("cameras", "MOTA %", "MOTP %", *COUNTS), second, title=title))
    several, tracklets = scores.multi_camera, scores.tracklets
    multi_camera = f"IDF1 {100 * several.IDF1:.1f}, IDP {100 * several.IDP:.1f}, IDR {100 * several.IDR:.1f}"
    console.print(
        f"People seen in 2 or more cameras ({scores.multi_camera_people:,} of {scores.overall.truth_ids:,}): "
        f"{multi_camera if scores.multi_camera_people else 'not enough data'}."
    )
    values = [getattr(tracklets, f"{kind}_{name}") for kind in ("pair", "b3") for name in ("precision", "recall", "f1")]
    percent = ["not enough data" if value is None else f"{100 * value:.1f}" for value in values]
    console.print(
        f"Clustering of {tracklets.items:,} tracklets ({scores.false_tracklets:,} more match no person): "
        f"pairs P {percent[0]} R {percent[1]} F1 {percent[2]}; B³ P {percent[3]} R {percent[4]} F1 {percent[5]}; "
        f"{tracklets.found_identities:,} identities found, {tracklets.true_identities:,} true, "
        f"{tracklets.exact_identities:,} exactly right."
    )
