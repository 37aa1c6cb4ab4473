from __future__ import annotations

import math

import pytest
import torch

from reid.core.errors import ReidError
from reid.losses import CenterLoss
from tests.oracles import center_loss_loop

LABELS = [
    pytest.param([0, 0, 1, 1, 2, 2], id="P x K"),
    pytest.param([3, 0, 3, 3, 1], id="ragged, and identities that are not there"),
    pytest.param([2] * 4, id="one identity"),
    pytest.param([1], id="one crop"),
    pytest.param([], id="no crop"),
]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("labels", LABELS)
def test_loss_and_centres_equal_the_loop_over_several_steps(labels):
    loss = CenterLoss(3, 4, rate=0.5)
    for step in range(3):
        x = draw(len(labels), 3, seed=step)
        expected, after = center_loss_loop(x.numpy(), labels, loss.centers.numpy(), 0.5)
        assert loss(x, torch.tensor(labels, dtype=torch.int64)).item() == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(loss.centers.double(), torch.from_numpy(after), rtol=1e-5, atol=1e-6)


def test_centres_come_to_the_mean_of_their_crops():
    loss, labels = CenterLoss(2, 3), torch.tensor([0, 0, 0, 2, 2])
    x = draw(5, 2)
    for _ in range(60):
        loss(x, labels)
    torch.testing.assert_close(loss.centers, torch.stack([x[:3].mean(0), torch.zeros(2), x[3:].mean(0)]))


def test_centres_stay_in_eval_mode_and_are_saved():
    loss, labels = CenterLoss(2, 3), torch.tensor([0, 1])
    loss(draw(2, 2), labels)
    copy = CenterLoss(2, 3)
    copy.load_state_dict(loss.state_dict())
    assert torch.equal(copy.centers, loss.centers)
    assert list(loss.parameters()) == []
    loss.eval()(draw(2, 2, seed=1), labels)
    assert torch.equal(copy.centers, loss.centers)


def test_backward_works_after_the_centres_moved():
    """The gradient is that of the centres before the step: (x − c) / B."""
    loss, x = CenterLoss(2, 3), draw(4, 2).requires_grad_()
    loss.centers += 1
    loss(x, torch.tensor([0, 0, 1, 2])).backward()
    torch.testing.assert_close(x.grad, (x.detach() - 1) / 4)


def test_gradient_in_float64_to_features_and_learned_centres():
    loss = CenterLoss(3, 4, rate=None).double()
    x, labels = draw(5, 3, dtype=torch.float64).requires_grad_(), torch.tensor([0, 0, 1, 3, 3])

    def of(x, centers):
        return torch.func.functional_call(loss, {"centers": centers}, (x, labels))

    assert torch.autograd.gradcheck(of, (x, draw(4, 3, seed=1, dtype=torch.float64).requires_grad_()))
    loss(x, labels).backward()
    assert loss.centers.grad.abs().sum() > 0
    assert torch.equal(loss.centers.grad[2], torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_feature_that_is_not_finite_makes_the_loss_nan_and_spoils_no_centre(bad):
    loss, x = CenterLoss(2, 3), draw(4, 2)
    x[0, 1] = bad
    assert math.isnan(loss(x, torch.tensor([0, 0, 1, 1])).item())
    assert loss.centers.isfinite().all()
    assert loss.centers[1].abs().sum() > 0
    assert loss.centers[0].abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_and_autocast(dtype):
    x, labels = draw(4, 8).to(dtype).requires_grad_(), [0, 0, 1, 2]
    loss = CenterLoss(8, 3)
    expected, after = center_loss_loop(x.detach().float().numpy(), labels, loss.centers.numpy(), 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, torch.tensor(labels))
    value.backward()
    assert value.dtype == loss.centers.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert x.grad.dtype == dtype
    torch.testing.assert_close(loss.centers.double(), torch.from_numpy(after), rtol=1e-5, atol=1e-6)


def test_at_its_centre_a_crop_has_no_loss_and_no_gradient():
    x = torch.zeros(3, 2, requires_grad=True)
    value = CenterLoss(2, 1)(x, torch.zeros(3, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert (x.grad == 0).all()


def test_wrong_values_are_named():
    with pytest.raises(ReidError, match=r"rate .* must be above 0 and at most 1; got 0"):
        CenterLoss(2, 3, rate=0)
    with pytest.raises(ReidError, match=r"3 identities and needs labels 0 to 2; got 1501"):
        CenterLoss(2, 3)(draw(2, 2), torch.tensor([1, 1501]))
    with pytest.raises(ReidError, match=r"got \[2, 2\] and \[3\]"):
        CenterLoss(2, 3)(draw(2, 2), torch.zeros(3, dtype=torch.int64))
    assert repr(CenterLoss(2, 3)) == "CenterLoss(num_classes=3, dim=2, rate=0.5)"
