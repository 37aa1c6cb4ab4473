from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from reid.core.errors import ReidError
from reid.models import BACKBONES, build_model
from reid.models.backbones import build_backbone
from reid.models.backbones.light import ChainedOmniBlock
from reid.models.backbones.resnet import IBN

DOCS = Path(__file__).parents[2] / "docs/models.md"


def feature_map(name: str, size: tuple[int, int], last_stride: int = 1) -> torch.Tensor:
    module = build_backbone(name, last_stride=last_stride, size=size).module.eval()
    with torch.no_grad():
        return module(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)))


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_returns_its_channels_and_trains_every_parameter(name: str) -> None:
    built = build_backbone(name, last_stride=1, size=(64, 32))
    out = built.module(torch.randn(2, 3, 64, 32))
    assert out.shape == (2, built.channels, 4, 2)
    out.square().mean().backward()
    assert [k for k, p in built.module.named_parameters() if p.grad is None] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in BACKBONES if not n.startswith("osnet") and "101" not in n])
def test_last_stride_2_halves_the_feature_map(name: str) -> None:
    assert feature_map(name, (64, 32), 2).shape[2:] == (2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_last_stride_1_gives_a_16x8_map_for_256x128_images(name: str) -> None:
    assert feature_map(name, (256, 128)).shape[2:] == (16, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v3_small"])
def test_last_stride_2_equals_torchvisions_network(name: str) -> None:
    torchvisions = torchvision.models.get_model(name, weights=None).eval()
    built = build_backbone(name, last_stride=2, size=(64, 32))
    missing = built.module.load_state_dict(torchvisions.state_dict(), strict=False).missing_keys
    assert missing == []
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        features = built.module.eval()(x).mean((2, 3))
        head = torchvisions.fc if name.startswith("resnet") else torchvisions.classifier
        torch.testing.assert_close(head(features), torchvisions(x))


@pytest.mark.slow
def test_last_stride_does_not_change_parameters() -> None:
    one, two = (build_model("resnet50", last_stride=s).state_dict() for s in (1, 2))
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18_ibn_a", "resnet50_ibn_a"])
def test_ibn_a_replaces_only_the_first_norm_of_blocks_in_stages_1_to_3(name: str) -> None:
    module = build_backbone(name, last_stride=1, size=(64, 32)).module
    places = [k for k, m in module.named_modules() if isinstance(m, IBN)]
    blocks = [f"layer{i}.{j}.bn1" for i in (1, 2, 3) for j in range(len(getattr(module, f"layer{i}")))]
    assert places == blocks
    plain = build_backbone(name.removesuffix("_ibn_a"), last_stride=1, size=(64, 32)).module
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in plain.parameters())


def test_ibn_uses_instance_norm_for_one_half_and_batch_norm_for_the_other() -> None:
    x = torch.randn(4, 6, 8, 4) * 3 + torch.arange(4.0).view(4, 1, 1, 1)
    out = IBN(6).train()(x)
    by_image = (x[:, :3] - x[:, :3].mean((2, 3), keepdim=True)) / x[:, :3].std((2, 3), keepdim=True, correction=0)
    by_batch = (x[:, 3:] - x[:, 3:].mean((0, 2, 3), keepdim=True)) / x[:, 3:].std((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(out, torch.cat([by_image, by_batch], 1), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
# What the authors publish: parameters and multiply-accumulates at 256×128, with the layer of 512 and no classifier.
@pytest.mark.parametrize(
    ("name", "parameters", "millions"),
    [
        ("osnet_x1_0", 2_169_508, 978.9),
        ("osnet_x0_75", 1_285_754, 571.8),
        ("osnet_x0_5", 630_034, 272.9),
        ("osnet_x0_25", 201_864, 82.3),
    ],
)
def test_osnet_has_the_published_size(name: str, parameters: int, millions: float) -> None:
    counts = build_model(name, embedding_dim=512, num_classes=751).count()
    assert counts.parameters == parameters - 512  # their layer has a bias that ours would lose in the BNNeck
    assert counts.flops / 1e6 == pytest.approx(millions, abs=0.06)


def test_streams_of_an_omni_scale_block_share_one_gate() -> None:
    block = build_backbone("osnet_x0_25", last_stride=1, size=(64, 32)).module.conv2[0]
    assert [len(stream) for stream in block.streams] == [1, 2, 3, 4]
    calls = []
    block.gate.register_forward_hook(lambda *_: calls.append(1))
    block(torch.randn(1, 16, 8, 4))
    assert len(calls) == 4


def test_chained_omni_block_follows_its_formula() -> None:
    block = ChainedOmniBlock(24, 64).eval()
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(3, 24, 7, 5)

    def gate(stream: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(functional.linear(stream.mean((2, 3)), block.gate[2].weight, block.gate[2].bias))
        return torch.sigmoid(functional.linear(hidden, block.gate[4].weight, block.gate[4].bias))[:, :, None, None]

    with torch.no_grad():
        one = block.streams[0](block.reduce(x))
        two = block.streams[1](one)
        three = block.streams[2](two)
        mixed = one * gate(one) + two * gate(two) + three * gate(three)
        torch.testing.assert_close(block(x), functional.relu(block.expand(mixed) + block.shortcut(x)))
        same = ChainedOmniBlock(64, 64).eval()
        assert isinstance(same.shortcut, nn.Identity)
        assert same(torch.randn(1, 64, 1, 1)).shape == (1, 64, 1, 1)


def test_chained_omni_block_has_a_7x7_receptive_field() -> None:
    block = ChainedOmniBlock(8, 32).eval()
    x = torch.randn(1, 8, 15, 15, requires_grad=True)
    block.gate = nn.Identity()  # the gate sees all
    block(x)[0, :, 7, 7].sum().backward()
    rows, columns = x.grad.abs().sum((0, 1)).nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 10, 4, 10)


@pytest.mark.slow
def test_resnet50_has_the_published_size() -> None:
    counts = build_model("resnet50", neck="none").count()
    assert counts.parameters == 25_557_032 - 2048 * 1000 - 1000  # torchvision's, without its classifier
    assert counts.flops == pytest.approx(4.05e9, rel=0.002)
    full = build_model("resnet50", neck="none", height=224, width=224, last_stride=2).count()
    assert full.flops + 2048 * 1000 == pytest.approx(4.09e9, rel=0.001)  # torchvision's table


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["avg", "max", "gem"])
def test_counting_parameters_does_not_change_the_model(pooling: str) -> None:
    model = build_model("light18", height=64, width=32, num_classes=7, pooling=pooling).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = model.count()
    assert first == model.count() == build_model("light18", height=64, width=32, pooling=pooling).count()
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert "M parameters" in str(first)


@pytest.mark.slow
def test_counts_in_the_documented_table_are_right() -> None:
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", DOCS.read_text("utf-8"), re.M)
    assert [r[0] for r in rows] == list(BACKBONES)
    for name, channels, millions, giga in rows:
        with torch.device("meta"):  # shapes are enough
            model = build_model(name, neck="none")
        counts = model.count()
        assert (channels, millions, giga) == (
            str(model.embedding_size),
            f"{counts.parameters / 1e6:.2f}",
            f"{counts.flops / 1e9:.3f}",
        ), name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet51", "Did you mean 'resnet50'"),
        ("osnet_x1", "Did you mean 'osnet_x1_0'"),
        ("", "Unknown backbone ''"),
    ],
)
def test_unknown_backbone_suggests_a_similar_name(name: str, words: str) -> None:
    with pytest.raises(ReidError, match=words):
        build_model(name)


def test_osnet_rejects_last_stride_2() -> None:
    with pytest.raises(ReidError, match="OSNet's last stage has no stride"):
        build_model("osnet_x0_25", last_stride=2)


@pytest.mark.parametrize("name", ["osnet_x0_25"])
def test_image_size_without_a_feature_map_is_an_error(name: str) -> None:
    with pytest.raises(ReidError, match="osnet_x0_25 cannot take images of 8×8"):
        build_model(name, height=8, width=8)


class TestTimm:
    @pytest.fixture(autouse=True)
    def _timm(self) -> None:
        pytest.importorskip("timm", reason="timm is optional: pip install timm")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "channels", "grid"),
        [
            ("resnet10t", 512, (2, 1)),  # a map
            ("vit_tiny_patch16_224", 192, (4, 2)),  # tokens after a class token
            ("swin_tiny_patch4_window7_224", 768, (2, 1)),  # a map, channels last
            ("mobilenetv3_small_050", 1024, (2, 1)),  # a map of a last layer wider than its features
        ],
    )
    def test_returns_a_feature_map(self, name: str, channels: int, grid: tuple[int, int]) -> None:
        model = build_model(f"timm:{name}", height=64, width=32, num_classes=3)
        images = torch.randint(0, 256, (2, 64, 32, 3), dtype=torch.uint8)
        assert model.backbone(model.preprocessing(images)).shape == (2, channels, *grid)
        model(model.preprocessing(images)).logits.sum().backward()
        assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
        assert model.embed(images).shape == (2, channels)
        assert build_model(**model.spec).spec == model.spec

    def test_tokens_are_arranged_as_in_the_image(self) -> None:
        module = build_backbone("timm:vit_tiny_patch16_224", last_stride=1, size=(64, 32)).module
        module.network.blocks = nn.Sequential()  # nothing mixes the tokens
        module.network.pos_embed.data.zero_()
        image = torch.zeros(1, 3, 64, 32)
        image[:, :, 32:48, 16:] = torch.randn(3, 16, 16)
        out = module.eval()(image)[0]
        differs = (out - out[:, :1, :1]).abs().amax(0) > 1e-4
        assert differs.nonzero().tolist() == [[2, 1]]

    def test_preprocessing_matches_the_published_weights(self) -> None:
        assert build_model("timm:vit_tiny_patch16_224", height=64, width=32).preprocessing.mean == (0.5, 0.5, 0.5)

    @pytest.mark.parametrize(
        ("name", "options", "words"),
        [
            ("resnet19", {}, r"no network 'resnet19'. Did you mean 'resnet"),
            ("resnet10t", {"last_stride": 2}, "has fixed strides"),
            ("nest_tiny", {"height": 64, "width": 32}, "cannot be built for images of 64×32"),
        ],
    )
    def test_unsupported_network_is_an_error(self, name: str, options: dict, words: str) -> None:
        with pytest.raises(ReidError, match=words):
            build_model(f"timm:{name}", **options)

    def test_weights_with_timms_parameter_names_are_loaded(self, tmp_path: Path) -> None:
        import timm

        theirs = timm.create_model("resnet10t")
        torch.save(theirs.state_dict(), tmp_path / "w.pth")
        model = build_model("timm:resnet10t", height=64, width=32, weights=tmp_path / "w.pth")
        assert not model.weights_report.missing
        assert torch.equal(model.backbone.network.conv1[0].weight, theirs.conv1[0].weight)


def test_missing_timm_is_an_error_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ReidError, match=r"pip install 'timm>=1\.0'"):
        build_model("timm:resnet18")
