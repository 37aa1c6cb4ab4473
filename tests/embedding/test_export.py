from __future__ import annotations

import copy
import inspect
import json
import sys

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.embedding import bundle as reader
from reid.embedding import export
from reid.embedding.export import Quantisation, card, export_bundle
from reid.embedding.runtimes import ForeignModel, open_bundle
from tests.embedding.bundles import SIZE, bundle, crops, of_model, quantisation, small_model
from tests.embedding.test_runtimes import SIDECAR, make_onnx
from tests.embedding.test_runtimes import SIZE as THEIR_SIZE

FORMS = [
    pytest.param("onnx", "onnx", id="ONNX in onnxruntime"),
    pytest.param("onnx", "openvino", id="ONNX in OpenVINO"),
    pytest.param("openvino", "openvino", id="OpenVINO"),
    pytest.param("torchscript", "torch", id="TorchScript"),
]


@pytest.fixture
def tiny(tmp_path):
    """Another's network, the cheapest one to export."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed (pip install openvino)")
    return ForeignModel(make_onnx(tmp_path / "theirs.onnx"), preprocessing=SIDECAR)


@pytest.mark.parametrize(("form", "runtime"), FORMS)
@pytest.mark.parametrize("n", [1, 2, 17, pytest.param(37, id="more than two parts")])
def test_a_bundle_gives_the_models_embeddings(form, runtime, n):
    pytest.importorskip(reader.PACKAGES[runtime])
    opened = open_bundle(bundle(form), runtime)
    images = crops(n, seed=n)
    got = opened.embed(images)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, of_model(images), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    assert (opened.size, opened.dimension, opened.model_id, opened.runtime) == (
        SIZE,
        got.shape[1],
        "small-rgb",
        runtime,
    )


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_bgr_models_take_rgb_too(form):
    images = crops(5)
    got = open_bundle(bundle(form, "bgr")).embed(images)
    np.testing.assert_allclose(got, of_model(images, channel_order="bgr"), atol=2e-5)
    assert np.abs(got - of_model(images)).max() > 1e-2


def test_rows_stand_alone():
    """Images that others stand beside, black ones among them, get what they get alone."""
    images = np.concatenate([crops(3), np.zeros((1, *SIZE, 3), np.uint8), np.full((1, *SIZE, 3), 255, np.uint8)])
    opened = open_bundle(bundle("onnx"))
    alone = np.concatenate([opened.embed(images[row : row + 1]) for row in range(5)])
    np.testing.assert_allclose(opened.embed(images), alone, atol=1e-5)
    assert np.isfinite(alone).all()


def test_what_a_bundle_says_of_itself():
    folder = bundle("onnx")
    manifest = json.loads((folder / "bundle.json").read_text())
    proof = manifest["parity"]["lowest_cosine"]
    for runtime in manifest["runtimes"]:
        assert set(proof[runtime]) == {"random, batch 1", "random, batch 8", "real, batch 1", "real, batch 8"}
        assert min(proof[runtime].values()) >= 0.9999
    speeds = [found["crops_per_second"] for found in manifest["runtimes"].values()]
    assert speeds == sorted(speeds, reverse=True)
    assert manifest["preprocessing"] == small_model().preprocessing.as_dict()
    assert manifest["check"]["tells"]
    assert max(manifest["check"]["cosine_when_wrong"].values()) < manifest["check"]["lowest_cosine"]
    assert set(manifest["sha256"]) == {"check.npz", "model.onnx"}
    assert {path.name for path in folder.iterdir()} == {
        "bundle.json",
        "card.md",
        "check.npz",
        "model.onnx",
        "run.py",
    }
    assert (folder / "run.py").read_text() == inspect.getsource(reader)
    text = (folder / "card.md").read_text()
    for words in (
        "small-rgb",
        "64×32",
        "made patterns",
        "onnx, random, batch 8: ",
        "Intended use",
        "Consent",
        "Limits",
    ):
        assert words in text


def test_the_card_goes_on_with_the_models_own(tmp_path, tiny):
    export_bundle(tiny, tmp_path / "m.bundle", to="openvino", model_id="m", about="# Its own card\n")
    text = (tmp_path / "m.bundle/card.md").read_text()
    assert text.startswith("# Bundle: m.bundle\n")
    assert text.endswith("\n\n# Its own card\n")
    manifest = json.loads((tmp_path / "m.bundle/bundle.json").read_text()) | {"refused": {"onnx": "cosine 0.5"}}
    assert "onnx: refused, cosine 0.5" in card("x.bundle", manifest)


def test_the_model_stays_as_it_was(tmp_path):
    pytest.importorskip("onnxruntime")
    model = copy.deepcopy(small_model()).train().double()
    before = copy.deepcopy(model.state_dict())
    model.float()
    export_bundle(model, tmp_path / "m.bundle", to="torchscript", model_id="m")
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.double(), before[name].double()), name


def test_onnxscript_is_not_needed(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert export_bundle(small_model(), tmp_path / "m.bundle", to="onnx", model_id="m")["form"] == "onnx"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param(lambda rows: rows[:, ::-1], "cosine .* on .* at least 0.9999", id="other embeddings"),
        pytest.param(lambda rows: 1.01 * rows, "cosine -1", id="another length"),
        pytest.param(lambda rows: rows[:, :-1], "cosine -1", id="another dimension"),
        pytest.param(lambda rows: rows * np.nan, "gives NaN or infinity for random crops", id="NaN"),
    ],
)
def test_nothing_is_written_where_the_proof_fails(tmp_path, monkeypatch, tiny, changes, words):
    monkeypatch.setattr(
        export, "_reference", lambda model: lambda images: changes(model.embed(torch.from_numpy(images)).numpy())
    )
    with pytest.raises(ReidError, match=words):
        export_bundle(tiny, tmp_path / "out/m.bundle", to="openvino", model_id="m")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_runtime_that_computes_otherwise_is_refused_and_the_other_kept(tmp_path, monkeypatch):
    for package in ("onnxruntime", "openvino"):
        pytest.importorskip(package)
    honest = reader.open_network

    def open_network(path, runtime, threads, device="cpu"):
        network = honest(path, runtime, threads, device)
        return (lambda images: -network(images)) if runtime == "openvino" else network

    monkeypatch.setattr(reader, "open_network", open_network)
    manifest = export_bundle(small_model(), tmp_path / "m.bundle", to="onnx", model_id="m")
    assert list(manifest["runtimes"]) == ["onnx"]
    assert manifest["refused"]["openvino"].startswith("cosine -")
    assert open_bundle(tmp_path / "m.bundle").runtime == "onnx"
    with pytest.raises(ReidError, match=r"openvino: it was refused at export: cosine -"):
        open_bundle(tmp_path / "m.bundle", "openvino")


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        pytest.param({}, {}, id="RGB, 0-1"),
        pytest.param(
            {"scale": "0-255", "mean": [90, 120, 130], "std": [50, 60, 70], "channel_order": "bgr"}, {}, id="BGR, 0-255"
        ),
        pytest.param({}, {"batch": 1}, id="batch fixed at 1"),
        pytest.param({"output": "embedding"}, {"outputs": ("embedding", "map")}, id="one output of two"),
        pytest.param({}, {"flat": False}, id="[B, D, 1, 1]"),
    ],
)
def test_others_files_get_their_preprocessing_inside(tmp_path, changes, given):
    pytest.importorskip("openvino")
    theirs = ForeignModel(make_onnx(tmp_path / "theirs.onnx", **given), preprocessing=SIDECAR | changes)
    export_bundle(theirs, tmp_path / "m.bundle", to="openvino", model_id=theirs.name)
    images = crops(5, size=THEIR_SIZE)
    got = open_bundle(tmp_path / "m.bundle").embed(images)
    np.testing.assert_allclose(got, theirs.embed(torch.from_numpy(images)).numpy(), atol=1e-5)


def test_int8(tmp_path):
    pytest.importorskip("nncf", reason="int8 needs NNCF (pip install nncf)")
    wanted = quantisation(tmp_path)
    manifest = export_bundle(small_model(), tmp_path / "m.bundle", to="openvino", model_id="m", quantisation=wanted)
    opened = open_bundle(tmp_path / "m.bundle")
    images = crops(20, seed=8)
    got, expected = opened.embed(images), of_model(images)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    cosines = (got * expected).sum(axis=1)
    assert 0.9 < cosines.min() < cosines.max() < 0.99999
    assert opened.model_id == "m-int8"
    proof = manifest["parity"]["int8"]
    assert proof["points_lost"] == pytest.approx(100 * (proof["mAP_float"] - proof["mAP_int8"]))
    assert (proof["queries"], proof["calibration_crops"], proof["split"]) == (12, 20, "made")
    size = (bundle("openvino") / "model.bin").stat().st_size
    assert (tmp_path / "m.bundle/model.bin").stat().st_size < size / 2
    assert sorted(path.name for path in (tmp_path / "m.bundle").iterdir()) == [
        "bundle.json",
        "card.md",
        "check.npz",
        "model.bin",
        "model.xml",
        "run.py",
    ]
    assert "int8, on made, 12 queries, 12 in the gallery: mAP " in (tmp_path / "m.bundle/card.md").read_text()


def test_int8_that_loses_too_much_is_not_written(tmp_path, monkeypatch, tiny):
    pytest.importorskip("nncf", reason="int8 needs NNCF (pip install nncf)")
    wanted = Quantisation(crops(3, size=THEIR_SIZE), quantisation(tmp_path).split, largest_loss=-101)
    embed = export._embed

    def cut(network, pixels):  # the split's crops are larger than this network's
        return embed(lambda images: network(np.ascontiguousarray(images[:, :16, :8])), pixels)

    monkeypatch.setattr(export, "_embed", cut)
    with pytest.raises(ReidError, match=r"int8 loses .* points of mAP on made"):
        export_bundle(tiny, tmp_path / "m.bundle", to="openvino", model_id="m", quantisation=wanted)
    assert not (tmp_path / "m.bundle").exists()


def test_a_model_that_does_not_see_channels_is_told(tmp_path):
    def gray(images):
        rows = images.astype(np.float32).mean(axis=3).reshape(len(images), -1) + 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    told = export._write_check(tmp_path, SIZE, gray, int8=False)
    assert not told["tells"]
    assert told["cosine_when_wrong"]["channels_reversed"] > 0.9999


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"to": "onxx"}, "no form 'onxx' to export to. Did you mean 'onnx'", id="unknown form"),
        pytest.param({"to": "onnx"}, r"theirs\.onnx is not a model of this package: .* openvino only", id="theirs"),
        pytest.param(
            {"crops": crops(2, size=(8, 8))}, r"crops are uint8 \[2, 8, 8, 3\]; they must be uint8", id="size"
        ),
        pytest.param({"crops": crops(0, size=THEIR_SIZE)}, "at least one", id="no crops"),
        pytest.param({"crops": crops(2, size=THEIR_SIZE) / 255}, "crops are float64", id="floats"),
    ],
)
def test_wrong_wishes_are_named(tmp_path, tiny, options, words):
    with pytest.raises(ReidError, match=words):
        export_bundle(tiny, tmp_path / "m.bundle", **{"to": "openvino", "model_id": "m"} | options)
    assert not (tmp_path / "m.bundle").exists()


def test_int8_is_openvinos_only(tmp_path):
    with pytest.raises(ReidError, match="int8 is made for OpenVINO only, not for onnx"):
        export_bundle(
            small_model(), tmp_path / "m.bundle", to="onnx", model_id="m", quantisation=quantisation(tmp_path)
        )


def test_what_is_there_is_not_overwritten(tmp_path, tiny):
    (tmp_path / "m.bundle").mkdir()
    (tmp_path / "m.bundle/mine.txt").write_text("mine")
    with pytest.raises(ReidError, match="is there already: remove it, or name another folder"):
        export_bundle(tiny, tmp_path / "m.bundle", to="openvino", model_id="m")
    assert (tmp_path / "m.bundle/mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("absent", "int8", "words"),
    [
        pytest.param({"openvino"}, False, "cannot be proven: pip install openvino", id="no runtime"),
        pytest.param({"nncf"}, True, "int8 needs NNCF: pip install nncf", id="no NNCF"),
    ],
)
def test_what_is_not_installed_is_named_with_its_command(tmp_path, monkeypatch, tiny, absent, int8, words):
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    wanted = quantisation(tmp_path) if int8 else None
    with pytest.raises(ReidError, match=words):
        export_bundle(tiny, tmp_path / "m.bundle", to="openvino", model_id="m", quantisation=wanted)


def test_a_network_that_cannot_be_traced_is_named(tmp_path):
    pytest.importorskip("onnxruntime")
    model = copy.deepcopy(small_model())
    model.pool.forward = lambda x: x[0].item()  # type: ignore[method-assign]
    with pytest.raises(ReidError, match="light14 cannot be converted to onnx: "):
        export_bundle(model, tmp_path / "m.bundle", to="onnx", model_id="m")
    assert not (tmp_path / "m.bundle").exists()
