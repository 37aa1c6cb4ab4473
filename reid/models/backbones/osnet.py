"""OSNet ×1.0, ×0.75, ×0.5 and ×0.25, OSNet-IBN and OSNet-AIN, written from their papers.

Zhou et al. 2019, "Omni-Scale Feature Learning for Person Re-Identification": the lite convolution is section 3.1, the
omni-scale block sections 3.2 and 3.3 (figure 4), the widths and depths table 1. The paper's 512-dimensional layer
after the global pooling is `embedding_dim=512` here; it belongs to the head.

Zhou et al. 2021, "Learning Generalisable Omni-Scale Representations for Person Re-Identification", is OSNet-AIN: the
places of instance norm that its search found (figure 4).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

from torch import Tensor, nn

from reid.core.errors import ConfigError
from reid.models.backbones.backbone import Backbone

CHANNELS = (64, 256, 384, 512)
WIDTHS = {"x1_0": 1.0, "x0_75": 0.75, "x0_5": 0.5, "x0_25": 0.25}
STREAMS = 4
REDUCTION = 4
GATE_REDUCTION = 16

# Where a block has instance norm, by stage: after the sum ("outside"), in place of the last batch norm ("inside").
PLAIN = (("", ""), ("", ""), ("", ""))
IBN = (("outside", "outside"), ("", ""), ("", ""))
AIN = (("inside", "inside"), ("", "inside"), ("inside", ""))

# The authors' weight files name the four streams conv2a … conv2d, and their layers conv, bn, fc1, fc2.
RENAMES = (
    (r"\.conv2a\.", ".streams.0.0."),
    (r"\.conv2b\.", ".streams.1."),
    (r"\.conv2c\.", ".streams.2."),
    (r"\.conv2d\.", ".streams.3."),
    (r"\.conv2\.(\d)\.layers\.(\d)\.", r".streams.\1.\2."),
    (r"(^|\.)pool([23])\.0\.", r"\1conv\2.2.0."),
    (r"(streams\.\d\.\d)\.conv1\.", r"\1.0."),
    (r"(streams\.\d\.\d)\.conv2\.", r"\1.1."),
    (r"(streams\.\d\.\d)\.bn\.", r"\1.2."),
    (r"(conv[234]\.[01])\.conv1\.", r"\1.reduce."),
    (r"(conv[234]\.[01])\.conv3\.", r"\1.expand."),
    (r"\.downsample\.", ".shortcut."),
    (r"\.gate\.fc1\.", ".gate.1."),
    (r"\.gate\.fc2\.", ".gate.3."),
    (r"(conv[23]\.2)\.0\.(conv|bn)\.", r"\1.\2."),
    (r"\.conv\.weight$", ".0.weight"),
    (r"\.bn\.", ".1."),
    (r"\.IN\.", ".norm."),
)
AIN_RENAMES = (*RENAMES[:-1], (r"\.IN\.", ".expand.1."))


class OmniScaleBlock(nn.Module):
    """x → ReLU(shortcut(x) + expand(Σₜ G(xₜ) ⊙ xₜ)), with xₜ = reduce(x) through t lite convolutions, t = 1 … 4.

    Stream t sees (2t + 1) × (2t + 1) pixels. The gate G, a small network on the pooled stream, is one and the same for
    all streams, so that their gradients meet in it. [B, C, h, w] → [B, C', h, w].

    `instance` is "" or where an instance norm stands: "outside", on the sum before the last ReLU, or "inside", in place
    of the batch norm of `expand`.
    """

    def __init__(self, inputs: int, outputs: int, instance: str = "") -> None:
        super().__init__()
        inner = outputs // REDUCTION
        self.reduce = unit(inputs, inner)
        self.streams = nn.ModuleList(nn.Sequential(*(_lite(inner) for _ in range(t))) for t in range(1, STREAMS + 1))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inner, inner // GATE_REDUCTION, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner // GATE_REDUCTION, inner, 1),
            nn.Sigmoid(),
        )
        self.expand = linear(inner, outputs)
        if instance == "inside":
            self.expand[1] = nn.InstanceNorm2d(outputs, affine=True)
        self.shortcut: nn.Module = nn.Identity() if inputs == outputs else linear(inputs, outputs)
        self.norm: nn.Module = nn.InstanceNorm2d(outputs, affine=True) if instance == "outside" else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → [B, C', h, w]."""
        reduced = self.reduce(x)
        streams = [stream(reduced) for stream in self.streams]
        return self.relu(self.norm(self.shortcut(x) + self.expand(add_gated(streams, self.gate))))


class OSNet(nn.Module):
    """[B, 3, H, W] → [B, 512 × width, H/16, W/16]."""

    def __init__(self, width: float, instance: tuple[tuple[str, str], ...] = PLAIN) -> None:
        super().__init__()
        stem, second, third, fourth = (int(c * width) for c in CHANNELS)
        self.channels = fourth
        self.conv1 = unit(3, stem, kernel=7, stride=2)
        if instance != PLAIN:
            self.conv1[1] = nn.InstanceNorm2d(stem, affine=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(*_stage(stem, second, instance[0]), unit(second, second), nn.AvgPool2d(2))
        self.conv3 = nn.Sequential(*_stage(second, third, instance[1]), unit(third, third), nn.AvgPool2d(2))
        self.conv4 = nn.Sequential(*_stage(third, fourth, instance[2]))
        self.conv5 = unit(fourth, fourth)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """The feature map of the last 1×1 convolution."""
        x = self.maxpool(self.conv1(images))
        return self.conv5(self.conv4(self.conv3(self.conv2(x))))


def osnet(width: float, instance: tuple[tuple[str, str], ...] = PLAIN, *, last_stride: int) -> Backbone:
    """OSNet of the given width, with instance norm in these places (and then also in its first layer).

    Raises:
        ConfigError: `last_stride` is 2; OSNet's last stage has no stride to choose.
    """
    if last_stride != 1:
        raise ConfigError("last_stride is 2, but OSNet's last stage has no stride to choose: leave it at 1.")
    module = OSNet(width, instance)
    return Backbone(module, module.channels, renames=AIN_RENAMES if instance == AIN else RENAMES)


def _stage(inputs: int, outputs: int, instance: tuple[str, str]) -> list[nn.Module]:
    return [OmniScaleBlock(inputs, outputs, instance[0]), OmniScaleBlock(outputs, outputs, instance[1])]


def unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def linear(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """1×1 convolution and batch norm, no ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def add_gated(streams: Sequence[Tensor], gate: nn.Module) -> Tensor:
    """Return the sum of the streams, each multiplied by its gate."""
    return functools.reduce(operator.add, (stream * gate(stream) for stream in streams))


def initialise(module: nn.Module) -> None:
    """Initialise convolutions as He et al. 2015, which preserves the variance of gradients; biases are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _lite(channels: int) -> nn.Sequential:
    """A 3×3 convolution in two: 1×1 across channels, then 3×3 within each; batch norm and ReLU at the end."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
