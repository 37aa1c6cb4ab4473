"""Other people's checkpoints, against their own code where it lies at hand.

REID_OSNET_ONNX names a trained OSNet x0.25 of torchreid's (MSMT17) as an ONNX file, REID_OSNET_NPZ its features of the
Market-1501 test split. REID_TORCHREID, REID_BOT and REID_FASTREID name the folders of deep-person-reid,
reid-strong-baseline and fast-reid; what they import beside torch must be installed (yacs, termcolor and tabulate for
fast-reid).
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional

from reid.commands import main
from reid.core.errors import ReidError
from reid.data.layouts import load_benchmark
from reid.embedding.embedder import Embedder
from reid.models import Preprocessing, build_model, import_model
from reid.models.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from reid.models.checkpoints import save_checkpoint
from reid.models.external import recognise
from tests.models.test_pretrained import published_osnet_names

SIZE = (128, 64)


def color_images() -> Tensor:
    """Return four clearly different images [4, *SIZE, 3] of random coloured patches."""
    patches = torch.randint(0, 256, (4, 3, 8, 4), generator=torch.Generator().manual_seed(0)).float()
    return functional.interpolate(patches, SIZE, mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1)


def randomise(network: nn.Module, forward: Callable[[Tensor], Tensor]) -> nn.Module:
    """Set weights and running statistics that no two layers share, so that any mix-up is detected.

    The statistics of each batch norm are those of its input plus noise, so that features stay in range. Returns the
    network in evaluation mode.
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
        forward(Preprocessing(size=SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)(color_images()).contiguous())
    for hook in hooks:
        hook.remove()
    return network


@pytest.fixture
def code_of(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """Import a module of another project by name; remove its packages from `sys.modules` afterwards."""
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


def compare(network: nn.Module, forward: Callable[[Tensor], Tensor], path: Path, wrap: str, **options: Any) -> Any:
    """Save and import the weights of another project; compare normalised embeddings with a tolerance of 10⁻⁴."""
    randomise(network, forward)
    state = (
        {f"module.{k}": v for k, v in network.state_dict().items()} if wrap == "state_dict" else network.state_dict()
    )
    torch.save({wrap: state, "epoch": 60, "rank1": np.float64(0.9)}, path)
    model, found = import_model(path, size=SIZE, **options)
    x = model.preprocessing(color_images()).contiguous()
    with torch.no_grad():
        wanted, got = functional.normalize(forward(x)), functional.normalize(model(x).embeddings)
        network.double(), model.double()
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
def test_torchreid_checkpoint_gives_the_embeddings_of_torchreid(
    name: str, backbone: str, options: dict, code_of: Any, tmp_path: Path
) -> None:
    stubs = ("torchreid", "torchreid.models")
    module = name.removesuffix("_fc512") if "ibn_a" in name or not name.startswith("osnet") else "osnet"
    module = "osnet_ain" if "ain" in name else "resnet" if module in ("resnet18", "resnet50") else module
    code = code_of("REID_TORCHREID", f"torchreid.models.{module}".replace("resnet50_ibn_a", "resnet_ibn_a"), stubs)
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
def test_bot_checkpoint_gives_the_embeddings_of_bot(
    name: str, backbone: str, feature: str, code_of: Any, tmp_path: Path
) -> None:
    code = code_of("REID_BOT", "modeling.baseline", ("modeling",))
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
def test_fastreid_checkpoint_gives_the_embeddings_of_fastreid(
    depth: str, ibn: bool, non_local: bool, pool: str, dim: int, backbone: str, code_of: Any, tmp_path: Path
) -> None:
    modeling = code_of("REID_FASTREID", "fastreid.modeling.meta_arch")
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


def _osnet_onnx() -> str:
    path = os.environ.get("REID_OSNET_ONNX")
    if not path:
        pytest.skip("REID_OSNET_ONNX does not name torchreid's trained OSNet x0.25 as an ONNX file")
    return path


def onnx_tensors(path: str) -> dict[str, Tensor]:
    """The tensors of torchreid's OSNet from an ONNX file whose export folded the batch norms into the convolutions.

    A node is called after its module, which gives back the names that the export lost; a folded norm becomes one that
    only adds the bias.
    """
    onnx = pytest.importorskip("onnx", reason="onnx reads the file")
    graph = onnx.load(path).graph
    held = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in graph.initializer}
    state = {name: tensor for name, tensor in held.items() if name.startswith("fc.") or ".gate." in name}
    for node in graph.node:
        module = node.output[0].strip("/").rpartition("/")[0].split("/")
        if node.op_type != "Conv" or "gate" in module:
            continue
        name = re.sub(r"^(conv\d)\.(\1\.\d)", r"\2", ".".join(module))  # conv2/conv2.0/… → conv2.0.…
        name = re.sub(r"\.(conv2[b-d])\.(\1\.\d)", r".\2", name)
        name = re.sub(r"(conv[23]\.2)\.(\1\.\d)", r"\2", name)
        weight = held[node.input[1]]
        state[f"{name}.weight"] = weight
        if len(node.input) == 3:
            norm = name.rpartition(".")[0] + ".bn"
            state |= {f"{norm}.weight": torch.ones(len(weight)), f"{norm}.bias": held[node.input[2]]}
            state[f"{norm}.running_mean"] = torch.zeros(len(weight))
            state[f"{norm}.running_var"] = torch.full((len(weight),), 1 - 1e-5)
    return state


def trained_osnet(folder: Path) -> Any:
    torch.save(onnx_tensors(_osnet_onnx()), folder / "w.pth")
    return import_model(folder / "w.pth")[0]


def test_trained_osnet_gives_the_output_of_its_onnx_file(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs the file")
    model = trained_osnet(tmp_path)
    assert "484 of 484" in str(model.weights_report)
    x = model.preprocessing(color_images()).contiguous()
    (wanted,) = runtime.InferenceSession(_osnet_onnx()).run(None, {"images": x.numpy()})
    with torch.no_grad():
        got = functional.normalize(model(x).embeddings)
    assert (got - functional.normalize(torch.from_numpy(wanted))).abs().max() < 1e-4


def test_trained_osnet_gives_the_features_computed_by_others(tmp_path: Path, market_root: Path) -> None:
    if not os.environ.get("REID_OSNET_NPZ"):
        pytest.skip("REID_OSNET_NPZ does not name the features of Market-1501's test split")
    image = pytest.importorskip("PIL.Image", reason="code_of were resized by Pillow")
    model, query = trained_osnet(tmp_path), load_benchmark("market1501", market_root).query
    rows = np.arange(0, len(query), 50)
    pixels = [np.asarray(image.open(path).convert("RGB").resize((128, 256), 2)) for path in query.paths[rows]]
    got = model.embed(torch.from_numpy(np.stack(pixels)))
    wanted = torch.from_numpy(np.load(os.environ["REID_OSNET_NPZ"])["query_features"][rows].astype(np.float32))
    assert (got * functional.normalize(wanted)).sum(1).min() > 0.99999  # those are float16


# What follows needs nobody else's code: checkpoints of model_here under their names.


@lru_cache(maxsize=4)
def random_model(name: str, **options: Any) -> Any:
    """Return a model that tests share: do not change it."""
    model = build_model(name, height=SIZE[0], width=SIZE[1], **options)
    return randomise(model, lambda x: model(x).embeddings)


def as_bot(model: Any) -> dict[str, Tensor]:
    own = model.state_dict()
    names = {k: k.replace("backbone.", "base.").replace("neck.", "bottleneck.") for k in own}
    return {names[k]: v for k, v in own.items()} | {"classifier.weight": torch.zeros(7, model.embedding_size)}


def as_fastreid(model: Any, norm: str) -> dict[str, Tensor]:
    own = model.state_dict()
    pairs = (
        (r"^neck\.", f"heads.{norm}."),
        (r"layer(\d)\.attention\.(\d)\.out\.", r"NL_\1.\2.W."),
        (r"layer(\d)\.attention\.(\d)\.", r"NL_\1.\2."),
        (r"^pool\.p", "heads.pool_layer.p"),
        (r"^embedding\.weight", "heads.bottleneck.0.weight"),
    )
    state = {"heads.weight": torch.zeros(7, model.embedding_size)}
    for key, value in own.items():
        for pattern, replacement in pairs:
            key = re.sub(pattern, replacement, key)
        if key.startswith("heads.bottleneck.0.weight") and "embedding.weight" in own:
            value = value[:, :, None, None]
        state[key] = value[None] if key.endswith("pool_layer.p") else value
    return state


def as_torchreid(model: Any) -> dict[str, Tensor]:
    """OSNet's names; its layer has a bias, which the norm after it takes away again."""
    state = {}
    for key, value in model.state_dict().items():
        name = published_osnet_names(key.removeprefix("backbone."))
        name = name.replace("embedding.", "fc.0.").replace("neck.0.", "fc.1.")
        if "ain" in model.spec["backbone"]:
            name = re.sub(r"\.conv2([a-d])\.(\d)\.", lambda m: f".conv2.{'abcd'.index(m[1])}.layers.{m[2]}.", name)
            name = re.sub(r"\.conv2a\.", ".conv2.0.layers.0.", name)
            name = re.sub(r"^conv([23])\.2\.0\.", r"pool\1.0.", name)
            if ".conv3.bn." in name and key.replace("bias", "running_mean").replace("weight", "running_mean") not in (
                model.state_dict()
            ):
                name = name.replace(".conv3.bn.", ".IN.")
        state[name.replace(".norm.", ".IN.")] = value
    bias = torch.linspace(-1, 1, model.embedding_size)
    state["fc.1.running_mean"] = state["fc.1.running_mean"] + bias
    return state | {"fc.0.bias": bias, "classifier.weight": torch.zeros(7, 512), "classifier.bias": torch.zeros(7)}


CASES = {
    "BoT, ResNet-50": (lambda: random_model("resnet50_bot"), as_bot),
    "BoT, ResNet-50-IBN-a": (lambda: random_model("resnet50_ibn_a"), as_bot),
    "BoT without a neck": (lambda: random_model("resnet50_bot", neck="none"), as_bot),
    "fast-reid, older names": (lambda: random_model("resnet50_fastreid"), lambda m: as_fastreid(m, "bnneck")),
    "fast-reid, SBS": (
        lambda: random_model("resnet50_nl_fastreid", pooling="gem"),
        lambda m: as_fastreid(m, "bottleneck.0"),
    ),
    "fast-reid, IBN and a layer of 256": (
        lambda: random_model("resnet50_ibn_a_fastreid", embedding_dim=256),
        lambda m: as_fastreid(m, "bottleneck.1"),
    ),
    "torchreid, OSNet": (lambda: random_model("osnet_x0_25", embedding_dim=512, neck="bn_relu"), as_torchreid),
    "torchreid, OSNet-IBN": (
        lambda: random_model("osnet_ibn_x1_0", embedding_dim=512, neck="bn_relu"),
        as_torchreid,
    ),
    "torchreid, OSNet-AIN": (
        lambda: random_model("osnet_ain_x0_25", embedding_dim=512, neck="bn_relu"),
        as_torchreid,
    ),
    "torchreid, ResNet-50": (
        lambda: random_model("resnet50", last_stride=2, neck="none"),
        lambda m: (
            {k.removeprefix("backbone."): v for k, v in m.state_dict().items()}
            | {"classifier.weight": torch.zeros(7, 2048), "classifier.bias": torch.zeros(7)}
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_checkpoint_with_the_names_of_another_project_is_recognised(case: str, tmp_path: Path) -> None:
    build, rename = CASES[case]
    model_here = build()
    scores = {"rank1": np.float64(0.9), "mAP": np.float32(0.8), "epoch": np.int64(60)}
    torch.save({"state_dict": {f"module.{k}": v for k, v in rename(model_here).items()}, **scores}, tmp_path / "w.pth")
    model, found = import_model(tmp_path / "w.pth", size=SIZE)
    assert found.family.startswith({"BoT": "reid-strong", "fas": "fast-reid", "tor": "torchreid"}[case[:3]])
    assert {k: model.spec[k] for k in model_here.spec} == model_here.spec
    torch.testing.assert_close(model.embed(color_images()), model_here.embed(color_images()), rtol=0, atol=1e-5)
    report = model.weights_report
    assert not report.missing
    assert len(report.matched) == sum(not k.endswith("num_batches_tracked") for k in model_here.state_dict())
    assert "of the model come from" in str(report)


@pytest.mark.slow
def test_values_missing_in_the_file_are_given_or_reported_as_assumed(tmp_path: Path) -> None:
    model_here = random_model("resnet50_bot")
    torch.save(as_bot(model_here), tmp_path / "w.pth")
    model, found = import_model(tmp_path / "w.pth", size=(64, 32))
    assert (model.preprocessing.size, model.spec["last_stride"]) == ((64, 32), 1)
    assert found.assumed == ("size 64×32", "last_stride 1, the default of that project")
    model, found = import_model(tmp_path / "w.pth", size=SIZE, last_stride=2, pooling="gem", before_neck=True)
    assert {"last_stride": 2, "pooling": "gem", "neck": "none"}.items() <= model.spec.items()
    assert found.assumed == ("size 128×64",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"b1.0.conv1.weight": torch.zeros(3)}, r"Unknown parts: b1\.0\.conv1\.weight"),
        (lambda s: {k: v for k, v in s.items() if "layer4.2.bn3" not in k}, r"[14] missing in the file"),
        (lambda s: s | {"bottleneck.weight": torch.zeros(512)}, r"bottleneck\.weight is \[512\]; \[2048\] is required"),
        (lambda s: {k: v for k, v in s.items() if k != "bottleneck.running_var"}, "running_var is missing"),
        (lambda s: s | {"base.layer1.0.se.fc1.weight": torch.zeros(2)}, "this is resnet50_se_bot of reid-strong"),
        (lambda s: {k: v for k, v in s.items() if "layer4" not in k}, "unknown network"),
    ],
    ids=["another head", "tensors missing", "a neck of another size", "half a neck", "SE", "no network"],
)
def test_checkpoint_with_unknown_parts_is_an_error(change: Callable, words: str, tmp_path: Path) -> None:
    torch.save(change(as_bot(random_model("resnet50_bot"))), tmp_path / "w.pth")
    with pytest.raises(ReidError, match=rf"w\.pth.*({words})"):
        import_model(tmp_path / "w.pth", size=SIZE)


PREFIXES = ["module.", "model.", "net.", "backbone.", "_orig_mod.", "module._orig_mod.model.", "model.backbone."]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["BoT, ResNet-50", "fast-reid, older names", "torchreid, OSNet"])
def test_any_common_prefix_is_removed(case: str, tmp_path: Path) -> None:
    """Two prefixes are imported completely, and all of the small network."""
    build, rename = CASES[case]
    model_here = build()
    state, expected = rename(model_here), model_here.embed(color_images())
    for prefix in PREFIXES:
        named = {f"{prefix}{k}": v for k, v in state.items()}
        assert recognise(named, "w.pth").spec.items() <= model_here.spec.items()
        if prefix in PREFIXES[-2:] or "OSNet" in case:
            torch.save(named, tmp_path / "w.pth")
            model, _ = import_model(tmp_path / "w.pth", size=SIZE)
            assert {k: model.spec[k] for k in model_here.spec} == model_here.spec
            torch.testing.assert_close(model.embed(color_images()), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_plain_resnet50_fits_several_projects_and_needs_the_family(tmp_path: Path) -> None:
    plain = random_model("resnet50", last_stride=2, neck="none")
    named = "resnet50_bot of bot or resnet50_fastreid of fast-reid or resnet50 of torchreid"
    for prefix in ("", *PREFIXES):
        state = {k.replace("backbone.", prefix, 1): v for k, v in plain.state_dict().items()}
        with pytest.raises(ReidError, match=rf"w\.pth fits {named}.*family=bot \| fast-reid \| torchreid"):
            recognise(state, "w.pth")
        torch.save(state, tmp_path / "w.pth")
        if not prefix:
            with pytest.raises(ReidError, match=rf"w\.pth fits {named}"):
                import_model(tmp_path / "w.pth", size=SIZE)
        for family, backbone in (
            ("torchreid", "resnet50"),
            ("bot", "resnet50_bot"),
            ("fast-reid", "resnet50_fastreid"),
        ):
            found = recognise(state, "w.pth", family)
            assert (found.spec["backbone"], found.spec["neck"]) == (backbone, "none")
            if prefix in PREFIXES[-2:]:
                model, _ = import_model(tmp_path / "w.pth", size=SIZE, family=family, last_stride=2)
                assert (model.spec["backbone"], model.spec["neck"]) == (backbone, "none")
                if family == "torchreid":
                    got, expected = model.embed(color_images()), plain.embed(color_images())
                    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_family_that_contradicts_the_head_is_an_error(tmp_path: Path) -> None:
    torch.save(as_bot(random_model("resnet50_bot")), tmp_path / "w.pth")
    with pytest.raises(ReidError, match=r"has the parts of reid-strong-baseline.*, not of torchreid"):
        import_model(tmp_path / "w.pth", family="torchreid")
    with pytest.raises(ReidError, match=r"Unknown family 'bott'\. Did you mean 'bot'"):
        import_model(tmp_path / "w.pth", family="bott")


@pytest.mark.slow
def test_two_networks_in_one_file_are_an_error(tmp_path: Path) -> None:
    state = build_model("resnet18", neck="none").backbone.state_dict()
    both = {f"{name}.{k}": v for name in ("student", "teacher") for k, v in state.items()}
    torch.save(both, tmp_path / "w.pth")
    for read in (import_model, lambda path: build_model("resnet18", weights=path)):
        with pytest.raises(ReidError, match=r"more than once, under 'student\.' and 'teacher\.'"):
            read(tmp_path / "w.pth")


def test_own_checkpoint_is_not_converted(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "own.pt", build_model("light10", height=64, width=32))
    with pytest.raises(ReidError, match="is a checkpoint of this project already"):
        import_model(tmp_path / "own.pt")


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error(value: float, tmp_path: Path) -> None:
    state = as_torchreid(random_model("osnet_x0_25", embedding_dim=512, neck="bn_relu"))
    for name in ("conv3.0.conv1.conv.weight", "fc.1.weight"):
        bad = state | {name: torch.full_like(state[name], value)}
        torch.save(bad, tmp_path / "w.pth")
        with pytest.raises(ReidError, match=r"w\.pth: 1 of \d+ tensors contain NaN or infinity, the first"):
            import_model(tmp_path / "w.pth", size=SIZE)


@pytest.mark.slow
def test_imagenet_classifier_and_missing_neck_are_errors(tmp_path: Path) -> None:
    state = {k.removeprefix("backbone."): v for k, v in build_model("resnet18", neck="none").state_dict().items()}
    torch.save(state | {"fc.weight": torch.zeros(1000, 512)}, tmp_path / "imagenet.pth")
    with pytest.raises(ReidError, match="an ImageNet classifier, not an embedding model"):
        import_model(tmp_path / "imagenet.pth")
    head = {"classifier.weight": torch.zeros(7, 512), "classifier.bias": torch.zeros(7)}
    torch.save(state | head, tmp_path / "w.pth")
    with pytest.raises(ReidError, match="has no BNNeck"):
        import_model(tmp_path / "w.pth", before_neck=True)


@pytest.mark.slow
def test_convert_writes_a_checkpoint_that_the_embedder_opens(tmp_path: Path) -> None:
    model_here = random_model("osnet_x0_25", embedding_dim=512, neck="bn_relu")
    torch.save(as_torchreid(model_here), tmp_path / "osnet.pth")
    asked = [
        "model",
        "convert",
        "--model",
        str(tmp_path / "osnet.pth"),
        "--out",
        str(tmp_path / "model_here.pt"),
        "--size",
        "128",
        "64",
    ]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    assert "osnet_x0_25 of torchreid, 512 dimensions" in result.output
    assert "not recorded in the file: size 128×64" in " ".join(result.output.split())
    features = Embedder(tmp_path / "model_here.pt", device="cpu")(color_images().numpy())
    np.testing.assert_allclose(features, model_here.embed(color_images()).numpy(), atol=1e-5)
    again = CliRunner().invoke(main, asked)
    assert again.exit_code
    assert "exists already" in again.output
    with pytest.raises(ReidError, match=r"reid model convert --model .*osnet\.pth --out"):
        Embedder(tmp_path / "osnet.pth", device="cpu")
