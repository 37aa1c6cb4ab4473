"""Rank lists: each query with the gallery items ranked first for it, right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from reid.data.images import decode
from reid.errors import ReidError, did_you_mean
from reid.evaluation import RankingResult
from reid.evaluation.ranking import JUNK
from reid.report.style import BLUE, GREEN, GREY, RED, save_figure

Choice = Literal["worst", "best", "random"]
Image = str | Path | NDArray[np.uint8]

_HEIGHT, _WIDTH = 192, 96


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
    cross_camera: bool = True,
    title: str = "",
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
        path: where to; .png, .pdf or .svg.
        queries: the rows to show, as from `choose_queries`.
        ap: `[Q]` average precisions to write beneath the queries.
        cross_camera: the rule that the ranking was made by.
        title: written above all.

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
    widths = [1.0, 0.18] + [1.0] * k
    figure = Figure(figsize=(0.92 * sum(widths), 2.12 * len(shown) + (0.75 if title else 0.4)), dpi=110)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.05, wspace=0.03, hspace=0.02)
    grid = figure.subplots(len(shown), k + 2, squeeze=False, width_ratios=widths)
    for row, query in zip(grid, shown, strict=True):
        beneath = _camera(q_cams[query]) + (f"\nAP {100 * np.asarray(ap)[query]:.1f} %" if ap is not None else "\n")
        _draw(row[0], query_images[query], BLUE, "", beneath)
        row[1].set_axis_off()
        for axes, item, distance in zip(row[2:], ranked[query], far[query], strict=True):
            if item < 0:
                axes.set_axis_off()
                continue
            same = g_pids[item] == q_pids[query]
            if g_pids[item] == JUNK or (cross_camera and same and g_cams[item] == q_cams[query]):
                colour, symbol = GREY, "–"
            else:
                colour, symbol = (GREEN, "✓") if same else (RED, "✗")
            _draw(axes, gallery_images[item], colour, symbol, f"{_camera(g_cams[item])}\n{distance:.3f}")
    grid[0][0].set_title("query", fontsize=9, color=BLUE)
    for place in range(k):
        grid[0][place + 2].set_title(str(place + 1), fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.supxlabel("✓ right   ✗ wrong   – not counted;   beneath: camera, distance", fontsize=9)
    return save_figure(figure, path)


def _camera(camid: int) -> str:
    return f"cam {camid}" if camid >= 0 else "cam ?"


def _draw(axes: Axes, image: Image, colour: str, symbol: str, beneath: str) -> None:
    axes.imshow(_pixels(image), aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=3.5)
    axes.set_xlabel(beneath, fontsize=8, labelpad=3)
    if not symbol:
        return
    axes.text(
        0.06,
        0.97,
        symbol,
        transform=axes.transAxes,
        color="white",
        fontsize=10,
        fontweight="bold",
        va="top",
        bbox={"boxstyle": "square,pad=0.15", "facecolor": colour, "edgecolor": "none"},
    )


def _pixels(image: Image) -> NDArray[np.uint8]:
    """RGB `[192, 96, 3]` that holds the whole image in its own proportions, on white."""
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ReidError(f"An image must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}.")
        pixels: NDArray[Any] = image
    else:
        pixels = decode(image)
    scale = min(_HEIGHT / pixels.shape[0], _WIDTH / pixels.shape[1])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    place = np.full((_HEIGHT, _WIDTH, 3), 255, dtype=np.uint8)
    top, left = (_HEIGHT - size[1]) // 2, (_WIDTH - size[0]) // 2
    place[top : top + size[1], left : left + size[0]] = resized
    return place
