"""Mining on an embedded train split: similar identities for the sampler, and offline triplets."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from reid.config import Config
from reid.core.arrays import check_finite, different_cameras, integer_column
from reid.core.distributed import DistributedContext
from reid.core.errors import DataError, check_choice, check_number
from reid.data.pixels import Pixels
from reid.evaluation.features import centred
from reid.evaluation.neighbours import nearest_items
from reid.models import ReIDModel
from reid.training.validation import embed_pixels

KINDS = ("hard", "semi_hard", "random")
MEMORY_LIMIT = 2**28
"""Memory limit of a block of distances, in bytes."""


def nearest_identities(features: ArrayLike, pids: ArrayLike, k: int) -> NDArray[np.int64]:
    """Return the identities with the nearest centroids for each identity, the nearest first; exact, in blocks.

    A centroid is the L2-normalised mean of an identity's L2-normalised features. Distances are Euclidean; equal
    distances keep the order of identities. If the features of an identity cancel out or are zeros, its centroid is the
    origin.

    Args:
        features: `[N, D]`, finite.
        pids: `[N]` identities.
        k: number of neighbours.

    Returns:
        `[C, min(k, C − 1)]` int64, positions in `np.unique(pids)`.

    Raises:
        DataError: columns of different lengths, or features that are not finite.
        ConfigError: k below 1.
    """
    x, labels = _columns(features, pids)
    check_number("k", k, 1)
    ids = int(labels.max()) + 1
    x = torch.nn.functional.normalize(x, eps=1e-12)
    sums = x.new_zeros(ids, x.shape[1]).index_add_(0, torch.from_numpy(labels), x)
    centroids = torch.nn.functional.normalize(sums, eps=1e-12)
    return nearest_items(centred(centroids), k, MEMORY_LIMIT).nearest[:, 1:]


def mine_identities(
    model: ReIDModel, train: Pixels, distributed: DistributedContext, config: Config, epoch: int
) -> NDArray[np.int64]:
    """Embed `sampler.mining_crops` crops of each train identity and find the nearest identities of each.

    `4 · lookalikes + 16` neighbours are returned, because some are used up late in an epoch. The model runs in
    evaluation mode; its mode is restored. The processes divide the work and get the same table.

    Args:
        model: the current model.
        train: train crops and their pixels.
        distributed: this process among the training processes.
        config: `sampler`, `seed`, `precision` and `eval.batch_size` are used.
        epoch: determines, with the seed, which crops are drawn.

    Returns:
        The result of `nearest_identities`, for `HardIdentitySampler.set_neighbours`.

    Raises:
        DataError: the embeddings are not finite.
    """
    rows = draw_rows(train.crops.pids, config.sampler.mining_crops, config.seed, epoch)
    drawn = Pixels(train.crops.take(rows), train.store.take(rows))
    features = embed_pixels(model, drawn, distributed, config, "similar identities", flip=False)
    return nearest_identities(features, drawn.crops.pids, 4 * config.sampler.lookalikes + 16)


def draw_rows(pids: NDArray[np.int64], crops: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Draw at most `crops` rows of each identity, in rising order; 0: all."""
    if crops == 0:
        return np.arange(len(pids))
    rng = np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(2,)))
    shuffled = rng.permutation(len(pids))
    order = shuffled[np.argsort(pids[shuffled], kind="stable")]
    position = np.concatenate([np.arange(count) for count in np.unique(pids, return_counts=True)[1]])
    return np.sort(order[position < crops])


def offline_triplets(
    features: ArrayLike,
    pids: ArrayLike,
    kind: str = "hard",
    *,
    camids: ArrayLike | None = None,
    margin: float = 0.3,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
) -> NDArray[np.int64]:
    """Choose one triplet (anchor, positive, negative) for each row of an embedded data set, if there is one.

    Distances are Euclidean, exact, computed in blocks of anchors. The features are not normalised.

    - `hard`: the farthest positive and the nearest negative of the whole set.
    - `semi_hard`: a random positive, and the nearest negative that is farther than it and within the margin,
      `d_ap < d_an < d_ap + margin` (Schroff et al. 2015, section 3.2); anchors without one are left out.
    - `random`: a random positive and a random negative.

    The nearest negative of a whole set is often a mislabelled or unreadable crop, so training on `hard` alone tends to
    collapse (FaceNet, section 3.2).

    Corner cases: an identity with one row has no anchor; a single identity gives no triplet; of equal distances the
    first row is taken; an empty set gives `[0, 3]`.

    Args:
        features: `[N, D]`, finite.
        pids: `[N]` identities.
        kind: one of `KINDS`.
        camids: `[N]` cameras; positives then come from other cameras, for anchors that have such positives.
        margin: margin of `semi_hard`, above 0.
        seed: seed of the random draws.
        memory_limit: bytes of a block of distances (at least one row); the result does not depend on it.

    Returns:
        `[T, 3]` int64, anchors in rising order.

    Raises:
        ConfigError: an unknown kind, or a margin ≤ 0.
        DataError: columns of different lengths, or features that are not finite.

    Example:
        >>> offline_triplets([[0.0], [1.0], [1.5], [9.0]], [7, 7, 8, 8])
        array([[0, 1, 2],
               [1, 0, 2],
               [2, 3, 1],
               [3, 2, 1]])
    """
    check_choice("kind of triplets", kind, KINDS)
    check_number("margin", margin, above=True)
    x, labels = _columns(features, pids)
    cameras = None if camids is None else torch.from_numpy(integer_column("camids", camids, len(x)))
    found = [np.zeros((0, 3), dtype=np.int64)]
    if not len(x):
        return found[0]
    x = centred(x.clone())
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(labels)
    for rows in torch.arange(len(x)).split(max(1, memory_limit // max(1, 16 * len(x)))):
        positives = ids[rows, None] == ids
        negatives = ~positives
        positives[torch.arange(len(rows)), rows] = False
        if cameras is not None:
            across = positives & different_cameras(cameras[rows, None], cameras)
            positives = torch.where(across.any(dim=1, keepdim=True), across, positives)
        drawn = torch.from_numpy(rng.random((len(rows), 2)))
        positive, negative = _pick(positives, drawn[:, 0]), _pick(negatives, drawn[:, 1])
        allowed = negatives
        if kind != "random":
            distances = torch.cdist(x[rows].double(), x.double())
            if kind == "hard":
                positive = distances.masked_fill(~positives, -torch.inf).argmax(dim=1)
            else:
                d_ap = distances.gather(1, positive.unsqueeze(1))
                allowed = negatives & (distances > d_ap) & (distances < d_ap + margin)
            negative = distances.masked_fill(~allowed, torch.inf).argmin(dim=1)
        exists = positives.any(dim=1) & allowed.any(dim=1)
        found.append(torch.stack([rows, positive, negative], dim=1)[exists].numpy())
    return np.concatenate(found)


def _pick(mask: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Choose a column of the mask in each row by a random number 0 ≤ `drawn` < 1; without any, the last column."""
    count = mask.sum(dim=1)
    rank = (drawn * count).long() + 1
    return torch.searchsorted(mask.cumsum(dim=1), rank.unsqueeze(1)).squeeze(1).clamp(max=mask.shape[1] - 1)


def _columns(features: ArrayLike, pids: ArrayLike) -> tuple[torch.Tensor, NDArray[np.int64]]:
    x = np.asarray(features, dtype=np.float32)
    if x.ndim != 2:
        raise DataError(f"Features must be [N, D]; got shape {list(x.shape)}.")
    check_finite(x, fix="Lower optim.lr, increase schedule.warmup_epochs, or use precision=fp32.")
    return torch.from_numpy(x), np.unique(integer_column("pids", pids, len(x)), return_inverse=True)[1].reshape(-1)
