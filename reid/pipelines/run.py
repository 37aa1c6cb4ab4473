"""Videos to identities: track every camera, embed the tracks, match them, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reid.config import MatchSettings, StreamSettings
from reid.core.atomic import result_folder
from reid.core.console import console
from reid.embedding.calibration_file import load_calibration
from reid.embedding.embedder import Embedder
from reid.mtmc.cameras import read_cameras
from reid.mtmc.constraints import read_constraints
from reid.mtmc.results import global_tracks
from reid.mtmc.track_files import read_tracks
from reid.pipelines.match import MatchedFiles, match_files
from reid.pipelines.settings import MatchFiles, RunSettings
from reid.pipelines.track import TrackedVideos, open_cameras, track_cameras
from reid.report.annotated_video import draw_tracks


@dataclass(frozen=True, eq=False)
class RunResult:
    """Result of `run_videos`.

    Attributes:
        tracked: tracks of single cameras, and cameras that failed.
        matched: identities over all cameras, and scores against the truth if there is one.
        written: files and folders that were written.
    """

    tracked: TrackedVideos
    matched: MatchedFiles
    written: Sequence[Path]


def run_videos(
    videos: Sequence[str | Path] | str | Path,
    out: str | Path,
    settings: RunSettings | None = None,
    matching: MatchSettings | None = None,
    stream: StreamSettings | None = None,
) -> RunResult:
    """Give every person in the videos of several cameras one identity: track, embed, match and report.

    Everything is resumable: detections and embedded crops of an earlier run in `out` are used if video, detector and
    model are the same.

    Args:
        videos: as in `track_videos`.
        out: folder for the results: `tracked/` (see `track_videos`), and those of `match_files`: tracks/ with
            global identities, identities.csv, report.html and others. With `settings.draw`, also videos/.
        settings: None for the defaults.
        matching, stream: settings of matching and of online matching.

    Raises:
        ReidError: no camera can be processed, or a file, model or setting cannot be used.

    Example:
        >>> import tempfile
        >>> import reid
        >>> from reid.models import build_model
        >>> from reid.models.checkpoints import save_checkpoint
        >>> from reid.pipelines.settings import RunSettings
        >>> from reid.synthetic import synthesize
        >>> root = synthesize(tempfile.mkdtemp(), ids=4, cameras=2, videos=True, track_seconds=2)
        >>> checkpoint = tempfile.mkdtemp() + "/best.pt"
        >>> save_checkpoint(checkpoint, build_model("light10", height=64, width=32))
        >>> settings = RunSettings(detections=root / "truth", model=checkpoint, workers=1)
        >>> result = reid.run_videos(root / "videos", tempfile.mkdtemp(), settings)  # doctest: +ELLIPSIS
        1. Detect and track...
        >>> sorted(result.tracked.summary)
        ['cam01', 'cam02']
    """
    settings, out = settings or RunSettings(), Path(out)
    console.print("1. Detect and track", style="bold")
    cameras = open_cameras(videos, settings)
    _check_files(settings, list(cameras.readers))
    embedder = Embedder(settings.model, settings.device, settings.runtime_for(), batch_size=settings.batch_size)
    tracked = track_cameras(cameras, out / "tracked", settings)
    console.print("2. Match", style="bold")
    shared = set(MatchFiles.model_fields) & set(RunSettings.model_fields)
    files = MatchFiles(
        tracks=out / "tracked" / "tracks",
        first_frame=tracked.tracks.first_frame,
        format="mot",
        **{name: getattr(settings, name) for name in shared},
    )
    matched = match_files(files, out, matching, stream, videos=tracked.videos, embedder=embedder)
    written = [*tracked.written, *matched.written]
    if settings.draw:
        console.print("3. Draw", style="bold")
        written.append(_draw(tracked, matched, out, settings))
    return RunResult(tracked, matched, written)


def _check_files(settings: RunSettings, cameras: Sequence[str]) -> None:
    """Read the files that are needed after tracking, so that their errors come before it."""
    if settings.truth is not None:
        read_tracks(settings.truth)
    if settings.cameras is not None:
        read_cameras(settings.cameras, cameras)
    if settings.constraints is not None:
        read_constraints(settings.constraints)
    if settings.calibration is not None:
        load_calibration(settings.calibration)


def _draw(tracked: TrackedVideos, matched: MatchedFiles, out: Path, settings: RunSettings) -> Path:
    """Write the video of each camera with global identities to `out/videos`."""
    tracks = global_tracks(matched.matches, tracked.tracks)
    with result_folder(out, "draw", "videos") as staging:
        for camera, name in enumerate(tracks.camera_names):
            draw_tracks(
                tracked.videos[name],
                tracks.take(tracks.camera == camera),
                tracked.frames[name].tolist(),
                staging / "videos" / f"{name}.mp4",
                fps=tracked.summary[name]["analysed_fps"],
                heads=not settings.pixelate_heads,
            )
    return out / "videos"
