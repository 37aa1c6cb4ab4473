"""Tests of batches, prefetching and errors in the background thread."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from reid.config import AugmentConfig
from reid.core.errors import ReidError
from reid.data.augment import Augment
from reid.data.crops import Crops
from reid.data.loader import Batch, LoaderOptions, TrainLoader, read_batches
from reid.data.samplers import IdentitySampler, RandomSampler
from reid.data.store import PackedStore

Data = tuple[Crops, PackedStore]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("loader")
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(48)]
    for path in paths:
        cv2.imwrite(str(path), rng.integers(0, 256, (32, 16, 3), dtype=np.uint8))
    crops = Crops.from_columns(paths, np.repeat([7, 30, 31, 40, 41, 50, 60, 90], 6), np.tile([1, 2, 3], 16))
    return crops, PackedStore.build(crops, folder / "store", size=(32, 16))


def loader(data: Data, **options: object) -> TrainLoader:
    crops, store = data
    sampler = IdentitySampler(crops.pids, crops.camids, 4, 3, seed=1)
    return TrainLoader(
        store, crops.labels()[0], crops, sampler, Augment((32, 16), AugmentConfig(pad=3)), LoaderOptions(**options)
    )


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one, other, strict=True)
        for name in ("images", "labels", "pids", "camids", "index")
    )


def no_batch_threads() -> bool:
    return not any(thread.name.startswith("reid-batches") for thread in threading.enumerate())


def test_batches_contain_the_rows_of_the_sampler(data: Data) -> None:
    crops, store = data
    batches = list(loader(data))
    assert len(batches) == len(loader(data)) == 4
    _, pid_of_label = crops.labels()
    for batch in batches:
        assert batch.images.shape == (12, 32, 16, 3)
        assert batch.images.dtype == torch.uint8
        assert {t.dtype for t in (batch.labels, batch.pids, batch.camids, batch.index)} == {torch.int64}
        index = batch.index.numpy()
        np.testing.assert_array_equal(batch.pids.numpy(), crops.pids[index])
        np.testing.assert_array_equal(batch.camids.numpy(), crops.camids[index])
        np.testing.assert_array_equal(pid_of_label[batch.labels.numpy()], batch.pids.numpy())
    (first, *_) = batches
    by_hand = Augment((32, 16), AugmentConfig(pad=3))(store.read(first.index), np.random.default_rng((0, 0, 0, 0)))
    np.testing.assert_array_equal(first.images.numpy(), by_hand)


@pytest.mark.parametrize("paced", [False, True])
@pytest.mark.parametrize("prefetch", [1, 2, 8])
def test_batches_do_not_depend_on_prefetch(prefetch: int, paced: bool, data: Data) -> None:
    plain, ahead = loader(data, prefetch=0), loader(data, prefetch=prefetch, paced=paced)
    for epoch in (0, 3):
        plain.set_epoch(epoch)
        ahead.set_epoch(epoch)
        assert same(list(plain), list(ahead))
    assert no_batch_threads()


def test_passes_repeat_and_epochs_seeds_and_ranks_differ(data: Data) -> None:
    batches = loader(data)
    first = list(batches)
    assert same(first, list(batches))
    batches.set_epoch(1)
    second = list(batches)
    assert not same(first, second)
    for other in (loader(data, seed=1), loader(data, rank=1, world_size=2)):
        assert torch.equal(next(iter(other)).index, first[0].index)
        assert not torch.equal(next(iter(other)).images, first[0].images)


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_start_at_skips_batches_of_one_pass(start: int, data: Data) -> None:
    batches = loader(data)
    batches.set_epoch(2)
    whole = list(batches)
    batches.start_at(start)
    assert len(batches) == 4
    assert same(list(batches), whole[start:])
    assert same(list(batches), whole), "the pass after it is whole"


def test_start_at_may_precede_set_epoch(data: Data) -> None:
    batches = loader(data)
    batches.set_epoch(2)
    whole = list(batches)
    other = loader(data)
    other.start_at(3)
    other.set_epoch(2)
    assert same(list(other), whole[3:])
    with pytest.raises(ReidError, match="first batch of the epoch must be 0 or more and at most 4; got 5"):
        other.start_at(5)


class FailingStore:
    """A store whose read number `fail_at` fails."""

    size = (32, 16)
    kept = np.ones(48, bool)
    unreadable = ()

    def __init__(self, fail_at: int = 3) -> None:
        self.reads, self.fail_at = 0, fail_at

    def __len__(self) -> int:
        return 48

    def read(self, index: ArrayLike, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        self.reads += 1
        if self.reads == self.fail_at:
            raise ReidError("disk failure")
        return np.zeros((len(np.asarray(index)), 32, 16, 3), np.uint8)


@pytest.mark.parametrize("prefetch", [0, 2, 8])
def test_an_error_arrives_after_the_batches_before_it(prefetch: int, data: Data) -> None:
    taken = []
    with pytest.raises(ReidError, match="disk failure"):
        taken.extend(loader((data[0], FailingStore()), prefetch=prefetch))
    batches = iter(loader((data[0], FailingStore()), prefetch=prefetch))
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(ReidError, match="disk failure"):
        next(batches)
    assert no_batch_threads()


@pytest.mark.parametrize("paced", [False, True])
@pytest.mark.parametrize("prefetch", [1, 8])
def test_a_consumer_that_stops_leaves_no_thread(prefetch: int, paced: bool, data: Data) -> None:
    for _ in loader(data, prefetch=prefetch, paced=paced):
        break
    assert no_batch_threads()
    batches = iter(loader(data, prefetch=prefetch, paced=paced))
    next(batches)
    del batches
    assert no_batch_threads()

    def failing_consumer() -> None:
        for _ in loader(data, prefetch=prefetch):
            raise RuntimeError("of the consumer")

    with pytest.raises(RuntimeError, match="of the consumer"):
        failing_consumer()
    assert no_batch_threads()


def test_prefetch_limits_the_batches_read_ahead(data: Data) -> None:
    store = FailingStore(fail_at=-1)
    batches = iter(loader((data[0], store), prefetch=1))
    next(batches)
    time.sleep(0.2)
    assert store.reads <= 3
    del batches


@pytest.mark.slow
def test_a_paced_batch_is_made_after_make_next(data: Data) -> None:
    store = FailingStore(fail_at=-1)
    paced = loader((data[0], store), prefetch=1, paced=True)
    batches = iter(paced)
    next(batches)
    time.sleep(0.2)
    read = store.reads
    assert read <= 2  # the first was asked for and may have been made ahead too
    paced.make_next()
    deadline = time.monotonic() + 10
    while store.reads == read and time.monotonic() < deadline:
        time.sleep(0.01)
    assert store.reads == read + 1
    time.sleep(0.2)
    assert store.reads == read + 1
    assert len(list(batches)) == 3  # the others arrive without make_next
    assert no_batch_threads()


def test_without_augmentation_and_with_random_batches(data: Data) -> None:
    crops, store = data
    batches = TrainLoader(store, crops.labels()[0], crops, RandomSampler(48, 10), None)
    assert len(batches) == 4
    for batch in batches:
        np.testing.assert_array_equal(batch.images.numpy(), store.read(batch.index))


def test_crops_of_many_native_sizes_are_resized_to_one_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), rng.integers(0, 256, (20 + i, 10, 3), dtype=np.uint8))
    crops = Crops.from_columns(paths, [0, 0, 1, 1, 2, 2, 3, 3])
    store = PackedStore.build(crops, tmp_path / "store", size=None)
    augment = Augment((16, 8), AugmentConfig(flip=0, pad=0, erase=0))
    for batch in TrainLoader(store, crops.pids, crops, IdentitySampler(crops.pids, None, 2, 2), augment):
        np.testing.assert_array_equal(batch.images.numpy(), store.read(batch.index, (16, 8)))


def test_inputs_of_different_lengths_raise_an_error(data: Data) -> None:
    crops, store = data
    sampler = RandomSampler(48, 10)
    with pytest.raises(ReidError, match="store has 48 rows, crops 48 and labels 3"):
        TrainLoader(store, [0, 1, 2], crops, sampler, None)
    with pytest.raises(ReidError, match="prefetch must be 0 or more; got -1"):
        TrainLoader(store, crops.pids, crops, sampler, None, LoaderOptions(prefetch=-1))


@pytest.mark.parametrize(
    ("rows", "batch_size", "lengths"),
    [
        pytest.param(np.arange(48), 20, [20, 20, 8], id="the last is shorter"),
        pytest.param(np.arange(47, -1, -3), 4, [4, 4, 4, 4], id="any order, even"),
        pytest.param(np.arange(0), 4, [], id="nothing"),
        pytest.param(np.array([5, 5]), 64, [2], id="one short batch, a row twice"),
    ],
)
def test_read_batches_yields_all_rows_in_order(
    rows: NDArray[np.int64], batch_size: int, lengths: list[int], data: Data
) -> None:
    _, store = data
    batches = list(read_batches(store, rows, batch_size))
    assert [len(batch) for batch in batches] == lengths
    assert all(batch.dtype == torch.uint8 for batch in batches)
    if lengths:
        np.testing.assert_array_equal(torch.cat(batches).numpy(), store.read(rows))
    assert no_batch_threads()


def test_read_batches_needs_a_positive_batch_size(data: Data) -> None:
    with pytest.raises(ReidError, match="batch_size must be 1 or more; got 0"):
        list(read_batches(data[1], [0], 0))
