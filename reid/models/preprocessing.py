"""Preparation of images for a network. It is stored with the model."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from reid.config import Positive, Settings
from reid.core.errors import DataError

Deviation = Annotated[float, Field(gt=0)]


class Preprocessing(Settings):
    """Resize to `size` = (height, width) pixels, then compute (x / 255 − mean) / std for each channel.

    `mean` and `std` refer to values in 0..1, in the order given by `channel_order`. Images are always passed as RGB.

    Raises:
        ConfigError: a value of the wrong type or out of range.

    Example:
        >>> preprocessing = Preprocessing(size=(256, 128), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> preprocessing(torch.zeros(1, 64, 32, 3, dtype=torch.uint8)).shape
        torch.Size([1, 3, 256, 128])
    """

    model_config = ConfigDict(frozen=True)

    size: tuple[Positive, Positive]
    mean: tuple[float, float, float]
    std: tuple[Deviation, Deviation, Deviation]
    channel_order: Literal["rgb", "bgr"] = "rgb"

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare uint8 [B, H, W, 3] RGB images on any device: float32 [B, 3, height, width] in channels_last memory.

        Images of another size are resized bilinearly with antialiasing. Nothing is cropped or padded, and the aspect
        ratio is not kept.

        Raises:
            DataError: not uint8 [B, H, W, 3], or an image without pixels.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
            raise DataError(
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
        x = x.reshape(-1, shape[2] * 3)  # long rows with repeated constants are faster than three channels at a time
        scale = [1 / (255 * s) for s in self.std]
        shift = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        constants = torch.tensor([shift, scale]).to(x.device, non_blocking=True).repeat(1, shape[2])
        return torch.addcmul(constants[0], x, constants[1], out=x).view(shape).permute(0, 3, 1, 2)
