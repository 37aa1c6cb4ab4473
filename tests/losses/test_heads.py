from __future__ import annotations

import math

import pytest
import torch

from reid.core.errors import ReidError
from reid.losses import ArcFaceLoss, CosFaceLoss
from tests.oracles import angular_head_loop

EVERY = pytest.mark.parametrize(("make", "kind"), [(ArcFaceLoss, "arcface"), (CosFaceLoss, "cosface")])
LABELS = [
    pytest.param([0, 0, 1, 1, 2, 2], id="P x K"),
    pytest.param([3, 0, 3, 3, 1], id="ragged, and identities that are not there"),
    pytest.param([2] * 4, id="one identity in the batch"),
    pytest.param([1], id="one crop"),
    pytest.param([], id="no crop"),
]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@EVERY
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("settings", [(0.3, 30.0, 0.0), (1.2, 4.0, 0.1), (0.0, 1.0, 0.0)])
def test_equals_the_loop(make, kind, labels, settings):
    loss, x = make(5, 4, *settings), draw(len(labels), 5)
    margin, scale, epsilon = settings
    expected = angular_head_loop(x.numpy(), labels, loss.weight.detach().numpy(), margin, scale, kind, epsilon)
    assert loss(x, torch.tensor(labels, dtype=torch.int64)).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@EVERY
def test_equals_pytorch_metric_learning(make, kind):
    """Theirs takes ArcFace's margin in degrees, and keeps its directions in columns."""
    from pytorch_metric_learning import losses

    tested_loss, x, labels = make(6, 5, 0.4, 16.0), draw(20, 6, seed=1), torch.arange(20) % 5
    name, margin = ("ArcFaceLoss", math.degrees(0.4)) if kind == "arcface" else ("CosFaceLoss", 0.4)
    reference = getattr(losses, name)(num_classes=5, embedding_size=6, margin=margin, scale=16)
    reference.W.data = tested_loss.weight.detach().T.clone()
    tested, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss, expected = tested_loss(tested, labels), reference(other, labels)
    (loss + expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(tested.grad, other.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tested_loss.weight.grad, reference.W.grad.T, rtol=1e-4, atol=1e-5)


@EVERY
def test_gradient_in_float64_to_features_and_directions(make, kind):
    loss = make(4, 3, 0.5, 8.0).double()
    x, labels = draw(6, 4, dtype=torch.float64).requires_grad_(), torch.tensor([0, 1, 2, 2, 0, 1])

    def of(x, weight):
        return torch.func.functional_call(loss, {"weight": weight}, (x, labels))

    assert torch.autograd.gradcheck(of, (x, loss.weight.detach().clone().requires_grad_()))


def test_the_loss_rises_with_the_angle():
    loss = ArcFaceLoss(2, 2, margin=0.7, scale=1.0)
    loss.weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # the other identity has cosine 0 with all
    angles = torch.linspace(0, math.pi, 200)
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    losses = torch.stack([loss(row[None], torch.tensor([0])) for row in features])
    assert (losses.diff() > -1e-6).all()


@EVERY
def test_the_length_of_features_does_not_matter(make, kind):
    loss, labels = make(4, 3), torch.tensor([0, 1, 2])
    x = draw(3, 4)
    before = loss(x, labels).item()
    loss.weight.data *= 7
    assert loss(100 * x, labels).item() == pytest.approx(before, rel=1e-5)


@EVERY
@pytest.mark.parametrize("sign", [1, -1])
def test_the_gradient_is_finite_at_angles_0_and_pi(make, kind, sign):
    loss = make(4, 3)
    x = (sign * 2 * loss.weight.detach()).requires_grad_()
    loss(x, torch.arange(3)).backward()
    assert x.grad.isfinite().all()
    assert loss.weight.grad.isfinite().all()


@EVERY
def test_one_class_gives_0_and_a_row_of_zeros_has_no_direction(make, kind):
    assert make(4, 1)(draw(3, 4), torch.zeros(3, dtype=torch.int64)).item() == 0
    x = torch.zeros(2, 4, requires_grad=True)
    make(4, 3)(x, torch.tensor([0, 1])).backward()
    assert (x.grad == 0).all()


@EVERY
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_feature_that_is_not_finite_makes_the_loss_nan(make, kind, bad):
    x = draw(3, 4)
    x[1, 1] = bad
    assert math.isnan(make(4, 3)(x, torch.arange(3)).item())


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_and_autocast(make, kind, dtype):
    x, labels, loss = draw(4, 64).to(dtype).requires_grad_(), [0, 1, 2, 2], make(64, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, torch.tensor(labels))
    value.backward()
    weight = loss.weight.detach().numpy()
    expected = angular_head_loop(x.detach().float().numpy(), labels, weight, 0.3, 30.0, kind)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert x.grad.dtype == dtype


def test_directions_follow_from_the_seed_and_not_from_the_global_one():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = ArcFaceLoss(4, 3, seed=1), ArcFaceLoss(4, 3, seed=1), ArcFaceLoss(4, 3, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a.weight, b.weight)
    assert not torch.equal(a.weight, c.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -0.1}, "margin of a head must be 0 or more"),
        ({"margin": 28.6}, "below 3.14159; got 28.6"),
        ({"scale": 0}, "scale of a head must be above 0; got 0"),
        ({"label_smoothing": 2}, "0 or more and at most 1; got 2"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ReidError, match=message):
        ArcFaceLoss(4, 3, **options)


def test_labels_out_of_range_are_named():
    with pytest.raises(ReidError, match=r"needs labels 0 to 2; got -1"):
        CosFaceLoss(4, 3)(draw(2, 4), torch.tensor([0, -1]))
    assert repr(CosFaceLoss(4, 3)) == "CosFaceLoss(num_classes=3, dim=4, margin=0.3, scale=30.0)"
