"""Samplers choose the crops of each batch: P identities × K crops, or shuffled batches, for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import integer_column, separate_unknown
from reid.core.errors import ConfigError, DataError, check_number


def ids_per_batch(batch_size: int, crops_per_id: int) -> int:
    """Return P of a P×K batch of `batch_size` crops.

    Raises:
        ConfigError: a number below 1, or a batch size that is not a multiple of the crops per identity.

    Example:
        >>> ids_per_batch(64, 4)
        16
    """
    check_number("batch_size", batch_size, 1)
    check_number("crops_per_id", crops_per_id, 1)
    if batch_size % crops_per_id:
        low = batch_size // crops_per_id * crops_per_id
        valid = f"{low} or {low + crops_per_id}" if low else str(crops_per_id)
        raise ConfigError(
            f"batch_size {batch_size} is not a multiple of crops_per_id {crops_per_id}: a batch contains "
            f"{crops_per_id} crops of each identity. Use a batch_size of {valid}, or another crops_per_id."
        )
    return batch_size // crops_per_id


class _EpochSampler:
    """State common to all samplers: seed, epoch, and the place of this process among all."""

    batch_size: int

    def __init__(self, seed: int, rank: int, world_size: int) -> None:
        check_number("world_size", world_size, 1)
        check_number("rank", rank, 0, world_size - 1)
        check_number("seed", seed)
        self.seed, self.rank, self.world_size, self.epoch = seed, rank, world_size, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose plan the next pass follows. Two passes without it are equal."""
        self.epoch = epoch

    def _generator(self) -> np.random.Generator:
        """Return the generator of the epoch's plan. Its key separates it from the generators of the augmentation."""
        return np.random.default_rng(np.random.SeedSequence((self.seed, self.epoch), spawn_key=(1,)))


class IdentitySampler(_EpochSampler):
    """Batches of P identities × K crops. An epoch shows every image.

    The batch-hard triplet loss (Hermans, Beyer, Leibe 2017, section 2) needs several crops of each identity in a
    batch. An epoch is planned as follows:

    1. An identity with n images gets ceil(n / K) groups of K. Its images, in random order within each camera, are
       dealt to its groups camera after camera, so that each camera is in as many groups as it has images for.
    2. With W ranks, a step takes G = P·W distinct identities. The epoch has
       max(ceil(number of groups / G), groups of the largest identity) steps, the fewest that show every image.
       If steps × G exceeds the number of groups, identities drawn in proportion to their images get one more group.
    3. Steps are filled at random: the probability of an identity is proportional to the number of its remaining groups,
       and an identity that must be in every remaining step is taken first. Then the steps are shuffled.
    4. Each group is filled up to K with the image that occurs least in it, then the image shown least so far, then one
       of the camera that occurs least in it; ties are broken at random.

    Corner cases:

    1. An identity with K or more images never repeats one within its K. One with fewer shows each image floor(K / n)
       or ceil(K / n) times. Over an epoch, the images of an identity are shown as evenly as this allows.
    2. No identity occurs twice in a step, over all ranks, and so no image does (except for 1).
    3. `len()` is exact: it is known before the first pass and is equal for all epochs and ranks.
    4. One identity with very many images makes the epoch as long as its number of groups; the others repeat.
    5. Without cameras (all `camids` equal) groups are random.

    Args:
        pids: `[N]` identity of each crop.
        camids: `[N]` camera of each crop; None without cameras.
        ids_per_batch: P, per rank.
        crops_per_id: K.
        seed: of the generator of (seed, epoch), which is equal on all ranks; each rank takes a slice of one plan.
        rank, world_size: of this process.

    Yields:
        int64 `[P·K]` rows of the crops, the K of an identity side by side.

    Raises:
        ConfigError: P or K below 1.
        DataError: no crops, columns of different lengths, or fewer identities than P × `world_size`.

    Example:
        >>> sampler = IdentitySampler(pids=[7, 7, 7, 8, 8, 9], ids_per_batch=2, crops_per_id=2)
        >>> len(sampler)
        2
        >>> [len(rows) for rows in sampler]
        [4, 4]
    """

    def __init__(
        self,
        pids: ArrayLike,
        camids: ArrayLike | None = None,
        ids_per_batch: int = 16,
        crops_per_id: int = 4,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed, rank, world_size)
        check_number("ids_per_batch", ids_per_batch, 1)
        check_number("crops_per_id", crops_per_id, 1)
        pids = integer_column("pids", pids)
        cameras = np.zeros_like(pids) if camids is None else integer_column("camids", camids, len(pids))
        cameras = separate_unknown(cameras)
        if len(pids) == 0:
            raise DataError("There is no crop to sample from.")
        self.ids_per_batch, self.crops_per_id = ids_per_batch, crops_per_id
        self.batch_size = ids_per_batch * crops_per_id
        known, labels = np.unique(pids, return_inverse=True)
        order = np.argsort(labels.reshape(-1), kind="stable")
        self._images = np.bincount(labels.reshape(-1))
        self._rows = np.split(order.astype(np.int64), np.cumsum(self._images)[:-1])
        self._cameras = [cameras[rows] for rows in self._rows]
        self._groups = -(-self._images // crops_per_id)
        self._ids_per_step = ids_per_batch * world_size
        if len(known) < self._ids_per_step:
            raise DataError(
                f"A step needs {self._ids_per_step} different identities (ids_per_batch {ids_per_batch} × "
                f"world_size {world_size}), but the train set has {len(known)}. Use a smaller batch, or more "
                "crops_per_id at the same batch size."
            )
        self._steps = int(max(-(-self._groups.sum() // self._ids_per_step), self._groups.max()))

    def __len__(self) -> int:
        """The number of batches of an epoch, exactly."""
        return self._steps

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        mine = slice(self.rank * self.ids_per_batch, (self.rank + 1) * self.ids_per_batch)
        for step in self.plan():
            yield step[mine].reshape(-1)

    def plan(self) -> NDArray[np.int64]:
        """Return the epoch of all ranks: rows `[steps, P·W, K]`; rank r takes the identities r·P … (r+1)·P − 1."""
        rng = self._generator()
        counts = self._fill_up(rng)
        ids = self._pack(counts, rng)
        plan = np.empty((*ids.shape, self.crops_per_id), dtype=np.int64)
        where = np.split(np.argsort(ids, axis=None, kind="stable"), np.cumsum(counts)[:-1])
        flat = plan.reshape(-1, self.crops_per_id)
        for rows, cameras, places in zip(self._rows, self._cameras, where, strict=True):
            groups = _deal(rows, cameras, len(places), self.crops_per_id, rng)
            flat[places] = groups[rng.permutation(len(groups))]
        return plan

    def _fill_up(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the groups of each identity `[C]`, which sum to steps × G and do not exceed steps."""
        counts = self._groups.copy()
        missing = self._steps * self._ids_per_step - int(counts.sum())
        id_of_image = np.repeat(np.arange(len(counts)), self._images)
        while missing:
            for i in rng.permutation(id_of_image):
                if not missing:
                    break
                if counts[i] < self._steps:
                    counts[i] += 1
                    missing -= 1
        return counts

    def _pack(self, counts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Identities `[steps, G]`, all different within a step, identity i in `counts[i]` of them.

        Always possible: with R steps left the counts sum to R·G and none is above R, and taking those that equal R
        first keeps it so.
        """
        left = counts.copy()
        ids = np.empty((self._steps, self._ids_per_step), dtype=np.int64)
        for step in range(self._steps):
            with np.errstate(divide="ignore"):
                key = rng.standard_exponential(len(left)) / left
            chosen = self._choose(key, left, left == self._steps - step)
            left[chosen] -= 1
            ids[step] = rng.permutation(chosen)
        return ids[rng.permutation(self._steps)]

    def _choose(self, key: NDArray[np.float64], left: NDArray[np.int64], must: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose the G identities of a step: those that `must` be in it, then those with the smallest random `key`.

        Keys are smaller for identities with more groups `left`.
        """
        key[must] = -1
        return np.argpartition(key, self._ids_per_step - 1)[: self._ids_per_step]


class HardIdentitySampler(IdentitySampler):
    """`IdentitySampler` with hard negatives: similar identities come in one batch.

    Between epochs the trainer finds the most similar other identities of each (`reid.training.hard_identity_mining`)
    and passes them to `set_neighbours`. A step is then filled as follows. Everything else is as in `IdentitySampler`
    (every image is shown, exact length, no identity twice in a step, ranks follow one plan):

    1. An identity that must be in every remaining step is taken first.
    2. An anchor identity is drawn in proportion to its remaining groups. Its `lookalikes` most similar identities that
       have groups left and are not in the step join it.
    3. Step 2 is repeated until the step is full; the last anchor is joined by fewer identities if the step ends.

    Graph sampling (Liao and Shao 2022, "Graph Sampling Based Deep Metric Learning") fills each batch with one anchor
    and its neighbours: `lookalikes` at P − 1 or more. It shows each class as an anchor once per epoch; here an epoch
    shows every image instead, so the last steps, when many identities have no groups left, are less hard.

    Before neighbours are set, steps are those of `IdentitySampler`. The plan depends only on the neighbours and on
    (seed, epoch): a resumed run needs the same neighbours.

    Args:
        args, settings: those of `IdentitySampler`.
        lookalikes: number of similar identities that join each anchor, 1 or more.

    Raises:
        ReidError: as `IdentitySampler`, or `lookalikes` below 1.
    """

    def __init__(self, *args: Any, lookalikes: int = 3, **settings: Any) -> None:
        super().__init__(*args, **settings)
        check_number("lookalikes", lookalikes, 1)
        self.lookalikes = lookalikes
        self.neighbours: NDArray[np.int64] | None = None

    def set_neighbours(self, neighbours: ArrayLike) -> None:
        """Set the most similar identities of each, `[C, M]`, most similar first, as indices into `np.unique(pids)`.

        Use M well above `lookalikes`, because some have no groups left late in an epoch.

        Raises:
            DataError: not one row per identity, or an index out of range.
        """
        table, ids = np.asarray(neighbours), len(self._images)
        if table.ndim != 2 or len(table) != ids or (table.size and not 0 <= table.min() <= table.max() < ids):
            raise DataError(
                f"Neighbours must be [{ids}, M] identity numbers 0 to {ids - 1}, one row per identity; got shape "
                f"{table.shape}."
            )
        self.neighbours = table.astype(np.int64)

    def _choose(self, key: NDArray[np.float64], left: NDArray[np.int64], must: NDArray[np.bool_]) -> NDArray[np.int64]:
        if self.neighbours is None:
            return super()._choose(key, left, must)
        free = (left > 0) & ~must
        chosen = np.flatnonzero(must).tolist()
        for anchor in np.argsort(key):
            if len(chosen) >= self._ids_per_step:
                break
            if free[anchor]:
                similar = self.neighbours[anchor]
                similar = similar[free[similar] & (similar != anchor)][: self.lookalikes]
                joining = [int(anchor), *similar.tolist()][: self._ids_per_step - len(chosen)]
                chosen += joining
                free[joining] = False
        return np.array(chosen)


class RandomSampler(_EpochSampler):
    """Shuffled batches without regard to identity, for losses that need no pairs (softmax only).

    A step takes `batch_size` × `world_size` different crops, divided among the ranks. The remaining crops of an epoch,
    which do not fill a step, are left out (small batches harm batch normalisation); they change every epoch.

    Args:
        n: number of crops.
        batch_size: crops per batch and rank.
        seed, rank, world_size: as in `IdentitySampler`.

    Yields:
        int64 `[batch_size]` rows.

    Raises:
        ConfigError: a batch size below 1.
        DataError: fewer crops than one step takes.

    Example:
        >>> [len(rows) for rows in RandomSampler(10, batch_size=4)]
        [4, 4]
    """

    def __init__(self, n: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(seed, rank, world_size)
        check_number("batch_size", batch_size, 1)
        if n < batch_size * world_size:
            raise DataError(
                f"A step takes {batch_size * world_size} crops (batch_size {batch_size} × world_size {world_size}), "
                f"but the train set has {n}. Use a smaller batch_size."
            )
        self.n, self.batch_size = n, batch_size

    def __len__(self) -> int:
        """The number of batches of an epoch, exactly."""
        return self.n // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        order = self._generator().permutation(self.n)
        steps = order[: len(self) * self.batch_size * self.world_size].reshape(len(self), self.world_size, -1)
        yield from steps[:, self.rank].astype(np.int64)


class BalancedSampler:
    """Batches with equal parts of several sources, whatever their sizes.

    An epoch is as long as that of the sampler with the most batches, so that every image of every source is shown. The
    other samplers continue with further epochs, so that no pass is repeated.

    Args:
        samplers: one per source, all of the same batch size; they yield row numbers within their source.
        rows: for each source, its rows among all crops.

    Yields:
        int64 rows, one part after the other.

    Raises:
        ConfigError: no samplers, another number of `rows`, or different batch sizes.
    """

    def __init__(self, samplers: Sequence[IdentitySampler | RandomSampler], rows: Sequence[NDArray[np.int64]]) -> None:
        sizes = sorted({sampler.batch_size for sampler in samplers})
        if len(sizes) != 1 or len(samplers) != len(rows):
            raise ConfigError(
                f"Balanced batches need a sampler for each source, all of one batch size; there are {len(samplers)} of "
                f"sizes {sizes} for {len(rows)} sources."
            )
        self.samplers, self.rows, self.epoch = list(samplers), list(rows), 0
        self.batch_size = sizes[0] * len(samplers)

    def __len__(self) -> int:
        """The number of batches of an epoch, exactly."""
        return max(map(len, self.samplers))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose plan the next pass follows. Two passes without it are equal."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        parts = [self._part(*source) for source in zip(self.samplers, self.rows, strict=True)]
        for _ in range(len(self)):
            yield np.concatenate([next(part) for part in parts])

    def _part(self, sampler: IdentitySampler | RandomSampler, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        passes = -(-len(self) // len(sampler))
        for number in range(passes):
            sampler.set_epoch(self.epoch * passes + number)
            yield from (rows[index] for index in sampler)


Sampler = IdentitySampler | RandomSampler | BalancedSampler


def _deal(
    rows: NDArray[np.int64], cameras: NDArray[np.int64], n_groups: int, k: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the rows of one identity in groups `[n_groups, k]` (steps 1 and 4 of `IdentitySampler`)."""
    n = len(rows)
    _, camera = np.unique(cameras, return_inverse=True)
    camera = camera.reshape(-1)
    n_cameras = int(camera.max()) + 1
    shuffled = rng.permutation(n)
    dealt = shuffled[np.argsort(rng.permutation(n_cameras)[camera[shuffled]], kind="stable")]
    groups: NDArray[np.int64] = np.full((n_groups, k), -1, dtype=np.int64)
    groups[np.arange(n) % n_groups, np.arange(n) // n_groups] = dealt
    used = np.ones(n, dtype=np.int64)
    for group in groups if n < n_groups * k else ():
        filled = int((group >= 0).sum())
        in_group = np.bincount(group[:filled], minlength=n)
        cameras_in_group = np.bincount(camera[group[:filled]], minlength=n_cameras)
        for slot in range(filled, k):
            seen = cameras_in_group[camera]
            score = (in_group * (int(used.max()) + 1) + used) * (k + 1) + seen
            pick = int(np.argmin(score + rng.random(n)))
            group[slot] = pick
            in_group[pick] += 1
            used[pick] += 1
            cameras_in_group[camera[pick]] += 1
    return rows[groups]
