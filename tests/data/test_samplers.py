"""What the identity sampler promises, on the identities of two public sets, on made ones, and on ugly ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reid.core.errors import ReidError
from reid.data.samplers import HardIdentitySampler, IdentitySampler, RandomSampler, ids_per_batch
from tests.oracles import fewest_steps

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
Columns = tuple[NDArray[np.int64], NDArray[np.int64]]


def made(n_ids: int = 751, mean: float = 17.2, most: int = 72, n_cameras: int = 6, seed: int = 0) -> Columns:
    """Identities with 2 … `most` crops, unevenly over 2 or more cameras, as Market-1501's train set has them."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(rng.gamma(2.0, mean / 2, n_ids).astype(int), 2, most)
    sizes[0] = most
    pids, camids = [], []
    for pid, n in enumerate(sizes):
        seen = rng.permutation(n_cameras)[: rng.integers(2, n_cameras + 1)]
        cameras = rng.choice(seen, n, p=rng.dirichlet(np.ones(len(seen))))
        cameras[:2] = seen[:2]
        pids.append(np.full(n, pid * 3 + 1))
        camids.append(cameras)
    order = rng.permutation(int(sizes.sum()))
    return np.concatenate(pids)[order], np.concatenate(camids)[order]


def shared(name: str) -> Columns:
    path = SHARED / f"{name}_train_ids.csv"
    if not path.is_file():
        pytest.skip(f"{path} (identity and camera of each train image) is not here")
    table = np.genfromtxt(path, delimiter=",", skip_header=1, dtype=np.int64)
    return table[:, 0], table[:, 1]


SETS = {
    "Market-1501's train set": lambda: shared("market1501"),
    "DukeMTMC-reID's train set": lambda: shared("dukemtmc"),
    "made, like Market-1501": made,
    "made, like DukeMTMC-reID": lambda: made(702, 23.5, 426, 8, seed=1),
}


def ugly(case: str) -> tuple[NDArray[np.int64], NDArray[np.int64], int, int]:
    """pids, camids, P, K."""
    rng = np.random.default_rng(5)
    pids = {
        "as many identities as P": np.repeat(np.arange(4), [3, 9, 1, 30]),
        "one identity with 500 crops among small ones": np.repeat(np.arange(9), [500, 1, 2, 3, 4, 5, 6, 7, 8]),
        "one crop of each identity": np.arange(37),
        "one identity": np.zeros(11, np.int64),
        "exact multiples": np.repeat(np.arange(16), 8),
        "K of 1": np.repeat(np.arange(10), rng.integers(1, 9, 10)),
        "K above every identity": np.repeat(np.arange(10), rng.integers(1, 9, 10)),
        "negative and huge identities": rng.choice(np.array([-5, 0, 2**60, 7, 9]), 200),
    }[case]
    p, k = {
        "one identity": (1, 4),
        "exact multiples": (8, 4),
        "K of 1": (5, 1),
        "K above every identity": (3, 13),
    }.get(case, (4, 4))
    order = rng.permutation(len(pids))
    return pids[order], rng.integers(-1, 3, len(pids)), p, k


UGLY = [
    "as many identities as P",
    "one identity with 500 crops among small ones",
    "one crop of each identity",
    "one identity",
    "exact multiples",
    "K of 1",
    "K above every identity",
    "negative and huge identities",
]


def check(
    pids: NDArray[np.int64],
    camids: NDArray[np.int64],
    p: int,
    k: int,
    epoch: int = 0,
    sampler: IdentitySampler | None = None,
) -> NDArray[np.int64]:
    """Every promise but those about ranks; returns the epoch `[batches, P, K]`."""
    sampler = sampler or IdentitySampler(pids, camids, ids_per_batch=p, crops_per_id=k, seed=3)
    promised = len(sampler)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == promised == fewest_steps(pids.tolist(), p, k)
    assert all(batch.shape == (p * k,) and batch.dtype == np.int64 for batch in batches)
    steps = np.stack(batches).reshape(-1, p, k)

    assert np.array_equal(np.unique(steps), np.arange(len(pids))), "every image is seen"
    assert (pids[steps] == pids[steps][:, :, :1]).all(), "a row of K is of one identity"
    distinct = np.sort(pids[steps[:, :, 0]], axis=1)
    assert (distinct[:, 1:] != distinct[:, :-1]).all(), "the P identities of a batch differ"

    images = Counter(pids.tolist())
    cameras: dict[int, Counter[int]] = {pid: Counter() for pid in images}
    for pid, camera in zip(pids.tolist(), camids.tolist(), strict=True):
        cameras[pid][camera] += camera != -1  # an unknown camera is not a camera
    groups: dict[int, list[list[int]]] = {pid: [] for pid in images}
    for row in steps.reshape(-1, k).tolist():
        groups[int(pids[row[0]])].append(row)
    for pid, rows in groups.items():
        n = images[pid]
        for row in rows:
            times = Counter(row)
            assert len(times) == min(n, k), "no duplicate while unused images of the identity exist"
            assert set(times.values()) <= {k // n, -(-k // n)} or n >= k, "repeats in a batch are even"
        shown = Counter(i for row in rows for i in row).values()
        assert max(shown) - min(shown) <= 2, "repeats in an epoch are even"
        spread = sum(len({int(camids[i]) for i in row} - {-1}) for row in rows)
        assert spread >= sum(min(n_of, len(rows)) for n_of in cameras[pid].values()), "cameras are spread"
        if n <= k:
            assert spread == len(+cameras[pid]) * len(rows)
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("k", [4, 8, 16])
@pytest.mark.parametrize("case", SETS)
def test_every_image_is_shown_on_realistic_sets(case: str, k: int) -> None:
    pids, camids = SETS[case]()
    steps = check(pids, camids, 64 // k, k)
    large = np.flatnonzero(np.bincount(pids) >= k)
    shown = np.bincount(steps.reshape(-1))[np.isin(pids, large)]
    assert shown.max() <= 3
    assert (shown > 2).mean() < 0.01


@pytest.mark.parametrize("epoch", [0, 1, 7])
@pytest.mark.parametrize("case", UGLY)
def test_every_image_is_shown_on_unbalanced_sets(case: str, epoch: int) -> None:
    check(*ugly(case), epoch=epoch)


@pytest.mark.parametrize("seed", range(15))
def test_every_image_is_shown_on_random_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(30), rng.integers(1, rng.integers(2, 40), 30))
    check(rng.permutation(pids), rng.integers(0, 5, len(pids)), int(rng.integers(1, 31)), int(rng.integers(1, 20)))


@pytest.mark.slow
def test_cameras_are_mixed_more_than_at_random() -> None:
    pids, camids = made()
    steps = check(pids, camids, 16, 4).reshape(-1, 4)
    blind = check(pids, np.zeros_like(camids), 16, 4).reshape(-1, 4)

    def of_one_camera(rows: NDArray[np.int64]) -> float:
        return float((camids[rows] == camids[rows][:, :1]).all(axis=1).mean())

    assert of_one_camera(steps) < 0.5 * of_one_camera(blind)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 8])
def test_ranks_share_one_plan_without_overlap(world: int) -> None:
    pids, camids = made()
    ranks = [IdentitySampler(pids, camids, 8, 4, seed=1, rank=rank, world_size=world) for rank in range(world)]
    for sampler in ranks:
        sampler.set_epoch(2)
    assert {len(sampler) for sampler in ranks} == {fewest_steps(pids.tolist(), 8 * world, 4)}
    batches = np.stack([np.stack(list(sampler)) for sampler in ranks], axis=1)
    assert np.array_equal(np.unique(batches), np.arange(len(pids)))
    for step in batches:
        assert len(np.unique(pids[step])) == 8 * world
    np.testing.assert_array_equal(batches, ranks[0].plan().reshape(batches.shape))


def test_passes_repeat_and_epochs_and_seeds_differ() -> None:
    pids, camids = made(60)
    sampler = IdentitySampler(pids, camids, 4, 4, seed=1)
    first = np.stack(list(sampler))
    np.testing.assert_array_equal(first, np.stack(list(sampler)))
    sampler.set_epoch(1)
    assert (np.stack(list(sampler)) != first).any()
    sampler.set_epoch(0)
    np.testing.assert_array_equal(first, np.stack(list(sampler)))
    assert (np.stack(list(IdentitySampler(pids, camids, 4, 4, seed=2))) != first).any()


def test_the_global_generators_are_not_used() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    list(IdentitySampler(*made(60), 4, 4))
    list(RandomSampler(100, 10))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_an_identity_shares_batches_with_many_others() -> None:
    """Packing is random: in 30 epochs almost every pair of identities shares a batch."""
    pids, camids = made(40, n_cameras=4)
    sampler = IdentitySampler(pids, camids, 8, 4)
    met = np.zeros((40, 40), bool)
    for epoch in range(30):
        sampler.set_epoch(epoch)
        for step in sampler.plan():
            ids = pids[step[:, 0]] // 3
            met[np.ix_(ids, ids)] = True
    assert met.mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pids", "p"),
    [
        pytest.param(made()[0], 16, id="like Market-1501"),
        pytest.param(np.repeat(np.arange(30), [200] * 4 + [20] * 26), 6, id="four identities ten times as large"),
    ],
)
def test_large_identities_are_spread_over_the_epoch(pids: NDArray[np.int64], p: int) -> None:
    """They come as early as late, and do not gather in the same batches."""
    size = np.bincount(pids)
    sampler = IdentitySampler(pids, None, p, 4)
    slopes, clumps = [], []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        sizes = size[pids[sampler.plan()[:, :, 0]]]
        at_random = np.random.default_rng(epoch).permutation(sizes.reshape(-1)).reshape(sizes.shape)
        means = sizes.mean(axis=1)
        slopes.append(np.corrcoef(np.arange(len(means)), means)[0, 1])
        clumps.append(means.std() / at_random.mean(axis=1).std())
    assert abs(np.mean(slopes)) < 0.15
    assert np.mean(clumps) < 1.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"ids_per_batch": 0}, "ids_per_batch must be 1 or more; got 0", id="P of 0"),
        pytest.param({"crops_per_id": -1}, "crops_per_id must be 1 or more; got -1", id="K below 1"),
        pytest.param({"ids_per_batch": 7}, "7 different identities .* has 6", id="fewer identities than P"),
        pytest.param({"ids_per_batch": 4, "world_size": 2}, r"8 different .*world_size 2", id="fewer than P × ranks"),
        pytest.param({"world_size": 2, "rank": 2}, "rank must be 0 or more and at most 1; got 2", id="rank outside"),
        pytest.param({"world_size": 0}, "world_size must be 1 or more; got 0", id="no ranks"),
        pytest.param({"seed": -1}, "seed must be 0 or more; got -1", id="negative seed"),
        pytest.param({"pids": []}, "no crop", id="no crops"),
        pytest.param({"camids": [1, 2]}, "camids must be one column of 18 rows", id="columns differ"),
        pytest.param({"pids": np.zeros((3, 2))}, "pids must be one column", id="a table for a column"),
    ],
)
def test_impossible_settings_raise_an_error(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ReidError, match=message):
        IdentitySampler(**{"pids": np.repeat(np.arange(6), 3), "ids_per_batch": 2, **settings})


def test_groups_without_cameras_are_random() -> None:
    sampler = IdentitySampler(np.repeat(np.arange(6), 3), None, 2, 2)
    assert len(np.unique(np.stack(list(sampler)))) == 18


def test_ids_per_batch() -> None:
    assert ids_per_batch(64, 4) == 16
    with pytest.raises(ReidError, match=r"batch_size 66 is not a multiple of crops_per_id 4.*64 or 68"):
        ids_per_batch(66, 4)
    with pytest.raises(ReidError, match="Use a batch_size of 8"):
        ids_per_batch(3, 8)
    with pytest.raises(ReidError, match="crops_per_id must be 1 or more; got 0"):
        ids_per_batch(64, 0)


def nearest_on_a_line(n_ids: int, k: int) -> NDArray[np.int64]:
    """Identities are on a line in a random order; the neighbours of each are those next to it."""
    place = np.random.default_rng(8).permutation(n_ids)
    distance = np.abs(place[:, None] - place).astype(float)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1, kind="stable")[:, :k]


def look_alike(pids: NDArray[np.int64], camids: NDArray[np.int64], p: int, k: int, lookalikes: int = 3):
    sampler = HardIdentitySampler(pids, camids, p, k, seed=3, lookalikes=lookalikes)
    ids = len(np.unique(pids))
    sampler.set_neighbours(nearest_on_a_line(ids, min(30, max(ids - 1, 0))))
    return sampler


@pytest.mark.parametrize("lookalikes", [1, 3, 100])
@pytest.mark.parametrize("case", UGLY)
def test_hard_identity_sampler_shows_every_image_without_repeats(case: str, lookalikes: int) -> None:
    pids, camids, p, k = ugly(case)
    check(pids, camids, p, k, 2, look_alike(pids, camids, p, k, lookalikes))


@pytest.mark.slow
@pytest.mark.parametrize(("lookalikes", "least"), [(3, 0.5), (7, 0.45), (15, 0.4)])
def test_similar_identities_share_a_batch(lookalikes: int, least: float) -> None:
    """The fraction of identities that share a batch with one of their two neighbours; by chance 2 × 15 / 750."""
    pids, camids = made()
    nearest = nearest_on_a_line(751, 2)

    def meet(steps: NDArray[np.int64]) -> float:
        ids = np.searchsorted(np.unique(pids), pids[steps[:, :, 0]])
        return float(np.mean([np.isin(nearest[step], step).any(axis=1).mean() for step in ids]))

    hard = check(pids, camids, 16, 4, 1, look_alike(pids, camids, 16, 4, lookalikes))
    assert meet(hard) > least
    assert meet(check(pids, camids, 16, 4, 1)) < 0.08


def test_without_neighbours_the_plan_is_that_of_the_identity_sampler() -> None:
    pids, camids = made(60)
    sampler = HardIdentitySampler(pids, camids, 4, 4, seed=1)
    np.testing.assert_array_equal(sampler.plan(), IdentitySampler(pids, camids, 4, 4, seed=1).plan())
    plan = sampler.plan()
    sampler.set_neighbours(nearest_on_a_line(60, 20))
    assert (sampler.plan() != plan).any()
    sampler.neighbours = None
    np.testing.assert_array_equal(sampler.plan(), plan)


def test_the_hard_plan_depends_on_seed_epoch_and_neighbours() -> None:
    pids, camids = made(100)
    ranks = [HardIdentitySampler(pids, camids, 4, 4, 1, rank, 2) for rank in range(2)]
    for sampler in ranks:
        sampler.set_epoch(3)
        sampler.set_neighbours(nearest_on_a_line(100, 20))
    batches = np.stack([np.stack(list(sampler)) for sampler in ranks], axis=1)
    np.testing.assert_array_equal(batches, ranks[0].plan().reshape(batches.shape))
    for step in batches:
        assert len(np.unique(pids[step])) == 8
    assert np.array_equal(np.unique(batches), np.arange(len(pids)))
    ranks[0].set_epoch(4)
    assert (ranks[0].plan() != ranks[1].plan()).any()


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(np.zeros((5, 2), int), id="a row too few"),
        pytest.param(np.zeros(6, int), id="a column"),
        pytest.param(np.full((6, 2), 6), id="an unknown identity"),
        pytest.param(np.full((6, 2), -1), id="a negative number"),
    ],
)
def test_invalid_neighbours_raise_an_error(table: NDArray[np.int64]) -> None:
    sampler = HardIdentitySampler(np.repeat(np.arange(6), 3), None, 2, 2)
    with pytest.raises(ReidError, match=r"\[6, M\] identity numbers 0 to 5"):
        sampler.set_neighbours(table)
    with pytest.raises(ReidError, match="lookalikes must be 1 or more; got 0"):
        HardIdentitySampler(np.repeat(np.arange(6), 3), None, 2, 2, lookalikes=0)


@pytest.mark.parametrize(
    ("n", "batch", "world"),
    [(100, 10, 1), (107, 10, 1), (107, 5, 3), pytest.param(8, 8, 1, id="one batch"), (64, 1, 4)],
)
def test_random_sampler(n: int, batch: int, world: int) -> None:
    ranks = [RandomSampler(n, batch, seed=4, rank=rank, world_size=world) for rank in range(world)]
    steps = n // (batch * world)
    epochs = []
    for epoch in (0, 1):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        parts = np.stack([np.stack(list(sampler)) for sampler in ranks])
        assert parts.shape == (world, steps, batch)
        assert {len(sampler) for sampler in ranks} == {steps}
        assert len(np.unique(parts)) == parts.size, "no crop twice in an epoch, over all ranks"
        assert parts.min() >= 0
        assert parts.max() < n
        np.testing.assert_array_equal(parts[0], np.stack(list(ranks[0])))
        epochs.append(parts)
    assert (epochs[0] != epochs[1]).any()


def test_random_sampler_leaves_out_different_crops_each_epoch() -> None:
    sampler = RandomSampler(25, 10)
    seen = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        seen |= set(np.concatenate(list(sampler)).tolist())
    assert seen == set(range(25))


def test_random_sampler_errors() -> None:
    with pytest.raises(ReidError, match=r"takes 20 crops .* has 19"):
        RandomSampler(19, 10, world_size=2)
    with pytest.raises(ReidError, match="batch_size must be 1 or more; got 0"):
        RandomSampler(19, 0)
