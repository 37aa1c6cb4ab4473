"""Backbones by name. To add one, add a file to this folder and a line to `BACKBONES`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from reid.core.errors import check_choice
from reid.models.backbones.backbone import Backbone, Pretrained
from reid.models.backbones.light import light_osnet, light_resnet
from reid.models.backbones.mobilenet import mobilenet
from reid.models.backbones.osnet import AIN, IBN, WIDTHS, osnet
from reid.models.backbones.resnet import DEPTHS, resnet, resnet_bot, resnet_fastreid
from reid.models.backbones.timm import timm_backbone

# name → builder(last_stride=1 | 2) → Backbone
BACKBONES: dict[str, Callable[..., Backbone]] = {
    **{f"resnet{depth}": partial(resnet, depth) for depth in DEPTHS},
    **{f"resnet{depth}_ibn_a": partial(resnet, depth, ibn=True) for depth in DEPTHS},
    "resnet50_bot": partial(resnet_bot, 50),
    "resnet50_fastreid": partial(resnet_fastreid, 50),
    "resnet50_ibn_a_fastreid": partial(resnet_fastreid, 50, ibn=True),
    "resnet101_ibn_a_fastreid": partial(resnet_fastreid, 101, ibn=True),
    "resnet50_nl_fastreid": partial(resnet_fastreid, 50, non_local=(2, 3)),
    "resnet50_ibn_a_nl_fastreid": partial(resnet_fastreid, 50, ibn=True, non_local=(2, 3)),
    "resnet101_ibn_a_nl_fastreid": partial(resnet_fastreid, 101, ibn=True, non_local=(2, 9)),
    **{f"osnet_{name}": partial(osnet, width) for name, width in WIDTHS.items()},
    "osnet_ibn_x1_0": partial(osnet, 1.0, IBN),
    **{f"osnet_ain_{name}": partial(osnet, width, AIN) for name, width in WIDTHS.items()},
    **{name: partial(mobilenet, name) for name in ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")},
    "light18": partial(light_resnet, (2, 2, 2, 2)),
    "light14": partial(light_resnet, (1, 2, 2, 1)),
    "light14_ibn_a": partial(light_resnet, (1, 2, 2, 1), ibn=True),
    "light10": partial(light_resnet, (1, 1, 1, 1)),
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
        check_choice("backbone", name, [*BACKBONES, "timm:NAME"])
    return BACKBONES[name](last_stride=last_stride)


__all__ = ["BACKBONES", "Backbone", "Pretrained", "build_backbone"]
