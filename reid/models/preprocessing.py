"""What is done to an image before the network sees it. It travels with the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reid.core.errors import ReidError


@dataclass(frozen=True)
class Preprocessing:
    """Resize to `size` = (height, width) pixels, then (x / 255 − mean) / std for each channel.

    `mean` and `std` are of values in 0..1 and in the order that `channel_order` ("rgb" or "bgr") says; images always
    come in as RGB.

    Raises:
        ReidError: a size below one pixel, a mean or std that is not three finite numbers, a std not above 0, or
            another channel order.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str = "rgb"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _numbers("size", self.size, 2, int))
        object.__setattr__(self, "mean", _numbers("mean", self.mean, 3, float))
        object.__setattr__(self, "std", _numbers("std", self.std, 3, float))
        if min(self.size) < 1:
            raise ReidError(f"size is {self.size}: height and width must be at least 1 pixel, such as (256, 128).")
        if min(self.std) <= 0:
            raise ReidError(f"std is {self.std}: each must be above 0, such as (0.229, 0.224, 0.225).")
        if self.channel_order not in ("rgb", "bgr"):
            raise ReidError(f"channel_order is {self.channel_order!r}: it must be 'rgb' or 'bgr'.")

    def as_dict(self) -> dict[str, Any]:
        """Plain Python (lists, not tuples), ready for JSON or YAML; `Preprocessing(**d)` is the same again."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] RGB on any device → float32 [B, 3, height, width] there, in channels_last memory.

        Images of another size are resized bilinearly, with antialiasing. The image stays where it is: nothing is
        cropped or padded, and the ratio of the sides is not kept.

        Raises:
            ReidError: not uint8 [B, H, W, 3], or an image without pixels.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
            raise ReidError(
                f"Images must be uint8 [B, H, W, 3] in RGB; these are {str(images.dtype).removeprefix('torch.')} "
                f"{list(images.shape)}."
            )
        if self.channel_order == "bgr":
            images = images.flip(3)
        x = images.float()
        if x.shape[1:3] != self.size:
            x = x.permute(0, 3, 1, 2)
            x = functional.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
            x = x.permute(0, 2, 3, 1)
        shape = x.shape
        x = x.reshape(-1, shape[2] * 3)  # long rows, constants repeated along them: three channels a time are slow
        scale = [1 / (255 * s) for s in self.std]
        shift = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        constants = torch.tensor([shift, scale]).to(x.device, non_blocking=True).repeat(1, shape[2])
        return torch.addcmul(constants[0], x, constants[1], out=x).view(shape).permute(0, 3, 1, 2)


def _numbers(key: str, values: Sequence[Any], count: int, kind: type) -> tuple[Any, ...]:
    try:
        numbers = () if isinstance(values, str) else tuple(float(v) for v in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)) or (kind is int and any(n % 1 for n in numbers)):
        what = "whole numbers" if kind is int else "finite numbers"
        raise ReidError(f"{key} is {values!r}: it must be {count} {what}.")
    return tuple(kind(n) for n in numbers)
