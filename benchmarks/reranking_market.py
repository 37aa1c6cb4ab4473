"""What re-ranking and query expansion gain: `python -m benchmarks.reranking_market FILE.npz …`.

Files hold `{query,gallery}_{features,pids,camids}`. Prints a Markdown table for each: cosine or re-ranked distances,
precision AP, cross-camera, in percent; the sweep over settings with `--sweep`; with `--small A|B`, k1=20 and
k1="auto" on small galleries of every second identity (A: the choice of its constants, B: its report).
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np

from benchmarks.measure import Benchmark
from reid.evaluation import (
    auto_neighbours,
    estimate_identity_size,
    evaluate,
    evaluate_distances,
    expand_gallery,
    expand_queries,
    rerank,
)


class Case:
    def __init__(self, path):
        with np.load(path) as arrays:
            self.query, self.gallery = (arrays[f"{part}_features"].astype(np.float32) for part in ("query", "gallery"))
            self.pids = [arrays[f"{part}_pids"] for part in ("query", "gallery")]
            self.cameras = [arrays[f"{part}_camids"] for part in ("query", "gallery")]

    def score(self, description, make):
        """A row of the table; `make` gives (query, gallery) features or a matrix of distances."""
        start = time.perf_counter()
        features = make()
        seconds = time.perf_counter() - start
        labels = (*self.pids, *self.cameras)
        result = evaluate(*features, *labels) if isinstance(features, tuple) else evaluate_distances(features, *labels)
        scores = (result.mAP, result.mINP, *map(result.rank, (1, 5, 10)))
        numbers = " | ".join(f"{100 * score:.2f}" for score in scores)
        print(f"| {description} | {numbers} | {seconds:.1f} |", flush=True)

    def camera_columns(self):
        return {"query_camids": self.cameras[0], "gallery_camids": self.cameras[1]}

    def expanded_queries(self, gallery=None, cameras=False, **settings):
        gallery = self.gallery if gallery is None else gallery
        return expand_queries(self.query, gallery, **settings, **(self.camera_columns() if cameras else {})), gallery

    def expanded(self, **settings):
        """Gallery first, then the queries towards it."""
        return self.expanded_queries(expand_gallery(self.gallery, **settings), **settings)

    def expanded_together(self, **settings):
        """All items towards their neighbours of both sets."""
        together = expand_gallery(np.concatenate([self.query, self.gallery]), **settings)
        return together[: len(self.query)], together[len(self.query) :]

    def reranked(self, query=None, gallery=None, **settings):
        query, gallery = self.query if query is None else query, self.gallery if gallery is None else gallery
        return rerank(query, gallery, metric="cosine", **settings)

    def by_camera(self, query=None, gallery=None, **settings):
        query, gallery = self.query if query is None else query, self.gallery if gallery is None else gallery
        return rerank(query, gallery, *self.cameras, metric="cosine", camera_aware=True, **settings)


def table(case):
    both = {"k": 5, "alpha": 3.0}
    average = {"k": 5, "alpha": 0.0}
    case.score("plain", lambda: (case.query, case.gallery))
    case.score("average query expansion (AQE)", lambda: case.expanded_queries(**average))
    case.score("α query expansion (αQE)", lambda: case.expanded_queries(**both))
    case.score("αQE by camera", lambda: case.expanded_queries(cameras=True, **both))
    case.score("αQE, gallery too", lambda: case.expanded(**both))
    case.score("αQE of all items together", lambda: case.expanded_together(**both))
    case.score("k-reciprocal", case.reranked)
    case.score("camera-aware (CA-Jaccard)", case.by_camera)
    case.score("αQE by camera, then k-reciprocal", lambda: case.reranked(*case.expanded_queries(cameras=True, **both)))
    case.score("αQE, gallery too, then k-reciprocal", lambda: case.reranked(*case.expanded(**both)))
    case.score("αQE by camera, then CA-Jaccard", lambda: case.by_camera(*case.expanded_queries(cameras=True, **both)))
    case.score("αQE, gallery too, then CA-Jaccard", lambda: case.by_camera(*case.expanded(**both)))


def sweep(case):
    for k in (2, 5, 10):
        for alpha in (0.0, 3.0):
            settings = {"k": k, "alpha": alpha}
            case.score(
                f"QE by camera, k={k} α={alpha:g}",
                lambda settings=settings: case.expanded_queries(cameras=True, **settings),
            )
            case.score(f"QE, gallery too, k={k} α={alpha:g}", lambda settings=settings: case.expanded(**settings))
    for k1, k2, weight in ((20, 6, 0.1), (20, 6, 0.3), (20, 6, 0.5), (10, 3, 0.3), (30, 6, 0.3), (50, 15, 0.3)):
        settings = {"k1": k1, "k2": k2, "lambda_value": weight}
        case.score(f"k-reciprocal, k1={k1} k2={k2} λ={weight}", lambda settings=settings: case.reranked(**settings))
    for k1, k2, weight in (
        ((5, 20), (3, 3), 0.1),
        ((5, 20), (3, 3), 0.3),
        ((5, 20), (3, 3), 0.5),
        ((2, 20), (3, 3), 0.3),
        ((10, 20), (3, 3), 0.3),
        ((5, 30), (3, 3), 0.3),
        ((5, 20), (1, 3), 0.3),
        ((5, 20), (2, 4), 0.3),
    ):
        names = ("k1_intra", "k1", "k2_intra", "k2", "lambda_value")
        settings = dict(zip(names, (*k1, k2[0], sum(k2), weight), strict=True))
        case.score(f"CA-Jaccard, k1 {k1} k2 {k2} λ={weight}", lambda settings=settings: case.by_camera(**settings))


def cut(arrays, half, n_queries, n_crops, distractors, seed=0):
    """Queries and gallery of every second identity: at most so many queries and gallery crops of each.

    `distractors`: so many crops of nobody in a query (pid 0), as a multiple of the others.
    """
    rng = np.random.default_rng(seed)

    def some(part, pid, most):
        rows = np.flatnonzero(arrays[f"{part}_pids"] == pid)
        return rng.permutation(rows)[:most]

    ids = np.unique(arrays["query_pids"])["AB".index(half) :: 2]
    query = np.sort(np.concatenate([some("query", pid, n_queries) for pid in ids]))
    gallery = np.concatenate([some("gallery", pid, n_crops) for pid in ids])
    gallery = np.sort(np.append(gallery, some("gallery", 0, round(distractors * len(gallery)))))
    parts = (("query", query), ("gallery", gallery))
    return [arrays[f"{part}_{name}"][rows] for name in ("features", "pids", "camids") for part, rows in parts]


def small_galleries(path, half):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file}
    print("| queries | gallery crops per identity | estimate | k1, k2 | plain | k1=20 | k1=auto |")
    print("|---|---|---|---|---|---|---|")
    every = 10**6
    cases = [(n, crops, 0) for n in (1, every) for crops in (1, 2, 3, 5, 10)]
    cases += [(1, 2, 1), (1, 5, 1), (every, 2, 1), (every, 5, 1), (every, every, 0), (every, every, 1)]
    for n_queries, n_crops, distractors in cases:
        query, gallery, *labels = cut(arrays, half, n_queries, n_crops, distractors)
        query, gallery = query.astype(np.float32), gallery.astype(np.float32)
        size = estimate_identity_size(np.concatenate([query, gallery]))
        k1, k2 = auto_neighbours(size)
        results = [evaluate(query, gallery, *labels)] + [
            evaluate_distances(rerank(query, gallery, k1=one, k2=two, metric="cosine"), *labels)
            for one, two in ((20, 6), (k1, k2))
        ]
        scores = " | ".join(f"{100 * result.mAP:.1f} / {100 * result.rank(1):.1f}" for result in results)
        names = ["all" if number == every else str(number) for number in (n_queries, n_crops)]
        names[1] += " and as many of others" if distractors else ""
        print(f"| {' | '.join(names)} | {size:.1f} | {k1}, {k2} | {scores} |", flush=True)


@click.command(cls=Benchmark)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="FILE.npz...")
@click.option("--sweep", "sweeping", is_flag=True, help="Sweep over settings instead.")
@click.option("--small", type=click.Choice(["A", "B"]), help="Small galleries of half of the identities instead.")
def main(files: tuple[Path, ...], sweeping: bool, small: str | None) -> None:
    """Print what re-ranking and query expansion gain on real embeddings."""
    for path in files:
        print(f"\n{Path(path).stem}\n")
        if small:
            small_galleries(path, small)
            continue
        print("| method | mAP | mINP | rank-1 | rank-5 | rank-10 | seconds |\n|---|---|---|---|---|---|---|")
        (sweep if sweeping else table)(Case(path))


if __name__ == "__main__":
    main()
