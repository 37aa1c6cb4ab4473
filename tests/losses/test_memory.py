from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.losses import CenterLoss, CircleLoss, ContrastiveLoss, CrossBatchMemory, InfoNCELoss, make_loss
from reid.losses.memory import HardTripletPairs
from tests.losses.batches import repeated
from tests.oracles import (
    circle_loss_loop,
    compared_loop,
    contrastive_loss_loop,
    hard_triplet_pairs_loop,
    infonce_loss_loop,
)

CASES = {
    "contrastive": (
        ContrastiveLoss(2.0, reduction="mean"),
        lambda x, y, pairs: contrastive_loss_loop(x, y, pairs, 2.0, 0.0, "euclidean", 2, "mean"),
    ),
    "circle": (CircleLoss(gamma=10.0), lambda x, y, pairs: circle_loss_loop(x, y, pairs, 0.25, 10.0)),
    "InfoNCE": (InfoNCELoss(0.5), lambda x, y, pairs: infonce_loss_loop(x, y, pairs, 0.5)),
    "hard triplets": (HardTripletPairs(0.3), lambda x, y, pairs: hard_triplet_pairs_loop(x, y, pairs, 0.3)),
}
EVERY = pytest.mark.parametrize(("inner", "loop"), CASES.values(), ids=CASES)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@EVERY
@pytest.mark.parametrize("cameras", [False, True], ids=["any camera", "camera-aware"])
def test_equals_a_loop_over_a_list_of_the_last_features(inner, loop, cameras):
    """Ragged batches, one of a single crop and one larger than the memory, with a warm-up of two calls."""
    rng, size, warmup = np.random.default_rng(0), 11, 2
    memory = CrossBatchMemory(inner, 4, size, warmup)
    inner.camera_aware = cameras
    kept = []  # (feature, pid, camera), oldest first
    for step, n in enumerate([5, 3, 4, 1, 6, 15, 2, 3]):
        x = rng.normal(size=(n, 4)).astype(np.float32)
        pids, camids = rng.integers(0, 3, n), rng.integers(-1, 2, n)
        others = kept if step >= warmup else []
        everybody = np.array([*x, *(feature for feature, _, _ in others)])
        pairs = compared_loop(
            pids.tolist(),
            camids.tolist() if cameras else None,
            [pid for _, pid, _ in others],
            [camera for _, _, camera in others],
        )
        got = memory(*map(torch.from_numpy, (x, pids, camids))).item()
        assert got == pytest.approx(loop(x, everybody, pairs), rel=1e-4, abs=1e-6), step
        kept = (kept + list(zip(x, pids.tolist(), camids.tolist(), strict=True)))[-size:]
    inner.camera_aware = False


@EVERY
def test_the_first_call_equals_the_loss_without_memory(inner, loop):
    x, pids = draw(8, 4), repeated([3, 3, 2])
    assert CrossBatchMemory(inner, 4)(x, pids).item() == pytest.approx(inner(x, pids).item())


@EVERY
def test_earlier_batches_get_no_gradient_and_keep_no_graph(inner, loop):
    memory, pids = CrossBatchMemory(inner, 4), repeated([3, 3])
    early, late = draw(6, 4).requires_grad_(), draw(6, 4, seed=1).requires_grad_()
    memory(early, pids)
    memory(late, pids).backward()
    assert early.grad is None
    assert late.grad.abs().sum() > 0
    assert not memory.features.requires_grad


def test_gradient_in_float64_with_a_memory():
    memory = CrossBatchMemory(ContrastiveLoss(3.0), 4).double()
    pids = repeated([2, 3, 1])
    memory(draw(6, 4, dtype=torch.float64), pids)
    memory.eval()
    assert torch.autograd.gradcheck(
        lambda x: memory(x, pids), (draw(6, 4, seed=1, dtype=torch.float64).requires_grad_(),)
    )


@pytest.mark.parametrize(
    ("tested_loss", "reference", "options"),
    [
        (CircleLoss(), "CircleLoss", {"m": 0.25, "gamma": 128}),
        (InfoNCELoss(0.2), "NTXentLoss", {"temperature": 0.2}),
        (ContrastiveLoss(0.9, power=1, distance="euclidean"), "ContrastiveLoss", {"neg_margin": 0.9}),
    ],
    ids=["circle", "InfoNCE", "contrastive"],
)
def test_equals_pytorch_metric_learning(tested_loss, reference, options):
    """Theirs puts the batch in first and compares with that copy, without the crop itself: the same pairs."""
    from pytorch_metric_learning import losses

    tested = CrossBatchMemory(tested_loss, 6, 20)
    other = losses.CrossBatchMemory(getattr(losses, reference)(**options), 6, memory_size=28)
    rng = np.random.default_rng(1)
    for step in range(6):  # the reference compares with this batch and the 20 before it
        x = torch.nn.functional.normalize(draw(8, 6, seed=step))
        pids = torch.from_numpy(rng.integers(0, 4, 8))
        if step * 8 <= 20:
            assert tested(x, pids).item() == pytest.approx(other(x, pids).item(), rel=1e-5)


def test_a_restored_memory_continues_exactly():
    memory, pids = CrossBatchMemory(InfoNCELoss(), 4, 10, warmup=1), repeated([3, 3])
    for step in range(3):
        memory(draw(6, 4, seed=step), pids)
    copy = CrossBatchMemory(InfoNCELoss(), 4, 10, warmup=1)
    copy.load_state_dict(memory.state_dict())
    for step in range(3, 6):
        x = draw(6, 4, seed=step)
        assert copy(x, pids).item() == memory(x, pids).item()


def test_in_eval_mode_it_does_not_change():
    memory, pids = CrossBatchMemory(InfoNCELoss(), 4, 10), repeated([3, 3])
    memory(draw(6, 4), pids)
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    memory.eval()(draw(6, 4, seed=1), pids)
    assert all(torch.equal(value, before[name]) for name, value in memory.state_dict().items())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@EVERY
def test_a_row_that_is_not_finite_is_not_stored(inner, loop, bad):
    memory, pids = CrossBatchMemory(inner, 4, 10), repeated([2, 2])
    x = draw(4, 4)
    x[1, 1] = bad
    assert math.isnan(memory(x, pids).item())
    assert memory.filled.sum() == 3
    assert math.isfinite(memory(draw(4, 4, seed=1), pids).item())


def test_no_crop_and_one_crop():
    memory = CrossBatchMemory(InfoNCELoss(), 4, 3)
    assert memory(draw(0, 4), torch.zeros(0, dtype=torch.int64)).item() == 0
    assert memory(draw(1, 4), torch.tensor([7])).item() == 0
    memory(draw(1, 4, seed=1), torch.tensor([8]))
    assert memory(draw(1, 4, seed=2), torch.tensor([7])).item() > 0  # a positive and a negative, both in the memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_and_autocast(dtype):
    memory, pids = CrossBatchMemory(CircleLoss(), 16), repeated([3, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for step in range(2):
            x = draw(6, 16, seed=step).to(dtype).requires_grad_()
            loss = memory(x, pids)
    loss.backward()
    assert loss.dtype == memory.features.dtype == torch.float32
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


def test_pml_losses_compare_with_a_memory():
    tested_loss = make_loss("infonce", dim=4, num_classes=3, memory=20, temperature=0.2)
    reference = make_loss("pml:NTXentLoss", dim=4, num_classes=3, memory=20, temperature=0.2)
    for step in range(4):
        x, pids = draw(8, 4, seed=step), repeated([3, 3, 2])
        assert tested_loss(x, pids).item() == pytest.approx(reference(x, pids).item(), rel=1e-5)


def test_wrong_values_are_named():
    with pytest.raises(ReidError, match="CenterLoss is not a loss over pairs"):
        CrossBatchMemory(CenterLoss(4, 3), 4)
    with pytest.raises(ReidError, match=r"memory must be 1 or more; got 0"):
        CrossBatchMemory(InfoNCELoss(), 4, 0)
    with pytest.raises(ReidError, match="stores features of 4 dimensions; these have 5"):
        CrossBatchMemory(InfoNCELoss(), 4)(draw(2, 5), torch.tensor([0, 0]))
    assert "size=1024, warmup=0" in repr(CrossBatchMemory(InfoNCELoss(), 4))
