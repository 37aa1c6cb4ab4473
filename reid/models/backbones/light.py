"""Networks for small crops and CPUs."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from reid.models.backbones.backbone import Backbone
from reid.models.backbones.osnet import linear, unit
from reid.models.backbones.resnet import IBN


def light_resnet(
    width: float, blocks: tuple[int, int, int, int], ibn: bool = False, *, last_stride: int, size: tuple[int, int]
) -> Backbone:
    """Basic residual blocks on 64, 128, 256, 512 × `width` channels: [B, 3, H, W] → [B, 512 × width, H/16, W/16].

    The blocks are those of He et al. 2016 (table 1), as many a stage as `blocks` says; the stem is two 3×3 convolutions
    of stride 2, and the strides of the stages are 1, 2, 2, `last_stride`. With `ibn`, the first norm of every block of
    stages 1 to 3 is IBN-a (Pan et al. 2018).
    """
    channels = [int(c * width) for c in (64, 128, 256, 512)]
    layers = _stem(channels[0])
    inputs = channels[0]
    for outputs, number, stride in zip(channels, blocks, (1, 2, 2, last_stride), strict=True):
        for i in range(number):
            block = _basic(inputs, outputs, stride if i == 0 else 1)
            if ibn and outputs != channels[-1]:
                block.bn1 = IBN(outputs)
            layers.append(block)
            inputs = outputs
    return _initialised(layers, inputs)


class ChainedOmniBlock(nn.Module):
    """x → ReLU(shortcut(x) + expand(Σₜ G(xₜ) ⊙ xₜ)), where x₀ = reduce(x) has a quarter of the channels and
    xₜ = ReLU(BN(3×3 convolution of xₜ₋₁)), t = 1 … 3.

    OSNet's block (Zhou et al. 2019, sections 3.2 and 3.3) with two changes for CPUs, where depthwise convolutions are
    slow: its convolutions are ordinary ones, and each stream continues the one before, so that three streams need three
    convolutions instead of six. Stream t covers (2t + 1) × (2t + 1) pixels. All streams share the gate G, a small
    network on the pooled stream. [B, C, h, w] → [B, C', h, w].
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
        first, *others = self.streams
        stream = first(self.reduce(x))
        mixed = stream * self.gate(stream)
        for convolution in others:
            stream = convolution(stream)
            mixed = mixed + stream * self.gate(stream)
        return self.relu(self.expand(mixed) + self.shortcut(x))


def light_osnet(*, last_stride: int, size: tuple[int, int]) -> Backbone:
    """One basic block on 32 channels, then two `ChainedOmniBlock`s on each of 128, 256 and 512: [B, 3, H, W] →
    [B, 512, H/16, W/16].

    The stem is that of `light_resnet`; where a stage has a stride, the map before it is averaged 2×2.
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
    """Initialise convolutions as He et al. 2015, which preserves the variance of gradients."""
    module = nn.Sequential(*layers)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return Backbone(module, channels)
