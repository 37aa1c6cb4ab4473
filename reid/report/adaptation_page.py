"""Page of an adaptation: the verdict, the rounds, and crops of the identities found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reid.core.errors import DataError
from reid.data.images import resize
from reid.report.page import Block, Drawing, Section, Table, write_page
from reid.report.ranklists import Image, read_image
from reid.report.style import picture

Groups = Mapping[str, Sequence[tuple[Image, str]]]
"""Crops by identity: image and label."""


def plot_identities(groups: Groups, path: str | Path, *, dark: bool = False) -> Path:
    """Draw one row of crops for each identity, stretched to one shape.

    Args:
        groups: label of each row, and its crops with their labels.
        path: output file (.png, .pdf, .svg or .webp).
        dark: use the dark theme.

    Raises:
        ReidError: no crops, an image is unreadable, or the file cannot be written.
    """
    columns = max((len(crops) for crops in groups.values()), default=0)
    if not columns:
        raise DataError("There are no crops to draw.")
    wide, high, line, name = 0.8, 1.6, 2.15, 0.24
    width, height = columns * (wide + 0.08) + 0.2, len(groups) * line + 0.1
    with picture(path, (width, height), dark=dark, constrained=False, dpi=110) as (figure, theme):
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        for row, (label, crops) in enumerate(groups.items()):
            y = 0.05 + row * line
            axes.text(0.1, y, label, va="top", fontsize=8, color=theme.ink)
            for column, (image, below) in enumerate(crops):
                x = 0.1 + column * (wide + 0.08)
                place = (x, x + wide, y + name + high, y + name)
                axes.imshow(resize(read_image(image), (160, 80)), extent=place, aspect="auto", interpolation="none")
                axes.text(x + wide / 2, y + name + high + 0.04, below, ha="center", va="top", fontsize=7)
    return Path(path)


def write_adaptation(path: str | Path, state: Mapping[str, Any], groups: Groups) -> Path:
    """Write the page of an adaptation.

    Args:
        path: the HTML file.
        state: content of rounds.json.
        groups: some identities of the last round; none without rounds.

    Raises:
        ReidError: an image is unreadable, or the file cannot be written.
    """
    data, verdict, rounds = state["data"], state["verdict"], state["rounds"]
    stages = [("given model", state["given"]), ("BatchNorm statistics of the crops", state["batchnorm"])]
    stages += [(f"round {number}", entry["held_out"]) for number, entry in enumerate(rounds, start=1)]
    figures = [
        [name, _number(found["d_prime"]), _percent(found["auc"]), _percent(found["rank1"])] for name, found in stages
    ]
    blocks: list[Block] = [
        verdict["reason"],
        Table(
            ["model", "d'", "AUC", "re-associated"],
            figures,
            f"{verdict['given']['tracks']} held-out tracks. d': how many standard deviations crops of a "
            "track are more similar than crops of simultaneous tracks. AUC: how often a later crop of a track is "
            "nearer than a crop of a track that its camera sees simultaneously. Re-associated: how often the nearest "
            "of all these is of the track itself; both in percent. One camera at a time.",
        ),
    ]
    sections = [Section("Verdict", blocks)]
    if rounds:
        keys = ("identities", "in_several_tracklets", "left_out", "violated_certain_negatives", "steps")
        rows = [
            [str(number), *(f"{entry[key]:,}" for key in keys), f"{entry['silhouette']:.3f}",
             _percent(entry["certain_negatives_within_threshold"]), f"{entry['training_seconds'] / 60:.1f}"]
            for number, entry in enumerate(rounds, start=1)
        ]  # fmt: skip
        head = ["round", "identities", "several", "left out", "broken", "steps", "silhouette", "within", "minutes"]
        caption = (
            "Several: identities of several tracklets. Left out: uncertain tracklets. Broken: certain negatives (pairs "
            "that one camera sees simultaneously) with one identity. Within: percentage of the certain negatives with "
            "a distance within the threshold. Minutes: of training."
        )
        sections.append(Section("Rounds", [Table(head, rows, caption)]))
    if groups:
        caption = "Some identities that the last round was trained with, drawn with seed 0; one crop per tracklet."
        draw = partial(plot_identities, groups)
        sections.append(Section("Identities", [Drawing("identities", "Identities found", caption, draw, photos=True)]))
    lead = (
        f"{state['source']}, {data['crops']:,} crops in {data['tracklets']:,} tracklets of {data['cameras']} cameras, "
        f"{data['held_out_tracklets']:,} of them held out. No labels were used."
    )
    return write_page(path, "Adaptation", sections, lead=lead)


def _percent(value: float | None) -> str:
    return "not enough data" if value is None else f"{100 * value:.2f}"


def _number(value: float | None) -> str:
    return "not enough data" if value is None else f"{value:.2f}"
