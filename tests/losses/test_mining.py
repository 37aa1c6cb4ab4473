from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.losses import MINERS, MINING_NAMES, batch_all, mine_triplets
from reid.losses import mining as module
from reid.losses.mining import HARDNESS_MINERS, pair_masks
from tests.losses.batches import PIDS, ragged_batch, repeated
from tests.oracles import candidates_loop, distance_weights_loop, mined_loop

FIXED = ["batch_hard", "easy_positive", "hardest_negative", "semi_hard", "weighted"]
DRAWING = ["random", "distance_weighted"]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def select(mining, distances, pids, camids=None, hardness=1.0, seed=0):
    features = torch.randn(len(pids), 5, generator=torch.Generator().manual_seed(seed + 100))
    generator = torch.Generator().manual_seed(seed)
    return mine_triplets(mining, distances, pids, camids, hardness=hardness, generator=generator, features=features)


def picked(positive, negative, valid):
    """[(anchor, d_ap, d_an), …], sorted."""
    anchors = torch.arange(len(valid)).view(-1, *[1] * (valid.ndim - 1)).expand_as(valid)
    return sorted(zip(*(t[valid].tolist() for t in (anchors, positive, negative)), strict=True))


def same_triplets(got, truth):
    assert [t[0] for t in got] == [t[0] for t in sorted(truth)]
    if truth:
        np.testing.assert_allclose(got, sorted(truth), rtol=1e-6)


def test_names_of_all_miners():
    assert {"batch_all", *FIXED, *DRAWING} == set(MINING_NAMES) == {"batch_all", *MINERS}
    assert set(HARDNESS_MINERS) < set(MINERS)


@pytest.mark.parametrize("cameras", [False, True], ids=["any camera", "other cameras first"])
@pytest.mark.parametrize("mining", FIXED)
@pytest.mark.parametrize("pids", PIDS)
def test_equals_the_loop(pids, mining, cameras):
    distances = draw(len(pids), len(pids), seed=1)
    camids = torch.arange(len(pids)) % 3 if cameras else None
    got = select(mining, distances, pids, camids)
    truth = mined_loop(mining, distances.double().tolist(), pids.tolist(), camids.tolist() if cameras else None)
    same_triplets(picked(*got), truth)
    assert (got[0][~got[2]] == 0).all()
    assert (got[1][~got[2]] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("mining", FIXED)
def test_equals_the_loop_on_random_ragged_batches(mining, seed, dtype):
    """Half of them with ties: distances rounded to tenths."""
    pids, camids = ragged_batch(seed)
    distances = draw(len(pids), len(pids), seed=seed, dtype=torch.float64).to(dtype)
    if seed % 2:
        distances = (10 * distances).round() / 10
    got = select(mining, distances, pids, camids)
    same_triplets(picked(*got), mined_loop(mining, distances.double().tolist(), pids.tolist(), camids.tolist()))


def test_semi_hard_by_passes_and_by_sorting_are_the_same(monkeypatch):
    """The one is for few positives an anchor, the other for many."""
    pids, _ = ragged_batch(3, most=200)
    distances = (20 * draw(len(pids), len(pids))).round()
    monkeypatch.setattr(module, "_NARROW", 10**9)
    by_passes = picked(*select("semi_hard", distances, pids))
    monkeypatch.setattr(module, "_NARROW", 0)
    assert by_passes == picked(*select("semi_hard", distances, pids))


def test_semi_hard_without_a_farther_negative_takes_the_farthest():
    distances = torch.tensor([[0.0, 5.0, 1.0, 3.0], [5.0, 0.0, 5.0, 6.0], [1.0, 5.0, 0.0, 2.0], [3.0, 6.0, 2.0, 0.0]])
    positive, negative, valid = select("semi_hard", distances, torch.tensor([0, 0, 1, 2]))
    assert valid[:, 0].tolist() == [True, True, False, False]
    assert positive[:2, 0].tolist() == [5, 5]
    assert negative[:2, 0].tolist() == [3, 6]  # anchor 1: a tie at 5 is not farther


@pytest.mark.parametrize("pids", PIDS)
def test_each_pair_is_positive_negative_or_itself(pids):
    positives, negatives = pair_masks(pids)
    for i in range(len(pids)):
        for j in range(len(pids)):
            assert positives[i, j].item() == (i != j and pids[i] == pids[j])
            assert negatives[i, j].item() == (pids[i] != pids[j])


@pytest.mark.parametrize("mining", [*FIXED, *DRAWING])
def test_an_anchor_is_never_its_own_positive(mining):
    """With distances that do not vanish on the diagonal, as other measures may have."""
    distances = torch.full((4, 4), 0.5).fill_diagonal_(9.0)
    positive, negative, valid = select(mining, distances, torch.tensor([0, 0, 1, 1]))
    assert valid.any(dim=-1).all()
    assert (positive[valid] == 0.5).all()
    assert (negative[valid] == 0.5).all()


def test_only_one_of_equal_distances_gets_the_gradient():
    distances = torch.ones(5, 5, requires_grad=True)
    positive, negative, _ = mine_triplets("batch_hard", distances, torch.tensor([0, 0, 0, 1, 1]))
    (positive[0] + negative[0]).backward()
    assert distances.grad[0].sort().values.tolist() == [0, 0, 0, 1, 1]
    assert distances.grad[1:].abs().sum() == 0


@pytest.mark.parametrize("mining", [*FIXED, *DRAWING])
@pytest.mark.parametrize("pids", [repeated([1] * 4), repeated([4]), repeated([1])], ids=["singles", "one id", "B = 1"])
def test_anchors_without_a_triplet_get_no_gradient(mining, pids):
    distances = draw(len(pids), len(pids)).requires_grad_()
    positive, negative, valid = select(mining, distances, pids)
    assert not valid.any()
    (positive.sum() + negative.sum()).backward()
    assert (distances.grad == 0).all()


@pytest.mark.parametrize("mining", [*FIXED, *DRAWING])
def test_an_empty_batch(mining):
    distances = torch.zeros(0, 0, requires_grad=True)
    positive, negative, valid = select(mining, distances, torch.zeros(0, dtype=torch.int64))
    assert positive.numel() == negative.numel() == valid.numel() == 0
    (positive - negative).sum().backward()
    assert distances.grad.shape == (0, 0)


def test_a_nan_distance_gives_nan():
    distances = draw(4, 4)
    distances[0, 1] = distances[2, 1] = torch.nan
    positive, negative, valid = mine_triplets("batch_hard", distances, torch.tensor([0, 0, 1, 1]))
    assert valid.all()
    assert torch.isnan(positive).tolist() == [True, False, False, False]
    assert torch.isnan(negative).tolist() == [False, False, True, False]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mining", [*HARDNESS_MINERS, *DRAWING])
def test_draws_are_candidates_in_ragged_batches(mining, seed):
    pids, camids = ragged_batch(seed)
    distances = draw(len(pids), len(pids), seed=seed)
    candidates = candidates_loop(pids.tolist(), camids.tolist())
    for hardness in (0.0, 0.4, 0.97) if mining in HARDNESS_MINERS else (1.0,):
        got = picked(*select(mining, distances, pids, camids, hardness, seed))
        assert {a for a, _, _ in got} == set(candidates)
        for a, ap, an in got:
            positives, negatives = candidates[a]
            assert ap in distances[a, positives].tolist()
            assert an in distances[a, negatives].tolist()


ONE = torch.tensor([0] * 5 + list(range(1, 9)))
"""Anchors 0–4 with 4 positives and 8 negatives each."""


@pytest.mark.slow
@pytest.mark.parametrize("hardness", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("mining", HARDNESS_MINERS)
def test_hardness_draws_from_the_hardest_fraction(mining, hardness):
    """Frequencies over many draws against: rank r of n candidates with chance |[r, r+1] ∩ [0, s]| / s, s = (1−h)·n."""
    distances = draw(13, 13, seed=2)
    distances[0, 1:5] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    distances[0, 5:] = torch.tensor([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75])
    draws = 900
    generator = torch.Generator().manual_seed(1)
    drawn = [mine_triplets(mining, distances, ONE, hardness=hardness, generator=generator) for _ in range(draws)]

    def chances(n):
        fraction = max(1.0, (1 - hardness) * n)
        return [max(0.0, min(r + 1, fraction) - r) / fraction for r in range(n)]

    def assert_drawn(values, ranked):
        seen = [sum(abs(v - r) < 1e-6 for v in values) / len(values) for r in ranked]
        assert sum(seen) == pytest.approx(1)
        assert np.abs(np.subtract(seen, chances(len(ranked)))).max() < 4 * 0.5 / np.sqrt(draws)

    nearest_first = distances[0, 5:].sort().values.tolist()
    if mining in ("batch_hard", "easy_positive"):
        assert_drawn([n[0].item() for _, n, _ in drawn], nearest_first)
        positives = [p[0].item() for p, _, _ in drawn]
        if mining == "batch_hard":
            assert_drawn(positives, [0.4, 0.3, 0.2, 0.1])
        else:
            assert positives == pytest.approx([0.1] * draws)
    else:
        column = drawn[0][0][0].sub(0.3).abs().argmin()
        beyond = 0.3 if mining == "semi_hard" else 0.0
        assert_drawn([n[0, column].item() for _, n, _ in drawn], [v for v in nearest_first if v > beyond])


@pytest.mark.parametrize("mining", HARDNESS_MINERS)
def test_hardness_one_is_the_limit(mining):
    pids, camids = ragged_batch(5)
    distances = draw(len(pids), len(pids))
    assert picked(*select(mining, distances, pids, camids, 1 - 1e-9)) == picked(
        *select(mining, distances, pids, camids)
    )


def test_random_draws_all_with_equal_chances():
    distances = torch.arange(13.0).repeat(13, 1)
    generator = torch.Generator().manual_seed(1)
    drawn = [mine_triplets("random", distances, ONE, generator=generator) for _ in range(1000)]
    for values, candidates in (([p[0] for p, _, _ in drawn], range(1, 5)), ([n[0] for _, n, _ in drawn], range(5, 13))):
        seen = torch.bincount(torch.stack(values).long(), minlength=13)[list(candidates)]
        assert seen.sum() == 1000
        assert (seen / 1000 - 1 / len(candidates)).abs().max() < 4 * 0.5 / np.sqrt(1000)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["spread over the sphere", "some too near", "all beyond the farthest"])
def test_distance_weighted_draws_as_the_paper_says(case):
    features = torch.randn(13, 4, generator=torch.Generator().manual_seed(3))
    if case == "some too near":
        features[6:9] = features[0] + 0.1 * features[6:9]
    if case == "all beyond the farthest":
        features[5:] = -features[0] + 0.2 * features[5:]
    distances = torch.arange(13.0).repeat(13, 1)
    generator = torch.Generator().manual_seed(1)
    drawn = [
        mine_triplets("distance_weighted", distances, ONE, features=features, generator=generator).negative[0]
        for _ in range(500)
    ]
    seen = torch.bincount(torch.stack(drawn).flatten().long(), minlength=13)[5:]
    chances = distance_weights_loop(features.tolist(), 0, range(5, 13))
    assert seen.sum() == 2000
    assert np.abs(seen.numpy() / 2000 - chances).max() < 4 * 0.5 / np.sqrt(2000)


@pytest.mark.parametrize("mining", DRAWING)
def test_a_generator_decides_and_nothing_global_is_drawn(mining):
    pids = repeated([4] * 8)
    distances = draw(32, 32)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = picked(*select(mining, distances, pids, seed=1))
    assert first == picked(*select(mining, distances, pids, seed=1)) != picked(*select(mining, distances, pids, seed=2))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("margin", [0.3, 0.0, 5.0, None])
@pytest.mark.parametrize("pids", PIDS)
def test_batch_all_equals_the_loop(pids, margin):
    distances = draw(len(pids), len(pids), seed=1)
    total, violated, count = batch_all(distances, pids, margin)
    differences = [ap - an for _, ap, an in mined_loop("batch_all", distances.double().tolist(), pids.tolist())]
    losses = [np.log1p(np.exp(x)) if margin is None else max(0.0, x + margin) for x in differences]
    assert total.item() == pytest.approx(sum(losses), rel=1e-5)
    assert violated.item() == sum(x >= 0 if margin is None else x + margin > 0 for x in differences)
    assert count.item() == len(differences)


def all_triplets(distances, pids, margin, camids=None):
    """B³, by broadcasting."""
    positives, negatives = pair_masks(pids, camids)
    x = distances.unsqueeze(2) - distances.unsqueeze(1)
    losses = torch.nn.functional.softplus(x) if margin is None else (x + margin).relu()
    return (losses * (positives.unsqueeze(2) & negatives.unsqueeze(1))).sum()


@pytest.mark.parametrize("block", [1, 500, 2**20], ids=["a row a block", "some rows", "one block"])
@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("seed", range(4))
def test_batch_all_and_its_gradient_are_those_of_all_triplets(seed, margin, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    pids, camids = ragged_batch(seed)
    distances = draw(len(pids), len(pids), seed=seed, dtype=torch.float64)
    if seed % 2:
        distances = (8 * distances).round() / 8  # ties, and margins met exactly
        margin = margin and 0.25
    tested, other = distances.clone().requires_grad_(), distances.clone().requires_grad_()
    total = batch_all(tested, pids, margin, camids)[0]
    expected = all_triplets(other, pids, margin, camids)
    torch.testing.assert_close(total, expected)
    (3 * total).backward()
    (3 * expected).backward()
    torch.testing.assert_close(tested.grad, other.grad)


def test_batch_all_of_one_large_identity_does_not_make_its_triplets():
    """1,000 crops of one person and 24 others: 24 million triplets, checked an anchor at a time."""
    pids = torch.cat([torch.zeros(1000, dtype=torch.int64), torch.arange(1, 25)])
    distances = draw(1024, 1024, dtype=torch.float64)
    expected = 0.0
    for a in range(1000):
        d_ap = torch.cat([distances[a, :a], distances[a, a + 1 : 1000]])
        expected += (d_ap.unsqueeze(1) - distances[a, 1000:] + 0.3).relu().sum().item()
    total, _, count = batch_all(distances, pids, 0.3)
    assert total.item() == pytest.approx(expected)
    assert count == 1000 * 999 * 24


def test_batch_all_has_no_second_derivative():
    """Better refused than wrong: its gradient is kept as numbers."""
    distances = draw(6, 6).requires_grad_()
    total = batch_all(distances, repeated([3, 3]), None)[0].square()
    (gradient,) = torch.autograd.grad(total, distances, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_batch_all_of_an_empty_batch():
    distances = torch.zeros(0, 0, requires_grad=True)
    total, violated, count = batch_all(distances, torch.zeros(0, dtype=torch.int64))
    total.backward()
    assert (total, violated, count) == (0, 0, 0)


@pytest.mark.parametrize("shape", [(3, 4), (4, 4), (3,)])
@pytest.mark.parametrize("mining", MINING_NAMES)
def test_wrong_shapes_are_named(mining, shape):
    pids = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ReidError, match=r"distances \[B, B\]"):
        batch_all(torch.zeros(shape), pids) if mining == "batch_all" else select(mining, torch.zeros(shape), pids)


def test_wrong_arguments_are_named():
    pids = torch.tensor([0, 0, 1])
    with pytest.raises(ReidError, match=r"camids like pids, \[3\]; got \[2\]"):
        mine_triplets("batch_hard", torch.zeros(3, 3), pids, torch.zeros(2))
    with pytest.raises(ReidError, match=r"hardness must be 0 or more and at most 1; got 1.5"):
        select("batch_hard", torch.zeros(3, 3), pids, hardness=1.5)
    with pytest.raises(ReidError, match=r"Pass a torch\.Generator"):
        mine_triplets("batch_hard", torch.zeros(3, 3), pids, hardness=0.5)
    with pytest.raises(ReidError, match="needs the features"):
        mine_triplets("distance_weighted", torch.zeros(3, 3), pids)
    with pytest.raises(ReidError, match=r"Unknown miner 'batchhard'. Did you mean 'batch_hard'\?"):
        mine_triplets("batchhard", torch.zeros(3, 3), pids)
