from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.models import Preprocessing
from tests.oracles import preprocess_loop

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(
        0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("mean_std", [(MEAN, STD), ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3)])
def test_output_follows_the_formula_for_each_pixel(mean_std: tuple) -> None:
    x = images(16, 8)
    x[0, 0, 0] = torch.tensor([0, 255, 0])
    found = Preprocessing(size=(16, 8), mean=mean_std[0], std=mean_std[1])(x)
    np.testing.assert_allclose(found.numpy(), preprocess_loop(x.numpy(), *mean_std), atol=2e-6)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_bgr_reverses_the_channels_and_applies_mean_in_that_order() -> None:
    x = images(8, 4)
    found = Preprocessing(size=(8, 4), mean=MEAN, std=STD, channel_order="bgr")(x)
    np.testing.assert_allclose(found.numpy(), preprocess_loop(x.numpy()[..., ::-1], MEAN, STD), atol=2e-6)


@pytest.mark.parametrize("given", [(32, 16), (8, 4), (16, 16), (11, 7)], ids=["down", "up", "other ratio", "odd"])
def test_images_are_resized_to_the_preprocessing_size(given: tuple[int, int]) -> None:
    found = Preprocessing(size=(16, 8), mean=MEAN, std=STD)(images(*given))
    assert found.shape == (2, 3, 16, 8)
    assert found.is_contiguous(memory_format=torch.channels_last)
    low, high = (0 - np.array(MEAN)) / STD, (1 - np.array(MEAN)) / STD
    values = found.permute(0, 2, 3, 1).numpy()
    assert (values >= low - 1e-5).all()
    assert (values <= high + 1e-5).all()


def test_shrinking_is_antialiased() -> None:
    stripes = torch.zeros(1, 64, 32, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    found = Preprocessing(size=(16, 8), mean=(0, 0, 0), std=(1, 1, 1))(stripes)
    assert (found - 0.5).abs().max() < 0.05  # without it, a column would fall on one stripe


def test_empty_batch_stays_empty() -> None:
    assert Preprocessing(size=(16, 8), mean=MEAN, std=STD)(images(16, 8, batch=0)).shape == (0, 3, 16, 8)


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(2, 16, 8, 3),  # float
        torch.zeros(2, 3, 16, 8, dtype=torch.uint8),  # channels first
        torch.zeros(16, 8, 3, dtype=torch.uint8),  # no batch
        torch.zeros(2, 0, 8, 3, dtype=torch.uint8),  # no pixels
    ],
    ids=["float", "channels first", "no batch", "no pixels"],
)
def test_input_that_is_not_a_batch_of_images_is_an_error(bad: torch.Tensor) -> None:
    with pytest.raises(ReidError, match=r"uint8 \[B, H, W, 3\]"):
        Preprocessing(size=(16, 8), mean=MEAN, std=STD)(bad)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": (0, 128)}, "size.0=0.*greater than or equal to 1"),
        ({"size": (256,)}, "size.1.*missing"),
        ({"size": 256}, "size=256.*tuple"),
        ({"size": "64"}, "size='64'.*tuple"),
        ({"size": (256.5, 128)}, "size.0=256.5.*integer"),
        ({"mean": (0.5, 0.5)}, "mean.2.*missing"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean.2=nan.*finite"),
        ({"std": (0.2, 0.2, 0.0)}, "std.2=0.0.*greater than 0"),
        ({"channel_order": "rbg"}, "channel_order='rbg'.*Known: bgr, rgb"),
    ],
)
def test_invalid_values_are_errors(values: dict, words: str) -> None:
    with pytest.raises(ReidError, match=words):
        Preprocessing(**{"size": (256, 128), "mean": MEAN, "std": STD, **values})


def test_json_round_trip() -> None:
    preprocessing = Preprocessing(size=(256, 128), mean=MEAN, std=STD, channel_order="bgr")
    assert Preprocessing(**json.loads(json.dumps(preprocessing.as_dict()))) == preprocessing
