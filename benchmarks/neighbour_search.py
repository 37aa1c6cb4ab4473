"""What approximate neighbours change: `python -m benchmarks.neighbour_search [--tracklets N ...] [FILE.npz ...]`.

`match` with `neighbour_search=faiss` against `exact`: the exact candidate pairs that are found, and pairwise F1. Made
features are those of `matching_growth`; each file holds embeddings of the Market-1501 test split, as for
`matching_market`.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np

from benchmarks.matching_growth import synthetic_tracklets
from benchmarks.matching_market import market_tracklets
from benchmarks.measure import Benchmark
from reid.config import MatchSettings
from reid.mtmc import Tracklets, cluster_scores, match


def compare(name: str, tracklets: Tracklets, person: np.ndarray, joined: bool) -> None:
    codes, scores, seconds = [], [], []
    for how in ("exact", "faiss"):
        before = time.process_time()
        result = match(tracklets, settings=MatchSettings(neighbour_search=how, join_undecided=joined))
        seconds.append(time.process_time() - before)
        codes.append(result.links.first * len(tracklets) + result.links.second)
        scores.append(cluster_scores(person, result.identity).pair_f1)
    found = np.isin(codes[0], codes[1]).mean()
    pairs = " | ".join(f"{len(code):,}" for code in codes)
    f1 = " | ".join(f"{score:.4f}" for score in scores)
    processor = " | ".join(f"{value:.1f}" for value in seconds)
    print(f"| {name} | {len(tracklets):,} | {pairs} | {found:.2%} | {f1} | {processor} |", flush=True)


@click.command(cls=Benchmark)
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path), metavar="[FILE.npz]...")
@click.option("--tracklets", multiple=True, type=click.IntRange(100), help="Generated tracklets, 10000 by default.")
@click.option("--join-undecided", "joined", is_flag=True, help="Match with join_undecided=true.")
def main(files: tuple[Path, ...], tracklets: tuple[int, ...], joined: bool) -> None:
    """Compare matching with approximate and exact neighbours."""
    print("| data | tracklets | exact pairs | FAISS pairs | found | F1 exact | F1 FAISS | CPU s exact | CPU s FAISS |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for n in tracklets or (() if files else (10_000,)):
        compare("made", *synthetic_tracklets(n), joined)
    for path in files:
        compare(path.stem, *market_tracklets(path), joined)


if __name__ == "__main__":
    main()
