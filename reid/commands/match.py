"""`reid match`: track files of several cameras in, one identity for every person out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reid.core.errors import ReidError

if TYPE_CHECKING:
    from reid.embedding.table import Embeddings
    from reid.evaluation.calibration import Calibration
    from reid.mtmc import Cameras, Matches, MatchSettings, Tracklets, Tracks
    from reid.mtmc.online import OnlineMatches


@click.command("match")
@click.option(
    "--tracks", "tracks_path", required=True, type=click.Path(path_type=Path), metavar="PATH",
    help="Folder of track files, one a camera (cam01.txt …), or one file with a camera column.",
)  # fmt: skip
@click.option(
    "--format", "track_format", default="auto", show_default=True,
    help="Of the track files: mot, aicity, duke or parquet; told from their content unless said.",
)  # fmt: skip
@click.option(
    "--embeddings", "embeddings_path", type=click.Path(path_type=Path), metavar="FILE",
    help="Appearance from any model: Parquet with camera (or camid), track, frame and features.",
)  # fmt: skip
@click.option(
    "--videos", type=click.Path(path_type=Path), metavar="DIR",
    help="Or: videos or frame folders named like the cameras; crops are then embedded with --checkpoint.",
)  # fmt: skip
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), metavar="FILE",
    help="Model for --videos: a checkpoint of reid, an .onnx file or an OpenVINO .xml.",
)  # fmt: skip
@click.option(
    "--cameras", "cameras_path", type=click.Path(path_type=Path), metavar="FILE",
    help="cameras.yaml: clocks, overlaps, travel times.  [default: cameras.yaml beside the tracks, if there]",
)  # fmt: skip
@click.option(
    "--truth", type=click.Path(path_type=Path), metavar="PATH",
    help="Track files with the true global ids, to score against.",
)  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the results.")
@click.option("--solver", help="agglomerative (the default), correlation, hungarian or single_linkage.")
@click.option("--threshold", type=float, help="Join below this distance, instead of the one found.")
@click.option("--fmr", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="False-match rate to aim at.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="FILE",
    help="What distance means the same person.  [default: calibration.json beside checkpoint or embeddings, if there]",
)  # fmt: skip
@click.option(
    "--constraints", "constraints_path", type=click.Path(path_type=Path), metavar="FILE",
    help="What a person decided in an earlier report: merge these, split those.",
)  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting of docs/matching.md.")
@click.option(
    "--online", is_flag=True, help="As a stream: nothing is known before it ends. Its loss against offline is printed."
)
@click.option(
    "--period", default=60.0, show_default=True, type=click.FloatRange(0, min_open=True), metavar="SECONDS",
    help="Of --online: between two decisions; an identity is given within this time and 2 s of a track's end.",
)  # fmt: skip
@click.option(
    "--split", is_flag=True, help="Cut tracks where their appearance changes, as where a tracker swapped two people."
)
@click.option(
    "--stitch/--no-stitch", default=True, show_default=True,
    help="Join tracks that one camera lost and found again, by their walk and looks.",
)  # fmt: skip
@click.option("--per-track", default=8, show_default=True, type=click.IntRange(1), help="Crops of a track to embed.")
@click.option("--pixelate-heads", is_flag=True, help="Blot out heads in the report's crops.")
@click.option("--device", default="auto", show_default=True, help="For --checkpoint: auto, cpu, cuda, cuda:1 or mps.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Crops a forward pass.")
def command(
    tracks_path: Path,
    track_format: str,
    embeddings_path: Path | None,
    videos: Path | None,
    checkpoint: Path | None,
    cameras_path: Path | None,
    truth: Path | None,
    out: Path,
    solver: str | None,
    threshold: float | None,
    fmr: float | None,
    calibration: Path | None,
    constraints_path: Path | None,
    overrides: tuple[str, ...],
    online: bool,
    period: float,
    split: bool,
    stitch: bool,
    per_track: int,
    pixelate_heads: bool,
    device: str,
    batch_size: int,
) -> None:
    """Say which tracks of several cameras are the same person.

    \b
    reid match --tracks tracks/ --embeddings features.parquet --out matched/
    reid match --tracks tracks/ --videos videos/ --checkpoint best.pt --cameras cameras.yaml --out matched/

    Leaves the track files with global ids, identities.csv, links.parquet, match.json, report.html and, with --truth,
    scores.json in the results folder.
    """
    given = {"solver": solver, "threshold": threshold, "fmr": fmr}
    match_files(
        tracks_path,
        out,
        track_format=track_format,
        embeddings_path=embeddings_path,
        videos=videos,
        checkpoint=checkpoint,
        cameras_path=cameras_path,
        truth=truth,
        settings=match_settings({key: value for key, value in given.items() if value is not None}, overrides),
        calibration_path=calibration,
        constraints_path=constraints_path,
        period=period if online else None,
        split=split,
        stitch=stitch,
        per_track=per_track,
        pixelate_heads=pixelate_heads,
        device=device,
        batch_size=batch_size,
    )


def match_settings(given: dict[str, Any], overrides: Sequence[str]) -> MatchSettings:
    """`MatchSettings` from options and `KEY=VALUE` texts, values as YAML has them.

    Raises:
        ReidError: a text without `=`, an unknown key (the nearest is named), or a value out of range.
    """
    from reid.config import MatchSettings, load_settings

    return load_settings(MatchSettings, overrides=[*(f"{key}={value}" for key, value in given.items()), *overrides])


@dataclass(frozen=True, eq=False)
class _Appearance:
    """Features of boxes, small pictures by row of these, and what was left out on the way."""

    embeddings: Embeddings
    pictures: dict[int, bytes]
    problems: list[str]


def match_files(
    tracks_path: Path,
    out: Path,
    *,
    track_format: str = "auto",
    embeddings_path: Path | None = None,
    videos: Path | None = None,
    checkpoint: Path | None = None,
    cameras_path: Path | None = None,
    truth: Path | None = None,
    settings: MatchSettings | None = None,
    calibration_path: Path | None = None,
    constraints_path: Path | None = None,
    period: float | None = None,
    split: bool = False,
    stitch: bool = True,
    per_track: int = 8,
    pixelate_heads: bool = False,
    device: str = "auto",
    batch_size: int = 64,
) -> Matches:
    """Read, embed where asked, match, check, score, and write everything to `out`.

    Raises:
        ReidError: a file or setting is wrong; the message says which and what to do.
    """
    from reid.core.console import console, warn
    from reid.mtmc import Tracklets, match, read_constraints
    from reid.mtmc.cameras import read_cameras
    from reid.mtmc.results import write_matches
    from reid.mtmc.track_files import read_tracks
    from reid.report.match_page import write_match_report

    if (embeddings_path is None) == (videos is None):
        raise ReidError("Say where appearance comes from: --embeddings FILE, or --videos DIR with --checkpoint FILE.")
    began = time.perf_counter()
    warnings: list[str] = []
    tracks = read_tracks(tracks_path, format=track_format)
    warnings += tracks.warnings
    true_tracks = None if truth is None else read_tracks(truth)
    console.print(
        f"{len(tracks):,} boxes of {len(tracks.camera_names)} cameras, format {tracks.format} ({tracks.format_reason})",
        highlight=False,
    )
    cameras_path = cameras_path or _beside(tracks_path, "cameras.yaml")
    cameras = None if cameras_path is None else read_cameras(cameras_path, tracks.camera_names)
    if cameras is None:
        warnings.append("No cameras.yaml: 25 frames a second, clocks alike, and any camera after any other.")
    else:
        console.print(f"clocks and travel times from {cameras_path}", highlight=False)
        warnings += cameras.warnings
    constraints = None if constraints_path is None else read_constraints(constraints_path)
    if embeddings_path is not None:
        appearance = _read_appearance(embeddings_path, tracks)
    elif videos is None or checkpoint is None:
        raise ReidError("--videos needs --checkpoint FILE: a checkpoint of reid, an .onnx file or an OpenVINO .xml.")
    else:
        appearance = _embed_videos(videos, checkpoint, tracks, cameras, out, per_track, device, batch_size)
    warnings += appearance.problems
    names = dict(enumerate(tracks.camera_names))
    tracklets = Tracklets.from_tracks(
        tracks, appearance.embeddings, cameras, camera_names=names, split=split, stitch=stitch
    )
    calibration = _calibration(calibration_path, checkpoint, embeddings_path, appearance.embeddings)
    for text in warnings:
        warn(text)
    matches = match(tracklets, cameras=cameras, settings=settings, calibration=calibration, constraints=constraints)
    offline = None
    if period is not None:
        from reid.config import StreamSettings
        from reid.mtmc.online import match_online

        live = match_online(
            matches.tracklets,
            cameras=cameras,
            settings=settings,
            calibration=calibration,
            constraints=constraints,
            stream=StreamSettings(period=period),
        )
        _print_loss(matches, live)
        offline, matches = matches, live.as_matches(matches)
    written = write_matches(matches, tracks, out)
    scores = None if true_tracks is None else _score(matches, offline, tracks, true_tracks, out)
    _print_summary(matches)
    report = write_match_report(
        matches,
        _crops_by_tracklet(matches.tracklets, appearance.pictures),
        out / "report.html",
        scores=scores,
        pixelate_heads=pixelate_heads,
        cameras=cameras,
        constraints=constraints,
        warnings=warnings,
        left_out=_left_out(matches.tracklets),
    )
    for path in (*written.values(), report):
        console.print(f"  {path}", highlight=False)
    console.print(f"done in {time.perf_counter() - began:.1f} s")
    return matches


def _beside(path: Path, name: str) -> Path | None:
    """`name` in the folder of the tracks, or in the one above it."""
    for folder in (path, path.parent):
        if (folder / name).is_file():
            return folder / name
    return None


def _read_appearance(path: Path, tracks: Tracks) -> _Appearance:
    """Any model's embeddings, their cameras numbered as the tracks have them, rows of unknown tracks left out."""
    import numpy as np

    from reid.data.tracks import camera_number
    from reid.embedding.table import Embeddings

    table = Embeddings.load(path)
    problems = []
    missing = [name for name in ("camids", "tracks", "frames") if getattr(table, name) is None]
    if missing or table.camids is None or table.tracks is None:
        raise ReidError(
            f"{path} does not say of which box each feature is: it needs the columns camera (names) or camid "
            f"(numbers), track and frame. Missing: {', '.join(name.removesuffix('s') for name in missing)}."
        )
    known = table.meta.get("camera_names")
    if known is None:
        numbers = {camera_number(name): name for name in tracks.camera_names}
        known = {camid: numbers.get(int(camid)) for camid in np.unique(table.camids).tolist()}
    else:
        known = dict(enumerate(known))
    strange = sorted(
        {str(known.get(camid) or camid) for camid in np.unique(table.camids).tolist()
         if known.get(camid) not in tracks.camera_names}
    )  # fmt: skip
    if strange:
        raise ReidError(
            f"{path} has features of cameras {', '.join(strange)}, of which there are no tracks. There are tracks of "
            f"{', '.join(tracks.camera_names)}. Give a column `camera` with these names, or number camid as they do."
        )
    index = {name: number for number, name in enumerate(tracks.camera_names)}
    camera = np.array([index[known[camid]] for camid in table.camids.tolist()], dtype=np.int64)
    here = {(c, t) for c, t in zip(tracks.camera.tolist(), tracks.track.tolist(), strict=True)}
    kept = np.array([(c, t) in here for c, t in zip(camera.tolist(), table.tracks.tolist(), strict=True)], dtype=bool)
    if not kept.all():
        problems.append(f"{path}: {int((~kept).sum()):,} features are of tracks that are not in the track files.")
    if not kept.any():
        raise ReidError(f"No feature of {path} is of a track in the track files: do both come from one run?")
    table = table.take(kept)
    table.camids = camera[kept]
    return _Appearance(table, {}, problems)


def _embed_videos(
    videos: Path,
    checkpoint: Path,
    tracks: Tracks,
    cameras: Cameras | None,
    out: Path,
    per_track: int,
    device: str,
    batch_size: int,
) -> _Appearance:
    """Choose boxes of every track, cut them from the videos, embed them; a killed run goes on where it stopped."""

    from reid.core.console import console
    from reid.data.box_selection import box_quality, choose_boxes
    from reid.data.videos import find_videos
    from reid.embedding.boxes import embed_boxes
    from reid.embedding.embedder import Embedder

    found = find_videos(videos, tracks.camera_names)
    quality = box_quality(tracks, {name: video.info()[:2] for name, video in found.videos.items()})
    rows = choose_boxes(tracks, quality, per_track=per_track)
    embedder = Embedder(checkpoint, device=device, batch_size=batch_size)
    result = embed_boxes(
        embedder,
        found.videos,
        tracks.take(rows),
        quality=quality[rows],
        cache=out / "cache",
        keep_crops=True,
    )
    table = result.embeddings
    table.save(out / "embeddings.parquet")
    console.print(f"{len(table):,} crops embedded ({result.from_cache:,} of them by an earlier run)")
    pictures = dict(enumerate(result.crop_jpegs))
    return _Appearance(table, pictures, [*found.problems, *result.problems()])


def _calibration(
    path: Path | None, checkpoint: Path | None, embeddings_path: Path | None, embeddings: Embeddings
) -> Calibration | None:
    """The calibration to use: the one named, or the one beside the checkpoint or the embeddings; None without any."""
    from reid.core.console import console
    from reid.embedding.calibration_file import load_calibration, stored_calibration

    found = path
    for beside in (checkpoint, embeddings_path):
        if found is None and beside is not None:
            found = stored_calibration(beside)
    if found is None:
        return None
    calibration = load_calibration(found)
    calibration.check_fits(embeddings.meta.get("model"), f"the embeddings to match by {found}")
    console.print(f"calibration: {found}", highlight=False)
    return calibration


def _score(matches: Matches, offline: Matches | None, tracks: Tracks, truth: Tracks, out: Path) -> dict[str, Any]:
    """Score, print and write; where the result is a stream's, print the offline one's IDF1 and HOTA beside it."""
    from reid.commands.score import show
    from reid.core.atomic import write_json
    from reid.core.console import console
    from reid.mtmc import score_tracks
    from reid.mtmc.results import global_tracks

    result = score_tracks(truth, global_tracks(matches, tracks))
    write_json(out / "scores.json", result.as_dict())
    show(result)
    if offline is not None:
        now, before = result.overall, score_tracks(truth, global_tracks(offline, tracks)).overall
        console.print(
            f"IDF1 {100 * now.IDF1:.1f} online, {100 * before.IDF1:.1f} offline; HOTA {100 * now.HOTA:.1f}, "
            f"{100 * before.HOTA:.1f}",
            highlight=False,
        )
    return result.as_dict()


def _print_loss(offline: Matches, live: OnlineMatches) -> None:
    """How far the stream's identities are from those of the whole recording."""
    from reid.core.console import console
    from reid.mtmc import cluster_scores

    near = cluster_scores(offline.identity, live.identity)
    console.print(
        f"online, within {live.delay:g} s, {live.max_remembered:,} tracklets remembered at most: of the pairs that "
        f"offline matching joins {near.pair_recall:.1%} are joined, and {near.pair_precision:.1%} of these pairs are "
        "among them",
        highlight=False,
    )


def _crops_by_tracklet(tracklets: Tracklets, pictures: dict[int, bytes]) -> dict[int, list[bytes]]:
    """The pictures of each tracklet's prototypes, the most typical first."""
    by_row: dict[int, list[bytes]] = {}
    for row, crop in zip(tracklets.prototype_tracklet.tolist(), tracklets.prototype_row.tolist(), strict=True):
        if crop in pictures:
            by_row.setdefault(row, []).append(pictures[crop])
    return by_row


def _left_out(tracklets: Tracklets) -> dict[str, list[str]]:
    rows = [row for row, has in enumerate(tracklets.has_feature.tolist()) if not has]
    names = [f"{tracklets.camera_names[tracklets.camera[row]]}, track {tracklets.track[row]}" for row in rows]
    return {"Tracks without appearance": names} if names else {}


def _print_summary(matches: Matches) -> None:
    from reid.core.console import console
    from reid.mtmc.results import count_multi_camera_identities

    t = matches.tracklets
    several = count_multi_camera_identities(matches)
    console.print(
        f"{int(matches.identity.max(initial=0)):,} identities from {len(t):,} tracklets, {several:,} of them in two or "
        "more cameras",
        highlight=False,
    )
    rate = "not enough data" if matches.fmr is None else f"{matches.fmr:.2g}"
    console.print(
        f"threshold {matches.threshold:.4f} ({matches.protocol['threshold']}): expected false-match rate {rate}",
        highlight=False,
    )
