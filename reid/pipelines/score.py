"""Score track files with global identities against the truth."""

from __future__ import annotations

from pathlib import Path

from reid.core.atomic import write_json
from reid.data.tracks import Tracks
from reid.mtmc import TrackScores
from reid.mtmc.score_causes import score_with_causes
from reid.mtmc.track_files import read_tracks
from reid.pipelines.settings import ScoreSettings


def score_files(
    truth: Path, predicted: Path, out: Path, settings: ScoreSettings | None = None
) -> tuple[TrackScores, dict[str, Tracks]]:
    """Score track files against the truth and write the numbers to `out` as JSON.

    Returns:
        The scores, and the tracks that were read by "truth" and "predicted".

    Raises:
        DataError: a file cannot be read, or the two sides have no camera in common.
    """
    settings = settings or ScoreSettings()
    paths = {"truth": truth, "predicted": predicted}
    tracks = {
        side: read_tracks(
            path,
            format=getattr(settings, f"{side}_format"),
            duplicates=settings.duplicates,
            skip_untracked=settings.skip_untracked,
            first_frame=getattr(settings, f"{side}_first_frame"),
        )
        for side, path in paths.items()
    }
    if settings.truth_first_frame is not None or settings.predicted_first_frame is not None:
        offset = tracks["truth"].first_frame - tracks["predicted"].first_frame
        tracks["predicted"] = tracks["predicted"].shift_frames(offset)
    scores = score_with_causes(tracks["truth"], tracks["predicted"], iou=settings.iou)
    sources = {
        side: {"path": path.name, "format": tracks[side].format, "warnings": list(tracks[side].warnings)}
        for side, path in paths.items()
    }
    write_json(out, {**sources, **scores.as_dict()})
    return scores, tracks
