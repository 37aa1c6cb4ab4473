"""`reid search`: find a person in galleries by photo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reid.commands.options import PATH, Command, option, out_option, settings_options
from reid.core.console import console, make_table, warn
from reid.pipelines.settings import SearchSettings

if TYPE_CHECKING:
    from reid.gallery import Answer, Trajectory

GROUPS = {
    "Input": ["photo_camera", "calibration"],
    "Answer": ["top", "within", "expected_false", "purpose", "mask_others"],
    "Trajectory": ["cameras", "tolerance"],
    "Model": ["model", "weights", "flip", "trust"],
    "Computation": ["device"],
}


@click.command("search", cls=Command)
@click.argument("galleries", nargs=-1, required=True, type=PATH, metavar="GALLERY...")
@settings_options(SearchSettings, GROUPS)
@option(
    "Input",
    "--photo",
    type=PATH,
    multiple=True,
    required=True,
    metavar="FILE",
    help="Photo, folder of photos or Parquet file of embeddings. Repeat it for several photos of one person.",
)
@option("Input", "--box", metavar="X,Y,W,H", help="The person in the photo: left, top, width and height in pixels.")
@option("Scope", "--camera", multiple=True, metavar="NAME", help="Search this camera only; repeat it for several.")
@option("Scope", "--from", "after", metavar="TIME", help="Only tracklets seen at this time or later.")
@option("Scope", "--to", "before", metavar="TIME", help="Only tracklets seen at this time or earlier.")
@out_option("File to write: .json, .csv or .html (a page with pictures).")
def cli(galleries: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Find the person of a photo in one GALLERY, or in several of one model.

    \b
    reid search shop --photo person.jpg --model best.pt
    reid search shop --photo scene.jpg --box 120,40,60,170 --model best.pt --camera door --from 2026-11-23T08:00

    With a calibration, each hit has the number of strangers expected at its distance or nearer, and p(same); a hit
    counts if --expected-false is not exceeded. Without one, hits are ranked only.

    Hits that count are chained to a trajectory: in time order, without hits that are impossible together by the
    transition times and overlaps of cameras.yaml. Without a calibration, --within chooses the hits.
    """
    from reid.pipelines.gallery import search_files, write_answer

    found = search_files(galleries, SearchSettings(**options))
    print_answer(found.answer, found.zone)
    if found.trajectory is not None and (found.trajectory.steps or found.trajectory.dropped):
        print_trajectory(found.trajectory, found.zone)
    if out is not None:
        write_answer(found, out)
        console.print(f"answer: {out}")


def print_answer(answer: Answer, zone: str) -> None:
    """Print the hits as a table, and what they mean."""
    from reid.pipelines.gallery import hit_columns

    columns = hit_columns(answer, zone)
    shown = {name: columns[name] for name in ("rank", "person", "camera", "from", "to", "track", "distance")}
    if answer.found is not None:
        shown |= {name: columns[name] for name in ("strangers", "p_same", "accepted")}
    if answer.hits:
        rows = list(zip(*([str(value) for value in values] for values in shown.values()), strict=True))
        console.print(make_table(tuple(shown), rows, text=("camera", "from", "to")))
    if answer.without_time:
        warn(f"{answer.without_time:,} rows were not searched, because their time is unknown.")
    console.print(answer.describe())


def print_trajectory(trajectory: Trajectory, zone: str) -> None:
    """Print the steps of a trajectory as a table, and why hits were dropped."""
    columns = trajectory.columns(zone)
    console.print(trajectory.describe())
    if trajectory.steps:
        rows = list(zip(*([str(value) for value in values] for values in columns.values()), strict=True))
        console.print(make_table(tuple(columns), rows, text=("camera", "from", "seen for", "after")))
    for line in trajectory.describe_dropped(zone):
        console.print(f"dropped: {line}")
