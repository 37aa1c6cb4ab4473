from __future__ import annotations

import copy
import json
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from reid.core.errors import ReidError
from reid.models import build_model

SIZE = (32, 16)


def images(batch: int = 3, height: int = 32, width: int = 16) -> torch.Tensor:
    shape = (batch, height, width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def small(**options: object):
    return build_model("light18", **{"height": SIZE[0], "width": SIZE[1], **options})


@pytest.mark.slow
@pytest.mark.parametrize("neck", ["bnneck", "none"])
@pytest.mark.parametrize("embedding_dim", [0, 24])
@pytest.mark.parametrize("num_classes", [0, 5])
def test_outputs_have_the_documented_shapes(neck: str, embedding_dim: int, num_classes: int) -> None:
    model = small(neck=neck, embedding_dim=embedding_dim, num_classes=num_classes)
    features, embeddings, logits = model(model.preprocessing(images()))
    width = embedding_dim or 256
    assert model.embedding_size == width
    assert features.shape == embeddings.shape == (3, width)
    assert (logits is None) == (num_classes == 0)
    if logits is not None:
        assert logits.shape == (3, num_classes)
    if neck == "none":
        assert torch.equal(features, embeddings)


def test_features_embeddings_and_logits_follow_the_formulas() -> None:
    model = small(num_classes=5, embedding_dim=8).eval()
    model.neck.running_mean.normal_()
    model.neck.running_var.uniform_(0.5, 2)
    x = model.preprocessing(images())
    out = model(x)
    pooled = model.backbone(x).mean((2, 3))
    torch.testing.assert_close(out.features, pooled @ model.embedding.weight.T)
    bn = (out.features - model.neck.running_mean) / (model.neck.running_var + 1e-5).sqrt() * model.neck.weight
    torch.testing.assert_close(out.embeddings, bn)
    torch.testing.assert_close(out.logits, out.embeddings @ model.classifier.weight.T)


def test_each_stripe_has_its_feature_and_classifier() -> None:
    model = small(num_classes=5, num_stripes=2).eval()
    model.neck.running_mean.normal_()
    x = model.preprocessing(images())
    out = model(x)
    map_ = model.backbone(x)
    assert map_.shape[2] == 2
    pooled = [map_.mean((2, 3)), map_[:, :, 0].mean(2), map_[:, :, 1].mean(2)]
    torch.testing.assert_close(out.features, torch.cat(pooled, dim=1))
    assert out.embeddings.shape == (3, model.embedding_size) == (3, 3 * 256)
    assert out.logits.shape == (3, 3, 5)
    for part in range(3):
        own = out.embeddings[:, 256 * part : 256 * (part + 1)]
        torch.testing.assert_close(out.logits[:, part], own @ model.classifier.weight[part].T)
    again = build_model(**model.spec)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.embed(images()), model.embed(images()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"num_stripes": 3}, "3, but the feature map of light18 has 2 rows at 32×16", id="more than rows"),
        pytest.param({"num_stripes": 2, "embedding_dim": 8}, "exclude each other", id="and a linear layer"),
        pytest.param({"num_stripes": -1}, "num_stripes=-1", id="below 0"),
    ],
)
def test_invalid_stripes_are_errors(options: dict[str, int], words: str) -> None:
    with pytest.raises(ReidError, match=words):
        small(**options)


def test_bnneck_bias_stays_zero_and_classifier_has_no_bias() -> None:
    model = small(num_classes=5, embedding_dim=8)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        out = model(model.preprocessing(images()))
        (out.logits.square().sum() + out.features.sum()).backward()
        optimizer.step()
    assert not model.neck.bias.requires_grad
    assert not model.neck.bias.any()
    assert model.neck.weight.grad.any()
    assert model.classifier.bias is None
    assert model.embedding.bias is None


@pytest.mark.slow
def test_every_trainable_parameter_gets_a_gradient() -> None:
    for pooling in ("avg", "max", "gem"):
        model = small(num_classes=5, pooling=pooling)
        model(model.preprocessing(images())).logits.sum().backward()
        assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_initial_weights_of_the_head() -> None:
    model = small(num_classes=751, embedding_dim=512)
    assert model.classifier.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert model.embedding.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)


def test_initial_weights_depend_on_the_seed_only() -> None:
    one, two, other = (small(num_classes=4, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
    assert not torch.equal(one["backbone.0.weight"], other["backbone.0.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["light18", "resnet18", "osnet_x0_25", "mobilenet_v3_small"])
def test_global_random_generators_are_not_used(backbone: str) -> None:
    numpy_state = partial(np.random.get_state, legacy=True)
    before = torch.get_rng_state(), random.getstate(), numpy_state()[1].copy()
    model = build_model(backbone, height=64, width=32, num_classes=3)
    model.embed(images(height=64, width=32), flip=True)
    model.count()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (numpy_state()[1] == before[2]).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 4, "pooling": "gem", "neck": "none", "embedding_dim": 8, "last_stride": 2, "seed": 9},
        {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 0.5), "channel_order": "bgr", "height": 48, "width": 24},
    ],
    ids=["defaults", "structure", "preprocessing"],
)
def test_spec_is_plain_python_and_rebuilds_the_model(options: dict) -> None:
    model = small(**options)
    spec = json.loads(json.dumps(model.spec))
    assert spec == model.spec
    assert spec["weights"] == "none"
    again = build_model(**spec)
    assert again.spec == model.spec
    assert again.preprocessing == model.preprocessing
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.embed(images()), model.embed(images()))


class TestEmbed:
    def test_embeddings_are_float32_of_length_1_without_gradient(self) -> None:
        found = small().embed(images())
        assert (found.shape, found.dtype, found.requires_grad) == ((3, 256), torch.float32, False)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(3))

    def test_equals_the_normalised_output_of_forward_in_evaluation_mode(self) -> None:
        model = small()
        with torch.no_grad():
            embeddings = copy.deepcopy(model).eval()(model.preprocessing(images())).embeddings
        torch.testing.assert_close(model.embed(images()), nn.functional.normalize(embeddings))

    def test_flip_averages_with_the_mirrored_image_before_normalisation(self) -> None:
        model = small().eval()
        mirrored = images().flip(2)
        with torch.no_grad():
            one, two = (model(model.preprocessing(i)).embeddings for i in (images(), mirrored))
        found = model.embed(images(), flip=True)
        torch.testing.assert_close(found, nn.functional.normalize((one + two) / 2))
        torch.testing.assert_close(found, model.embed(mirrored, flip=True))
        assert not torch.allclose(found, model.embed(images()), atol=1e-3)

    def test_restores_the_mode_of_every_module_and_keeps_statistics(self) -> None:
        model = small().train()
        model.neck.eval()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        model.embed(images(), flip=True)
        assert model.training
        assert model.backbone.training
        assert not model.neck.training
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        with pytest.raises(ReidError):
            model.embed(images().float())
        assert model.training

    def test_embedding_does_not_depend_on_other_images_in_the_batch(self) -> None:
        model = small()
        together = model.embed(images(4))
        torch.testing.assert_close(together[2:3], model.embed(images(4)[2:3]), rtol=1e-4, atol=1e-5)

    def test_empty_batch_gives_no_rows(self) -> None:
        assert small().embed(images(0)).shape == (0, 256)

    def test_zero_embedding_stays_zero(self) -> None:
        model = small(neck="none", embedding_dim=8)
        model.embedding.weight.data.zero_()
        assert torch.equal(model.embed(images()), torch.zeros(3, 8))

    def test_images_are_resized(self) -> None:
        assert small().embed(images(2, 50, 21)).shape == (2, 256)

    def test_embeddings_are_float32_under_autocast_and_in_half_precision(self) -> None:
        model = small(pooling="gem")
        exact = model.embed(images())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model.embed(images())
        half = copy.deepcopy(model).bfloat16().embed(images())
        for found in (mixed, half):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
            assert (found * exact).sum(1).min() > 0.99


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": "gme"}, "pooling='gme'.*Known: avg, gem, max"),
        ({"neck": "bnnek"}, "neck='bnnek'.*Did you mean 'bnneck'"),
        ({"num_classes": -1}, "num_classes .* must be 0 or more; got -1"),
        ({"embedding_dim": -8}, "embedding_dim=-8"),
        ({"last_stride": 3}, "last_stride=3"),
        ({"height": 0}, "height=0"),
        ({"hight": 32}, "hight.*Did you mean 'height'"),
        ({"mean": (0.5, 0.5)}, "mean.2"),
        ({"std": (0.1, 0.1, 0)}, "std.2"),
        ({"channel_order": "hsv"}, "channel_order='hsv'"),
    ],
)
def test_invalid_arguments_are_errors(options: dict, words: str) -> None:
    with pytest.raises(ReidError, match=words):
        small(**options)


def test_activation_map_is_the_normalised_sum_of_squares() -> None:
    model = small(pooling="gem").train()
    given = images(3, 40, 20)
    maps = model.activation_map(given)
    assert all(module.training for module in model.modules())
    model.eval()
    activations = model.backbone(model.preprocessing(given)).detach().numpy()
    by_hand = (activations**2).sum(axis=1)
    for drawn, expected in zip(maps.numpy(), by_hand, strict=True):
        np.testing.assert_allclose(drawn, expected / expected.max(), rtol=1e-5)
    assert maps.shape == (3, *activations.shape[2:])
    assert maps.amax((1, 2)).tolist() == [1, 1, 1]


def test_activation_map_of_zero_features_is_zero() -> None:
    model = small()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.zero_()
    assert not model.activation_map(images()).any()
