"""Match track files across cameras: read, embed, match, score, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.config import MatchSettings, StreamSettings
from reid.core.atomic import result_folder, write_json
from reid.core.console import console, warn
from reid.core.errors import ConfigError, DataError
from reid.data.box_selection import choose_boxes, stretches
from reid.data.tracks import Tracks, check_frame_numbers, last_number
from reid.data.videos import Video
from reid.embedding.boxes import embed_boxes
from reid.embedding.calibration_file import load_calibration
from reid.embedding.embedder import Embedder
from reid.embedding.table import Embeddings
from reid.evaluation.neighbours import Neighbours
from reid.models.zoo import default_model
from reid.mtmc.cameras import Cameras, read_cameras, read_sequences
from reid.mtmc.constraints import read_constraints
from reid.mtmc.matching import Matches, match
from reid.mtmc.online import OnlineMatches, match_online
from reid.mtmc.ray_neighbours import find_neighbours_on_ray
from reid.mtmc.results import global_tracks, write_matches
from reid.mtmc.score_causes import score_with_causes
from reid.mtmc.scores import TrackScores, score_tracks
from reid.mtmc.self_calibration import (
    SelfCalibration,
    calibrate_from_tracks,
    simultaneous_matches,
    write_estimated_cameras,
)
from reid.mtmc.track_files import read_tracks
from reid.mtmc.tracklets import Tracklets
from reid.pipelines.calibrate import find_calibration
from reid.pipelines.embed import open_videos
from reid.pipelines.ground_paths import ground_paths
from reid.pipelines.pictures_file import NAME as PICTURES
from reid.pipelines.pictures_file import write_pictures
from reid.pipelines.settings import MatchFiles
from reid.report.match_page import ReportOptions, write_match_report

_TRACKS_NAMED = 5  # tracks that a warning names
_ESTIMATED = (
    "Clocks and ground planes were estimated from the tracks, not measured. Check the floor plan; keep "
    "cameras.estimated.yaml as cameras.yaml, or pass --no-self-calibrate."
)
_NO_EVIDENCE = (
    "The tracks have neither appearance nor positions on the ground. Pass the appearance of the tracks (--embeddings "
    "FILE, or --videos DIR), or give the cameras a homography or points in cameras.yaml."
)


@dataclass(frozen=True, eq=False)
class MatchedFiles:
    """Result of `match_files`.

    Attributes:
        matches: the identities; those of the online matcher with `online`.
        offline: identities of offline matching, to compare with; None without `online`.
        stream: delay and memory of the online matcher; None without `online`.
        scores: against the truth; None without truth.
        offline_scores: of `offline`, against the truth.
        written: files and folders that were written.
    """

    matches: Matches
    offline: Matches | None
    stream: OnlineMatches | None
    scores: TrackScores | None
    offline_scores: TrackScores | None
    written: Sequence[Path]


@dataclass(frozen=True, eq=False)
class _Appearance:
    """Embeddings of boxes, pictures by row of the embeddings, and warnings."""

    embeddings: Embeddings
    pictures: dict[int, bytes]
    warnings: list[str]


def match_files(
    files: MatchFiles,
    out: Path,
    settings: MatchSettings | None = None,
    stream: StreamSettings | None = None,
    *,
    videos: Mapping[str, Video] | None = None,
    embedder: Embedder | None = None,
) -> MatchedFiles:
    """Match track files across cameras and write the results to `out`.

    Args:
        files: what to read.
        out: folder for tracks/ with global identities, identities.csv, links.parquet, match.json, report.html, and
            with a truth scores.json.
        settings: of matching.
        stream: of online matching.
        videos: by camera name, if they are not in one folder; replaces `files.videos`.
        embedder: `files.model`, if it is open.

    Raises:
        ReidError: a file or setting cannot be used; the message names it.
    """
    source = videos or files.videos
    if files.embeddings is not None and source is not None:
        raise ConfigError("--embeddings and --videos both give the appearance of the tracks. Pass one of them.")
    search = None
    if files.engine == "ray":
        if settings is not None and settings.neighbour_search == "faiss":
            raise ConfigError("--engine ray searches exactly. Remove neighbour_search=faiss, or use --engine local.")
        search = partial(find_neighbours_on_ray, folder=out / "neighbours", workers=files.workers)
    with result_folder(out, "match", "match.json") as staging:
        embed = None if source is None else partial(_embed_videos, files, source, embedder, staging, out / "cache")
        result = _match_files(files, embed, staging, settings, stream, search)
    return replace(result, written=[out / path.name for path in result.written])


def _match_files(
    files: MatchFiles,
    embed: Callable[[Tracks], _Appearance] | None,
    out: Path,
    settings: MatchSettings | None,
    stream: StreamSettings | None,
    search: Callable[[NDArray[np.float32], int], Neighbours] | None,
) -> MatchedFiles:
    tracks, truth = _read_tracks(files)
    warnings = list(tracks.warnings)
    cameras = _cameras(files, tracks, warnings)
    constraints = None if files.constraints is None else read_constraints(files.constraints)
    if files.calibration is not None:
        load_calibration(files.calibration)  # its errors come before the embedding
    appearance = _read_appearance(files, embed, tracks)
    warnings += appearance.warnings
    group = partial(
        Tracklets.from_tracks,
        tracks,
        appearance.embeddings,
        camera_names=dict(enumerate(tracks.camera_names)),
        split=files.split,
        stitch=files.stitch,
    )
    tracklets = group(cameras)
    warnings += _invalid_features(tracklets, appearance.embeddings)
    nearby = [path for path in (files.model, files.embeddings) if path is not None]
    found = find_calibration(files.calibration, nearby, appearance.embeddings.meta.get("model"))
    if found is not None:
        console.print(f"calibration: {found.path}")
    for text in warnings:
        warn(text)
    calibration = None if found is None else found.calibration
    run = partial(match, settings=settings, calibration=calibration, constraints=constraints, search=search)
    matches = None
    if files.embeddings is not None or embed is not None or tracklets.has_path.any():
        matches = run(tracklets, cameras=cameras)
    written = []
    estimate = _self_calibrate(tracks, tracklets, matches, cameras) if files.self_calibrate else None
    if estimate is not None and estimate.cameras is not None:
        cameras = estimate.cameras
        written.append(write_estimated_cameras(estimate, out / "cameras.estimated.yaml"))
        warnings.append(_ESTIMATED)
        warn(_ESTIMATED)
        matches = run(group(cameras), cameras=cameras)
    if matches is None:
        raise ConfigError(_NO_EVIDENCE)
    if estimate is not None and estimate.alignments:
        matches = replace(matches, protocol={**matches.protocol, "self_calibration": estimate.describe()})
    offline = online = None
    if files.online:
        online = match_online(
            matches.tracklets,
            stream=stream,
            cameras=cameras,
            settings=settings,
            calibration=calibration,
            constraints=constraints,
        )
        offline, matches = matches, online.as_matches(matches)
    written += write_matches(matches, tracks, out).values()
    global_boxes = global_tracks(matches, tracks)
    repeated = len(tracks) - len(global_boxes)
    if repeated:
        warn(f"{repeated:,} boxes whose identity has a better box in the same frame are in repeated_boxes.csv only.")
    scores = offline_scores = None
    if truth is not None:
        scores = score_with_causes(truth, global_boxes)
        offline_scores = None if offline is None else score_tracks(truth, global_tracks(offline, tracks))
        write_json(out / "scores.json", scores.as_dict())
        written.append(out / "scores.json")
    paths, far = ground_paths(matches.tracklets, tracks, cameras)
    options = ReportOptions(
        scores=None if scores is None else scores.as_dict(),
        pixelate_heads=files.pixelate_heads,
        cameras=cameras,
        constraints=constraints,
        warnings=[_without_folders(text, files) for text in warnings],
        left_out={**_without_appearance(matches.tracklets), "Ground positions that are not drawn": far},
        paths=paths,
        evidence=matches.evidence,
    )
    crops = _crops_by_tracklet(matches.tracklets, appearance.pictures)
    written.append(write_match_report(matches, crops, out / "report.html", options))
    return MatchedFiles(matches, offline, online, scores, offline_scores, written)


def _read_tracks(files: MatchFiles) -> tuple[Tracks, Tracks | None]:
    """Read the tracks and the truth, if given, with frame numbers as in the tracks."""
    read = partial(read_tracks, skip_untracked=files.skip_untracked)
    tracks = read(files.tracks, format=files.format, first_frame=files.first_frame)
    truth = None if files.truth is None else read(files.truth, first_frame=files.truth_first_frame)
    if truth is not None and files.truth_first_frame is not None:
        truth = truth.shift_frames(tracks.first_frame - truth.first_frame)
    console.print(
        f"{len(tracks):,} boxes of {len(tracks.camera_names)} cameras, format {tracks.format} "
        f"({tracks.format_reason}), first frame {tracks.first_frame}"
    )
    return tracks, truth


def _read_appearance(files: MatchFiles, embed: Callable[[Tracks], _Appearance] | None, tracks: Tracks) -> _Appearance:
    """Read or compute the embeddings of the tracks; none without both."""
    if files.embeddings is not None:
        return read_appearance(files.embeddings, tracks, files.embeddings_first_frame)
    if embed is not None:
        return embed(tracks)
    none = Embeddings(np.zeros((0, 1), np.float32))
    return _Appearance(none, {}, ["No appearance: matching by positions on the ground."])


def _self_calibrate(
    tracks: Tracks, tracklets: Tracklets, matches: Matches | None, cameras: Cameras | None
) -> SelfCalibration:
    """Calibrate overlapping cameras from the tracks and likely matches, and print what was found."""
    likely = np.zeros((0, 2), np.int64) if matches is None else simultaneous_matches(matches)
    estimate = calibrate_from_tracks(tracks, tracklets, likely, cameras)
    for text in estimate.describe():
        console.print(f"self-calibration: {text}")
    return estimate


def _cameras(files: MatchFiles, tracks: Tracks, warnings: list[str]) -> Cameras | None:
    """Read the cameras file that was given, or the one in or above the folder of the tracks."""
    path = files.cameras
    for folder in (files.tracks, files.tracks.parent):
        if path is None and (folder / "cameras.yaml").is_file():
            path = folder / "cameras.yaml"
    if path is None and (sequences := read_sequences(files.tracks, tracks.camera_names)) is not None:
        console.print("frame rates and sizes: seqinfo.ini of each sequence")
        return sequences
    if path is None:
        warnings.append(
            "No cameras.yaml: assuming 25 frames per second, equal clocks, and transitions between any cameras."
        )
        return None
    cameras = read_cameras(path, tracks.camera_names)
    console.print(f"clocks and transition times: {path}")
    warnings += cameras.warnings
    for fit in cameras.fits:
        console.print(fit)
    return cameras


def read_appearance(path: Path, tracks: Tracks, first_frame: int | None = None) -> _Appearance:
    """Read embeddings of any model: number cameras and frames as in `tracks`, drop rows that are of no box."""
    table = Embeddings.load(path)
    missing = [name for name in ("camids", "tracks", "frames") if getattr(table, name) is None]
    if missing or table.camids is None or table.tracks is None:
        raise DataError(
            f"{path} does not identify the box of each feature. Add the columns "
            f"{', '.join(name.removesuffix('s') for name in missing)} (camera names may be in a column `camera`)."
        )
    rows = len(table)
    table = table.take(table.camids >= 0)
    camids, code = np.unique(np.asarray(table.camids), return_inverse=True)
    by_number = {last_number(name): name for name in tracks.camera_names}
    names = table.meta.get("camera_names") or {camid: by_number.get(camid, str(camid)) for camid in camids.tolist()}
    found = [names[camid] for camid in camids.tolist()]
    unknown = sorted(set(found) - set(tracks.camera_names))
    if unknown:
        raise DataError(
            f"{path} has features of cameras without tracks: {', '.join(unknown)}. Cameras with tracks: "
            f"{', '.join(tracks.camera_names)}. Add a column `camera` with these names, or number camid like them."
        )
    camera = np.array([tracks.camera_names.index(name) for name in found], dtype=np.int64)[code]
    known = set(zip(tracks.camera.tolist(), tracks.track.tolist(), strict=True))
    kept = np.array(
        [pair in known for pair in zip(camera.tolist(), np.asarray(table.tracks).tolist(), strict=True)], dtype=bool
    )
    if not kept.any():
        raise DataError(
            f"No feature of {path} belongs to a track of the track files. Pass files of the same recording."
        )
    warnings = []
    if kept.sum() < rows:
        warnings.append(
            f"{path}: {rows - int(kept.sum()):,} features are of unknown cameras or of tracks not in the files."
        )
    table = table.take(kept)
    table.camids = camera[kept]
    offset = 0 if first_frame is None else tracks.first_frame - first_frame
    table.frames = np.asarray(table.frames) + offset
    of_box = {d: tracks.has_box(table.camids, np.asarray(table.tracks), table.frames + d) for d in (0, -1, 1)}
    fix = f"The first frame of the tracks is {tracks.first_frame}: pass the one of the embeddings as "
    fix += "--embeddings-first-frame, or pass the tracks that they were made of."
    fits = {d: int(mask.sum()) for d, mask in of_box.items()}
    check_frame_numbers(str(path), "features", fits, fix, len(table) if first_frame is None else None)
    if not of_box[0].all():
        warnings.append(f"{path}: {int((~of_box[0]).sum()):,} features left out: their frame has no box of the track.")
        table = table.take(of_box[0])
    return _Appearance(table, {}, warnings)


def _embed_videos(
    files: MatchFiles,
    source: Path | Mapping[str, Video],
    embedder: Embedder | None,
    out: Path,
    cache: Path,
    tracks: Tracks,
) -> _Appearance:
    """Choose boxes of each track, cut them from the videos and embed them; an interrupted run is resumed."""
    videos, quality, problems = open_videos(source, tracks)
    stretch = stretches(tracks) if files.encounters else None
    rows = choose_boxes(tracks, quality, per_track=files.per_track, stretch=stretch)
    if embedder is None:
        model, runtime = files.model or default_model(), files.runtime_for()
        embedder = Embedder(model, files.device, runtime, batch_size=files.batch_size)
    result = embed_boxes(
        embedder,
        videos,
        tracks.take(rows),
        quality=quality[rows],
        cache=cache,
        keep_crops=True,
    )
    table = result.embeddings
    table.save(out / "embeddings.parquet")
    write_pictures(table, result.crop_jpegs, out / PICTURES, pixelate=files.pixelate_heads)
    console.print(f"{len(table):,} crops embedded ({result.from_cache:,} of them by an earlier run)")
    pictures = dict(enumerate(result.crop_jpegs))
    return _Appearance(table, pictures, [*problems, *result.problems()])


def _crops_by_tracklet(tracklets: Tracklets, pictures: dict[int, bytes]) -> dict[int, list[bytes]]:
    """Return the pictures of each tracklet's prototypes, the most typical first."""
    by_row: dict[int, list[bytes]] = {}
    for row, crop in zip(tracklets.prototype_tracklet.tolist(), tracklets.prototype_row.tolist(), strict=True):
        if crop in pictures:
            by_row.setdefault(row, []).append(pictures[crop])
    return by_row


def _invalid_features(tracklets: Tracklets, table: Embeddings) -> list[str]:
    """Report features that are left out because they are NaN, infinite or zero."""
    rows = tracklets.invalid_rows
    if not len(rows) or table.camids is None or table.tracks is None:
        return []
    tracks = np.unique(np.stack([table.camids[rows], table.tracks[rows]]), axis=1).T.tolist()
    shown = [f"{tracklets.camera_names[camera]} track {track}" for camera, track in tracks[:_TRACKS_NAMED]]
    more = f" and {len(tracks) - _TRACKS_NAMED:,} more" if len(tracks) > _TRACKS_NAMED else ""
    return [
        f"{len(rows):,} of {len(table):,} features left out: they contain NaN or infinity, or are zero. They are of "
        f"{', '.join(shown)}{more}."
    ]


def _without_appearance(tracklets: Tracklets) -> dict[str, list[str]]:
    rows = np.flatnonzero(~tracklets.has_feature).tolist()
    names = [f"{tracklets.camera_names[tracklets.camera[row]]}, track {tracklets.track[row]}" for row in rows]
    return {"Tracks without appearance": names} if names else {}


def _without_folders(text: str, files: MatchFiles) -> str:
    """Return a warning without the folders of the input files, for a report that is passed on."""
    for path in (files.tracks, files.embeddings, files.videos, files.cameras):
        if path is not None and path.parent != Path("."):
            text = text.replace(f"{path.parent}/", "")
    return text
