"""Gradient caching gives the gradient of the whole batch, and says what it does where it cannot."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reid.config import LossConfig
from reid.core.errors import ReidError
from reid.losses import Objective
from reid.models import ReIDModel, build_model
from reid.training.gradient_cache import Outputs, backward_in_chunks, seeded

B = 24
LABELS = torch.arange(B) // 4
CAMIDS = torch.arange(B) % 3
SEED = (7, 11)


@pytest.fixture(scope="module")
def crops() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (B, 32, 16, 3), dtype=np.uint8))


def small(neck: str = "bnneck", dropout: float = 0.0) -> ReIDModel:
    model = build_model("light14", num_classes=6, neck=neck, height=32, width=16, embedding_dim=8)
    if dropout:
        model.embedding = nn.Sequential(model.embedding, nn.Dropout(dropout))
    with torch.no_grad():
        model.classifier.weight.mul_(100)
    return model


def forward_of(model: ReIDModel, dtype: torch.dtype | None = None):
    exact = model.classifier.weight.dtype == torch.float64

    def forward(network: nn.Module, images: Tensor) -> Outputs:
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            output = network(model.preprocessing(images).to(model.classifier.weight.dtype))
        return [
            part.double() if exact else part.float() for part in (output.features, output.embeddings, output.logits)
        ]

    return forward


def loss_with(objective: Objective, seen: list[Tensor], scale: float = 1.0):
    def loss_of(outputs: Outputs) -> Tensor:
        features, embeddings, logits = outputs
        loss, _ = objective(features, logits, LABELS, CAMIDS, embeddings)
        seen.append(loss.detach())
        return loss * scale

    return loss_of


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain(model: ReIDModel, crops: Tensor, objective: Objective, dtype: torch.dtype | None = None):
    model.zero_grad()
    objective.zero_grad()
    seen: list[Tensor] = []
    loss_with(objective, seen)(forward_of(model, dtype)(model, crops)).backward()
    return seen[0], gradients(model), gradients(objective)


def chunked(model, crops, objective, chunk, dtype=None, scale=1.0):
    model.zero_grad()
    objective.zero_grad()
    seen: list[Tensor] = []
    backward_in_chunks(model, crops, forward_of(model, dtype), loss_with(objective, seen, scale), chunk, SEED)
    return seen[0], gradients(model), gradients(objective)


def assert_same(one, other, rel: float = 1e-6, scale: float = 1.0) -> None:
    """Losses equal, and each gradient within `rel` of the largest number in it."""
    torch.testing.assert_close(one[0], other[0], rtol=rel, atol=0)
    for these, those in zip(one[1:], other[1:], strict=True):
        assert these.keys() == those.keys()
        for name, gradient in these.items():
            far = (those[name] / scale - gradient).abs().max()
            assert far <= rel * gradient.abs().max().clamp(min=1e-3), (name, far)


OBJECTIVES = [
    pytest.param({}, id="batch-hard and softmax"),
    pytest.param({"softmax_weight": 0, "margin": None}, id="triplet alone: logits get no gradient"),
    pytest.param({"triplet_weight": 0}, id="softmax alone: it goes through the same cache"),
    pytest.param({"mining": "batch_all", "camera_aware": True}, id="all triplets, cameras"),
    pytest.param(
        {"extra": {"arcface": {"weight": 0.3}, "circle": {"weight": 0.1}}},
        id="a head on the embeddings, whose own weights get their gradient too",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", OBJECTIVES)
def test_gradients_in_chunks_equal_those_of_the_whole_batch(crops: Tensor, settings: dict[str, object]) -> None:
    model, objective = small().double().eval(), Objective(LossConfig(**settings), dim=8, num_classes=6)
    whole = plain(model, crops, objective)
    parts = chunked(model, crops, objective, 7)
    assert_same(whole, parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chunk", [2, 5, 12, 23, 24, 1000], ids=["2", "does not divide", "half", "one less", "all", "more than all"]
)
def test_gradients_do_not_depend_on_the_chunk_size(crops: Tensor, chunk: int) -> None:
    model, objective = small().eval(), Objective()
    assert_same(plain(model, crops, objective), chunked(model, crops, objective, chunk), rel=2e-5)


@pytest.mark.slow
def test_float32_gradients_differ_by_rounding_only(crops: Tensor) -> None:
    """The error of the chunks, against float64, is that of the whole batch in float32."""
    model, objective = small().eval(), Objective()
    exact = plain(copy.deepcopy(model).double(), crops, objective)[1]

    def error(given: dict[str, Tensor]) -> float:
        return max(float((given[name] - exact[name]).abs().max() / exact[name].abs().max()) for name in exact)

    whole = error(plain(model, crops, objective)[1])
    assert error(chunked(model, crops, objective, 6)[1]) <= 3 * whole + 1e-6


def test_training_mode_is_exact_without_batchnorm(crops: Tensor) -> None:
    model = small(neck="none").double()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.GroupNorm(1, module.num_features).double())
    model.train()
    assert_same(plain(model, crops, Objective()), chunked(model, crops, Objective(), 7))


def test_batchnorm_uses_and_updates_its_statistics_once_per_chunk(crops: Tensor) -> None:
    model = small().train()
    other = copy.deepcopy(model)
    chunked(model, crops, Objective(), 8)
    with torch.no_grad():
        for part in crops.tensor_split(3):
            other(other.preprocessing(part))
    for (name, buffer), expected in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=name)
    assert int(model.neck.num_batches_tracked) == 3


@pytest.mark.slow
def test_random_draws_are_the_same_in_both_passes(crops: Tensor) -> None:
    """Against an unchunked graph whose dropout draws, chunk by chunk, what the cache says it draws."""
    model, objective = small("none", dropout=0.5).double(), Objective()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    parts = chunked(model, crops, objective, 8)
    model.zero_grad()
    pieces = []
    for number, part in enumerate(crops.tensor_split(3)):
        with seeded(crops.device, *SEED, number):
            pieces.append(forward_of(model)(model, part))
    seen: list[Tensor] = []
    loss_with(objective, seen)([torch.cat(column) for column in zip(*pieces, strict=True)]).backward()
    assert_same((seen[0], gradients(model), {}), parts)
    assert_same(parts, chunked(model, crops, objective, 8))


def test_the_global_generator_is_unchanged(crops: Tensor) -> None:
    before = torch.get_rng_state()
    chunked(small(dropout=0.5), crops, Objective(), 8)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_chunks_with_autocast_and_a_scaled_loss(crops: Tensor) -> None:
    """As with bfloat16 and a gradient scaler: the scale goes through, and the number format is that of training."""
    model, objective = small().eval(), Objective()
    whole = plain(model, crops, objective, torch.bfloat16)
    assert_same(whole, chunked(model, crops, objective, 12, torch.bfloat16, scale=1024.0), rel=2e-2, scale=1024.0)


def test_gradients_are_added_to_existing_ones(crops: Tensor) -> None:
    model, objective = small().eval(), Objective()
    once = chunked(model, crops, objective, 8)[1]
    backward_in_chunks(model, crops, forward_of(model), loss_with(objective, []), 8, SEED)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, 2 * once[name])


@pytest.mark.parametrize("chunk", [-1, 0])
def test_a_chunk_below_one_is_an_error(crops: Tensor, chunk: int) -> None:
    with pytest.raises(ReidError, match=f"chunk must be 1 or more; got {chunk}"):
        chunked(small(), crops, Objective(), chunk)
