from __future__ import annotations

import re
import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from reid.core.errors import ReidError
from reid.models import build_model
from reid.models.backbones import build_backbone
from reid.models.pretrained import read_weights

SIZE = (64, 32)


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return torchvision.models.resnet18().state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"model": {f"backbone.{k}": v for k, v in s.items()}},
        lambda s: {f"module.net.body.{k}": v for k, v in s.items()},
    ],
    ids=["plain", "module.", "nested with module.", "nested with backbone.", "a longer prefix"],
)
def test_weights_are_matched_by_name_under_any_nesting_and_prefix(wrap, published: dict, tmp_path: Path) -> None:
    torch.save(wrap(published), tmp_path / "w.pth")
    model = build_model("resnet18", height=SIZE[0], width=SIZE[1], weights=tmp_path / "w.pth")
    report = model.weights_report
    assert report is not None
    assert (len(report.matched), report.missing, report.misshapen) == (100, (), ())
    assert [k.rpartition(".")[0].endswith("fc") for k in report.unexpected] == [True, True]
    for key, value in model.backbone.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, published[key]), key
    assert model.spec["weights"] == "none"
    assert "100 of 100" in str(report)


@pytest.mark.slow
def test_safetensors(published: dict, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is optional")
    safetensors.save_file(published, tmp_path / "w.safetensors")
    model = build_model("resnet18", height=SIZE[0], width=SIZE[1], weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(model.backbone.conv1.weight, published["conv1.weight"])
    (tmp_path / "bad.safetensors").write_bytes(b"not this")
    with pytest.raises(ReidError, match=r"bad.safetensors cannot be read as tensors"):
        build_model("resnet18", height=SIZE[0], width=SIZE[1], weights=tmp_path / "bad.safetensors")


@pytest.mark.slow
def test_checkpoint_initialises_the_backbone_of_another_model(tmp_path: Path) -> None:
    for name in ("osnet_x0_25", "light18"):
        ours = build_model(name, height=SIZE[0], width=SIZE[1], num_classes=9, seed=1)
        torch.save(ours.state_dict(), tmp_path / "w.pt")
        model = build_model(name, height=SIZE[0], width=SIZE[1], weights=tmp_path / "w.pt")
        assert not model.weights_report.missing
        assert all(
            torch.equal(a, b) for a, b in zip(model.backbone.parameters(), ours.backbone.parameters(), strict=True)
        )


def published_osnet_names(name: str) -> str:
    """The authors' name of a parameter of ours, written down from the listing of a published file."""
    for ours, theirs in (
        (r"streams\.0\.0\.", "conv2a."),
        (r"streams\.([123])\.(\d)\.", lambda m: f"conv2{'abcd'[int(m[1])]}.{m[2]}."),
        (r"(conv2a|conv2[b-d]\.\d)\.0\.weight", r"\1.conv1.weight"),
        (r"(conv2a|conv2[b-d]\.\d)\.1\.weight", r"\1.conv2.weight"),
        (r"(conv2a|conv2[b-d]\.\d)\.2\.", r"\1.bn."),
        (r"gate\.1", "gate.fc1"),
        (r"gate\.3", "gate.fc2"),
        (
            r"^(conv[23]\.2|conv[15])\.(\d)\.",
            lambda m: f"{m[1]}{'.0' if '.' in m[1] else ''}.{('conv', 'bn')[int(m[2])]}.",
        ),
        (r"(reduce|expand|shortcut)\.0", r"\1.conv"),
        (r"(reduce|expand|shortcut)\.1", r"\1.bn"),
        ("reduce", "conv1"),
        ("expand", "conv3"),
        ("shortcut", "downsample"),
    ):
        name = re.sub(ours, theirs, name)
    return name


@pytest.mark.slow
def test_osnet_loads_published_weight_files(tmp_path: Path) -> None:
    ours = build_backbone("osnet_x0_25", last_stride=1, size=SIZE).module.state_dict()
    theirs = {published_osnet_names(k): v for k, v in ours.items()}
    for key in (
        "conv1.conv.weight",
        "conv2.0.conv1.bn.weight",
        "conv2.0.conv2a.conv1.weight",
        "conv2.1.conv2d.3.bn.running_var",
        "conv3.0.gate.fc1.bias",
        "conv3.0.downsample.conv.weight",
        "conv2.2.0.conv.weight",
        "conv5.bn.bias",
    ):
        assert key in theirs
    torch.save(
        {f"module.{k}": v for k, v in theirs.items()} | {"module.fc.0.weight": torch.zeros(2)}, tmp_path / "w.pth"
    )
    model = build_model("osnet_x0_25", height=SIZE[0], width=SIZE[1], weights=tmp_path / "w.pth", seed=3)
    assert not model.weights_report.missing
    assert model.weights_report.unexpected == ("fc.0.weight",)
    assert all(torch.equal(v, ours[k]) for k, v in model.backbone.state_dict().items())


@pytest.mark.slow
def test_partial_matches_are_loaded_and_reported(published: dict, tmp_path: Path) -> None:
    some = {k: v for k, v in published.items() if not k.startswith("layer4.1.conv2")}
    some["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(some, tmp_path / "w.pth")
    report = build_model("resnet18", height=SIZE[0], width=SIZE[1], weights=tmp_path / "w.pth").weights_report
    assert report is not None
    assert report.missing == ("layer4.1.conv2.weight",)
    assert report.misshapen == ("conv1.weight",)
    assert "98 of 100" in str(report)
    assert "layer4.1.conv2.weight" in str(report)


@pytest.mark.slow
def test_weights_of_another_network_are_an_error_with_the_first_differences(published: dict, tmp_path: Path) -> None:
    torch.save(published, tmp_path / "r18.pth")
    with pytest.raises(
        ReidError, match=r"r18\.pth do not match osnet_x0_25: 0 of its 479 .*conv1\.0\.weight: \[16, 3, 7, 7\] expected"
    ):
        build_model("osnet_x0_25", height=SIZE[0], width=SIZE[1], weights=tmp_path / "r18.pth")
    with pytest.raises(ReidError, match=r"do not match light18.*conv1\.weight"):
        build_model("light18", height=SIZE[0], width=SIZE[1], weights=tmp_path / "r18.pth")


@pytest.mark.slow
def test_tensors_with_other_names_are_matched_by_order_and_reported(published: dict, tmp_path: Path) -> None:
    others = {f"x{i}.{k.rpartition('.')[2]}": v for i, (k, v) in enumerate(published.items())}
    torch.save({"stem.scale": torch.zeros(1)} | others, tmp_path / "w.pth")
    model = build_model("resnet18", height=SIZE[0], width=SIZE[1], weights=tmp_path / "w.pth")
    report = model.weights_report
    assert (len(report.matched), report.by_order, report.unexpected[0]) == (100, True, "stem.scale")
    assert "matched by their order because the names differ" in str(report)
    for key, value in model.backbone.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, published[key]), key


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda items: items + [(f"second.{k}", v) for k, v in items],  # it fits at two places
        lambda items: [*items[:7], *reversed(items[7:40]), *items[40:]],  # another order
        lambda items: [(k, v[:1] if i == 9 else v) for i, (k, v) in enumerate(items)],  # one other shape
        lambda items: [(k.replace("bias", "beta"), v) for k, v in items],  # other kinds
    ],
    ids=["twice", "another order", "another shape", "other kinds"],
)
def test_ambiguous_orders_are_not_matched(change, published: dict, tmp_path: Path) -> None:
    items = [(f"x{i}.{k.rpartition('.')[2]}", v) for i, (k, v) in enumerate(published.items()) if "fc" not in k]
    torch.save(dict(change(items)), tmp_path / "w.pth")
    with pytest.raises(ReidError, match="do not match resnet18"):
        build_model("resnet18", height=SIZE[0], width=SIZE[1], weights=tmp_path / "w.pth")


class PythonObject:
    """Object that only unpickling can create."""


def write_pickle(path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1)}, "args": PythonObject()}, path)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: None, "There is no file"),
        (lambda p: p.mkdir(), "There is no file"),
        (lambda p: p.write_bytes(b""), "is damaged or of another type"),
        (lambda p: p.write_bytes(b"PK\x03\x04 cut short"), "is damaged or of another type"),
        (lambda p: p.write_text("\n<!DOCTYPE html><html>404</html>"), "is a web page.*Download the file again"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "pointer of Git LFS.*git lfs pull"),
        (write_zip, "is damaged or of another type"),
        (write_pickle, r"contains the Python object tests\.models\.test_pretrained\.PythonObject.*never executed"),
        (lambda p: torch.save([1, 2], p), "contains no dictionary of named tensors"),
        (lambda p: torch.save({"epoch": 3}, p), "contains no dictionary of named tensors"),
    ],
    ids=[
        "missing",
        "folder",
        "empty",
        "cut short",
        "a web page",
        "Git LFS",
        "a zip",
        "objects",
        "a list",
        "no tensors",
    ],
)
def test_invalid_weight_files_are_errors_with_their_path(write, words: str, tmp_path: Path) -> None:
    write(tmp_path / "w.pth")
    with pytest.raises(ReidError, match=words) as caught:
        read_weights(tmp_path / "w.pth")
    assert "w.pth" in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [URLError("no network"), RuntimeError("invalid hash value"), TimeoutError("timed out")]
)
def test_failed_download_is_an_error_with_address_and_fix(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(ReidError, match=r"https://download\.pytorch\.org/models/resnet18.*weights=/path/to/file"):
        build_model("resnet18", height=SIZE[0], width=SIZE[1], weights="imagenet")


def test_imagenet_weights_use_torchvisions_loader_with_weights_only(
    published: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def load(url: str, **options: object) -> dict:
        asked.update(options, url=url)
        return published

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    model = build_model("resnet18", height=SIZE[0], width=SIZE[1], weights="imagenet")
    assert torch.equal(model.backbone.layer4[1].conv2.weight, published["layer4.1.conv2.weight"])
    assert asked["weights_only"] is True
    assert asked["check_hash"] is True


@pytest.mark.slow
@pytest.mark.parametrize("name", ["osnet_x1_0", "resnet18_ibn_a", "light18"])
def test_without_published_imagenet_weights_the_error_suggests_a_local_file(name: str) -> None:
    with pytest.raises(ReidError, match=rf"no ImageNet weights of {name} can be downloaded. Use a local file"):
        build_model(name, height=SIZE[0], width=SIZE[1], weights="imagenet")
