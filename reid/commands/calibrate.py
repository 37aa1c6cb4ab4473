"""`reid calibrate`: map distances to false-match rates and probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reid.commands.options import PATH, Command, model_option, out_option, settings_options
from reid.core.console import console, make_table, warn
from reid.core.errors import ReidError, first_few
from reid.pipelines.settings import CalibrateSettings

if TYPE_CHECKING:
    from reid.evaluation.calibration import Calibration


@click.command("calibrate", cls=Command)
@click.argument("embeddings", nargs=-1, required=True, type=PATH)
@model_option(required=False, help="Checkpoint or run folder next to which the calibration is written.")
@settings_options(CalibrateSettings, {"Calibration": ["fmr", "any_camera", "label_free"]})
@out_option("JSON file to write.  [default: calibration.json next to the model, else next to the first embeddings]")
def cli(embeddings: tuple[Path, ...], model: Path | None, out: Path | None, **options: Any) -> None:
    """Learn which distance between two EMBEDDINGS means the same person.

    \b
    reid calibrate query.parquet gallery.parquet --model runs/x/best.pt
    reid calibrate tracks.parquet --label-free --fmr 1e-2

    With a pid column, labelled pairs are compared. Without one, the columns camid, track and frame are used: tracks
    of one camera that overlap in time show different people, and crops of one track show the same person. `reid test`
    and `reid match` find calibration.json next to the model.
    """
    from reid.pipelines.calibrate import calibrate_files

    calibration, path = calibrate_files(embeddings, out, model, CalibrateSettings(**options))
    print_calibration(calibration)
    if not calibration.model:
        warn("The embeddings do not name their model, so a mismatch with other embeddings cannot be detected.")
    if calibration.source == "tracks":
        warn(
            "Made without labels: the true false-match rate may be several times lower or higher than the one shown "
            "(docs/calibration.md). Where this matters, label some people and calibrate on them."
        )
    console.print(f"calibration: {path}")


def print_calibration(calibration: Calibration) -> None:
    """Print thresholds by false-match rate, and how camera pairs differ."""
    curve = calibration.overall
    kind = "tracks" if calibration.source == "tracks" else "identities"
    caption = (
        f"{calibration.metric} distance, model {calibration.model or 'unknown'}. {curve.genuine:,} genuine and "
        f"{curve.impostor:,} impostor pairs of {calibration.identities:,} {kind}: "
        f"{calibration.notes.get('pairs', '')}.\n"
        f"p(same) at the threshold: {curve.method}, with equal prior probabilities.\n"
        "* the default threshold."
    )
    rows = []
    for fmr in sorted({1e-1, 1e-2, 1e-3, 1e-4, 1e-5, calibration.chosen_fmr}, reverse=True):
        name = f"{'*' if fmr == calibration.chosen_fmr else ''}{fmr:g}"
        try:
            threshold = calibration.threshold(fmr)
        except ReidError:
            rows.append((name, "too few pairs", "", ""))
            continue
        p = float(calibration.probability(threshold, prior=0.5))
        rows.append((name, f"{threshold:.4f}", f"{100 * calibration.tmr(threshold):.1f} %", f"{p:.3f}"))
    console.print(make_table(("false-match rate", "threshold", "true-match rate", "p(same)"), rows, caption=caption))
    if calibration.by_cameras:
        thresholds = {cameras: calibration.threshold(cameras=cameras) for cameras in calibration.by_cameras}
        low, high = min(thresholds, key=thresholds.__getitem__), max(thresholds, key=thresholds.__getitem__)
        console.print(
            f"{len(thresholds)} camera pairs have a curve each. Thresholds at {calibration.chosen_fmr:g}: from "
            f"{thresholds[low]:.4f} (cameras {low[0]}, {low[1]}) to {thresholds[high]:.4f} ({high[0]}, {high[1]})."
        )
    if calibration.too_few:
        pairs = [f"{a}–{b}" for a, b in sorted(calibration.too_few)]
        console.print(f"{len(pairs)} camera pairs have too few pairs and use the common curve: {first_few(pairs)}.")
