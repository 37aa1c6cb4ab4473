from __future__ import annotations

import copy
import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.embedding import bundle as reader
from reid.embedding import export
from reid.embedding.export import Quantisation, card, export_bundle
from reid.embedding.runtimes import ForeignModel, open_bundle
from tests.embedding.bundles import SIZE, bundle, crops, expected_features, quantisation, small_model
from tests.embedding.test_runtimes import SIDECAR, make_onnx
from tests.embedding.test_runtimes import SIZE as FOREIGN_SIZE

FORMS = [
    pytest.param("onnx", "onnx", id="ONNX in onnxruntime"),
    pytest.param("onnx", "openvino", id="ONNX in OpenVINO"),
    pytest.param("openvino", "openvino", id="OpenVINO"),
    pytest.param("torchscript", "torch", id="TorchScript"),
]


@pytest.fixture
def tiny(tmp_path):
    """ONNX file of another project: the cheapest model to export."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed (pip install openvino)")
    return ForeignModel(make_onnx(tmp_path / "foreign.onnx"), preprocessing=SIDECAR)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "runtime"), FORMS)
@pytest.mark.parametrize("n", [1, 2, 17, pytest.param(37, id="more than two batches")])
def test_bundle_gives_the_features_of_the_model(form, runtime, n):
    pytest.importorskip(reader.PACKAGES[runtime])
    opened = open_bundle(bundle(form), runtime, trust=True)
    images = crops(n, seed=n)
    got = opened.embed(images)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected_features(images), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    assert (opened.size, opened.dimension, opened.model_id, opened.runtime) == (
        SIZE,
        got.shape[1],
        "small-rgb",
        runtime,
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_bgr_model_takes_rgb_crops(form):
    images = crops(5)
    got = open_bundle(bundle(form, "bgr")).embed(images)
    np.testing.assert_allclose(got, expected_features(images, channel_order="bgr"), atol=2e-5)
    assert np.abs(got - expected_features(images)).max() > 1e-2


def test_rows_do_not_affect_each_other():
    images = np.concatenate([crops(3), np.zeros((1, *SIZE, 3), np.uint8), np.full((1, *SIZE, 3), 255, np.uint8)])
    opened = open_bundle(bundle("onnx"))
    alone = np.concatenate([opened.embed(images[row : row + 1]) for row in range(5)])
    np.testing.assert_allclose(opened.embed(images), alone, atol=1e-5)
    assert np.isfinite(alone).all()


def test_bundle_content():
    folder = bundle("onnx")
    manifest = json.loads((folder / "bundle.json").read_text())
    proof = manifest["parity"]["lowest_cosine"]
    for runtime in manifest["runtimes"]:
        assert set(proof[runtime]) == {"random, batch 1", "random, batch 8", "real, batch 1", "real, batch 8"}
        assert min(proof[runtime].values()) >= 0.9999
    speeds = [found["crops_per_second"] for found in manifest["runtimes"].values()]
    assert speeds == sorted(speeds, reverse=True)
    assert manifest["preprocessing"] == small_model().preprocessing.as_dict()
    assert manifest["check"]["detects_wrong_input"]
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
    for text_part in (
        "small-rgb",
        "uint8 [N, 64, 32, 3]",
        "synthetic patterns",
        "onnx, random, batch 8: ",
        "Intended use",
        "Consent",
        "Limits",
    ):
        assert text_part in text


def test_card_ends_with_the_model_card(tmp_path, tiny):
    export_bundle(tiny, tmp_path / "m.bundle", to="openvino", model_id="m", about="# Model card\n")
    text = (tmp_path / "m.bundle/card.md").read_text()
    assert text.startswith("# Bundle: m.bundle\n")
    assert text.endswith("\n\n# Model card\n")
    manifest = json.loads((tmp_path / "m.bundle/bundle.json").read_text()) | {"refused": {"onnx": "cosine 0.5"}}
    assert "onnx: refused, cosine 0.5" in card("x.bundle", manifest)


@pytest.mark.slow
def test_model_is_not_changed(tmp_path):
    pytest.importorskip("onnxruntime")
    model = copy.deepcopy(small_model()).train().double()
    before = copy.deepcopy(model.state_dict())
    model.float()
    export_bundle(model, tmp_path / "m.bundle", to="torchscript", model_id="m")
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.double(), before[name].double()), name


@pytest.mark.slow
def test_export_without_onnxscript(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert export_bundle(small_model(), tmp_path / "m.bundle", to="onnx", model_id="m")["form"] == "onnx"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(lambda rows: rows[:, ::-1], "cosine .* on .* required 0.9999", id="other embeddings"),
        pytest.param(lambda rows: 1.01 * rows, "cosine -1", id="another length"),
        pytest.param(lambda rows: rows[:, :-1], "cosine -1", id="another dimension"),
        pytest.param(lambda rows: rows * np.nan, "gives NaN or infinity for random crops", id="NaN"),
    ],
)
def test_nothing_is_written_if_the_proof_fails(tmp_path, monkeypatch, tiny, changes, message):
    monkeypatch.setattr(
        export, "_reference", lambda model: lambda images: changes(model.embed(torch.from_numpy(images)).numpy())
    )
    with pytest.raises(ReidError, match=message):
        export_bundle(tiny, tmp_path / "out/m.bundle", to="openvino", model_id="m")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_runtime_without_parity_is_refused(tmp_path, monkeypatch):
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


@pytest.mark.slow
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
def test_foreign_file_gets_its_preprocessing_inside(tmp_path, changes, given):
    pytest.importorskip("openvino")
    foreign = ForeignModel(make_onnx(tmp_path / "foreign.onnx", **given), preprocessing=SIDECAR | changes)
    export_bundle(foreign, tmp_path / "m.bundle", to="openvino", model_id=foreign.name)
    images = crops(5, size=FOREIGN_SIZE)
    got = open_bundle(tmp_path / "m.bundle").embed(images)
    np.testing.assert_allclose(got, foreign.embed(torch.from_numpy(images)).numpy(), atol=1e-5)


@pytest.mark.slow
def test_int8_export_reports_the_measured_loss_of_map(tmp_path):
    pytest.importorskip("nncf", reason="int8 needs NNCF (pip install nncf)")
    settings = quantisation(tmp_path)
    manifest = export_bundle(small_model(), tmp_path / "m.bundle", to="openvino", model_id="m", quantisation=settings)
    opened = open_bundle(tmp_path / "m.bundle")
    images = crops(20, seed=8)
    got, expected = opened.embed(images), expected_features(images)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    cosines = (got * expected).sum(axis=1)
    assert 0.9 < cosines.min() < cosines.max() < 0.99999
    assert opened.model_id == "m-int8"
    proof = manifest["parity"]["int8"]
    assert proof["points_lost"] == pytest.approx(100 * (proof["mAP_float"] - proof["mAP_int8"]))
    assert (proof["queries"], proof["calibration_crops"], proof["split"]) == (12, 20, "random")
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
    assert "int8, on random, 12 queries, 12 in the gallery: mAP " in (tmp_path / "m.bundle/card.md").read_text()


def test_int8_with_too_large_a_loss_is_not_written(tmp_path, monkeypatch, tiny):
    pytest.importorskip("nncf", reason="int8 needs NNCF (pip install nncf)")
    settings = Quantisation(crops(3, size=FOREIGN_SIZE), quantisation(tmp_path).split, largest_loss=-101)
    embed = export._embed

    def cut(network, pixels):  # the split's crops are larger than this network's
        return embed(lambda images: network(np.ascontiguousarray(images[:, :16, :8])), pixels)

    monkeypatch.setattr(export, "_embed", cut)
    with pytest.raises(ReidError, match=r"int8 loses .* points of mAP on random"):
        export_bundle(tiny, tmp_path / "m.bundle", to="openvino", model_id="m", quantisation=settings)
    assert not (tmp_path / "m.bundle").exists()


def test_check_of_an_insensitive_model(tmp_path):
    def gray(images):
        rows = images.astype(np.float32).mean(axis=3).reshape(len(images), -1) + 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    check = export._write_check(tmp_path, SIZE, gray, 0.9999)
    assert not check["detects_wrong_input"]
    assert check["cosine_when_wrong"]["channels_reversed"] > 0.9999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"to": "onxx"}, "form 'onxx'. Did you mean 'onnx'", id="unknown form"),
        pytest.param(
            {"to": "onnx"},
            r"foreign\.onnx is not a checkpoint of this package. Export it to openvino",
            id="foreign file",
        ),
        pytest.param(
            {"crops": crops(2, size=(8, 8))}, r"crops are uint8 \[2, 8, 8, 3\]; they must be uint8", id="size"
        ),
        pytest.param({"crops": crops(0, size=FOREIGN_SIZE)}, "N of 1 or more", id="no crops"),
        pytest.param({"crops": crops(2, size=FOREIGN_SIZE) / 255}, "crops are float64", id="floats"),
    ],
)
def test_invalid_arguments_are_errors(tmp_path, tiny, options, message):
    with pytest.raises(ReidError, match=message):
        export_bundle(tiny, tmp_path / "m.bundle", **{"to": "openvino", "model_id": "m"} | options)
    assert not (tmp_path / "m.bundle").exists()


def test_int8_needs_openvino(tmp_path):
    with pytest.raises(ReidError, match=r"int8 is not available for onnx\. Export to openvino"):
        export_bundle(
            small_model(), tmp_path / "m.bundle", to="onnx", model_id="m", quantisation=quantisation(tmp_path)
        )


def test_existing_folder_is_not_overwritten(tmp_path, tiny):
    (tmp_path / "m.bundle").mkdir()
    (tmp_path / "m.bundle/mine.txt").write_text("mine")
    with pytest.raises(ReidError, match=r"already exists\. Remove it, or use another folder"):
        export_bundle(tiny, tmp_path / "m.bundle", to="openvino", model_id="m")
    assert (tmp_path / "m.bundle/mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("absent", "int8", "message"),
    [
        pytest.param(
            {"openvino"}, False, "cannot be proven without a runtime. Run: pip install openvino", id="no runtime"
        ),
        pytest.param({"nncf"}, True, "int8 needs NNCF. Run: pip install nncf", id="no NNCF"),
    ],
)
def test_missing_package_is_an_error_with_its_command(tmp_path, monkeypatch, tiny, absent, int8, message):
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    settings = quantisation(tmp_path) if int8 else None
    with pytest.raises(ReidError, match=message):
        export_bundle(tiny, tmp_path / "m.bundle", to="openvino", model_id="m", quantisation=settings)


def test_network_that_cannot_be_traced_is_an_error(tmp_path):
    pytest.importorskip("onnxruntime")
    model = copy.deepcopy(small_model())
    model.pool.forward = lambda x: x[0].item()  # type: ignore[method-assign]
    with pytest.raises(ReidError, match="light14 cannot be converted to onnx: "):
        export_bundle(model, tmp_path / "m.bundle", to="onnx", model_id="m")
    assert not (tmp_path / "m.bundle").exists()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino", "torchscript"])
def test_networks_contain_no_local_paths(form):
    """As the call stacks of tracing would, which also make the file depend on the caller."""
    pytest.importorskip(reader.PACKAGES[reader.READERS[form][0]])
    for path in bundle(form).iterdir():
        for place in (reader.__file__, torch.__file__, __file__):
            assert str(Path(place).parent).encode() not in path.read_bytes(), path.name
