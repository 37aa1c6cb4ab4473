"""Small networks for CPUs: `light10`, `light14` and `light18` (residual blocks) and `light_osnet` (omni-scale blocks).

Both start with two 3×3 convolutions of stride 2 instead of a 7×7 convolution and pooling. They were designed in this
project from the blocks of He et al. 2016 and Zhou et al. 2019; there are no published weights.
"""

from __future__ import annotations

from itertools import accumulate

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from reid.models.backbones.backbone import Backbone
from reid.models.backbones.osnet import add_gated, initialise, linear, unit
from reid.models.backbones.resnet import IBN


def light_resnet(blocks: tuple[int, int, int, int], *, ibn: bool = False, last_stride: int) -> Backbone:
    """Build a small ResNet: [B, 3, H, W] → [B, 256, H/16, W/16], or H/32 with `last_stride` 2.

    Four stages with 32, 64, 128 and 256 channels and the strides 1, 2, 2 and `last_stride`. `blocks` is the number of
    basic residual blocks (He et al. 2016, "Deep Residual Learning for Image Recognition", figure 5) in each stage. With
    `ibn`, the first norm of every block of stages 1 to 3 is IBN-a (Pan et al. 2018, "Two at Once").
    """
    layers = _stem(32)
    inputs = 32
    for outputs, number, stride in zip((32, 64, 128, 256), blocks, (1, 2, 2, last_stride), strict=True):
        for i in range(number):
            block = _basic(inputs, outputs, stride if i == 0 else 1)
            if ibn and outputs != 256:
                block.bn1 = IBN(outputs)
            layers.append(block)
            inputs = outputs
    return _initialised(layers, inputs)


class ChainedOmniBlock(nn.Module):
    """Omni-scale block with chained streams: [B, C, h, w] → [B, C', h, w].

    x → ReLU(shortcut(x) + expand(Σₜ G(xₜ) ⊙ xₜ)), where x₀ = reduce(x) has C' / 4 channels and
    xₜ = ReLU(BN(3×3 convolution of xₜ₋₁)), t = 1 … 3.

    OSNet's block (Zhou et al. 2019, "Omni-Scale Feature Learning", sections 3.2 and 3.3) with two changes for CPUs,
    where depthwise convolutions are slow: convolutions are ordinary, and each stream continues the previous one, so
    that three streams need three convolutions instead of six. Stream t has a receptive field of (2t + 1) × (2t + 1).
    All streams share the gate G, a small network on the averaged stream.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = outputs // 4
        hidden = max(8, inner // 4)
        self.reduce = unit(inputs, inner)
        self.streams = nn.ModuleList(unit(inner, inner, kernel=3) for _ in range(3))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(inner, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, inner),
            nn.Sigmoid(),
            nn.Unflatten(1, (inner, 1, 1)),
        )
        self.expand = linear(inner, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else linear(inputs, outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → [B, C', h, w]."""
        _, *streams = accumulate(self.streams, lambda stream, convolution: convolution(stream), initial=self.reduce(x))
        return self.relu(self.expand(add_gated(streams, self.gate)) + self.shortcut(x))


def light_osnet(*, last_stride: int) -> Backbone:
    """Build a small OSNet for CPUs: [B, 3, H, W] → [B, 512, H/16, W/16], or H/32 with `last_stride` 2.

    A basic residual block with 32 channels, then two `ChainedOmniBlock`s with each of 128, 256 and 512 channels. The
    map is averaged 2×2 before a stage with stride 2.
    """
    layers = [*_stem(32), _basic(32, 32, 1)]
    inputs = 32
    for outputs, stride in zip((128, 256, 512), (2, 2, last_stride), strict=True):
        if stride == 2:
            layers.append(nn.AvgPool2d(2))
        layers += [ChainedOmniBlock(inputs, outputs), ChainedOmniBlock(outputs, outputs)]
        inputs = outputs
    return _initialised(layers, inputs)


def _stem(channels: int) -> list[nn.Module]:
    return [*unit(3, channels // 2, kernel=3, stride=2), *unit(channels // 2, channels, kernel=3, stride=2)]


def _basic(inputs: int, outputs: int, stride: int) -> BasicBlock:
    changes = stride != 1 or inputs != outputs
    return BasicBlock(inputs, outputs, stride, linear(inputs, outputs, stride) if changes else None)


def _initialised(layers: list[nn.Module], channels: int) -> Backbone:
    module = nn.Sequential(*layers)
    initialise(module)
    return Backbone(module, channels)
