"""Self-calibration: clocks and ground planes of overlapping cameras from the people that they see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from scipy.spatial import ConvexHull, QhullError

from reid.core.atomic import write_text
from reid.data.box_selection import hidden_feet
from reid.data.tracks import Floats, Integers, Tracks
from reid.mtmc.cameras import Camera, Cameras
from reid.mtmc.pooling import Mask
from reid.mtmc.single_view import estimate_ground_plane
from reid.mtmc.tracklets import Tracklets, tracklet_of_boxes
from reid.mtmc.view_alignment import (
    MIN_PAIRS,
    STEP,
    Alignment,
    Pair,
    Walks,
    align,
    sample_walks,
    simultaneous_pairs,
)

if TYPE_CHECKING:
    from reid.mtmc.matching import Matches

ALL_PAIRS = 15
"""Up to so many pairs of cameras are all examined; of more, only those with likely matches by appearance."""

_ROUNDS = 5
_HUBER = 0.5  # metres


@dataclass(frozen=True, eq=False)
class SelfCalibration:
    """Result of `calibrate_from_tracks`.

    Attributes:
        cameras: The given cameras, with ground planes and clocks where they were found; None if nothing was found.
        alignments: Result for each pair of cameras that was examined.
        residuals: Median distance in metres of the coinciding positions, by accepted pair of names.
    """

    cameras: Cameras | None
    alignments: tuple[Alignment, ...]
    residuals: dict[tuple[str, str], float]

    def describe(self) -> list[str]:
        """One line for each pair of cameras."""
        lines = []
        for one in self.alignments:
            pair = f"{one.first} and {one.second}"
            if not one.accepted:
                lines.append(f"{pair}: no common ground plane, {one.reason}")
            elif (one.first, one.second) in self.residuals:
                ratios = " and ".join(f"{value:.0f}" for value in one.log_ratio)
                lines.append(
                    f"{pair}: {one.inliers} pairs of tracks coincide, median distance "
                    f"{self.residuals[one.first, one.second]:.2f} m, held-out log ratio {ratios}"
                )
            else:
                lines.append(f"{pair}: overlap, but are not connected with the largest group of cameras")
        return lines


def calibrate_from_tracks(
    tracks: Tracks, tracklets: Tracklets, likely: Integers, cameras: Cameras | None = None
) -> SelfCalibration:
    """Find which cameras overlap, their ground planes and clocks, without any measurement.

    1. The ground plane of each camera comes from the heights of people (`single_view.estimate_ground_plane`).
    2. Each pair of cameras that may overlap is aligned by its paths (`view_alignment.align`). Simultaneous tracklets
       propose alignments, likely matches by appearance first; paths alone decide. With more than `ALL_PAIRS` pairs of
       cameras, those with appearance and fewer than 6 likely matches are left out.
    3. The largest group of connected cameras is placed on one ground plane by least squares over all coinciding
       positions, with Huber weights, clocks included. Its scale is the mean of the cameras' scales.

    Args:
        tracks: All boxes.
        tracklets: Of these tracks.
        likely: `[H, 2]` rows of tracklets that are likely to be one person by appearance, the best first.
        cameras: Clocks, sizes and overlaps, as far as known. Pairs that cannot overlap are not examined. If any camera
            has a homography, nothing is done.
    """
    known = {} if cameras is None else cameras.cameras
    if any(camera.homography is not None for camera in known.values()):
        return SelfCalibration(None, (), {})
    views: dict[int, Camera | None] = {}
    walks: dict[int, Walks] = {}
    pairs: dict[tuple[int, int], Pair] = {}
    alignments: list[Alignment] = []
    hidden, tracklet = hidden_feet(tracks), tracklet_of_boxes(tracklets, tracks)
    camera = tracklets.camera[likely].reshape(-1, 2)
    has_features = [bool(tracklets.has_feature[tracklets.camera == c].any()) for c in range(len(tracks.camera_names))]
    many = math.comb(len(tracks.camera_names), 2) > ALL_PAIRS
    for a, b in combinations(range(len(tracks.camera_names)), 2):
        names = tracks.camera_names[a], tracks.camera_names[b]
        if cameras is not None and not _may_overlap(cameras, *names):
            continue
        rows = np.concatenate([likely[(camera == [a, b]).all(axis=1)], likely[(camera == [b, a]).all(axis=1)][:, ::-1]])
        if many and has_features[a] and has_features[b] and len(rows) < 2 * MIN_PAIRS:
            continue
        for number in (a, b):
            if number not in views:
                views[number] = _single_view(tracks, hidden, number, known.get(tracks.camera_names[number], Camera()))
                if (view := views[number]) is not None:
                    walks[number] = sample_walks(tracks, tracklet, hidden, number, view)
        target = views[b]
        area = _area(walks[b].place) if target is not None else 0.0
        if views[a] is None or target is None or area == 0:
            alignments.append(Alignment(*names, False, "too few whole people to find the ground plane of both"))
            continue
        pairs[a, b] = pair = Pair(walks[a], walks[b], target, area)
        likely_first = dict.fromkeys([*map(tuple, rows.tolist()), *simultaneous_pairs(pair)])
        alignments.append(align(pair, list(likely_first), names))
    found = _connect(tracks, pairs, alignments)
    if not found:
        return SelfCalibration(None, tuple(alignments), {})
    estimated = dict(known) or {name: Camera() for name in tracks.camera_names}
    residuals = {}
    for number, (turn, shift, ahead) in found.items():
        view = views[number]
        if view is not None:
            move = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag], [0, 0, 1]])
            matrix = move @ view.homography
            offset = round(view.offset - ahead, 2)
            changes = {"homography": matrix / matrix[2, 2], "offset": offset, "size": view.size}
            estimated[tracks.camera_names[number]] = view.model_copy(update=changes)
    for one in alignments:
        key = tracks.camera_names.index(one.first), tracks.camera_names.index(one.second)
        if one.accepted and key[0] in found and key[1] in found:
            missed = _missed(pairs[key], one, found[key[0]], found[key[1]])
            residuals[one.first, one.second] = float(np.median(np.abs(missed)))
    result = replace(cameras, cameras=estimated) if cameras is not None else Cameras(estimated)
    return SelfCalibration(result, tuple(alignments), residuals)


def simultaneous_matches(matches: Matches) -> Integers:
    """Rows `[H, 2]` of joined tracklets of two cameras that overlap by a second or more, the largest margin first."""
    links, t = matches.links, matches.tracklets
    shared = np.minimum(t.end[links.first], t.end[links.second]) - np.maximum(
        t.start[links.first], t.start[links.second]
    )
    rows = np.flatnonzero(links.joined & (t.camera[links.first] != t.camera[links.second]) & (shared >= 1))
    rows = rows[np.argsort(-links.margin[rows], kind="stable")]
    return np.stack([links.first[rows], links.second[rows]], axis=1)


_Placement = tuple[complex, complex, float]
"""Turn and shift to the common ground plane, and seconds by which the camera's clock is ahead."""


def _may_overlap(cameras: Cameras, a: str, b: str) -> bool:
    forbidden = cameras.non_overlapping(a, b)
    return not forbidden and max(cameras.min_transition_time(a, b), cameras.min_transition_time(b, a)) <= 0


def _area(places: Floats) -> float:
    """Area of the convex hull in m², at least 1; 0 if the places are on a line."""
    try:
        return max(float(ConvexHull(places).volume), 1.0)
    except (QhullError, ValueError):
        return 0.0


def _single_view(tracks: Tracks, hidden: Mask, number: int, camera: Camera) -> Camera | None:
    """Return a camera with a ground plane from the heights of its people; None without enough whole people."""
    rows = np.flatnonzero((tracks.camera == number) & ~hidden)
    if len(rows) == 0:
        return None
    x, y, width, height = tracks.boxes[rows].T
    size = camera.size or (int(np.ceil((x + width).max())), int(np.ceil((y + height).max())))
    camera = camera.model_copy(update={"size": size})  # distortion counts only with a size
    cut = (x < 2) | (y < 2) | (x + width > size[0] - 2) | (y + height > size[1] - 2)
    boxes = tracks.boxes[rows[~cut]]
    bottom = camera.undistort(np.column_stack([boxes[:, 0] + boxes[:, 2] / 2, boxes[:, 1] + boxes[:, 3]]))
    top = camera.undistort(np.column_stack([boxes[:, 0] + boxes[:, 2] / 2, boxes[:, 1]]))
    straight = np.column_stack([bottom[:, 0] - boxes[:, 2] / 2, top[:, 1], boxes[:, 2], bottom[:, 1] - top[:, 1]])
    matrix = estimate_ground_plane(straight, size)
    return None if matrix is None else camera.model_copy(update={"homography": matrix})


def _connect(
    tracks: Tracks, pairs: dict[tuple[int, int], Pair], alignments: Sequence[Alignment]
) -> dict[int, _Placement]:
    """Place the largest group of cameras that accepted alignments connect on one ground plane; empty without any."""
    number = {name: place for place, name in enumerate(tracks.camera_names)}
    edges = {(number[one.first], number[one.second]): one for one in alignments if one.accepted}
    groups: list[dict[int, _Placement]] = []
    for start in sorted({camera for edge in edges for camera in edge}):
        if any(start in group for group in groups):
            continue
        group: dict[int, _Placement] = {start: (1.0 + 0j, 0j, 0.0)}
        while True:
            open_edges = [edge for edge in edges if (edge[0] in group) != (edge[1] in group)]
            if not open_edges:
                break
            a, b = max(open_edges, key=lambda edge: (sum(edges[edge].log_ratio), -edge[0], -edge[1]))
            similarity = edges[a, b].similarity
            assert similarity is not None
            turn, shift, ahead = similarity.turn, similarity.shift, similarity.offset * STEP
            if a in group:  # z_b = turn z_a + shift, so z_a = (z_b − shift) / turn.
                outer = group[a]
                group[b] = outer[0] / turn, outer[1] - outer[0] * shift / turn, outer[2] + ahead
            else:
                outer = group[b]
                group[a] = outer[0] * turn, outer[1] + outer[0] * shift, outer[2] - ahead
        groups.append(group)
    if not groups:
        return {}
    group = max(groups, key=len)
    inside = {edge: one for edge, one in edges.items() if edge[0] in group}
    return _least_squares(pairs, inside, group)


def _missed(pair: Pair, one: Alignment, first: _Placement, second: _Placement) -> Floats:
    """Differences of the coinciding positions as complex metres, after correcting both clocks."""
    assert one.similarity is not None
    values = []
    ahead = one.similarity.offset * STEP
    for walks, samples, (turn, shift, clock), used in zip(
        (pair.first, pair.second), one.samples, (first, second), (0.0, ahead), strict=True
    ):
        z = walks.place[samples] @ [1, 1j]
        v = walks.velocity[samples] @ [1, 1j]
        values.append(turn * (z + v * (clock - used)) + shift)
    return np.asarray(values[0] - values[1])


def _least_squares(
    pairs: dict[tuple[int, int], Pair], edges: dict[tuple[int, int], Alignment], start: dict[int, _Placement]
) -> dict[int, _Placement]:
    """Refine placements: least squares of all coinciding positions with Huber weights; the first camera is fixed."""
    placements = dict(start)
    free = list(start)[1:]
    column = {camera: 5 * place for place, camera in enumerate(free)}
    for _ in range(_ROUNDS):
        designs, targets = [], []
        for (a, b), one in edges.items():
            assert one.similarity is not None
            pair, ahead = pairs[a, b], one.similarity.offset * STEP
            missed = np.abs(_missed(pair, one, placements[a], placements[b]))
            error = np.hypot(pair.first.error[one.samples[0]], pair.second.error[one.samples[1]])
            weight = np.sqrt(np.minimum(1, _HUBER / np.maximum(missed, 1e-9))) / error
            design = np.zeros((2 * len(missed), 5 * len(free)))
            target = np.zeros(2 * len(missed))
            sides = ((a, pair.first, one.samples[0], 0.0, 1.0), (b, pair.second, one.samples[1], ahead, -1.0))
            for camera, walks, samples, used, sign in sides:
                turn, _, clock = placements[camera]
                moved = walks.place[samples] @ [1, 1j] + walks.velocity[samples] @ [1, 1j] * (clock - used)
                speed = turn * (walks.velocity[samples] @ [1, 1j])
                if camera not in column:
                    value = turn * moved + placements[camera][1]
                    target -= sign * np.concatenate([value.real, value.imag])
                    continue
                at, zero, unit = column[camera], np.zeros(len(samples)), np.ones(len(samples))
                block = [
                    np.concatenate([moved.real, moved.imag]),
                    np.concatenate([-moved.imag, moved.real]),
                    np.concatenate([unit, zero]),
                    np.concatenate([zero, unit]),
                    np.concatenate([speed.real, speed.imag]),
                ]
                design[:, at : at + 5] += sign * np.stack(block, axis=1)
            weights = np.tile(weight, 2)
            designs.append(design * weights[:, None])
            targets.append(target * weights)
        solution = np.linalg.lstsq(np.concatenate(designs), np.concatenate(targets), rcond=None)[0]
        for camera, at in column.items():
            real, imaginary, x, y, seconds = solution[at : at + 5].tolist()
            placements[camera] = complex(real, imaginary), complex(x, y), placements[camera][2] + seconds
    scale = float(np.exp(np.mean([np.log(abs(turn)) for turn, _, _ in placements.values()])))
    return {camera: (turn / scale, shift / scale, ahead) for camera, (turn, shift, ahead) in placements.items()}


def write_estimated_cameras(result: SelfCalibration, path: str | Path) -> Path:
    """Write `cameras.estimated.yaml`: a file for `--cameras`, with the result for each pair as comments.

    Raises:
        DataError: The file cannot be written.
    """
    cameras = result.cameras
    assert cameras is not None
    content: dict[str, Any] = {"cameras": {}}
    for name, camera in cameras.cameras.items():
        entry: dict[str, Any] = {"fps": camera.fps, "offset": camera.offset}
        entry |= {"drift": camera.drift} if camera.drift else {}
        entry |= {"clock": [list(pair) for pair in camera.clock]} if camera.clock is not None else {}
        entry |= {key: list(value) for key in ("size", "distortion") if (value := getattr(camera, key)) is not None}
        entry |= {"focal": camera.focal} if camera.focal is not None else {}
        if camera.homography is not None:
            entry["homography"] = [[float(f"{value:.9g}") for value in line] for line in camera.homography.tolist()]
        content["cameras"][name] = entry
    if cameras.epoch is not None:
        content["epoch"] = cameras.epoch
    if cameras.overlaps_known:
        content["overlapping"] = sorted(sorted(pair) for pair in cameras.overlapping)
    if cameras.transition_times:
        content["pairs"] = [
            {"from": a, "to": b, "min": low, "max": high} for (a, b), (low, high) in cameras.transition_times.items()
        ]
    head = [
        "Estimated by reid match from the tracks, not measured. Ground in metres; its scale assumes people of 1.7 m.",
        *result.describe(),
    ]
    text = "".join(f"# {line}\n" for line in head)
    write_text(path, text + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120))
    return Path(path)
