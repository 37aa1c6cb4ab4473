"""Score a model on crops of tracks with known identities: is a person recognised k frames later?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reid.core.atomic import write_json
from reid.core.console import warn
from reid.core.errors import ConfigError
from reid.data.tracks import Tracks
from reid.embedding.boxes import embed_boxes
from reid.embedding.embedder import Embedder
from reid.embedding.table import Embeddings
from reid.evaluation.reassociation import ReassociationResult, query_rows, reassociate
from reid.mtmc.track_files import read_tracks
from reid.pipelines.embed import open_videos
from reid.pipelines.settings import ReassociationSettings


def score_reassociation(
    embeddings: Embeddings, settings: ReassociationSettings, out: Path | None = None
) -> ReassociationResult:
    """Score embeddings of crops with frames and true identities (pids, else tracks).

    Args:
        embeddings: of crops; camids are optional.
        settings: gaps and stride.
        out: folder for reassociation.json; None writes nothing.

    Raises:
        ReidError: a column is missing or invalid.
    """
    people = embeddings.tracks if embeddings.pids is None else embeddings.pids
    if people is None or embeddings.frames is None:
        missing = "frame" if embeddings.frames is None else "pid or track"
        raise ConfigError(f"The embeddings have no column {missing}. Embed boxes of tracks with true ids.")
    result = reassociate(
        embeddings.features, people, embeddings.frames, embeddings.camids, gaps=settings.gaps, stride=settings.stride
    )
    if out is not None:
        model = embeddings.meta.get("model")
        write_json(out / "reassociation.json", {"model": model, **result.as_dict()})
    return result


def needed_boxes(tracks: Tracks, settings: ReassociationSettings) -> Tracks:
    """Return the boxes that are a query, or that are in a frame that is one of the gaps after a query."""
    query = query_rows(tracks.frame, tracks.camera, settings.stride)
    span = int(tracks.frame.max(initial=0)) + 1 + max(settings.gaps)
    moment = tracks.camera * span + tracks.frame
    later = np.unique(moment[query])[:, None] + np.array(settings.gaps)
    return tracks.take(query | np.isin(moment, later))


def reassociation_embeddings(model: Path | None, settings: ReassociationSettings, **options: Any) -> Embeddings:
    """Read the embeddings that the settings name, or cut the needed boxes of tracks out of videos and embed them.

    Args:
        model: embeds the boxes.
        settings: the inputs and the gaps.
        options: of `Embedder`.

    Raises:
        ReidError: not exactly one input, or a file or the model cannot be used.
    """
    if settings.embeddings is not None and settings.tracks is None and settings.videos is None:
        return Embeddings.load(settings.embeddings)
    if settings.embeddings is not None or settings.tracks is None or settings.videos is None or model is None:
        raise ConfigError("Pass --embeddings FILE, or --tracks with true ids, --videos and --model.")
    tracks = needed_boxes(read_tracks(settings.tracks, first_frame=settings.first_frame), settings)
    videos, quality, problems = open_videos(settings.videos, tracks)
    embedder = Embedder(model, **options)
    done = embed_boxes(embedder, videos, tracks, quality=quality)
    for text in (*tracks.warnings, *problems, *done.problems()):
        warn(text)
    return done.embeddings
