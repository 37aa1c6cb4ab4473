"""Mining between epochs: similar identities and triplets compared with plain loops, and a run that uses them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reid.config import Config, load_config
from reid.core.errors import ReidError
from reid.models.checkpoints import load_checkpoint
from reid.training.hard_identity_mining import KINDS, draw_rows, nearest_identities, offline_triplets
from reid.training.trainer import Interrupted, train
from tests.oracles import nearest_identities_loop, offline_triplets_loop
from tests.training.runs import ALONE, Record, assert_same_run, stop_at


def made(case: str) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Features, pids, camids."""
    rng = np.random.default_rng(3)
    pids = {
        "ragged, identities of one crop among them": np.repeat([7, -3, 900, 12, 5, 40], [5, 1, 8, 2, 1, 13]),
        "P x K": np.repeat(np.arange(6), 4),
        "one identity": np.zeros(6, np.int64),
        "one crop an identity": np.arange(7),
        "one crop": np.array([3]),
        "two identities": np.array([1, 0, 1, 0, 0]),
        "duplicates": np.repeat(np.arange(5), 4),
        "far from the origin": np.repeat(np.arange(5), 4),
        "whole numbers, many ties": rng.integers(0, 4, 30),
    }[case]
    n = len(pids)
    features = rng.normal(size=(n, 6))
    if case == "duplicates":
        features = np.repeat(features[: n // 2], 2, axis=0)
    if case == "far from the origin":
        features += 1000
    if case == "whole numbers, many ties":
        features = rng.integers(0, 3, (n, 2)).astype(float)
    order = rng.permutation(n)
    return features[order].astype(np.float32), pids[order].astype(np.int64), rng.integers(0, 2, n)


CASES = [
    "ragged, identities of one crop among them", "P x K", "one identity", "one crop an identity", "one crop",
    "two identities", "duplicates", "far from the origin", "whole numbers, many ties",
]  # fmt: skip


@pytest.mark.parametrize("cameras", [False, True], ids=["", "camera-aware"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_triplets_equal_those_of_a_plain_loop(kind: str, case: str, cameras: bool) -> None:
    features, pids, camids = made(case)
    settings = {"camids": camids} if cameras else {}
    found = offline_triplets(features, pids, kind, margin=0.7, seed=5, **settings)
    assert found.dtype == np.int64
    assert found.shape[1:] == (3,)
    assert (np.diff(found[:, 0]) > 0).all()
    draws = np.random.default_rng(5).random((len(pids), 2))
    expected = offline_triplets_loop(features, pids, kind, camids if cameras else None, 0.7, draws)
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.int64).reshape(-1, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_triplets_do_not_depend_on_the_block_size(kind: str) -> None:
    features, pids, _ = made("ragged, identities of one crop among them")
    whole = offline_triplets(features, pids, kind, margin=2.0)
    np.testing.assert_array_equal(whole, offline_triplets(features, pids, kind, margin=2.0, memory_limit=1))
    np.testing.assert_array_equal(whole, offline_triplets(features, pids, kind, margin=2.0, memory_limit=3500))
    assert len(whole)


def test_random_triplets_follow_their_seed_and_reach_every_pair() -> None:
    features, pids, _ = made("P x K")
    same = offline_triplets(features, pids, "random", seed=1)
    np.testing.assert_array_equal(same, offline_triplets(features, pids, "random", seed=1))
    seen = np.concatenate([offline_triplets(features, pids, "random", seed=seed) for seed in range(150)])
    assert len(np.unique(seen[:, :2], axis=0)) == 24 * 3
    assert len(np.unique(seen[:, ::2], axis=0)) == 24 * 20


def test_an_empty_set_has_no_triplets() -> None:
    assert offline_triplets(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "hrad"}, "Unknown kind of triplets 'hrad'.*'hard'"),
        ({"margin": 0.0}, "margin must be above 0; got 0.0"),
        ({"pids": [1, 2]}, "pids must be one column of 3 rows"),
        ({"camids": [1, 2]}, "camids must be one column of 3 rows"),
        (
            {"features": [[0, 1], [np.nan, 1], [2, 2]]},
            "1 of 3 features contain NaN or infinity: rows 1. Lower optim.lr",
        ),
    ],
    ids=["kind", "margin", "pids", "cameras", "NaN"],
)
def test_invalid_arguments_of_offline_triplets_are_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(ReidError, match=words):
        offline_triplets(**{"features": np.zeros((3, 2)), "pids": [1, 1, 2]} | change)


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("case", CASES)
def test_nearest_identities_equal_those_of_a_plain_loop(case: str, k: int) -> None:
    features, pids, _ = made(case)
    if case == "whole numbers, many ties":
        features += 1  # no feature of zeros: its direction is nobody's
    found = nearest_identities(features, pids, k)
    nearest, distances = nearest_identities_loop(features, pids, k)
    assert found.shape == np.shape(nearest) or (found.size == 0 and not np.size(nearest))
    for row, (own, expected) in enumerate(zip(found, nearest, strict=True)):
        reached = [distances[row][other] for other in own]
        np.testing.assert_allclose(reached, [distances[row][other] for other in expected], atol=2e-6)
        assert row not in own
        assert len(set(own.tolist())) == len(own)


def test_draw_rows_takes_every_identity_and_reaches_all_crops_over_epochs() -> None:
    pids = np.random.default_rng(0).permutation(np.repeat([4, 9, 2, 11], [1, 3, 4, 20]))
    seen = set()
    for epoch in range(60):
        rows = draw_rows(pids, 4, 0, epoch)
        assert (np.diff(rows) > 0).all()
        assert dict(zip(*np.unique(pids[rows], return_counts=True), strict=True)) == {2: 4, 4: 1, 9: 3, 11: 4}
        seen |= set(rows.tolist())
    assert seen == set(range(len(pids)))
    np.testing.assert_array_equal(draw_rows(pids, 0, 0, 0), np.arange(len(pids)))
    np.testing.assert_array_equal(draw_rows(pids, 4, 1, 2), draw_rows(pids, 4, 1, 2))


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_1_is_an_error(k: int) -> None:
    with pytest.raises(ReidError, match=f"k must be 1 or more; got {k}"):
        nearest_identities(np.zeros((3, 2)), [1, 2, 3], k)


@pytest.fixture
def settings(tiny_market: Path, tmp_path: Path) -> list[str]:
    return [
        f"data.train=market1501:{tiny_market}",
        f"data.store_dir={tmp_path / 'store'}",
        "model.backbone=light14",
        "model.height=32",
        "model.width=16",
        "augment.pad=2",
        "sampler.kind=hard_identity",
        "sampler.lookalikes=2",
        "sampler.batch_size=12",
        "sampler.crops_per_id=2",
        "schedule.epochs=3",
        "schedule.warmup_epochs=1",
        "eval.split=none",
        "log_every=3",
        "device=cpu",
    ]


def record_neighbours(seen: list[NDArray[np.int64] | None]) -> Record:
    """Record the neighbours that the sampler uses in each epoch."""
    return Record(on_epoch_start=lambda trainer: seen.append(trainer.loader.sampler.neighbours))


@pytest.mark.slow
def test_a_run_mines_before_each_epoch_but_the_first(settings: list[str], tmp_path: Path) -> None:
    seen: list[NDArray[np.int64] | None] = []
    hooks = [record_neighbours(seen)]
    train(load_config(None, settings), tmp_path / "run", ALONE, hooks=hooks)
    assert seen[0] is None
    assert [table.shape for table in seen[1:]] == [(20, 19), (20, 19)]
    assert (seen[1] != seen[2]).any()
    seen.clear()
    train(load_config(None, [*settings, "sampler.mining_every=2"]), tmp_path / "rare", ALONE, hooks=hooks)
    assert seen[0] is seen[1] is None
    assert seen[2] is not None


@pytest.mark.slow
def test_a_run_resumed_within_a_mined_epoch_equals_an_uninterrupted_one(settings: list[str], tmp_path: Path) -> None:
    """All that must come back: look-alikes, a memory, proxies and their optimiser, centres, draws, the watch."""
    losses = {
        "contrastive": {"weight": 0.1, "memory": 30},
        "arcface": {"weight": 0.1},
        "center": {"weight": 0.01, "rate": None, "lr": 0.5},
    }
    more = [
        f"loss.extra={json.dumps(losses)}",
        "loss.mining=distance_weighted",
        "loss.schedules={margin: [[0, 0.1], [1, 0.5]], softmax_weight: [[0, 0], [1, 1]]}",
        "loss.softmax_weight=0",
    ]
    config = load_config(None, [*settings, *more])
    train(config, tmp_path / "whole", ALONE)

    epoch = load_checkpoint(tmp_path / "whole/last.pt")["progress"]["step"] // 3
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", ALONE, hooks=[stop_at(epoch + 4)])
    stopped = load_checkpoint(tmp_path / "parts/last.pt")
    assert (stopped["progress"]["epoch"], stopped["progress"]["batch"]) == (1, 4)
    assert stopped["neighbours"].shape == (20, 19)
    assert stopped["objective"]["extra.contrastive.filled"].any()
    train(Config(), tmp_path / "parts", ALONE, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
