"""Rank lists: each query with the gallery items ranked first for it, right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import ReidError, did_you_mean
from reid.data.images import decode
from reid.evaluation import RankingResult
from reid.evaluation.protocol import JUNK
from reid.report.style import GREEN, GREY, RED, picture

Choice = Literal["worst", "best", "random"]
Image = str | Path | NDArray[np.uint8]

_HEIGHT, _WIDTH = 192, 96
"""Pixels that a crop is drawn with."""

_WIDE, _HIGH, _STEP, _GAP, _ROW = 0.86, 1.72, 0.95, 0.12, 2.2
_TITLE, _HEAD, _FOOT = 0.3, 0.25, 0.3
"""Inches: of a crop, from place to place, at the sides and after the query, from row to row; above and below all."""


def choose_queries(result: RankingResult, choice: Choice, n: int = 8, seed: int = 0) -> NDArray[np.int64]:
    """Which queries to show: the `n` of lowest or highest average precision (ties in query order), or a random `n`.

    Dropped queries are never chosen; fewer than `n` come back when there are no more.

    Raises:
        ReidError: an unknown choice, or `n` below 1.
    """
    choices = ("worst", "best", "random")
    if choice not in choices:
        raise ReidError(f"Unknown choice of queries {choice!r}.{did_you_mean(choice, choices)}")
    if n < 1:
        raise ReidError(f"The number of queries to show must be at least 1, not {n}.")
    scored = np.flatnonzero(~np.isnan(result.ap))
    if choice == "random":
        return np.sort(np.random.default_rng(seed).choice(scored, min(n, len(scored)), replace=False))
    ap = result.ap[scored]
    return scored[np.argsort(ap if choice == "worst" else -ap, kind="stable")[:n]]


def read_queries(texts: Sequence[str]) -> list[tuple[str, int]]:
    """("query" | "pid", number) pairs from texts such as "3,17" (rows of the query set, from 0) and "pid:42".

    Raises:
        ReidError: a text of neither form.
    """
    chosen = []
    for text in texts:
        for word in text.split(","):
            kind, _, number = word.strip().rpartition(":")
            if kind not in ("", "pid") or not number.isdecimal():
                raise ReidError(
                    f"Cannot tell a query from {word.strip()!r}. Write row numbers of the query set, counted from 0, "
                    'or identities: "3,17" or "pid:42".'
                )
            chosen.append((kind or "query", int(number)))
    return chosen


def find_queries(chosen: Sequence[tuple[str, int]], query_pids: ArrayLike, name: str = "this set") -> NDArray[np.int64]:
    """Rows of the queries that `read_queries` named, in that order, each once; a pid brings all its queries.

    Raises:
        ReidError: a row that is not there, or a pid that no query has.
    """
    pids = np.asarray(query_pids)
    rows: list[int] = []
    for kind, number in chosen:
        found = np.flatnonzero(pids == number).tolist() if kind == "pid" else [number]
        if kind == "pid" and not found:
            raise ReidError(f"No query of {name} has pid {number}. Its pids lie in {pids.min()}..{pids.max()}.")
        if kind == "query" and number >= len(pids):
            raise ReidError(f"{name} has no query {number}: its {len(pids)} queries are numbered 0..{len(pids) - 1}.")
        rows += found
    return np.array(list(dict.fromkeys(rows)), dtype=np.int64)


def plot_rank_lists(
    query_images: Sequence[Image] | NDArray[np.object_],
    gallery_images: Sequence[Image] | NDArray[np.object_],
    indices: ArrayLike,
    distances: ArrayLike,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    query_camids: ArrayLike,
    gallery_camids: ArrayLike,
    path: str | Path,
    *,
    queries: ArrayLike,
    ap: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    cross_camera: bool = True,
    title: str = "",
    dark: bool = False,
) -> Path:
    """Draw queries at the left and their ranked gallery items to the right, nearest first.

    Query: blue frame. Right match: green and ✓. Wrong: red and ✗. Not counted (the query's own identity in its own
    camera under the cross-camera rule, or junk of pid -1): grey and –. Beneath each: its camera and its distance.

    Args:
        query_images: `Q` image files, or uint8 arrays `[H, W, 3]` RGB; only those shown are read.
        gallery_images: `G` likewise.
        indices: `[Q, k]` into the gallery, as from `top_matches`; -1 leaves a place empty.
        distances: `[Q, k]`.
        query_pids: `[Q]` integers; gallery_pids: `[G]`; query_camids: `[Q]`; gallery_camids: `[G]`.
        path: where to; .png, .pdf, .svg or .webp.
        queries: the rows to show, as from `choose_queries` or `find_queries`.
        ap: `[Q]` average precisions to write beneath the queries.
        probabilities: `[Q, k]` of being the same person, 0..1, to write beneath the distances.
        cross_camera: the rule that the ranking was made by.
        title: written above all.
        dark: for a dark screen.

    Returns:
        The path written.

    Raises:
        ReidError: nothing to show, columns that do not fit, an unreadable image, or an unwritable file.
    """
    ranked, far = np.asarray(indices), np.asarray(distances)
    shown = np.asarray(queries, dtype=np.int64)
    q_pids, g_pids, q_cams, g_cams = map(np.asarray, (query_pids, gallery_pids, query_camids, gallery_camids))
    if not len(shown):
        raise ReidError("No query to draw a rank list of.")
    if ranked.ndim != 2 or ranked.shape != far.shape or len(ranked) != len(query_images):
        raise ReidError(
            f"Rank lists of shape {ranked.shape} with distances {far.shape} do not fit {len(query_images)} queries."
        )
    for name, images, pids, cams in (
        ("query", query_images, q_pids, q_cams),
        ("gallery", gallery_images, g_pids, g_cams),
    ):
        if not len(images) == len(pids) == len(cams):
            raise ReidError(f"{len(images)} {name} images, {len(pids)} pids and {len(cams)} cameras do not fit.")

    k = ranked.shape[1]
    top, bottom = (_TITLE if title else 0) + _HEAD, _FOOT
    width, height = (k + 1) * _STEP + 2 * _GAP, len(shown) * _ROW + top + bottom
    with picture(path, (width, height), dark=dark, constrained=False, dpi=110) as (figure, theme):
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        if title:
            axes.text(width / 2, _TITLE / 2 + 0.04, title, ha="center", va="center", fontsize=11)
        names = ["query", *map(str, range(1, k + 1))]
        for place, name in enumerate(names):
            axes.text(_left(place) + _WIDE / 2, top - 0.06, name, ha="center", fontsize=9)
        for row, query in enumerate(shown):
            y = top + row * _ROW
            beneath = [_camera(q_cams[query])] + ([] if ap is None else [f"AP {100 * np.asarray(ap)[query]:.1f} %"])
            _draw(axes, query_images[query], 0, y, theme.lines[0], "", beneath)
            for place, (item, distance) in enumerate(zip(ranked[query], far[query], strict=True), 1):
                if item < 0:
                    continue
                same = g_pids[item] == q_pids[query]
                if g_pids[item] == JUNK or (cross_camera and same and g_cams[item] == q_cams[query]):
                    colour, symbol = GREY, "–"
                else:
                    colour, symbol = (GREEN, "✓") if same else (RED, "✗")
                beneath = [_camera(g_cams[item]), f"{distance:.3f}"]
                if probabilities is not None:
                    beneath.append(f"p {100 * np.asarray(probabilities)[query, place - 1]:.0f} %")
                _draw(axes, gallery_images[item], place, y, colour, symbol, beneath)
        words = "✓ right   ✗ wrong   – not counted;   beneath: camera, distance"
        words += ", chance of being the same person" if probabilities is not None else ""
        axes.text(width / 2, height - bottom / 2, words, ha="center", va="center", fontsize=9)
    return Path(path)


def _camera(camid: int) -> str:
    return f"cam {camid}" if camid >= 0 else "cam ?"


def _left(place: int) -> float:
    """Left edge in inches; the query stands a little apart from what was found."""
    return _GAP + place * _STEP + (_GAP if place else 0)


def _draw(axes: Axes, image: Image, place: int, y: float, colour: str, symbol: str, beneath: Sequence[str]) -> None:
    """One image in its frame at a place of a row whose top is `y` inches down, with words beneath."""
    x = _left(place)
    pixels = _placed(pixels_of(image))
    axes.imshow(pixels, extent=(x, x + _WIDE, y + _HIGH, y), aspect="auto", interpolation="none")
    axes.add_patch(Rectangle((x, y), _WIDE, _HIGH, fill=False, edgecolor=colour, linewidth=3.5))
    axes.text(x + _WIDE / 2, y + _HIGH + 0.06, "\n".join(beneath), ha="center", va="top", fontsize=8, linespacing=1.1)
    if symbol:
        box = {"boxstyle": "square,pad=0.15", "facecolor": colour, "edgecolor": "none"}
        axes.text(x + 0.06, y + 0.05, symbol, color="white", fontsize=10, fontweight="bold", va="top", bbox=box)


def pixels_of(image: Image) -> NDArray[np.uint8]:
    """RGB `[H, W, 3]` of a file, or of an array that is one already."""
    if not isinstance(image, np.ndarray):
        return decode(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ReidError(f"An image must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}.")
    return image


def _placed(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """RGB `[192, 96, 3]` that holds the whole image in its own proportions, on white."""
    scale = min(_HEIGHT / pixels.shape[0], _WIDTH / pixels.shape[1])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    place = np.full((_HEIGHT, _WIDTH, 3), 255, dtype=np.uint8)
    top, left = (_HEIGHT - size[1]) // 2, (_WIDTH - size[0]) // 2
    place[top : top + size[1], left : left + size[0]] = resized
    return place
