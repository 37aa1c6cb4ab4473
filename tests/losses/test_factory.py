"""Losses by name, and those of pytorch-metric-learning."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from reid.config import LABEL_LOSSES, LossConfig
from reid.core.errors import ReidError
from reid.losses import (
    LOSSES,
    MINING_NAMES,
    CircleLoss,
    CrossBatchMemory,
    Mahalanobis,
    Objective,
    TripletLoss,
    make_loss,
)
from reid.losses.factory import PML_LOSSES
from reid.losses.pairs import LabelLoss
from tests.losses.batches import repeated

NAMES = [*LOSSES, *PML_LOSSES, "pml:NTXentLoss", "pml:SoftTripleLoss"]
OVER_PAIRS = ["triplet", "contrastive", "circle", "infonce", "supcon", "lifted", "multi_similarity"]
DOCS = Path(__file__).parents[2] / "docs"
SIZES = {"dim": 6, "num_classes": 4}


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(counts):
    return repeated(counts) // 10


BATCHES = [
    pytest.param(labels([4, 4, 4]), id="P x K"),
    pytest.param(labels([5, 1, 2]), id="ragged"),
    pytest.param(labels([4]), id="one identity"),
    pytest.param(labels([1, 1, 1]), id="one crop each"),
    pytest.param(labels([1]), id="one crop"),
    pytest.param(torch.zeros(0, dtype=torch.int64), id="no crop"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pids", BATCHES)
def test_every_loss_takes_every_batch(name, pids):
    """With cameras given, though no loss asks for them, and gives a finite scalar and gradient."""
    loss, x = make_loss(name, **SIZES), draw(len(pids), 6).requires_grad_()
    value = loss(x, pids, torch.zeros_like(pids))
    value.backward()
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_returns_nan_for_nan_and_takes_half_precision(name):
    x, pids = draw(12, 6), labels([4, 4, 4])
    half, bad = x.half().requires_grad_(), x.clone()
    bad[3, 2] = torch.nan
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = make_loss(name, **SIZES)(half, pids)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(make_loss(name, **SIZES)(half.detach().float(), pids).item(), rel=1e-4)
    assert half.grad.dtype == torch.float16
    assert half.grad.isfinite().all()
    assert math.isnan(make_loss(name, **SIZES)(bad, pids).item())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_settings_make_the_same_loss_and_draw_no_global_number(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = make_loss(name, **SIZES), make_loss(name, **SIZES)
    x, pids = draw(12, 6), labels([4, 4, 4])
    assert a(x, pids).item() == b(x, pids).item()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_learned_gets_a_gradient_and_is_saved(name):
    loss, x = make_loss(name, **SIZES), draw(12, 6)
    loss(x.requires_grad_(), labels([4, 4, 4])).backward()
    assert all(weight.grad is not None for weight in loss.parameters())
    copy = make_loss(name, **SIZES)
    copy.load_state_dict(loss.state_dict())
    assert copy(x, labels([4, 4, 4])).item() == loss(x, labels([4, 4, 4])).item()


@pytest.mark.parametrize("name", OVER_PAIRS)
def test_every_pair_loss_can_use_a_memory(name):
    loss, alone = make_loss(name, **SIZES, memory=16, warmup=1), make_loss(name, **SIZES)
    assert isinstance(loss, CrossBatchMemory)
    assert (loss.size, loss.warmup) == (16, 1)
    x, pids = draw(8, 6), labels([3, 3, 2])
    for seed in range(2):
        first = loss(draw(8, 6, seed=seed), pids).item()
        if seed == 0:
            assert first == pytest.approx(alone(draw(8, 6), pids).item(), rel=1e-5)
    value = loss(x.requires_grad_(), pids)
    value.backward()
    assert value.item() != pytest.approx(alone(x, pids).item(), rel=1e-5)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ["lifted", "multi_similarity"])
def test_pml_losses_may_be_camera_aware(name):
    x, pids, camids = draw(8, 6), labels([4, 4]), torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    loss = make_loss(name, **SIZES, camera_aware=True)
    one_camera = loss(x, pids, torch.zeros(8, dtype=torch.int64)).item()
    assert one_camera == pytest.approx(make_loss(name, **SIZES)(x, pids).item(), rel=1e-5)
    assert loss(x, pids, camids).item() != pytest.approx(one_camera, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "reference", "options"),
    [
        ("lifted", "GeneralizedLiftedStructureLoss", {"neg_margin": 0.7}),
        ("multi_similarity", "MultiSimilarityLoss", {"alpha": 3}),
        ("pml:TripletMarginLoss", "TripletMarginLoss", {"margin": 0.5}),
        ("pml:ProxyNCALoss", "ProxyNCALoss", {"softmax_scale": 3}),
    ],
)
def test_pml_losses_keep_their_value_and_gradient(name, reference, options):
    from pytorch_metric_learning import losses

    loss = make_loss(name, **SIZES, **options)
    if name == "pml:ProxyNCALoss":
        options = {**options, "num_classes": 4, "embedding_size": 6}
    expected = getattr(losses, reference)(**options)
    if name == "pml:ProxyNCALoss":
        expected.proxies.data = loss.loss.proxies.data.clone()
    pids = labels([5, 1, 2])
    tested, other = draw(8, 6).requires_grad_(), draw(8, 6).requires_grad_()
    (loss(tested, pids) + expected(other, pids)).backward()
    assert loss(tested, pids).item() == expected(other, pids).item()
    torch.testing.assert_close(tested.grad, other.grad)


def test_pml_losses_take_distances_and_reducers_by_name():
    from pytorch_metric_learning import distances, losses, reducers

    loss = make_loss(
        "pml:ContrastiveLoss", **SIZES, distance="CosineSimilarity", reducer="MeanReducer", pos_margin=1, neg_margin=0
    )
    expected = losses.ContrastiveLoss(1, 0, distance=distances.CosineSimilarity(), reducer=reducers.MeanReducer())
    x, pids = draw(8, 6), labels([4, 4])
    assert loss(x, pids).item() == expected(x, pids).item()


@pytest.mark.parametrize(("distance", "rank"), [("mahalanobis", 6), ("mahalanobis:2", 2)])
@pytest.mark.parametrize("name", ["triplet", "contrastive", "quadruplet"])
def test_a_learned_distance_by_name(name, distance, rank):
    loss = make_loss(name, **SIZES, distance=distance)
    assert isinstance(loss.distance, Mahalanobis)
    assert loss.distance.factor.shape == (rank, 6)
    loss(draw(8, 6), labels([3, 3, 2])).backward()
    (weight,) = loss.parameters()
    assert weight.grad.abs().sum() > 0


def test_options_reach_the_loss():
    assert make_loss("triplet", **SIZES, margin=None, mining="semi_hard").mining == "semi_hard"
    circle = make_loss("circle", **SIZES, gamma=64, camera_aware=True)
    assert isinstance(circle, CircleLoss)
    assert (circle.gamma, circle.camera_aware) == (64, True)
    assert isinstance(make_loss("triplet", **SIZES), TripletLoss)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("circel", {}, r"Unknown loss 'circel'. Did you mean 'circle'\? Known: arcface, .*proxy_nca"),
        ("multisimilarity", {}, r"Did you mean 'multi_similarity'"),
        (
            "circle",
            {"gama": 1},
            r"Unknown circle option 'gama'. Did you mean 'gamma'\? Known: camera_aware",
        ),
        ("arcface", {"num_clases": 1}, r"option 'num_clases'. Known: label_smoothing, margin, scale, seed"),
        (
            "pml:TripletMarginLos",
            {},
            r"Unknown pytorch-metric-learning loss 'TripletMarginLos'. Did you mean",
        ),
        ("pml:CrossBatchMemory", {}, r"Unknown pytorch-metric-learning loss 'CrossBatchMemory'"),
        ("lifted", {"neg_margn": 1}, r"option 'neg_margn'. Did you mean 'neg_margin'"),
        ("proxy_nca", {"embedding_size": 3}, r"option 'embedding_size'"),
        ("pml:RankedListLoss", {}, r"does not accept \{\}: .*margin"),
        (
            "pml:ContrastiveLoss",
            {"distance": "Cosine"},
            r"Unknown pytorch-metric-learning distance 'Cosine'. Did you mean 'CosineSimilarity'",
        ),
        ("pml:ProxyNCALoss", {"camera_aware": True}, r"does not use pairs"),
        ("quadruplet", {"memory": 8}, r"QuadrupletLoss is not a loss over pairs"),
        ("center", {"memory": 8}, r"CenterLoss is not a loss over pairs"),
        ("proxy_nca", {"memory": 8}, r"ProxyNCALoss is not a loss over pairs"),
        ("triplet", {"memory": 8, "mining": "semi_hard"}, r"option 'mining'"),
        ("circle", {"warmup": 8}, r"warmup=8 needs a memory.*Add memory=N"),
        ("contrastive", {"distance": "mahalanobis:x"}, r"mahalanobis or mahalanobis:RANK"),
        ("contrastive", {"distance": "mahalanobis:7"}, r"between 1 and its size 6; got 7"),
    ],
)
def test_wrong_names_options_and_values_are_named(name, options, message):
    with pytest.raises(ReidError, match=message):
        make_loss(name, **SIZES, **options)


@pytest.mark.parametrize("name", ["proxy_nca", "arcface", "center", "pml:ArcFaceLoss"])
def test_labels_out_of_range_are_named(name):
    with pytest.raises(ReidError, match="needs labels 0 to 3; got 9"):
        make_loss(name, **SIZES)(draw(2, 6), torch.tensor([0, 9]))


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(ReidError, match=r"not installed.*pip install pytorch-metric-learning"):
        make_loss("proxy_anchor", **SIZES)


def test_the_page_names_every_loss_and_miner_and_its_settings_build():
    page = (DOCS / "losses.md").read_text("utf-8")
    assert [
        name for name in (*LOSSES, *PML_LOSSES, *MINING_NAMES) if f"`{name}`" not in page and name != "triplet"
    ] == []
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    for block in blocks:
        objective = Objective(LossConfig(**yaml.safe_load(block)["loss"]), **SIZES)
        objective.set_progress(0.2)
        loss, _ = objective(draw(8, 6), draw(8, 4), labels([3, 3, 2]), embeddings=draw(8, 6))
        assert loss.isfinite()
    assert len(blocks) == 2
    pictures = re.findall(r"\]\((pictures/[^)]*)\)", page)
    assert len(pictures) >= 5
    assert all((DOCS / name).is_file() for name in pictures)


@pytest.mark.parametrize("name", [*LOSSES, *PML_LOSSES])
def test_settings_know_which_losses_compare_crops_with_each_other(name):
    loss = make_loss(name, **SIZES)
    compares_with_vectors = isinstance(loss, LabelLoss) or bool(getattr(loss, "classes", 0))
    assert (name in LABEL_LOSSES) == compares_with_vectors
    assert LossConfig(triplet_weight=0, extra={name: {"weight": 1}}).of_pairs() == [name] * (not compares_with_vectors)
