"""Write the result of a match: tracks with global ids, identities, links and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reid.core.atomic import atomic_file, write_csv, write_json
from reid.data.tracks import Tracks
from reid.mtmc.matching import Matches
from reid.mtmc.track_writers import write_aicity, write_tracks
from reid.mtmc.tracklets import tracklet_of_boxes


def global_tracks(matches: Matches, tracks: Tracks) -> Tracks:
    """Return the boxes with global identities as track ids, without the repeated ones (see `divide_boxes`).

    Example:
        >>> from reid.mtmc import Tracklets, match
        >>> boxes = [[0, 0, 20, 50], [0, 0, 20, 50]]
        >>> tracks = Tracks.from_columns(["door", "hall"], [0, 1], [7, 9], [1, 500], boxes)
        >>> same = np.array([[1.0, 0.0], [1.0, 0.1]], np.float32)
        >>> columns = {"camera": tracks.camera, "track": tracks.track, "frame": tracks.frame}
        >>> matches = match(Tracklets.from_features(tracks.camera_names, **columns, features=same))
        >>> global_tracks(matches, tracks).track.tolist()
        [1, 1]
    """
    return divide_boxes(matches, tracks)[0]


def divide_boxes(matches: Matches, tracks: Tracks) -> tuple[Tracks, Tracks]:
    """Return the boxes with global identities as track ids, and the repeated boxes with their local ids.

    A box is repeated if its identity has a better one in the same frame of the same camera, which happens only if a
    `tolerance` lets overlapping tracks of a camera join. The most confident box stays; ties: the largest, then the
    lowest local id.
    """
    identity = matches.identity[tracklet_of_boxes(matches.tracklets, tracks)]
    columns = (tracks.camera, tracks.frame, identity)
    area = tracks.boxes[:, 2:].prod(axis=1)
    order = np.lexsort((tracks.track, -area, -tracks.confidence, *reversed(columns)))
    kept = np.ones(len(tracks), bool)
    kept[order[1:]] = (np.diff(np.stack(columns)[:, order]) != 0).any(axis=0)
    return tracks.take(kept).with_ids(identity[kept]), tracks.take(~kept)


def count_multi_camera_identities(matches: Matches) -> int:
    """Number of identities that two or more cameras saw."""
    seen = np.unique(np.stack([matches.identity, matches.tracklets.camera]), axis=1)
    return int((np.bincount(seen[0]) > 1).sum())


def write_matches(matches: Matches, tracks: Tracks, folder: str | Path) -> dict[str, Path]:
    """Write a match, except its report, to a folder; return the paths by name.

    - `tracks/`: The track files in their original format, with global ids.
    - `aicity.txt`: All cameras in one file, `camera id frame x y w h -1 -1`.
    - `identities.csv`: One line per tracklet: the least certain identities first (mean confidence), then by time.
    - `links.parquet`: Every candidate pair: distance, margin, p(same), the rule that forbids it, the decision, and the
      log-odds by looks, time and space (null: none).
    - `repeated_boxes.csv`: The boxes that `divide_boxes` leaves out of `tracks/`, if any.
    - `match.json`: Settings, threshold, expected false-match rate, transition times, clock offsets and counts.

    Raises:
        DataError: A file cannot be written.

    Example:
        >>> import tempfile
        >>> from reid.mtmc import Tracklets, match
        >>> tracks = Tracks.from_columns(["door"], [0], [7], [1], [[0, 0, 20, 50]])
        >>> columns = {"camera": tracks.camera, "track": tracks.track, "frame": tracks.frame}
        >>> one = np.ones((1, 2), np.float32)
        >>> matches = match(Tracklets.from_features(tracks.camera_names, **columns, features=one))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(sorted(path.name for path in write_matches(matches, tracks, folder).values()))
        ['aicity.txt', 'identities.csv', 'links.parquet', 'match.json', 'tracks']
    """
    folder = Path(folder)
    found, repeated = divide_boxes(matches, tracks)
    write_tracks(found, folder / "tracks", tracks.format or "mot")
    numbers = write_aicity(found, folder / "aicity.txt")
    write_csv(folder / "identities.csv", _identities(matches))
    _write_links(matches, folder / "links.parquet")
    sizes = np.bincount(matches.identity)[1:]
    names = ["tracks", "aicity.txt", "identities.csv", "links.parquet", "match.json"]
    (folder / "repeated_boxes.csv").unlink(missing_ok=True)
    if len(repeated):
        write_csv(folder / "repeated_boxes.csv", _boxes(matches, repeated))
        names.append("repeated_boxes.csv")
    write_json(
        folder / "match.json",
        {
            "threshold": matches.threshold,
            "threshold_interval": matches.threshold_interval,
            "undecided_links": int(matches.undecided.sum()),
            "advice": matches.advice,
            "expected_false_match_rate": matches.fmr,
            "identities": len(sizes),
            "multi_camera_identities": count_multi_camera_identities(matches),
            "tracklets": len(matches.tracklets),
            "tracklets_without_feature": int((~matches.tracklets.has_feature).sum()),
            "repeated_boxes": len(repeated),
            "camera_numbers_in_aicity": numbers,
            "transition_times": [
                {"from": a, "to": b, "median_s": median, "spread_s": spread, "links": links}
                for (a, b), (median, spread, links) in matches.transition_times.items()
            ],
            "clock_offsets_s": matches.clock_offsets,
            "protocol": matches.protocol,
        },
    )
    return {name: folder / name for name in names}


def _identities(matches: Matches) -> dict[str, Any]:
    t = matches.tracklets
    count = np.bincount(matches.identity)
    certain = np.bincount(matches.identity, matches.confidence) / np.maximum(count, 1)
    rows = np.lexsort((t.camera, t.start, matches.identity, certain.round(4)[matches.identity]))
    return {
        "identity": matches.identity[rows],
        "camera": np.array(t.camera_names, dtype=object)[t.camera[rows]],
        "track": t.track[rows],
        "first_time": [f"{seconds:.3f}" for seconds in t.start[rows]],
        "last_time": [f"{seconds:.3f}" for seconds in t.end[rows]],
        "first_frame": t.first_frame[rows],
        "last_frame": t.last_frame[rows],
        "frames": t.frames[rows],
        "confidence": [f"{confidence:.4f}" for confidence in matches.confidence[rows]],
    }


def _boxes(matches: Matches, boxes: Tracks) -> dict[str, Any]:
    return {
        "identity": matches.identity[tracklet_of_boxes(matches.tracklets, boxes)],
        "camera": np.array(boxes.camera_names, dtype=object)[boxes.camera],
        "track": boxes.track,
        "frame": boxes.frame,
        **dict(zip("xywh", boxes.boxes.T, strict=True)),
        "confidence": boxes.confidence,
    }


def _write_links(matches: Matches, path: Path) -> None:
    t, links = matches.tracklets, matches.links
    names = np.array(t.camera_names, dtype=object)
    columns: dict[str, pa.Array] = {}
    for side, rows in (("first", links.first), ("second", links.second)):
        columns[f"{side}_camera"] = pa.array(names[t.camera[rows]], type=pa.string())
        columns[f"{side}_track"] = pa.array(t.track[rows])
        columns[f"{side}_frame"] = pa.array(t.first_frame[rows])
        columns[f"{side}_identity"] = pa.array(matches.identity[rows])
    columns |= {"distance": pa.array(links.distance), "margin": pa.array(links.margin)}
    columns |= {"p_same": pa.array(links.probability), "forbidden_by": pa.array(links.forbidden_by, type=pa.string())}
    columns |= {"joined": pa.array(links.joined), "undecided": pa.array(matches.undecided)}
    columns |= {name: pa.array(values, from_pandas=True) for name, values in matches.evidence.items()}
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
