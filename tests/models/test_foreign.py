"""Other people's checkpoints, against their own code where it lies at hand.

REID_TORCHREID, REID_BOT and REID_FASTREID name the folders of deep-person-reid, reid-strong-baseline and fast-reid;
what they import beside torch must be installed (yacs, termcolor and tabulate for fast-reid).
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.models import Preprocessing, import_model
from reid.models.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD

SIZE = (128, 64)


def pictures() -> Tensor:
    """Four images [4, *SIZE, 3] of random coloured patches, as far apart as the eye sees them."""
    patches = torch.randint(0, 256, (4, 3, 8, 4), generator=torch.Generator().manual_seed(0)).float()
    return functional.interpolate(patches, SIZE, mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1)


def randomise(network: nn.Module, forward: Callable[[Tensor], Tensor]) -> nn.Module:
    """Weights and running statistics that no two layers share, so that any mix-up shows; in evaluation mode.

    Each batch norm's statistics are those of what it is given, each moved at random, so that features stay in range.
    """
    generator = torch.Generator().manual_seed(3)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    def set_statistics(layer: Any, inputs: tuple[Tensor]) -> None:
        every = [0, 2, 3] if inputs[0].ndim == 4 else [0]
        mean, variance = inputs[0].mean(every), inputs[0].var(every).clamp(min=1e-4)
        layer.running_mean.copy_(mean + draw(mean, -0.3, 0.3) * variance.sqrt())
        layer.running_var.copy_(variance * draw(mean, 0.5, 2.0))

    hooks = []
    for layer in network.modules():
        norms = isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
        if norms or isinstance(layer, nn.InstanceNorm2d):
            layer.weight.data.copy_(draw(layer.weight, 0.5, 1.5))
            layer.bias.data.copy_(draw(layer.bias, -0.5, 0.5))
        if norms:
            hooks.append(layer.register_forward_pre_hook(set_statistics))
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            layer.bias.data.copy_(draw(layer.bias, -0.3, 0.3))
    with torch.no_grad():
        network.eval()
        forward(Preprocessing(SIZE, IMAGENET_MEAN, IMAGENET_STD)(pictures()).contiguous())
    for hook in hooks:
        hook.remove()
    return network


@pytest.fixture
def theirs(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """A module of their code by name; their packages are gone from `sys.modules` afterwards."""
    before, path = set(sys.modules), list(sys.path)

    def load(variable: str, package: str, stubs: tuple[str, ...] = ()) -> Any:
        folder = os.environ.get(variable)
        if not folder:
            pytest.skip(f"{variable} does not name a folder with that code")
        for stub in stubs:  # packages whose __init__ would import a data pipeline
            module = types.ModuleType(stub)
            module.__path__ = [str(Path(folder, *stub.split(".")))]  # type: ignore[attr-defined]
            sys.modules[stub] = module
        sys.path.insert(0, folder)
        return importlib.import_module(package)

    yield load
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("torchreid", "fastreid", "modeling", "layers"):
            del sys.modules[name]


def compare(theirs: nn.Module, forward: Callable[[Tensor], Tensor], path: Path, wrap: str, **options: Any) -> Any:
    """Save their weights, import them, and hold both embeddings of the same input, of length 1, to 10⁻⁴."""
    randomise(theirs, forward)
    state = {f"module.{k}": v for k, v in theirs.state_dict().items()} if wrap == "state_dict" else theirs.state_dict()
    torch.save({wrap: state, "epoch": 60, "rank1": np.float64(0.9)}, path)
    model, found = import_model(path, size=SIZE, **options)
    x = model.preprocess(pictures()).contiguous()
    with torch.no_grad():
        wanted, got = functional.normalize(forward(x)), functional.normalize(model(x).embeddings)
        theirs.double(), model.double()
        exact = forward(x.double()), model(x.double()).embeddings
    assert wanted.std(0).mean() > 0.1 * wanted.abs().mean()  # the images do differ
    assert (got - wanted).abs().max() < 1e-4
    torch.testing.assert_close(exact[1], exact[0], rtol=1e-5, atol=1e-5)  # it is rounding alone
    return model, found


@pytest.mark.parametrize(
    ("name", "backbone", "options"),
    [
        ("osnet_x1_0", "osnet_x1_0", {}),
        ("osnet_x0_75", "osnet_x0_75", {}),
        ("osnet_x0_5", "osnet_x0_5", {}),
        ("osnet_x0_25", "osnet_x0_25", {}),
        ("osnet_ibn_x1_0", "osnet_ibn_x1_0", {}),
        ("osnet_ain_x1_0", "osnet_ain_x1_0", {}),
        ("osnet_ain_x0_75", "osnet_ain_x0_75", {}),
        ("osnet_ain_x0_5", "osnet_ain_x0_5", {}),
        ("osnet_ain_x0_25", "osnet_ain_x0_25", {}),
        ("resnet18", "resnet18", {}),
        ("resnet50", "resnet50", {}),
        ("resnet50_fc512", "resnet50", {}),
        ("resnet50_ibn_a", "resnet50_ibn_a", {}),
    ],
)
def test_torchreids_models_embed_as_there(name: str, backbone: str, options: dict, theirs: Any, tmp_path: Path) -> None:
    stubs = ("torchreid", "torchreid.models")
    module = name.removesuffix("_fc512") if "ibn_a" in name or not name.startswith("osnet") else "osnet"
    module = "osnet_ain" if "ain" in name else "resnet" if module in ("resnet18", "resnet50") else module
    code = theirs("REID_TORCHREID", f"torchreid.models.{module}".replace("resnet50_ibn_a", "resnet_ibn_a"), stubs)
    network = getattr(code, name)(num_classes=7, pretrained=False)
    model, found = compare(network, network, tmp_path / "w.pth.tar", "state_dict", **options)
    assert found.family == "torchreid"
    assert model.spec["backbone"] == backbone
    assert set(model.weights_report.unexpected) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("resnet50", "resnet50_bot"), ("resnet50_ibn_a", "resnet50_ibn_a")],
)
@pytest.mark.parametrize("feature", ["after", "before"])
def test_bots_models_embed_as_there(name: str, backbone: str, feature: str, theirs: Any, tmp_path: Path) -> None:
    code = theirs("REID_BOT", "modeling.baseline", ("modeling",))
    network = code.Baseline(7, 1, "", "bnneck", feature, name, "self")
    options = {"before_neck": feature == "before"}
    model, found = compare(network, network, tmp_path / "resnet50_model_120.pth", "model", **options)
    assert found.family.startswith("reid-strong-baseline")
    assert (model.spec["backbone"], model.embedding_size) == (backbone, 2048)


@pytest.mark.parametrize(
    ("depth", "ibn", "non_local", "pool", "dim", "backbone"),
    [
        ("50x", False, False, "GlobalAvgPool", 0, "resnet50_fastreid"),
        ("50x", True, False, "GlobalAvgPool", 0, "resnet50_ibn_a_fastreid"),
        ("101x", True, False, "GlobalAvgPool", 0, "resnet101_ibn_a_fastreid"),
        ("50x", False, True, "GeneralizedMeanPoolingP", 0, "resnet50_nl_fastreid"),
        ("50x", True, True, "GeneralizedMeanPoolingP", 0, "resnet50_ibn_a_nl_fastreid"),
        ("50x", False, False, "GeneralizedMeanPooling", 512, "resnet50_fastreid"),
    ],
)
def test_fastreids_models_embed_as_there(
    depth: str, ibn: bool, non_local: bool, pool: str, dim: int, backbone: str, theirs: Any, tmp_path: Path
) -> None:
    modeling = theirs("REID_FASTREID", "fastreid.modeling.meta_arch")
    config = importlib.import_module("fastreid.config").get_cfg()
    config.MODEL.DEVICE = "cpu"
    config.MODEL.BACKBONE.update(DEPTH=depth, WITH_IBN=ibn, WITH_NL=non_local, PRETRAIN=False, LAST_STRIDE=1)
    config.MODEL.HEADS.update(POOL_LAYER=pool, EMBEDDING_DIM=dim, WITH_BNNECK=True, NUM_CLASSES=7)
    network = modeling.build_model(config)
    if pool.endswith("P"):
        network.heads.pool_layer.p.data.fill_(2.2)

    def forward(x: Tensor) -> Tensor:
        return network.heads(network.backbone(x))

    options = {"pooling": "gem"} if pool == "GeneralizedMeanPooling" else {}
    model, found = compare(network, forward, tmp_path / "model_best.pth", "model", **options)
    assert found.family == "fast-reid"
    assert model.spec["backbone"] == backbone
    assert model.spec["pooling"] == ("avg" if pool == "GlobalAvgPool" else "gem")
