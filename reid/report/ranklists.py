"""Rank lists: queries with the gallery crops that were ranked first for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import different_cameras
from reid.core.errors import ConfigError, DataError, check_choice, check_number
from reid.data.images import decode
from reid.evaluation import RankingResult
from reid.evaluation.protocol import JUNK
from reid.report.style import GREEN, GREY, RED, picture

Choice = Literal["worst", "best", "random"]
Image = str | Path | NDArray[np.uint8]
Images = Sequence[Image] | NDArray[np.object_]

_HEIGHT, _WIDTH = 192, 96
"""Pixels of a drawn crop."""

_WIDE, _HIGH, _STEP, _GAP, _ROW = 0.86, 1.72, 0.95, 0.12, 2.2
_TITLE, _HEAD, _FOOT = 0.3, 0.25, 0.3
"""Inches: crop width and height, column step, margin, row step; heights of title, column numbers and legend."""


def choose_queries(result: RankingResult, choice: Choice, n: int = 8, seed: int = 0) -> NDArray[np.int64]:
    """Return the rows of `n` queries: lowest or highest average precision (ties in query order), or random.

    Dropped queries are never returned. The result is shorter than `n` if there are fewer queries.

    Raises:
        ConfigError: `choice` is unknown, or `n` is below 1.
    """
    check_choice("choice of queries", choice, ("worst", "best", "random"))
    check_number("The number of queries to show", n, 1)
    scored = np.flatnonzero(~np.isnan(result.ap))
    if choice == "random":
        return np.sort(np.random.default_rng(seed).choice(scored, min(n, len(scored)), replace=False))
    ap = result.ap[scored]
    return scored[np.argsort(ap if choice == "worst" else -ap, kind="stable")[:n]]


def read_queries(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Parse texts such as "3,17" (rows of the query split, from 0) and "pid:42" into ("query" | "pid", value) pairs.

    Raises:
        ConfigError: a text has neither form.
    """
    chosen = []
    for entry in (entry.strip() for text in texts for entry in text.split(",")):
        kind, _, value = entry.partition(":") if entry.startswith("pid:") else ("query", "", entry)
        if not value or (kind == "query" and not value.isdecimal()):
            raise ConfigError(f'{entry!r} is not a query. Pass row numbers from 0, or pids: "3,17" or "pid:42".')
        chosen.append((kind, value))
    return chosen


def find_queries(
    chosen: Sequence[tuple[str, str]],
    query_pids: ArrayLike,
    name: str = "this data set",
    names: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """Return the rows of the queries that `read_queries` parsed, in order and without repetition.

    A pid selects all its queries. It is a number, or, with `names` (of pid 0, 1, …), a name.

    Raises:
        ConfigError: a row does not exist, or no query has the pid.
    """
    pids = np.asarray(query_pids)
    rows: list[int] = []
    for kind, value in chosen:
        if kind == "query":
            if int(value) >= len(pids):
                raise ConfigError(f"{name} has no query {value}. Pass a row from 0 to {len(pids) - 1}.")
            rows.append(int(value))
            continue
        if names is not None:
            known = [names[pid] for pid in np.unique(pids).tolist()]
            check_choice(f"pid of a query of {name}", value, known)
            number = names.index(value)
        else:
            number = int(value) if value.isdecimal() else -1
        found = np.flatnonzero(pids == number).tolist()
        if not found:
            raise ConfigError(f"No query of {name} has pid {value}. Pass one from {pids.min()} to {pids.max()}.")
        rows += found
    return np.array(list(dict.fromkeys(rows)), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class RankLists:
    """`Q` queries with `k` ranked gallery crops each.

    Attributes:
        query_images: `Q` image files, or uint8 arrays `[H, W, 3]` RGB; only those that are drawn are read.
        gallery_images: `G` files or arrays.
        indices: `[Q, k]` rows of the gallery, as from `top_matches`; -1 leaves a place empty.
        distances: `[Q, k]`.
        query_pids: `[Q]` integers.
        gallery_pids: `[G]` integers.
        query_camids: `[Q]` integers.
        gallery_camids: `[G]` integers.
        ap: `[Q]` average precisions to write below the queries.
        probabilities: `[Q, k]`, p(same) in 0..1 to write below the distances.
        cross_camera: whether the ranking used the cross-camera rule.

    Raises:
        DataError: columns have different lengths.
    """

    query_images: Images
    gallery_images: Images
    indices: ArrayLike
    distances: ArrayLike
    query_pids: ArrayLike
    gallery_pids: ArrayLike
    query_camids: ArrayLike
    gallery_camids: ArrayLike
    ap: ArrayLike | None = None
    probabilities: ArrayLike | None = None
    cross_camera: bool = True

    def __post_init__(self) -> None:
        shape, n = np.shape(self.indices), len(self.query_images)
        if len(shape) != 2 or shape != np.shape(self.distances) or shape[0] != n:
            raise DataError(
                f"Indices {shape} and distances {np.shape(self.distances)} do not fit {n} queries. Pass [Q, k]."
            )
        for split in ("query", "gallery"):
            lengths = [len(getattr(self, f"{split}_{column}")) for column in ("images", "pids", "camids")]
            if len(set(lengths)) > 1:
                raise DataError("{} {} images, {} pids and {} camids differ in number.".format(split, *lengths))


def plot_rank_lists(
    lists: RankLists, path: str | Path, *, queries: ArrayLike, title: str = "", dark: bool = False
) -> Path:
    """Draw queries at the left and their ranked gallery crops to the right, closest first.

    Blue frame: query. Green ✓: right match. Red ✗: wrong match. Grey –: ignored (the query's identity in the query's
    camera under the cross-camera rule, or junk). Camera and distance are written below each crop.

    Args:
        lists: the rank lists.
        path: output file (.png, .pdf, .svg or .webp).
        queries: rows of the queries to draw, as from `choose_queries` or `find_queries`.
        title: text above the lists.
        dark: use the dark theme.

    Returns:
        The path.

    Raises:
        ReidError: there is no query, an image is unreadable, or the file cannot be written.
    """
    shown = np.asarray(queries, dtype=np.int64)
    if not len(shown):
        raise DataError("There is no query to draw a rank list of.")
    labels = (lists.query_pids, lists.gallery_pids, lists.query_camids, lists.gallery_camids)
    q_pids, g_pids, q_cams, g_cams = map(np.asarray, labels)
    ranked, distances = np.asarray(lists.indices), np.asarray(lists.distances)
    k = ranked.shape[1]
    top, bottom = (_TITLE if title else 0) + _HEAD, _FOOT
    width, height = (k + 1) * _STEP + 2 * _GAP, len(shown) * _ROW + top + bottom
    with picture(path, (width, height), dark=dark, constrained=False, dpi=110) as (figure, theme):
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        if title:
            axes.text(width / 2, _TITLE / 2 + 0.04, title, ha="center", va="center", fontsize=11)
        for column, name in enumerate(["query", *range(1, k + 1)]):
            axes.text(_left(column) + _WIDE / 2, top - 0.06, str(name), ha="center", fontsize=9)
        for row, query in enumerate(shown):
            y = top + row * _ROW
            below = [_camera(q_cams[query])]
            below += [] if lists.ap is None else [f"AP {100 * np.asarray(lists.ap)[query]:.1f} %"]
            _draw(axes, lists.query_images[query], 0, y, theme.lines[0], "", below)
            for column, item in enumerate(ranked[query], 1):
                if item < 0:
                    continue
                same = g_pids[item] == q_pids[query]
                if g_pids[item] == JUNK or (
                    lists.cross_camera and same and not different_cameras(g_cams[item], q_cams[query])
                ):
                    colour, symbol = GREY, "–"
                else:
                    colour, symbol = (GREEN, "✓") if same else (RED, "✗")
                below = [_camera(g_cams[item]), f"{distances[query, column - 1]:.3f}"]
                if lists.probabilities is not None:
                    below.append(f"p {100 * np.asarray(lists.probabilities)[query, column - 1]:.0f} %")
                _draw(axes, lists.gallery_images[item], column, y, colour, symbol, below)
        legend = "✓ right   ✗ wrong   – ignored;   below: camera, distance"
        legend += ", p(same)" if lists.probabilities is not None else ""
        axes.text(width / 2, height - bottom / 2, legend, ha="center", va="center", fontsize=9)
    return Path(path)


def _camera(camid: int) -> str:
    return f"cam {camid}" if camid >= 0 else "cam ?"


def _left(column: int) -> float:
    """Return the left edge of a column in inches; there is a gap between the query and its matches."""
    return _GAP + column * _STEP + (_GAP if column else 0)


def _draw(axes: Axes, image: Image, column: int, y: float, colour: str, symbol: str, below: Sequence[str]) -> None:
    """Draw a framed image at a column of the row that begins `y` inches from the top, with text below it."""
    x = _left(column)
    pixels = fit_image(read_image(image))
    axes.imshow(pixels, extent=(x, x + _WIDE, y + _HIGH, y), aspect="auto", interpolation="none")
    axes.add_patch(Rectangle((x, y), _WIDE, _HIGH, fill=False, edgecolor=colour, linewidth=3.5))
    axes.text(x + _WIDE / 2, y + _HIGH + 0.06, "\n".join(below), ha="center", va="top", fontsize=8, linespacing=1.1)
    if symbol:
        box = {"boxstyle": "square,pad=0.15", "facecolor": colour, "edgecolor": "none"}
        axes.text(x + 0.06, y + 0.05, symbol, color="white", fontsize=10, fontweight="bold", va="top", bbox=box)


def read_image(image: Image) -> NDArray[np.uint8]:
    """Return the RGB pixels `[H, W, 3]` of a file, or the given array."""
    return check_image(image) if isinstance(image, np.ndarray) else decode(image)


def check_image(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the array if it is an image.

    Raises:
        DataError: another shape or type, or no pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise DataError(f"An image is {image.dtype} {list(image.shape)}. Pass uint8 [H, W, 3].")
    return image


def fit_image(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale an image to fit into `[192, 96, 3]` on white, keeping its proportions."""
    scale = min(_HEIGHT / pixels.shape[0], _WIDTH / pixels.shape[1])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    fitted = np.full((_HEIGHT, _WIDTH, 3), 255, dtype=np.uint8)
    top, left = (_HEIGHT - size[1]) // 2, (_WIDTH - size[0]) // 2
    fitted[top : top + size[1], left : left + size[0]] = resized
    return fitted
