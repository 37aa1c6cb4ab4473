"""The pictures of docs/losses.md: `python -m benchmarks.draw_losses docs/pictures`.

Nothing in them is drawn by hand: level lines are of our distances, picks are read from the gradient of our miners, and
arrows are the negative gradients of our losses on points in the plane.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from matplotlib.patches import Circle

from benchmarks.measure import Benchmark
from reid.losses import Mahalanobis, TripletLoss, make_loss, pairwise_distances
from reid.losses.factory import PML_LOSSES
from reid.report.style import GREY, MARKERS, picture

LABELS = torch.arange(3).repeat_interleave(4)


POINTS = torch.tensor(
    [
        *([2.0, 2.0], [2.45, 1.75], [1.35, 2.6], [1.9, 0.6]),
        *([2.75, 2.3], [3.3, 1.9], [3.5, 2.7], [2.95, 3.1]),
        *([1.15, 1.45], [0.6, 1.0], [0.75, 2.0], [1.1, 0.55]),
    ]
)
"""Three people, four crops each, some of them where another person is; row 0 is the anchor of the miners' picture."""


def clean(axes, title, theme, limits=None):
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal")
    for side in axes.spines.values():
        side.set_color(theme.faint)
    if limits:
        axes.set_xlim(limits[:2])
        axes.set_ylim(limits[2:])


def crops(axes, x, labels, theme, size=46, **kwargs):
    for label in range(3):
        own = x[labels == label]
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=size,
            marker=MARKERS[label],
            color=theme.lines[label],
            edgecolor="white",
            lw=0.6,
            zorder=3,
            **kwargs,
        )


def arrow(axes, start, step, color, **kwargs):
    style = {"arrowstyle": "-|>", "color": color, "lw": 1.3, "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", start + step, start, arrowprops={**style, **kwargs}, zorder=2)


def triplet(path):
    """What a triplet is, and which negatives are easy, semi-hard and hard."""
    with picture(path, (9, 3.95)) as (figure, theme):
        blue, orange = theme.lines[:2]
        left, right = figure.subplots(1, 2)
        anchor, positive, negative = torch.tensor([[0.0, 0.0], [1.3, 0.45], [0.9, -0.7]])
        x = torch.stack([anchor, positive, negative]).requires_grad_()
        TripletLoss(0.5)(x, torch.tensor([0, 0, 1])).backward()
        steps = -0.9 * x.grad
        d_ap, d_an = (float((anchor - other).norm()) for other in (positive, negative))
        for point, color, name, place in (
            (anchor, blue, "anchor a", (-56, -3)),
            (positive, blue, "positive p\n(same person)", (8, 4)),
            (negative, orange, "negative n\n(somebody else)", (10, -18)),
        ):
            left.scatter(*point, s=70, color=color, marker="o" if color == blue else "s", zorder=3)
            left.annotate(name, point, place, textcoords="offset points", fontsize=9)
        for other, color, text, place in (
            (positive, blue, f"d(a, p) = {d_ap:.2f}", (0.42, -0.02)),
            (negative, orange, f"d(a, n) = {d_an:.2f}", (-0.15, -0.62)),
        ):
            left.plot(*zip(anchor, other, strict=True), color=color, lw=1, ls="--")
            left.annotate(text, place, fontsize=9, color=color)
        for point, step in zip(x.detach(), steps, strict=True):
            arrow(left, point.numpy(), step.numpy(), theme.ink)
        loss = max(0.0, d_ap - d_an + 0.5)
        clean(
            left,
            f"max(0, {d_ap:.2f} − {d_an:.2f} + 0.5) = {loss:.2f}",
            theme,
            (-1.2, 2.7, -1.6, 1.4),
        )
        reach, margin = 1.0, 0.5
        for radius, style in ((reach, "-"), (reach + margin, "--")):
            right.add_patch(
                Circle((0, 0), radius, fill=False, color=blue if radius == reach else GREY, ls=style, lw=1.2)
            )
        right.scatter(0, 0, s=70, color=blue, zorder=3)
        right.scatter(reach * np.cos(2.4), reach * np.sin(2.4), s=70, color=blue, zorder=3)
        right.annotate("p", (reach * np.cos(2.4), reach * np.sin(2.4)), (-12, 6), textcoords="offset points")
        right.annotate("a", (0, 0), (-10, -12), textcoords="offset points")
        for radius, angle, name in (
            (0.6, -0.5, "hard: nearer than p"),
            (1.25, 0.3, "semi-hard: farther than p,\ninside the margin"),
            (1.85, 1.1, "easy: no loss"),
        ):
            place = radius * np.cos(angle), radius * np.sin(angle)
            right.scatter(*place, s=60, marker="s", color=orange, zorder=3)
            right.annotate(name, place, (9, -4), textcoords="offset points", fontsize=9)
        right.annotate(
            "d(a, p)", (0, -reach), (0, -11), textcoords="offset points", ha="center", fontsize=8, color=blue
        )
        right.annotate(
            "d(a, p) + margin",
            (0, -reach - margin),
            (0, -11),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=GREY,
        )
        clean(right, "Negatives of one anchor and positive", theme, (-1.7, 3.5, -2.0, 2.0))


def distances(path):
    """Points at the same distance from one point."""
    metric = Mahalanobis.from_factor(np.array([[1.3, 0.9], [-0.2, 0.55]]))
    kinds = {
        "manhattan (p = 1)": "manhattan",
        "euclidean (p = 2)": "euclidean",
        "squared_euclidean": "squared_euclidean",
        "minkowski:4": "minkowski:4",
        "cosine": "cosine",
        "Mahalanobis": metric,
    }
    grid = np.stack(np.meshgrid(np.linspace(-2, 2, 101), np.linspace(-2, 2, 101)), axis=-1).reshape(-1, 2)
    with picture(path, (9, 2.1)) as (figure, theme):
        for axes, (name, kind) in zip(figure.subplots(1, 6), kinds.items(), strict=True):
            cosine = kind == "cosine"
            centre = np.array([[1.2, 0.8]]) if cosine else np.zeros((1, 2))
            with torch.no_grad():
                values = pairwise_distances(*map(torch.from_numpy, (centre, grid)), kind).reshape(101, 101).numpy()
            levels = [0.1, 0.3, 0.6, 1.0, 1.5] if cosine else [0.4, 0.8, 1.2, 1.6, 2.0]
            lines = np.linspace(-2, 2, 101)
            axes.contour(lines, lines, values, levels, colors=[theme.lines[0]], linewidths=np.linspace(1.8, 0.6, 5))
            axes.scatter(*centre[0], s=22, color=theme.lines[1], zorder=3)
            if cosine:
                axes.scatter(0, 0, s=14, marker="+", color=theme.ink)
            clean(axes, name, theme, (-2, 2, -2, 2))
            axes.title.set_fontsize(8.5)


def mining(path):
    """The pairs of one anchor that each miner gives a gradient to, by its size."""
    x, anchor = POINTS, 0
    at_rest = torch.cdist(x, x)
    titles = {
        "batch_all": "batch_all",
        "batch_hard": "batch_hard",
        "semi_hard": "semi_hard",
        "hardest_negative": "hardest_negative",
        "easy_positive": "easy_positive",
        "weighted": "weighted",
        "distance_weighted": "distance_weighted: one draw",
        "random": "random: one draw",
    }
    with picture(path, (9, 5.0)) as (figure, theme):
        for axes, (name, title) in zip(figure.subplots(2, 4).flat, titles.items(), strict=True):
            d = at_rest.clone().requires_grad_()
            loss = TripletLoss(1.5, mining=name, distance=lambda x, y, d=d: d, seed=4)
            loss(x, LABELS).backward()
            weights = d.grad[anchor] / d.grad[anchor].abs().max()
            crops(axes, x, LABELS, theme)
            for other in torch.nonzero(weights).flatten().tolist():
                color = theme.lines[0] if LABELS[other] == LABELS[anchor] else theme.lines[1]
                width = 0.4 + 2.4 * float(weights[other].abs())
                axes.plot(*zip(x[anchor], x[other], strict=True), color=color, lw=width, zorder=1)
            axes.scatter(*x[anchor], s=130, facecolor="none", edgecolor=theme.ink, zorder=4)
            clean(axes, title, theme, (0.2, 3.9, 0.1, 3.6))
            axes.title.set_fontsize(8.5)


def gradients(path):
    """Where each loss moves each crop."""
    kinds = {
        "triplet, batch-hard": ("triplet", {"margin": 0.5}),
        "contrastive": ("contrastive", {"margin": 1.5}),
        "quadruplet": ("quadruplet", {"margin": 0.5, "second_margin": 0.5}),
        "lifted": ("lifted", {"distance": "LpDistance"}),
        "circle": ("circle", {"gamma": 16}),
        "InfoNCE": ("infonce", {"temperature": 0.2}),
        "supervised contrastive": ("supcon", {"temperature": 0.2}),
        "multi-similarity": ("multi_similarity", {}),
        "center (×: centres)": ("center", {"rate": None}),
        "proxy-NCA (×: proxies)": ("proxy_nca", {}),
        "proxy-anchor (×: proxies)": ("proxy_anchor", {"alpha": 8}),
        "ArcFace (×: directions)": ("arcface", {"margin": 0.3, "scale": 8}),
    }
    means = torch.stack([POINTS[label == LABELS].mean(dim=0) for label in range(3)])
    with picture(path, (9, 7.2)) as (figure, theme):
        for axes, (title, (name, options)) in zip(figure.subplots(3, 4).flat, kinds.items(), strict=True):
            loss, x = make_loss(name, dim=2, num_classes=3, **options), POINTS.clone().requires_grad_()
            vectors = list(loss.parameters())
            for vector in vectors:
                vector.data = means.clone()
            loss(x, LABELS).backward()
            steps = -x.grad * 0.8 / x.grad.norm(dim=1).max()
            crops(axes, x.detach(), LABELS, theme, 30)
            for point, step, label in zip(x.detach().numpy(), steps.numpy(), LABELS, strict=True):
                if np.linalg.norm(step) > 0.02:
                    arrow(axes, point, step, theme.lines[label], lw=1.1, mutation_scale=7)
            angular = name in (*PML_LOSSES, "circle", "infonce", "supcon", "arcface")
            if vectors:
                for label, place in enumerate(means):
                    axes.scatter(*place, marker="x", s=45, color=theme.lines[label], zorder=4)
            if angular:
                axes.scatter(0, 0, marker="+", s=30, color=theme.ink)
                for point in x.detach():
                    axes.plot([0, point[0]], [0, point[1]], color=theme.faint, lw=0.6, zorder=0)
            clean(axes, title, theme, (-0.2, 4.1, -0.2, 3.8))


def circle(path):
    """The loss of one positive and one negative similarity, and where it pushes them."""
    side = np.linspace(-0.2, 1, 61)
    s_n, s_p = np.meshgrid(side, side)
    with picture(path, (6.2, 3.1)) as (figure, theme):
        for axes, name in zip(figure.subplots(1, 2), ("triplet on cosine", "circle"), strict=True):
            m, gamma = 0.25, 16.0
            if name == "circle":
                exponent = gamma * ((s_n + m).clip(0) * (s_n - m) - (1 + m - s_p).clip(0) * (s_p - 1 + m))
                pull, push = (1 + m - s_p).clip(0), (s_n + m).clip(0)
            else:
                exponent = gamma * (s_n - s_p + m)
                pull = push = np.ones_like(s_p)
            loss = np.logaddexp(0, exponent)
            axes.contourf(side, side, loss, 12, cmap="Greys", alpha=0.6)
            axes.contour(side, side, exponent, [0], colors=[theme.lines[1]], linewidths=1.8)
            slope = 1 / (1 + np.exp(-exponent))
            u, v = -(slope * push)[5::11, 5::11], (slope * pull)[5::11, 5::11]
            axes.quiver(side[5::11], side[5::11], u, v, color=theme.lines[0], scale=12, width=0.008)
            axes.set_title(name, fontsize=9.5, loc="left")
            axes.set_xlabel("similarity to a negative")
            axes.set_ylabel("to a positive" if name != "circle" else "")
            axes.set_aspect("equal")


PICTURES = {"triplet": triplet, "distances": distances, "mining": mining, "family": gradients, "circle": circle}


@click.command(cls=Benchmark)
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Draw the pictures of docs/losses.md into FOLDER."""
    for name, draw in PICTURES.items():
        draw(folder / f"losses-{name}.svg")


if __name__ == "__main__":
    main()
