"""Identities of the two halves of a street video against the ids that the same tracker gives in the uncut picture.

    python -m benchmarks.make_vtest AVI OUT
    reid match --tracks OUT/tracks --videos OUT/videos --model MODEL --out MATCHED
    python -m benchmarks.matching_vtest OUT MATCHED

The uncut ids are a tracker's, not the truth.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import click

from benchmarks.measure import Benchmark
from reid.mtmc import Tracks
from reid.mtmc.track_files import read_tracks


def ids_of_boxes(tracks: Tracks) -> dict[tuple[str, int, tuple[float, ...]], int]:
    names = [tracks.camera_names[number] for number in tracks.camera.tolist()]
    boxes = [tuple(box) for box in tracks.boxes.round(1).tolist()]
    return dict(zip(zip(names, tracks.frame.tolist(), boxes, strict=True), tracks.track.tolist(), strict=True))


@click.command(cls=Benchmark)
@click.argument("recording", type=click.Path(exists=True, path_type=Path))
@click.argument("matched", type=click.Path(exists=True, path_type=Path))
def main(recording: Path, matched: Path) -> None:
    """Compare matched identities of both halves with the ids of the uncut video."""
    uncut = ids_of_boxes(read_tracks(recording / "whole"))
    whose: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for (camera, frame, box), track in ids_of_boxes(read_tracks(recording / "tracks")).items():
        if (camera, frame, box) in uncut:
            whose[camera, track][uncut[camera, frame, box]] += 1
    with (matched / "identities.csv").open() as lines:
        found = {(line["camera"], int(line["track"])): int(line["identity"]) for line in csv.DictReader(lines)}
    people: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for key, counts in whose.items():
        people[counts.most_common(1)[0][0]].append(key)
    across = [keys for keys in people.values() if len({camera for camera, _ in keys}) == 2]
    joined = sum(len({found[key] for key in keys}) == 1 for keys in across)
    print(f"{len(found)} tracklets, {len(set(found.values()))} identities; uncut, {len(people)} people, "
          f"{len(across)} of them on both sides, of whom {joined} have one identity")  # fmt: skip


if __name__ == "__main__":
    main()
