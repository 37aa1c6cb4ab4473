"""Backbones by name. A new one is one file here and one line in `BACKBONES`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from reid.errors import ReidError, did_you_mean
from reid.models.backbones.backbone import Backbone, Pretrained
from reid.models.backbones.resnet import resnet, resnet_ibn_a

# name → builder(last_stride=1 | 2, size=(height, width)) → Backbone
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet18": partial(resnet, 18),
    "resnet34": partial(resnet, 34),
    "resnet50": partial(resnet, 50),
    "resnet101": partial(resnet, 101),
    "resnet18_ibn_a": partial(resnet_ibn_a, 18),
    "resnet34_ibn_a": partial(resnet_ibn_a, 34),
    "resnet50_ibn_a": partial(resnet_ibn_a, 50),
    "resnet101_ibn_a": partial(resnet_ibn_a, 101),
}


def build_backbone(name: str, *, last_stride: int, size: tuple[int, int]) -> Backbone:
    """The backbone called `name`, freshly initialised.

    Raises:
        ReidError: nothing is called so.
    """
    if name not in BACKBONES:
        raise ReidError(f"There is no backbone {name!r}.{did_you_mean(name, BACKBONES)}")
    return BACKBONES[name](last_stride=last_stride, size=size)


__all__ = ["BACKBONES", "Backbone", "Pretrained", "build_backbone"]
