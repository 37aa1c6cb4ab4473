"""Geometry against an oracle that pads and then crops; parameters against their distributions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from reid.config import AugmentConfig
from reid.core.errors import ConfigError, DataError
from reid.data.augment import IMAGENET_MEAN, Augment
from reid.data.images import resize
from tests.oracles import erased_boxes, pad_then_crop, recolour

OFF = {"flip": 0.0, "pad": 0, "erase": 0.0}


def noise(n: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random pixels, none of which has a channel of the fill colour."""
    images = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    return np.where(images == np.array(IMAGENET_MEAN, np.uint8), 7, images).astype(np.uint8)


@pytest.mark.parametrize(
    ("n", "size"),
    [
        pytest.param(5, (32, 16), id="a batch"),
        pytest.param(1, (1, 1), id="one pixel"),
        pytest.param(0, (8, 4), id="no image"),
        pytest.param(3, (17, 33), id="uneven, wide"),
    ],
)
def test_augmentation_with_all_settings_off_returns_a_copy(n: int, size: tuple[int, int]) -> None:
    images = noise(n, *size)
    out = Augment(size, AugmentConfig(**OFF))(images, np.random.default_rng(0))
    np.testing.assert_array_equal(out, images)
    assert not np.shares_memory(out, images)
    assert out.flags.c_contiguous


def test_the_input_is_not_changed_and_may_be_read_only() -> None:
    images = noise(32, 24, 12)
    before = images.copy()
    images.flags.writeable = False
    Augment((24, 12), AugmentConfig(brightness=0.5, contrast=0.5, saturation=0.5, pad=5))(
        images, np.random.default_rng(0)
    )
    np.testing.assert_array_equal(images, before)


def test_augmentation_depends_on_the_generator_only() -> None:
    images = noise(16, 40, 20)
    augment = Augment((40, 20), AugmentConfig(brightness=0.2, contrast=0.2, saturation=0.2))
    one, same, other = (augment(images, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_flip_and_crop_equal_the_oracle_and_are_uniform() -> None:
    """Every result is exactly one (mirror, dy, dx) of pad-then-crop, and these are uniform."""
    pad, n = 3, 4000
    image = noise(1, 12, 9)[0]
    windows = {
        pad_then_crop(image, mirror, dy, dx, pad).tobytes(): (mirror, dy, dx)
        for mirror in (False, True)
        for dy in range(2 * pad + 1)
        for dx in range(2 * pad + 1)
    }
    assert len(windows) == 2 * 7 * 7
    batch = np.broadcast_to(image, (n, *image.shape))
    out = Augment((12, 9), AugmentConfig(flip=0.3, pad=pad, erase=0))(batch, np.random.default_rng(0))
    found = np.array([windows[result.tobytes()] for result in out])
    assert abs(found[:, 0].mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / n)
    places = found[:, 1] * 7 + found[:, 2]
    assert stats.chisquare(np.bincount(places, minlength=49)).pvalue > 1e-3


@pytest.mark.parametrize(
    "flip", [pytest.param(0.0, id="never"), pytest.param(1.0, id="always"), pytest.param(0.5, id="half the time")]
)
def test_the_probability_of_a_flip(flip: float) -> None:
    images = noise(2000, 4, 3)
    out = Augment((4, 3), AugmentConfig(flip=flip, pad=0, erase=0))(images, np.random.default_rng(0))
    mirrored = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
    plain = (out == images).all(axis=(1, 2, 3))
    assert (mirrored ^ plain).all()
    assert abs(mirrored.mean() - flip) < 0.05


def drawn_boxes(out: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(top, left, height, width) of the filled part of each image `[B, 4]`; zeros where nothing is filled."""
    filled = (out == np.array(IMAGENET_MEAN, np.uint8)).all(axis=3)
    boxes = np.zeros((len(out), 4), np.int64)
    for box, mask in zip(boxes, filled, strict=True):
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box[:] = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
            assert mask.sum() == box[2] * box[3], "the filled part is not a rectangle"
    return boxes


@pytest.mark.parametrize(
    "size", [pytest.param((64, 32), id="a person's crop"), pytest.param((32, 48), id="wider than tall")]
)
def test_erasing_follows_bags_of_tricks(size: tuple[int, int]) -> None:
    n = 3000
    images = np.broadcast_to(noise(1, *size), (n, *size, 3))
    out = Augment(size, AugmentConfig(flip=0, pad=0))(images, np.random.default_rng(0))
    boxes = drawn_boxes(out)
    erased = boxes[:, 2] > 0
    changed = (out != images).any(axis=3)
    np.testing.assert_array_equal(changed.sum(axis=(1, 2)), boxes[:, 2] * boxes[:, 3])
    assert abs(erased.mean() - 0.5) < 4 * np.sqrt(0.25 / n)
    expected = erased_boxes(size, n, 0.02, 0.4, 0.3, np.random.default_rng(1))
    drawn = boxes[erased]
    for column, name in enumerate(("top", "left", "height", "width")):
        assert stats.ks_2samp(drawn[:, column], expected[:, column]).pvalue > 1e-3, name
    area = drawn[:, 2] * drawn[:, 3] / (size[0] * size[1])
    assert area.min() > 0.01
    assert area.max() < 0.42
    assert (drawn[:, :2].min(axis=0) == 0).all()
    assert ((drawn[:, :2] + drawn[:, 2:]).max(axis=0) == size).all(), "the last row and column are reached"
    assert (drawn[:, 2] < size[0]).all()
    assert (drawn[:, 3] < size[1]).all()


def test_a_rectangle_that_never_fits_is_not_drawn() -> None:
    images = noise(20, 2, 2)
    out = Augment((2, 2), AugmentConfig(flip=0, pad=0, erase=1, erase_area=(1, 1)))(images, np.random.default_rng(0))
    np.testing.assert_array_equal(out, images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_one_colour_setting_alone_equals_the_formula(name: str) -> None:
    images = noise(50, 16, 8)
    out = Augment((16, 8), AugmentConfig(**OFF, **{name: 0.4}))(images, np.random.default_rng(5))
    factors = np.linspace(0.6, 1.4, 1601)
    for image, result in zip(images[:10], out, strict=False):
        errors = [np.abs(recolour(image, **{name: factor}) - result).max() for factor in factors]
        assert min(errors) <= 1.0  # rounding, in 10-bit weights


def test_colours_together_equal_the_formula_and_are_uniform() -> None:
    augment = Augment((8, 8), AugmentConfig(**OFF, brightness=0.2, contrast=0.3, saturation=1.0))
    images = noise(400, 8, 8)
    out = augment(images, np.random.default_rng(9))
    rng = np.random.default_rng(9)
    rng.random(400), rng.integers(0, 1, (400, 2))
    factors = rng.uniform([0.8, 0.7, 0], [1.2, 1.3, 2], (400, 3))
    for image, result, (b, c, s) in zip(images, out, factors, strict=True):
        assert np.abs(recolour(image, b, c, s) - result).max() <= 1.0


def test_colours_do_not_change_the_erased_area() -> None:
    out = Augment((64, 32), AugmentConfig(erase=1, brightness=0.5, pad=4))(noise(50, 64, 32), np.random.default_rng(0))
    filled = (out == np.array(IMAGENET_MEAN, np.uint8)).all(axis=3)
    assert (filled.mean(axis=(1, 2)) > 0.015).all()


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param((64, 32), id="larger"),
        pytest.param((16, 8), id="smaller"),
        pytest.param((20, 40), id="of another shape"),
    ],
)
def test_images_of_another_size_are_resized_first(stored: tuple[int, int]) -> None:
    images = noise(6, *stored)
    out = Augment((32, 16), AugmentConfig(flip=1, pad=0, erase=0))(images, np.random.default_rng(0))
    expected = np.stack([resize(image, (32, 16))[:, ::-1] for image in images])
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, "flip"),
        ({"erase": -0.1}, "erase"),
        ({"flip": float("nan")}, "flip"),
        ({"pad": -1}, "pad"),
        ({"pad": 16}, r"augment.pad is 16. Use less than the shorter side of \(32, 16\)"),
        ({"erase_area": (0.4, 0.02)}, "low ≤ high"),
        ({"erase_area": (0.0, 0.4)}, "0 < low"),
        ({"erase_ratio": 0.0}, "erase_ratio"),
        ({"brightness": -1}, "brightness"),
        ({"saturation": float("inf")}, "saturation"),
    ],
)
def test_a_setting_out_of_range_raises_an_error(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augment((32, 16), AugmentConfig(**settings))


def test_a_wrong_size_or_colour_raises_an_error() -> None:
    with pytest.raises(ConfigError, match=r"image size is \(0, 16\)"):
        Augment((0, 16))
    with pytest.raises(ConfigError, match="three numbers, 0 to 255"):
        Augment((32, 16), fill=(0, 0, 256))


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(np.zeros((2, 8, 4), np.uint8), id="no channels"),
        pytest.param(np.zeros((2, 3, 8, 4), np.uint8), id="channels first"),
        pytest.param(np.zeros((2, 8, 4, 3), np.float32), id="float"),
    ],
)
def test_images_of_another_type_or_shape_raise_an_error(images: NDArray[np.uint8]) -> None:
    with pytest.raises(DataError, match=r"uint8 \[B, H, W, 3\]"):
        Augment((8, 4), AugmentConfig(pad=0))(images, np.random.default_rng(0))
