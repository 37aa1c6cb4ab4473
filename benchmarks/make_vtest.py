"""Two virtual cameras from one real video: the left and the right half of OpenCV's vtest.avi, with tracks of each.

    python -m benchmarks.make_vtest /usr/share/doc/opencv-doc/examples/data/vtest.avi OUT

leaves OUT/videos/{left,right}.mp4, OUT/tracks/{left,right}.txt (MOTChallenge; each half numbers its own tracks),
OUT/whole/{left,right}.txt (the same boxes under the numbers of the tracks of the whole picture, which join the halves)
and OUT/cameras.yaml. The detector takes the median picture as background, the tracker follows boxes by overlap: good
enough to try things on, no truth.
"""

from __future__ import annotations

from pathlib import Path

import click
import cv2
import numpy as np

from benchmarks.measure import Benchmark

LEAST_HEIGHT = 35  # px
SHAPES = (1.3, 4.5)  # height to width of one person
LEAST_SHARE = 0.4  # of a box that a half must see


def make(avi, out, *, last_frame=None):
    frames = read(avi, last_frame)
    tracks = follow([people(frame, background) for background in [median(frames)] for frame in frames])
    height, width = frames[0].shape[:2]
    middle = width // 2
    fps = 10
    for name, low, high in (("left", 0, middle), ("right", middle, width)):
        write_video(out / "videos" / f"{name}.mp4", [frame[:, low:high] for frame in frames], fps)
        own, whole = [], []
        numbers, last_seen, count = {}, {}, 0
        for number, track, (x, y, w, h) in tracks:
            left, right = max(x, low), min(x + w, high)
            if right - left < LEAST_SHARE * w:
                continue
            # A track that was away from this half for long comes back under a new number.
            if track not in numbers or number - last_seen[track] > 10:
                count += 1
                numbers[track] = count
            last_seen[track] = number
            box = f"{left - low:.1f},{y:.1f},{right - left:.1f},{h:.1f},1,-1,-1,-1"
            own.append((number, numbers[track], box))
            whole.append((number, track, box))
        write_tracks(out / "tracks" / f"{name}.txt", own)
        write_tracks(out / "whole" / f"{name}.txt", whole)
    (out / "cameras.yaml").write_text(
        "cameras:\n"
        + "".join(
            f"  {name}: {{fps: {fps}, size: [{w}, {height}]}}\n"
            for name, w in (("left", middle), ("right", width - middle))
        )
        + "overlapping:\n  - [left, right]\n"
    )


def read(avi, last_frame):
    capture = cv2.VideoCapture(str(avi))
    frames = []
    while last_frame is None or len(frames) < last_frame:
        there, frame = capture.read()
        if not there:
            break
        frames.append(frame)
    if not frames:
        raise SystemExit(f"{avi} contains no frame")
    return frames


def median(frames):
    return np.median(frames[:: max(1, len(frames) // 50)], axis=0).astype(np.uint8)


def people(frame, background):
    """Boxes x, y, w, h of what differs from the background and has a person's shape."""
    moved = (cv2.absdiff(frame, background).max(axis=2) > 35).astype(np.uint8)
    moved = cv2.morphologyEx(moved, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    moved = cv2.morphologyEx(moved, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 11)))
    boxes = cv2.connectedComponentsWithStats(moved)[2][1:, :4].astype(float)
    shape = boxes[:, 3] / boxes[:, 2]
    return boxes[(boxes[:, 3] >= LEAST_HEIGHT) & (shape >= SHAPES[0]) & (shape <= SHAPES[1])]


def follow(detections, *, least_iou=0.2, patience=8, least_length=8):
    """(frame from 1, track from 1, box) by frame: each track takes the box that its steady walk overlaps most."""
    live, found, count = {}, [], 0
    for number, boxes in enumerate(detections, start=1):
        pairs = []
        for track, (last, box, step) in live.items():
            expected = box + np.r_[step * (number - last), 0, 0]
            pairs += [(iou(expected, other), track, at) for at, other in enumerate(boxes)]
        taken, used = set(), set()
        for overlap, track, at in sorted(pairs, reverse=True):
            if overlap < least_iou or track in taken or at in used:
                continue
            taken.add(track)
            used.add(at)
            last, box, step = live[track]
            moved = (boxes[at, :2] - box[:2]) / (number - last)
            live[track] = (number, boxes[at], 0.7 * step + 0.3 * moved)
            found.append((number, track, boxes[at]))
        for at in sorted(set(range(len(boxes))) - used):
            count += 1
            live[count] = (number, boxes[at], np.zeros(2))
            found.append((number, count, boxes[at]))
        live = {track: state for track, state in live.items() if number - state[0] <= patience}
    lengths = np.bincount([track for _, track, _ in found], minlength=1)
    return [row for row in found if lengths[row[1]] >= least_length]


def iou(a, b):
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    common = sides.clip(0).prod()
    return common / (a[2:].prod() + b[2:].prod() - common)


def write_video(path, frames, fps):
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame))
    writer.release()


def write_tracks(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{frame},{track},{box}\n" for frame, track, box in rows))


@click.command(cls=Benchmark)
@click.argument("avi", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(avi: Path, out: Path) -> None:
    """Cut AVI into two virtual cameras in OUT: videos, tracks and cameras.yaml."""
    make(avi, out)


if __name__ == "__main__":
    main()
