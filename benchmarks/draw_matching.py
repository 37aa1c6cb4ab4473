"""The pictures and numbers of the worked example in docs/matching.md.

python -m benchmarks.draw_matching docs/pictures
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from benchmarks.measure import Benchmark
from reid.mtmc import Camera, Cameras, Tracklets, match, score_tracks
from reid.mtmc.matching import Matches
from reid.mtmc.results import global_tracks
from reid.report.style import picture
from reid.synthetic import SyntheticSettings, record, simulate_embeddings


def example() -> tuple[Matches, float, float]:
    """Match the scene of the example; return the result and IDF1 before and after."""
    settings = SyntheticSettings(seed=4, ids=6, train_fraction=0, cameras=2, site="floor", difficulty={"crowd": 3})
    recording = record(settings)
    cameras = Cameras({
        name: Camera(fps=10, offset=one["offset"], size=one["size"], homography=one["homography"])
        for name, one in recording.cameras["cameras"].items()
    })  # fmt: skip
    tracklets = Tracklets.from_tracks(recording.tracks, simulate_embeddings(recording, noise=1.0), cameras)
    matches = match(tracklets, cameras=cameras)
    scores = (
        score_tracks(recording.truth, boxes) for boxes in (recording.tracks, global_tracks(matches, recording.tracks))
    )
    before, after = (100 * one.overall.IDF1 for one in scores)
    return matches, before, after


def draw_floor(matches: Matches, path: Path) -> None:
    """Draw every tracklet on the ground, by camera on the left and by identity on the right."""
    t = matches.tracklets
    with picture(path, (8, 3.4)) as (figure, theme):
        for axes, title, group in zip(
            figure.subplots(1, 2, sharex=True, sharey=True),
            ("20 tracklets of 2 cameras", f"{matches.identity.max()} identities"),
            (t.camera, matches.identity - 1),
            strict=True,
        ):
            for row in range(len(t)):
                x, y = t.paths[row][:, 1:3].T
                style = {
                    "color": theme.lines[int(group[row]) % len(theme.lines)],
                    "ls": "-" if t.camera[row] == 0 else "--",
                }
                axes.plot(x, y, lw=1.3, **style)
                axes.annotate(str(row), (x[0], y[0]), fontsize=7)
            axes.set(title=title, xlabel="m", aspect="equal")
            axes.grid(True)


def draw_evidence(matches: Matches, rows: list[int], path: Path) -> None:
    """Draw the log-odds of some links as stacked bars, and their sum as a mark."""
    links = matches.links
    names = [f"{links.first[row]} and {links.second[row]}" for row in rows]
    with picture(path, (8, 0.4 * len(rows) + 1.2)) as (figure, theme):
        axes = figure.subplots()
        above, below = np.zeros(len(rows)), np.zeros(len(rows))
        for kind, colour in zip(("looks", "time", "space"), theme.lines, strict=False):
            values = np.nan_to_num(matches.evidence[kind][rows])
            start = np.where(values > 0, above, below)
            axes.barh(names, values, left=start, color=colour, label=kind, height=0.6)
            above, below = above + np.maximum(values, 0), below + np.minimum(values, 0)
        axes.plot(above + below, names, "D", color=theme.ink, label="sum")
        axes.axvline(0, color=theme.ink, lw=0.8)
        axes.set(xlabel="log-odds of one person")
        axes.invert_yaxis()
        figure.legend(ncols=4, loc="outside upper center")


def interesting(matches: Matches) -> list[int]:
    """Rows of links to show: the strongest by space, two by looks alone, and the strongest against."""
    looks, space = matches.evidence["looks"], matches.evidence["space"]
    total = np.nan_to_num(looks) + np.nan_to_num(space) + np.nan_to_num(matches.evidence["time"])
    both, alone = np.isfinite(looks) & np.isfinite(space), np.isfinite(looks) & np.isnan(space)
    joined = matches.links.joined & (matches.links.forbidden_by == "")
    found = [
        *np.flatnonzero(both & joined)[np.argsort(-total[both & joined], kind="stable")][[0, -1]],
        *np.flatnonzero(alone & joined)[np.argsort(-total[alone & joined], kind="stable")][[0, -1]],
        *np.flatnonzero(both & ~joined)[np.argsort(-looks[both & ~joined], kind="stable")][:1],
        *np.flatnonzero(alone & ~joined)[np.argsort(-looks[alone & ~joined], kind="stable")][:1],
    ]
    return [int(row) for row in found]


@click.command(cls=Benchmark)
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Draw the pictures into a folder and print the numbers."""
    matches, before, after = example()
    rows = interesting(matches)
    draw_floor(matches, folder / "matching-floor.svg")
    draw_evidence(matches, rows, folder / "matching-evidence.svg")
    t, links = matches.tracklets, matches.links
    print(f"IDF1 {before:.1f} before, {after:.1f} after; threshold {matches.threshold:.2f}; {len(links)} links")
    print("| tracklets | cameras | looks | time | space | sum | margin | |\n|---|---|---|---|---|---|---|---|")
    for row in rows:
        a, b = int(links.first[row]), int(links.second[row])
        parts = [matches.evidence[kind][row] for kind in ("looks", "time", "space")]
        text = " | ".join("–" if np.isnan(part) else f"{part:+.1f}" for part in parts)
        outcome = "joined" if links.joined[row] else links.forbidden_by[row] or "separate"
        cameras = f"{t.camera_names[t.camera[a]]}, {t.camera_names[t.camera[b]]}"
        print(f"| {a}, {b} | {cameras} | {text} | {np.nansum(parts):+.1f} | {links.margin[row]:+.2f} | {outcome} |")


if __name__ == "__main__":
    main()
