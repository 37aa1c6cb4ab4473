"""`reid score TRUTH PREDICTED`: track files with global ids against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from reid.mtmc import Tracks, TrackScores

FORMATS = ("auto", "mot", "aicity", "duke", "parquet")
_SHARES = ("IDF1", "IDP", "IDR", "HOTA", "DetA", "AssA", "LocA")
_COUNTS = ("FP", "FN", "IDSW", "Frag", "MT", "PT", "ML")


@click.command("score")
@click.argument("truth", type=click.Path(path_type=Path))
@click.argument("predicted", type=click.Path(path_type=Path))
@click.option(
    "--iou", default=0.5, show_default=True, type=click.FloatRange(0, 1, min_open=True),
    help="Least IoU of a match, for IDF1 and CLEAR.",
)  # fmt: skip
@click.option("--truth-format", default="auto", show_default=True, type=click.Choice(FORMATS))
@click.option("--predicted-format", default="auto", show_default=True, type=click.Choice(FORMATS))
@click.option(
    "--duplicates", default="error", show_default=True, type=click.Choice(["error", "first", "confident"]),
    help="Which to keep of several boxes of one id in one frame of one camera.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE",
    help="Where the numbers go as JSON.  [default: scores.json in the folder of PREDICTED]",
)  # fmt: skip
def command(
    truth: Path,
    predicted: Path,
    iou: float,
    truth_format: str,
    predicted_format: str,
    duplicates: str,
    out: Path | None,
) -> None:
    """Score tracks with global ids against the truth: IDF1, HOTA and CLEAR over all cameras at once, and per camera.

    \b
    reid score streets/truth run/matched
    reid score gt.txt submission.txt --iou 0.5 --out scores.json

    Both are folders with a file a camera, or single files, of any format of docs/track-files.md.
    """
    from reid.core.atomic import write_json
    from reid.core.console import console
    from reid.mtmc import score_tracks
    from reid.mtmc.track_files import read_tracks

    sides = {
        "truth": read_tracks(truth, format=truth_format, duplicates=duplicates),
        "predicted": read_tracks(predicted, format=predicted_format, duplicates=duplicates),
    }
    for side, tracks in sides.items():
        _say(side, tracks)
    scores = score_tracks(sides["truth"], sides["predicted"], iou=iou)
    show(scores)
    out = out or (predicted if predicted.is_dir() else predicted.parent) / "scores.json"
    read = {side: {"path": str(path), "format": sides[side].format, "warnings": list(sides[side].warnings)}
            for side, path in (("truth", truth), ("predicted", predicted))}  # fmt: skip
    write_json(out, {**read, **scores.as_dict()})
    console.print(f"numbers: {out}", markup=False)


def _say(side: str, tracks: Tracks) -> None:
    from rich.markup import escape

    from reid.core.console import console, warn

    cameras = len(tracks.camera_names)
    console.print(
        f"{side}: {len(tracks):,} boxes, {cameras} camera{'s' * (cameras != 1)}, read as {tracks.format_reason}",
        markup=False,
    )
    for text in tracks.warnings:
        warn(escape(text))


def show(scores: TrackScores) -> None:
    """Print the scores: all cameras together, then each, in percent and counts."""
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    from reid.core.console import console, warn

    for text in scores.warnings:
        warn(escape(text))
    rows = {"all": scores.overall, **scores.per_camera}
    first, second = (
        Table(box=SIMPLE, padding=(0, 1, 0, 0), title=title, title_justify="left")
        for title in ("Identities, % (boxes and people: of the truth)", f"CLEAR, IoU ≥ {scores.iou:g}")
    )
    for table, names in ((first, ("boxes", "people", *_SHARES)), (second, ("MOTA %", "MOTP %", *_COUNTS))):
        table.add_column("cameras", overflow="fold", min_width=7)
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
    for name, row in rows.items():
        style = "bold" if row is scores.overall else None
        shares = [f"{100 * getattr(row, share):.1f}" for share in _SHARES]
        first.add_row(escape(name), f"{row.truth_boxes:,}", f"{row.truth_ids:,}", *shares, style=style)
        counts = [f"{getattr(row, count):,}" for count in _COUNTS]
        second.add_row(escape(name), f"{100 * row.MOTA:.1f}", f"{100 * row.MOTP:.1f}", *counts, style=style)
    console.print(first)
    if len(scores.per_camera) > 1:
        mean = sum(row.IDF1 for row in scores.per_camera.values()) / len(scores.per_camera)
        console.print(
            "'all' has one assignment of identities over all cameras: quote that row. The rows of single "
            f"cameras do not see identities that change between cameras; their mean IDF1 is {100 * mean:.1f}, which "
            "hides such errors.",
            markup=False,
        )
    console.print(second)
    several, tracklets = scores.multi_camera, scores.tracklets
    console.print(
        f"People seen in 2 or more cameras ({scores.multi_camera_people:,} of {scores.overall.truth_ids:,}): "
        f"IDF1 {100 * several.IDF1:.1f}, IDP {100 * several.IDP:.1f}, IDR {100 * several.IDR:.1f}."
    )
    if tracklets.items:
        console.print(
            f"Tracks of a camera as items ({tracklets.items:,}; {scores.false_tracklets:,} more lie on nobody): "
            f"pairs P {100 * tracklets.pair_precision:.1f} R {100 * tracklets.pair_recall:.1f} "
            f"F1 {100 * tracklets.pair_f1:.1f}; B³ P {100 * tracklets.b3_precision:.1f} "
            f"R {100 * tracklets.b3_recall:.1f} F1 {100 * tracklets.b3_f1:.1f}; "
            f"identities found {tracklets.found_identities:,}, true {tracklets.true_identities:,}, "
            f"exactly right {tracklets.exact_identities:,}."
        )
