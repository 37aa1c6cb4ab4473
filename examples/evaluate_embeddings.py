"""Evaluate embeddings that another model made: python examples/evaluate_embeddings.py [FILE.npz]

The file contains query_features, gallery_features [N, D] and pids and camids of both. Without a file, random ones are
used, so that the script runs anywhere.
"""

import sys

import numpy as np

import reid

if len(sys.argv) > 1:
    arrays = dict(np.load(sys.argv[1]))
else:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, 64))
    arrays = {}
    for split, n in (("query", 100), ("gallery", 400)):
        pids = rng.integers(0, 50, n)
        arrays[f"{split}_features"] = centres[pids] + 1.5 * rng.standard_normal((n, 64))
        arrays[f"{split}_pids"] = pids
        arrays[f"{split}_camids"] = rng.integers(0, 4, n)

query, gallery = (
    reid.Embeddings(arrays[f"{split}_features"], pids=arrays[f"{split}_pids"], camids=arrays[f"{split}_camids"])
    for split in ("query", "gallery")
)

result = reid.evaluate(query, gallery)
print(f"plain      mAP {result.mAP:.2%}  rank-1 {result.rank(1):.2%}  mINP {result.mINP:.2%}")
print(f"           {result.n_valid} queries, dropped: {result.dropped or 'none'}")

distances = reid.rerank(query, gallery)
columns = (query.pids, gallery.pids, query.camids, gallery.camids)
reranked = reid.evaluation.evaluate_distances(distances, *columns)
print(f"re-ranked  mAP {reranked.mAP:.2%}  rank-1 {reranked.rank(1):.2%}")
