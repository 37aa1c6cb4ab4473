"""`reid match`: match tracks across cameras."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reid.commands.options import Command, out_option, overrides_argument, settings_options
from reid.config import load_settings
from reid.core.console import console
from reid.pipelines.settings import MatchFiles, MatchKeys

if TYPE_CHECKING:
    from reid.pipelines.match import MatchedFiles

GROUPS = {
    "Input": ["tracks", "format", "embeddings", "videos", "model", "cameras", "calibration", "constraints", "truth"],
    "Tracks": ["skip_untracked", "split", "stitch", "self_calibrate", "per_track", "encounters"],
    "Frame numbers": ["first_frame", "embeddings_first_frame", "truth_first_frame"],
    "Mode": ["online"],
    "Report": ["pixelate_heads"],
    "Computation": ["device", "batch_size", "trust", "engine", "workers"],
}


@click.command("match", cls=Command)
@settings_options(MatchFiles, GROUPS)
@out_option("Folder for the results.", required=True)
@overrides_argument
def cli(out: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Match tracks across cameras: find which tracks show the same person.

    \b
    reid match --tracks tracks/ --embeddings features.parquet --out matched/
    reid match --tracks tracks/ --videos videos/ --model best.pt --out matched/ solver=correlation fmr=1e-3

    Settings (docs/matching-parameters.md): solver, threshold, fmr, neighbours, k1, ...; with --online also
    stream.period and others. Writes tracks/ with global identities, identities.csv, links.parquet, match.json,
    report.html; with --videos embeddings.parquet and pictures.parquet; with --truth scores.json; and
    cameras.estimated.yaml if it calibrated the cameras from the tracks.
    """
    files = MatchFiles(**options)
    settings = load_settings(MatchKeys, overrides=overrides)
    from reid.pipelines.match import match_files

    began = time.perf_counter()
    print_matches(match_files(files, out, settings.matching(), settings.stream))
    console.print(f"done in {time.perf_counter() - began:.1f} s")


def print_matches(result: MatchedFiles) -> None:
    """Print scores, counts, the threshold, and the files written."""
    from reid.commands.score import print_scores
    from reid.mtmc import cluster_scores
    from reid.mtmc.results import count_multi_camera_identities

    matches, offline, stream = result.matches, result.offline, result.stream
    if offline is not None and stream is not None:
        same = cluster_scores(offline.identity, matches.identity)
        console.print(
            f"online, delay at most {stream.delay:g} s, at most {stream.max_remembered:,} tracklets in memory: of the "
            f"pairs joined offline, {same.pair_recall:.1%} are joined online; of those joined online, "
            f"{same.pair_precision:.1%} are joined offline"
        )
    if result.scores is not None:
        print_scores(result.scores)
    if result.scores is not None and result.offline_scores is not None:
        now, before = result.scores.overall, result.offline_scores.overall
        console.print(
            f"IDF1 {100 * now.IDF1:.1f} online, {100 * before.IDF1:.1f} offline; HOTA {100 * now.HOTA:.1f} online, "
            f"{100 * before.HOTA:.1f} offline"
        )
    console.print(
        f"{int(matches.identity.max(initial=0)):,} identities from {len(matches.tracklets):,} tracklets, "
        f"{count_multi_camera_identities(matches):,} of them in two or more cameras"
    )
    rate = "unknown (not enough data)" if matches.fmr is None else f"{matches.fmr:.2g}"
    source = matches.protocol["threshold"]
    if matches.threshold_interval:
        source += "; from resampled data {:.4f} to {:.4f}".format(*matches.threshold_interval)
    console.print(f"threshold {matches.threshold:.4f} ({source}): expected false-match rate {rate}")
    for sentence in matches.advice:
        console.print(sentence)
    for path in result.written:
        console.print(f"  {path}")
