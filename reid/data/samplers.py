"""Which crops make a batch: P identities × K crops each, or plain shuffled batches. Both know ranks and epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import ReidError


def ids_per_batch(batch_size: int, crops_per_id: int) -> int:
    """P of a P×K batch of `batch_size` crops.

    Raises:
        ReidError: either is below 1, or the batch size is not a multiple of the crops per identity.
    """
    _at_least_one("batch_size", batch_size)
    _at_least_one("crops_per_id", crops_per_id)
    if batch_size % crops_per_id:
        low = batch_size // crops_per_id * crops_per_id
        near = f"{low} or {low + crops_per_id}" if low else str(crops_per_id)
        raise ReidError(
            f"batch_size {batch_size} is not a multiple of crops_per_id {crops_per_id}: a batch holds whole "
            f"identities of {crops_per_id} crops each. Use a batch_size of {near}, or another crops_per_id."
        )
    return batch_size // crops_per_id


class IdentitySampler:
    """Batches of P identities × K crops, in which an epoch shows every image.

    The batch-hard triplet loss (Hermans, Beyer, Leibe 2017, section 2) needs several crops of each identity in a
    batch. An epoch is planned as a whole:

    1. An identity with n images makes ceil(n / K) groups of K. Its images, in random order within each camera, are
       dealt to its groups camera after camera, so each camera is in as many groups as it has images for.
    2. With W ranks, a step takes G = P·W distinct identities. The epoch has
       max(ceil(number of groups / G), groups of the largest identity) steps, the fewest that show every image.
       Where steps × G exceeds the number of groups, identities drawn in proportion to their images get a further one.
    3. Steps are filled at random, an identity with probability in proportion to the groups it still has to place;
       one that must be in every step left is taken first. The order of the steps is then shuffled.
    4. Each group is filled up to K by the image that is least in it, then the least shown so far, then of the camera
       least in it; ties at random.

    Behaviour in corner cases:

    1. An identity with ≥ K images never repeats one in its K. One with fewer shows each of its images
       floor(K / n) or ceil(K / n) times. Over an epoch, an identity's images are shown as evenly as that allows.
    2. No identity is twice in a step, over all ranks together, so no image is either (but for 1.).
    3. `len()` is a function of the data: it is known before iterating and the same every epoch and on every rank.
    4. One identity with very many images makes the epoch as long as its own groups; the others repeat meanwhile.
    5. Without cameras (all `camids` equal) groups are random.

    Args:
        pids: `[N]` identity of each crop.
        camids: `[N]` camera of each crop; None without cameras.
        ids_per_batch: P, per rank.
        crops_per_id: K.
        seed: every draw comes from a generator of (seed, epoch), the same on all ranks; ranks take slices of one plan.

    Yields:
        int64 `[P·K]` rows of the crops, the K of an identity side by side.

    Raises:
        ReidError: no crops, columns of different lengths, P or K below 1, or fewer identities than P × `world_size`.
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
        _at_least_one("ids_per_batch", ids_per_batch)
        _at_least_one("crops_per_id", crops_per_id)
        _check_rank(seed, rank, world_size)
        pids = np.asarray(pids)
        cameras = np.zeros(len(pids), dtype=np.int64) if camids is None else np.asarray(camids)
        if pids.ndim != 1 or cameras.shape != pids.shape:
            raise ReidError(f"pids {pids.shape} and camids {cameras.shape} must be two columns of the same length.")
        if len(pids) == 0:
            raise ReidError("There is no crop to sample from.")
        self.ids_per_batch, self.crops_per_id = ids_per_batch, crops_per_id
        self.batch_size = ids_per_batch * crops_per_id
        self.seed, self.rank, self.world_size, self.epoch = seed, rank, world_size, 0

        known, labels = np.unique(pids, return_inverse=True)
        order = np.argsort(labels.reshape(-1), kind="stable")
        self._images = np.bincount(labels.reshape(-1))
        self._rows = np.split(order.astype(np.int64), np.cumsum(self._images)[:-1])
        self._cameras = [cameras[rows] for rows in self._rows]
        self._groups = -(-self._images // crops_per_id)
        self._ids_per_step = ids_per_batch * world_size
        if len(known) < self._ids_per_step:
            raise ReidError(
                f"A step needs {self._ids_per_step} different identities (ids_per_batch {ids_per_batch} × "
                f"world_size {world_size}), but the train set has {len(known)}. Use a smaller batch, or more "
                "crops_per_id at the same batch size."
            )
        self._steps = int(max(-(-self._groups.sum() // self._ids_per_step), self._groups.max()))

    def __len__(self) -> int:
        """The number of batches of an epoch, exactly."""
        return self._steps

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose plan the next pass follows. Two passes without it are the same."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        mine = slice(self.rank * self.ids_per_batch, (self.rank + 1) * self.ids_per_batch)
        for step in self.plan():
            yield step[mine].reshape(-1)

    def plan(self) -> NDArray[np.int64]:
        """The whole epoch for all ranks: rows `[steps, P·W, K]`, rank r's identities at r·P … (r+1)·P − 1."""
        rng = _generator(self.seed, self.epoch)
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
        """Groups per identity `[C]` that sum to steps × G, none above steps."""
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
            chosen = self._choose(left, left == self._steps - step, rng)
            left[chosen] -= 1
            ids[step] = rng.permutation(chosen)
        return ids[rng.permutation(self._steps)]

    def _choose(self, left: NDArray[np.int64], must: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """The G different identities of a step: those that `must` be in it, and others by the groups they have left."""
        with np.errstate(divide="ignore"):
            key = rng.standard_exponential(len(left)) / left
        key[must] = -1
        return np.argpartition(key, self._ids_per_step - 1)[: self._ids_per_step]


class HardIdentitySampler(IdentitySampler):
    """`IdentitySampler`, but identities that look alike share a batch: hard negatives by choice, not by chance.

    Between epochs the trainer finds the nearest other identities of each (`reid.training.hard_identity_mining`) and
    passes them to `set_neighbours`. A step is then filled as follows; everything else is as in `IdentitySampler`,
    and all that it promises holds (every image shown, exact length, no identity twice in a step, ranks share one
    plan):

    1. An identity that must be in every step left is taken first.
    2. An anchor identity is drawn in proportion to the groups it still has to place, and with it come its
       `lookalikes` nearest that still have one and are not in the step yet.
    3. Again from 2, until the step is full; the last anchor brings fewer where the step ends.

    Graph sampling (Liao and Shao 2022, "Graph Sampling Based Deep Metric Learning") fills each batch with one anchor
    and its nearest: `lookalikes` at P − 1 or more. It shows each class as an anchor once an epoch; here an epoch shows
    every image instead, so that late steps, when many identities are used up, are less hard.

    Before neighbours are set, steps are those of `IdentitySampler`. The plan depends on them, on (seed, epoch) and on
    nothing else: a resumed run needs the same neighbours.

    Args:
        lookalikes: 1 or more; all others as in `IdentitySampler`.

    Raises:
        ReidError: as `IdentitySampler`, or `lookalikes` below 1.
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
        lookalikes: int = 3,
    ) -> None:
        super().__init__(pids, camids, ids_per_batch, crops_per_id, seed, rank, world_size)
        _at_least_one("lookalikes", lookalikes)
        self.lookalikes = lookalikes
        self.neighbours: NDArray[np.int64] | None = None

    def set_neighbours(self, neighbours: ArrayLike | None) -> None:
        """Take each identity's nearest others, `[C, M]`, nearest first, as numbers in the order of `np.unique(pids)`.

        None: none are known. A row should hold well more than `lookalikes`, for some are used up late in an epoch.

        Raises:
            ReidError: not one row an identity, or a number that is none's.
        """
        if neighbours is None:
            self.neighbours = None
            return
        table = np.asarray(neighbours)
        ids = len(self._images)
        if table.ndim != 2 or len(table) != ids or (table.size and not 0 <= table.min() <= table.max() < ids):
            raise ReidError(
                f"Neighbours must be a table [{ids}, M] of identity numbers 0 to {ids - 1}, one row an identity; got "
                f"shape {table.shape}."
            )
        self.neighbours = table.astype(np.int64)

    def _choose(self, left: NDArray[np.int64], must: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        if self.neighbours is None:
            return super()._choose(left, must, rng)
        free = (left > 0) & ~must
        chosen = np.flatnonzero(must).tolist()
        with np.errstate(divide="ignore"):
            order = np.argsort(rng.standard_exponential(len(left)) / left)
        for anchor in order:
            if len(chosen) >= self._ids_per_step:
                break
            if free[anchor]:
                near = self.neighbours[anchor]
                near = near[free[near] & (near != anchor)][: self.lookalikes]
                some = [int(anchor), *near.tolist()][: self._ids_per_step - len(chosen)]
                chosen += some
                free[some] = False
        return np.array(chosen)


class RandomSampler:
    """Shuffled batches without regard to identity, for losses that need no pairs (softmax only).

    A step takes `batch_size` × `world_size` different crops, cut into ranks. The remainder of an epoch that does not
    fill a step is left out (batch normalisation dislikes small batches); which crops these are changes every epoch.

    Args:
        n: number of crops.
        batch_size: crops per batch and rank.

    Yields:
        int64 `[batch_size]` rows.

    Raises:
        ReidError: fewer crops than one step takes, or a batch size below 1.
    """

    def __init__(self, n: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        _at_least_one("batch_size", batch_size)
        _check_rank(seed, rank, world_size)
        if n < batch_size * world_size:
            raise ReidError(
                f"A step takes {batch_size * world_size} crops (batch_size {batch_size} × world_size {world_size}), "
                f"but the train set has {n}. Use a smaller batch_size."
            )
        self.n, self.batch_size = n, batch_size
        self.seed, self.rank, self.world_size, self.epoch = seed, rank, world_size, 0

    def __len__(self) -> int:
        """The number of batches of an epoch, exactly."""
        return self.n // (self.batch_size * self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next pass follows. Two passes without it are the same."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        order = _generator(self.seed, self.epoch).permutation(self.n)
        steps = order[: len(self) * self.batch_size * self.world_size].reshape(len(self), self.world_size, -1)
        yield from steps[:, self.rank].astype(np.int64)


class BalancedSampler:
    """Batches of equal parts from each of several samplers: sources of different sizes teach alike.

    An epoch is as long as that of the sampler with the most batches, so that every image of every source is shown; the
    others go on with further epochs of their own meanwhile, so that no pass is shown twice.

    Args:
        samplers: one a source, of the same batch size, which give rows of that source.
        rows: `[n]` of each source, its rows among all.

    Yields:
        int64, the parts one after the other.

    Raises:
        ReidError: no samplers, not as many `rows`, or batches of different sizes.
    """

    def __init__(self, samplers: Sequence[IdentitySampler | RandomSampler], rows: Sequence[NDArray[np.int64]]) -> None:
        sizes = sorted({sampler.batch_size for sampler in samplers})
        if len(sizes) != 1 or len(samplers) != len(rows):
            raise ReidError(
                f"Balanced batches need a sampler for each source, all of one batch size; there are {len(samplers)} of "
                f"sizes {sizes} for {len(rows)} sources."
            )
        self.samplers, self.rows, self.epoch = list(samplers), list(rows), 0
        self.batch_size = sizes[0] * len(samplers)

    def __len__(self) -> int:
        """The number of batches of an epoch, exactly."""
        return max(map(len, self.samplers))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose plan the next pass follows. Two passes without it are the same."""
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
    """Rows of one identity in groups `[n_groups, k]`, as `IdentitySampler` says (steps 1 and 4)."""
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
        here = np.bincount(group[:filled], minlength=n)
        cameras_here = np.bincount(camera[group[:filled]], minlength=n_cameras)
        for slot in range(filled, k):
            seen = cameras_here[camera]
            score = (here * (int(used.max()) + 1) + used) * (k + 1) + seen
            pick = int(np.argmin(score + rng.random(n)))
            group[slot] = pick
            here[pick] += 1
            used[pick] += 1
            cameras_here[camera[pick]] += 1
    return rows[groups]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    """The generator of an epoch's plan. Its key keeps it apart from the generators that augment the batches."""
    return np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(1,)))


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ReidError(f"{name} is {value}; it must be 1 or more.")


def _check_rank(seed: int, rank: int, world_size: int) -> None:
    _at_least_one("world_size", world_size)
    if not 0 <= rank < world_size:
        raise ReidError(f"rank is {rank}; with world_size {world_size} it must be 0 to {world_size - 1}.")
    if seed < 0:
        raise ReidError(f"seed is {seed}; it must be 0 or more.")
