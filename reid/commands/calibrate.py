"""`reid calibrate`: embeddings in; what their distances mean out, as a table and a small JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray

from reid.core.errors import ReidError

if TYPE_CHECKING:
    from rich.table import Table

    from reid.embedding.table import Embeddings
    from reid.evaluation.calibration import Calibration


@click.command("calibrate")
@click.argument("embeddings", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--fmr", default=1e-3, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="False-match rate whose threshold is the default: the share of pairs of different people taken for one.",
)  # fmt: skip
@click.option("--any-camera", is_flag=True, help="Count pairs of one camera too (with labels).")
@click.option("--label-free", is_flag=True, help="Leave the pid column unread and learn from tracks of single cameras.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Write beside this checkpoint.")
@click.option("--out", type=click.Path(path_type=Path), help="The file to write.  [default: calibration.json]")
def command(
    embeddings: tuple[Path, ...],
    fmr: float,
    any_camera: bool,
    label_free: bool,
    checkpoint: Path | None,
    out: Path | None,
) -> None:
    """Learn what a distance between two EMBEDDINGS means: the same person, or not.

    \b
    reid calibrate query.parquet gallery.parquet --checkpoint runs/x/best.pt
    reid calibrate tracks.parquet --label-free --fmr 1e-2

    With a pid column from labelled pairs; without one from the columns camid, track and frame: tracks of one camera
    that overlap in time are different people, crops of one track are one person. Files are taken together.
    calibration.json is written beside the checkpoint if one is named, else beside the first file; `test`, `match` and
    search find it there.
    """
    from reid.core.console import console, warn
    from reid.embedding.calibration_file import NAME, save_calibration
    from reid.embedding.table import Embeddings

    if checkpoint is not None and not checkpoint.is_file():
        raise ReidError(f"There is no checkpoint {checkpoint}.")
    table = Embeddings.concat([Embeddings.load(path) for path in embeddings], list(map(str, embeddings)))
    calibration = calibrate_table(table, fmr=fmr, any_camera=any_camera, label_free=label_free)
    path = save_calibration(calibration, out or (checkpoint or embeddings[0]).parent / NAME)
    console.print(calibration_table(calibration))
    for line in camera_lines(calibration):
        console.print(line)
    if not calibration.model:
        warn("The embeddings do not say which model they are of, so nobody can tell if the calibration fits others.")
    if calibration.source == "tracks":
        warn(
            "Made without labels: the real false-match rate may be several times lower or higher than the one shown "
            "(docs/calibration.md). Label some people and calibrate on them where it matters."
        )
    console.print(f"calibration: {path}")


def calibrate_table(
    table: Embeddings, *, fmr: float, any_camera: bool = False, label_free: bool = False
) -> Calibration:
    """Calibrate from whatever columns there are.

    Raises:
        ReidError: neither pid nor camid, track and frame; or as `calibrate` and `calibrate_tracks`.
    """
    from reid.evaluation import calibrate, calibrate_tracks

    metric, model = table.meta.get("metric", "cosine"), str(table.meta.get("model") or "")
    labelled = table.pids is not None and bool((table.pids != -1).any())
    if labelled and not label_free:
        if table.camids is None and not any_camera:
            raise ReidError(
                "The embeddings have no camid column, so pairs across cameras cannot be told. Add it, or count all "
                "pairs with --any-camera."
            )
        assert table.pids is not None
        return calibrate(
            table.features, table.pids, table.camids, metric=metric, fmr=fmr, cross_camera=not any_camera, model=model
        )
    columns = {"camid": table.camids, "track": table.tracks, "frame": table.frames}
    lacking = [name for name, values in columns.items() if values is None]
    if table.camids is None or table.tracks is None or table.frames is None:
        raise ReidError(
            f"{'Without labels' if label_free else 'Without a pid column'} a calibration needs the columns camid, "
            f"track and frame; {', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing."
        )
    if labelled:
        assert table.pids is not None
        _refuse_mixed_tracks(table.pids, table.camids, table.tracks)
    return calibrate_tracks(
        table.features, table.camids, table.tracks, table.frames, metric=metric, fmr=fmr, model=model
    )


def _refuse_mixed_tracks(pids: NDArray[np.int64], camids: NDArray[np.int64], tracks: NDArray[np.int64]) -> None:
    """Where labels are at hand they at least tell whether a track is one person."""
    rows = np.stack([camids, tracks, pids])[:, pids != -1]
    people, n_tracks = np.unique(rows, axis=1), np.unique(rows[:2], axis=1).shape[1]
    if people.shape[1] > 1.01 * n_tracks:
        raise ReidError(
            f"The column track does not number tracks of one person: {n_tracks:,} numbers of a camera show "
            f"{people.shape[1]:,} identities. In Market-1501 it numbers videos. Give tracks, or calibrate with labels."
        )


def calibration_table(calibration: Calibration) -> Table:
    """Thresholds at false-match rates, with what they let through and what a distance there says."""
    from rich.box import SIMPLE
    from rich.table import Table

    curve = calibration.overall
    kind = "tracks" if calibration.source == "tracks" else "identities"
    caption = (
        f"{calibration.metric} distance, model {calibration.model or 'unknown'}. "
        f"Rests on {curve.genuine:,} pairs of the same and {curve.impostor:,} of different people, of "
        f"{calibration.identities:,} {kind}: {calibration.notes.get('pairs', '')}.\n"
        f"p(same) at the threshold: {curve.method}, where same and different are as likely beforehand.\n"
        "* the chosen rate, used by default."
    )
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for name in ("false-match rate", "threshold", "same found", "p(same) there"):
        table.add_column(name, justify="right", no_wrap=True)
    for fmr in sorted({1e-1, 1e-2, 1e-3, 1e-4, 1e-5, calibration.chosen_fmr}, reverse=True):
        chosen = "*" if fmr == calibration.chosen_fmr else ""
        try:
            threshold = calibration.threshold(fmr)
        except ReidError:
            table.add_row(f"{fmr:g}", "too few pairs", "", "")
            continue
        p = float(calibration.probability(threshold, prior=0.5))
        table.add_row(f"{chosen}{fmr:g}", f"{threshold:.4f}", f"{100 * calibration.tmr(threshold):.1f} %", f"{p:.3f}")
    return table


def camera_lines(calibration: Calibration) -> list[str]:
    """What to know of pairs of cameras, a sentence a line."""
    lines = []
    if calibration.by_cameras:
        thresholds = {cameras: calibration.threshold(cameras=cameras) for cameras in calibration.by_cameras}
        low, high = min(thresholds, key=thresholds.__getitem__), max(thresholds, key=thresholds.__getitem__)
        lines.append(
            f"{len(thresholds)} pairs of cameras have a curve of their own: thresholds at {calibration.chosen_fmr:g} "
            f"from {thresholds[low]:.4f} (cameras {low[0]}, {low[1]}) to {thresholds[high]:.4f} ({high[0]}, {high[1]})."
        )
    if calibration.too_few:
        named = ", ".join(f"{a}–{b}" for a, b in sorted(calibration.too_few)[:10])
        more = ", …" if len(calibration.too_few) > 10 else ""
        lines.append(f"{len(calibration.too_few)} have too few pairs and go by all together: {named}{more}.")
    return lines
