"""What a learned metric gains on real embeddings: `python -m benchmarks.learned_metric FILE.npz …`.

Files hold `{query,gallery}_{features,pids,camids}`. KISSME and XQDA are fitted on the gallery of half of the identities
(across cameras) and scored on queries and gallery of the other half, with all distractors (pid 0); then the halves are
exchanged and the mean is printed. Precision AP, cross-camera, in percent.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.measure import Benchmark
from reid.evaluation import evaluate
from reid.losses import kissme, xqda

FITS = {
    "as they are": None,
    "KISSME": lambda *fit: kissme(*fit),
    "XQDA": lambda *fit: xqda(*fit),
    "XQDA, 64 directions": lambda *fit: xqda(*fit, dimensions=64),
    "XQDA, ridge 0.001": lambda *fit: xqda(*fit, ridge=0.001),
    "XQDA, ridge 0.1": lambda *fit: xqda(*fit, ridge=0.1),
    "XQDA, ridge 10": lambda *fit: xqda(*fit, ridge=10),
}


def halves(gallery_pids, seed=0):
    identities = np.unique(gallery_pids[gallery_pids > 0])
    drawn = np.random.default_rng(seed).permutation(identities)
    return drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]


def score(arrays, fit, metric):
    query, gallery = (arrays[f"{part}_features"].astype(np.float32) for part in ("query", "gallery"))
    query_pids, gallery_pids = arrays["query_pids"], arrays["gallery_pids"]
    scores = []
    first, second = halves(gallery_pids)
    for known, unknown in ((first, second), (second, first)):
        learn = np.isin(gallery_pids, known)
        q, g = np.isin(query_pids, unknown), np.isin(gallery_pids, [0, *unknown])
        pair = (query[q], gallery[g])
        if fit is not None:
            layer = fit(gallery[learn], gallery_pids[learn], arrays["gallery_camids"][learn])
            pair = tuple(layer.transform(torch.from_numpy(part)).detach().numpy() for part in pair)
        labels = (query_pids[q], gallery_pids[g], arrays["query_camids"][q], arrays["gallery_camids"][g])
        result = evaluate(*pair, *labels, metric=metric)
        scores.append((result.mAP, result.rank(1)))
    return 100 * np.mean(scores, axis=0)


@click.command(cls=Benchmark)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="FILE.npz...")
def main(files: tuple[Path, ...]) -> None:
    """Print what KISSME and XQDA gain on real embeddings."""
    for path in files:
        print(f"\n{Path(path).stem}\n")
        print("| metric | Euclidean: mAP | rank-1 | cosine: mAP | rank-1 |\n|---|---|---|---|---|")
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        for name, fit in FITS.items():
            cells = [f"{value:.2f}" for metric in ("euclidean", "cosine") for value in score(arrays, fit, metric)]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
