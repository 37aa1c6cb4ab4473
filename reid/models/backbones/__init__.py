"""Backbones by name. To add one, add a file to this folder and a line to `BACKBONES`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from reid.core.errors import ConfigError, did_you_mean
from reid.models.backbones.backbone import Backbone, Pretrained
from reid.models.backbones.light import light_osnet, light_resnet
from reid.models.backbones.mobilenet import mobilenet
from reid.models.backbones.osnet import AIN, IBN, osnet
from reid.models.backbones.resnet import resnet, resnet_bot, resnet_fastreid, resnet_ibn_a
from reid.models.backbones.timm import timm_backbone

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
    "resnet50_bot": partial(resnet_bot, 50),
    "resnet50_fastreid": partial(resnet_fastreid, 50),
    "resnet50_ibn_a_fastreid": partial(resnet_fastreid, 50, ibn=True),
    "resnet101_ibn_a_fastreid": partial(resnet_fastreid, 101, ibn=True),
    "resnet50_nl_fastreid": partial(resnet_fastreid, 50, non_local=(2, 3)),
    "resnet50_ibn_a_nl_fastreid": partial(resnet_fastreid, 50, ibn=True, non_local=(2, 3)),
    "resnet101_ibn_a_nl_fastreid": partial(resnet_fastreid, 101, ibn=True, non_local=(2, 9)),
    "osnet_x1_0": partial(osnet, 1.0),
    "osnet_x0_75": partial(osnet, 0.75),
    "osnet_x0_5": partial(osnet, 0.5),
    "osnet_x0_25": partial(osnet, 0.25),
    "osnet_ibn_x1_0": partial(osnet, 1.0, IBN),
    "osnet_ain_x1_0": partial(osnet, 1.0, AIN),
    "osnet_ain_x0_75": partial(osnet, 0.75, AIN),
    "osnet_ain_x0_5": partial(osnet, 0.5, AIN),
    "osnet_ain_x0_25": partial(osnet, 0.25, AIN),
    "mobilenet_v2": partial(mobilenet, "mobilenet_v2"),
    "mobilenet_v3_small": partial(mobilenet, "mobilenet_v3_small"),
    "mobilenet_v3_large": partial(mobilenet, "mobilenet_v3_large"),
    "light18": partial(light_resnet, 0.5, (2, 2, 2, 2)),
    "light14": partial(light_resnet, 0.5, (1, 2, 2, 1)),
    "light14_ibn_a": partial(light_resnet, 0.5, (1, 2, 2, 1), True),
    "light10": partial(light_resnet, 0.5, (1, 1, 1, 1)),
    "light_osnet": light_osnet,
}


def build_backbone(name: str, *, last_stride: int, size: tuple[int, int]) -> Backbone:
    """Build a backbone with random weights; "timm:NAME" is a network of timm.

    Raises:
        ConfigError: an unknown name, or settings that the backbone does not support.
    """
    if name.startswith("timm:"):
        return timm_backbone(name.removeprefix("timm:"), last_stride=last_stride, size=size)
    if name not in BACKBONES:
        raise ConfigError(f"Unknown backbone {name!r}.{did_you_mean(name, [*BACKBONES, 'timm:NAME'])}")
    return BACKBONES[name](last_stride=last_stride, size=size)


__all__ = ["BACKBONES", "Backbone", "Pretrained", "build_backbone"]
