from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from reid import Embedder
from reid.core.errors import ReidError
from reid.data.images import decode
from reid.embedding.bundle import PACKAGES, open_network
from reid.embedding.runtimes import ForeignModel
from reid.models.preprocessing import Preprocessing

SIZE = (16, 8)
D = 5
SIDECAR = {"size": list(SIZE), "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "scale": "0-1", "channel_order": "rgb"}


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((D, 3, 4, 4)).astype(np.float32)


def make_onnx(path, *, batch="B", size=SIZE, outputs=("embedding",), kind="float32", shape=None, flat=True):
    """Write a network: convolution of stride 4, tanh, mean over positions: [B, 5]."""
    onnx = pytest.importorskip("onnx", reason="making ONNX files needs onnx (pip install onnx)")
    from onnx import TensorProto, helper, numpy_helper

    code = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}[kind]
    float_code = TensorProto.FLOAT if kind == "uint8" else code
    dtype = np.float16 if kind == "float16" else np.float32
    nodes = [helper.make_node("Cast", ["images"], ["x"], to=float_code)]
    nodes += [helper.make_node("Conv", ["x", "w"], ["c"], strides=[4, 4]), helper.make_node("Tanh", ["c"], ["t"])]
    nodes.append(helper.make_node("GlobalAveragePool", ["t"], ["pooled"]))
    nodes.append(helper.make_node("Flatten" if flat else "Identity", ["pooled"], [outputs[0]]))
    nodes += [helper.make_node("Identity", ["t"], [name]) for name in outputs[1:]]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", code, shape or [batch, 3, *size])],
        [helper.make_tensor_value_info(name, float_code, None) for name in outputs],
        [numpy_helper.from_array(weights().astype(dtype), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path


def make_openvino(path, **options):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed (pip install openvino)")
    source = make_onnx(path.with_suffix(".onnx"), **options)
    openvino.save_model(openvino.convert_model(str(source)), str(path), compress_to_fp16=False)
    source.unlink()
    return path


def make(path, **options):
    return make_openvino(path, **options) if path.suffix == ".xml" else make_onnx(path, **options)


def expected(images, *, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), scale=1.0, order="rgb", flip=False):
    """Compute the same network in torch, for images of the right size."""
    x = images.astype(np.float32) * (scale / 255)
    x = x[..., ::-1] if order == "bgr" else x
    x = torch.from_numpy(np.ascontiguousarray(((x - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)))

    def network(x):
        return torch.nn.functional.conv2d(x, torch.from_numpy(weights()), stride=4).tanh().mean((2, 3))

    e = (network(x) + network(x.flip(3))) / 2 if flip else network(x)
    return torch.nn.functional.normalize(e).numpy()


def images(n=7, size=SIZE, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8)


def need(runtime):
    names = {"onnx": "onnxruntime", "openvino": "openvino"}
    pytest.importorskip(names[runtime], reason=f"{names[runtime]} is not installed (pip install {names[runtime]})")


FILES = [
    pytest.param("tiny.onnx", "onnx", id="ONNX in onnxruntime"),
    pytest.param("tiny.onnx", "openvino", id="ONNX in OpenVINO"),
    pytest.param("tiny.xml", "openvino", id="IR in OpenVINO"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "runtime"), FILES)
@pytest.mark.parametrize("batch", [pytest.param("B", id="any batch"), pytest.param(1, id="batch of 1"), 3])
def test_features_equal_those_of_the_network(tmp_path, name, runtime, batch):
    need(runtime)
    path = make(tmp_path / name, batch=batch)
    path.with_suffix(".reid.json").write_text(json.dumps(SIDECAR))
    embedder = Embedder(path, runtime=runtime)
    assert (embedder.dimension, embedder.preprocessing.size) == (D, SIZE)
    assert embedder.device == torch.device("cpu")
    got = embedder(images())
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected(images()), atol=2e-6)
    np.testing.assert_allclose(Embedder(path, runtime=runtime, batch_size=2)(images()), got, atol=1e-6)
    flipping = Embedder(path, runtime=runtime, flip=True)
    np.testing.assert_allclose(flipping(images()), expected(images(), flip=True), atol=2e-6)
    np.testing.assert_allclose(embedder.embed_batch(images()), got, atol=1e-6)
    assert embedder(np.zeros((0, *SIZE, 3), np.uint8)).shape == (0, D)


@pytest.mark.parametrize(
    ("changes", "as_expected"),
    [
        pytest.param({"channel_order": "bgr"}, {"order": "bgr"}, id="BGR: mean and std are in its order"),
        pytest.param(
            {"scale": "0-255", "mean": [0, 0, 0], "std": [1, 1, 1], "channel_order": "bgr"},
            {"scale": 255, "mean": (0, 0, 0), "std": (1, 1, 1), "order": "bgr"},
            id="BGR, 0-255, as in Intel's models",
        ),
        pytest.param(
            {"scale": "0-255", "mean": [100, 110, 120], "std": [50, 60, 70]},
            {"scale": 255, "mean": (100, 110, 120), "std": (50, 60, 70)},
            id="0-255 with mean and std",
        ),
    ],
)
def test_preprocessing_of_argument_and_sidecar(tmp_path, changes, as_expected):
    need("onnx")
    path = make_onnx(tmp_path / "tiny.onnx")
    by_argument = Embedder(path, preprocessing=SIDECAR | changes)
    # tanh saturates on 0..255; the tolerance is for the few positions where it does not
    np.testing.assert_allclose(by_argument(images()), expected(images(), **as_expected), atol=2e-4)
    path.with_suffix(".reid.json").write_text(json.dumps(SIDECAR | changes))
    by_sidecar = Embedder(path)
    np.testing.assert_array_equal(by_sidecar(images()), by_argument(images()))
    assert by_sidecar.describe() == by_argument.describe()


def test_preprocessing_object_as_argument(tmp_path):
    need("onnx")
    path = make_onnx(tmp_path / "tiny.onnx")
    own = Preprocessing(size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    np.testing.assert_allclose(Embedder(path, preprocessing=own)(images()), expected(images()), atol=2e-6)


def test_files_and_arrays_of_any_size(tmp_path):
    need("onnx")
    embedder = Embedder(make_onnx(tmp_path / "tiny.onnx"), preprocessing=SIDECAR)
    crops = [images(1, size, seed)[0] for seed, size in enumerate([SIZE, (40, 20), (9, 30)])]
    paths = []
    for number, crop in enumerate(crops):
        paths.append(str(tmp_path / f"{number}.png"))
        cv2.imwrite(paths[-1], crop[..., ::-1])
    np.testing.assert_allclose(embedder(paths), embedder(crops), atol=1e-6)
    table = embedder.table(paths)
    assert table.paths.tolist() == paths
    assert table.meta["dimension"] == D
    assert table.meta["preprocessing"] == embedder.preprocessing.as_dict()


def test_half_precision_input(tmp_path):
    need("onnx")
    embedder = Embedder(make_onnx(tmp_path / "tiny.onnx", kind="float16"), preprocessing=SIDECAR)
    np.testing.assert_allclose(embedder(images()), expected(images()), atol=5e-3)


def test_size_is_read_from_the_file(tmp_path):
    need("onnx")
    without = {key: value for key, value in SIDECAR.items() if key != "size"}
    embedder = Embedder(make_onnx(tmp_path / "tiny.onnx"), preprocessing=without)
    assert embedder.preprocessing.size == SIZE
    free = make_onnx(tmp_path / "free.onnx", size=("H", "W"))
    assert Embedder(free, preprocessing=SIDECAR | {"size": [32, 12]})(images()).shape == (7, D)
    with pytest.raises(ReidError, match=r"size.0=None is invalid"):
        Embedder(free, preprocessing=without)


def test_output_must_be_named_if_there_are_several(tmp_path):
    need("onnx")
    path = make_onnx(tmp_path / "tiny.onnx", outputs=("embedding", "map"))
    np.testing.assert_allclose(
        Embedder(path, preprocessing=SIDECAR | {"output": "embedding"})(images()), expected(images()), atol=2e-6
    )
    with pytest.raises(
        ReidError,
        match=r"has 2 outputs, and none is called ''\. Set the key output of its preprocessing.* Known: embedding, map",
    ):
        Embedder(path, preprocessing=SIDECAR)
    with pytest.raises(ReidError, match=r"none is called 'embeding'\. .*Did you mean 'embedding'"):
        Embedder(path, preprocessing=SIDECAR | {"output": "embeding"})
    with pytest.raises(ReidError, match=r"gives \[1, 5, 4, 2\] for 1 images, not \[B, D\]"):
        Embedder(path, preprocessing=SIDECAR | {"output": "map"})


def test_output_with_trailing_ones(tmp_path):
    need("onnx")
    path = make_onnx(tmp_path / "tiny.onnx", flat=False)
    np.testing.assert_allclose(Embedder(path, preprocessing=SIDECAR)(images()), expected(images()), atol=2e-6)


def test_missing_preprocessing_error_contains_an_example(tmp_path):
    need("onnx")
    path = make_onnx(tmp_path / "tiny.onnx")
    with pytest.raises(ReidError, match=r"Create .*tiny\.reid\.json with the values of its training") as raised:
        Embedder(path)
    example = json.loads(str(raised.value).splitlines()[-1])
    assert example["size"] == list(SIZE)
    path.with_suffix(".reid.json").write_text(json.dumps(example))
    assert Embedder(path).preprocessing.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        pytest.param("{", r"tiny\.reid\.json cannot be read as JSON: Expecting", id="not JSON"),
        pytest.param("[1]", "must contain one JSON object", id="a list"),
        pytest.param({"mean": None}, r"mean is missing: add it", id="no mean"),
        pytest.param(
            {"scale": None, "std": None}, "std is missing: add it.\nscale is missing: add it", id="no std, no scale"
        ),
        pytest.param({"scale": "255"}, "scale='255' is not a valid choice", id="invalid scale"),
        pytest.param({"channels": "rgb"}, "Unknown setting channels. Did you mean 'channel_order'", id="unknown key"),
        pytest.param({"channel_order": "grb"}, "channel_order='grb' is not a valid choice", id="invalid order"),
        pytest.param({"std": [0, 1, 1]}, r"tiny\.reid\.json is invalid: std.0=0", id="std of 0"),
        pytest.param({"mean": [1, 2]}, r"tiny\.reid\.json is invalid: mean", id="two means"),
        pytest.param({"mean": "abc"}, r"tiny\.reid\.json is invalid: mean", id="text"),
        pytest.param({"size": [32, 8]}, r"size is \[32, 8\], but tiny\.onnx takes \[16, 8\]", id="another size"),
    ],
)
def test_invalid_sidecar_is_an_error(tmp_path, sidecar, message):
    need("onnx")
    path = make_onnx(tmp_path / "tiny.onnx")
    if isinstance(sidecar, dict):
        sidecar = json.dumps({key: value for key, value in (SIDECAR | sidecar).items() if value is not None})
    path.with_suffix(".reid.json").write_text(sidecar)
    with pytest.raises(ReidError, match=message):
        Embedder(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"kind": "uint8"}, r"is uint8 \[open, 3, 16, 8\]", id="uint8"),
        pytest.param({"shape": ["B", 16, 8, 3]}, r"is float \[open, 16, 8, 3\]", id="channels last"),
    ],
)
def test_network_with_another_input_is_an_error(tmp_path, options, message):
    need("onnx")
    onnx = pytest.importorskip("onnx")
    path = make_onnx(tmp_path / "tiny.onnx", **options) if "kind" in options else tmp_path / "last.onnx"
    if "shape" in options:
        from onnx import TensorProto, helper

        info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, options["shape"]) for n in ("images", "same")]
        graph = helper.make_graph([helper.make_node("Identity", ["images"], ["same"])], "last", info[:1], info[1:])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    with pytest.raises(ReidError, match=message):
        Embedder(path, preprocessing=SIDECAR)


@pytest.mark.parametrize(
    ("name", "runtime", "message"),
    [
        pytest.param("tiny.onnx", "onnx", "cannot be read by onnx", id="ONNX"),
        pytest.param("tiny.onnx", "openvino", "cannot be read by openvino", id="ONNX in OpenVINO"),
        pytest.param("tiny.xml", "openvino", "cannot be read by openvino", id="IR"),
    ],
)
def test_damaged_file_is_an_error(tmp_path, name, runtime, message):
    need(runtime)
    path = tmp_path / name
    path.write_bytes(b"not a model")
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(ReidError, match=message):
        Embedder(path, runtime=runtime, preprocessing=SIDECAR)


def test_missing_weights_are_an_error(tmp_path):
    need("openvino")
    (tmp_path / "tiny.xml").write_text("<net/>")
    with pytest.raises(ReidError, match=r"there is no tiny\.bin"):
        Embedder(tmp_path / "tiny.xml", preprocessing=SIDECAR)


@pytest.mark.parametrize(
    ("name", "runtime", "message"),
    [
        pytest.param("absent.onnx", "auto", "There is no model file .*absent", id="absent"),
        pytest.param("tiny.xml", "onnx", "Runtime 'onnx' does not read tiny.xml. Use 'openvino'", id="another runtime"),
        pytest.param("tiny.onnx", "torch", "Runtime 'torch' does not read tiny.onnx", id="torch"),
    ],
)
def test_missing_file_and_wrong_runtime_are_errors(tmp_path, name, runtime, message):
    for existing in ("tiny.xml", "tiny.onnx"):
        (tmp_path / existing).touch()
    with pytest.raises(ReidError, match=message):
        Embedder(tmp_path / name, runtime=runtime)


@pytest.mark.parametrize(
    ("name", "runtime", "absent", "message"),
    [
        pytest.param("tiny.onnx", "auto", {"onnx", "openvino"}, "pip install onnxruntime", id="ONNX, neither"),
        pytest.param("tiny.onnx", "onnx", {"onnx"}, "pip install onnxruntime", id="ONNX, not the one asked for"),
        pytest.param("tiny.xml", "auto", {"onnx", "openvino"}, "pip install openvino", id="IR"),
    ],
)
def test_missing_runtime_is_an_error_with_its_command(tmp_path, monkeypatch, name, runtime, absent, message):
    (tmp_path / name).touch()
    for runtime_name in absent:
        monkeypatch.setitem(sys.modules, PACKAGES[runtime_name], None)
    with pytest.raises(ReidError, match=message):
        Embedder(tmp_path / name, runtime=runtime)


def test_openvino_reads_onnx_without_onnxruntime(tmp_path, monkeypatch):
    need("openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    model = ForeignModel(make_onnx(tmp_path / "tiny.onnx"), preprocessing=SIDECAR)
    assert model.runtime == "openvino"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "runtime"), FILES)
def test_unavailable_device_is_an_error(tmp_path, name, runtime):
    need(runtime)
    path = make(tmp_path / name)
    with pytest.raises(ReidError, match=r"'mps'|CPU"):
        Embedder(path, device="mps", runtime=runtime, preprocessing=SIDECAR)


@pytest.mark.slow
def test_model_id_depends_on_content_and_preprocessing(tmp_path):
    need("onnx")
    path = make_onnx(tmp_path / "tiny.onnx")
    own = Embedder(path, preprocessing=SIDECAR).describe()
    assert re.fullmatch("tiny-[0-9a-f]{12}", own["model"])
    (tmp_path / "else").mkdir()
    moved = tmp_path / "else" / "tiny.onnx"
    moved.write_bytes(path.read_bytes())
    assert Embedder(moved, preprocessing=SIDECAR).describe() == own
    other = Embedder(path, preprocessing=SIDECAR | {"channel_order": "bgr"}).describe()
    assert other["model"] != own["model"]
    json.dumps(own, allow_nan=False)


def test_foreign_file_has_no_reid_model(tmp_path):
    need("onnx")
    embedder = Embedder(make_onnx(tmp_path / "tiny.onnx"), preprocessing=SIDECAR)
    with pytest.raises(ReidError, match=r"tiny\.onnx is not a checkpoint of this package"):
        _ = embedder.model


INTEL = {"mean": [0, 0, 0], "std": [1, 1, 1], "scale": "0-255", "channel_order": "bgr"}
STORED = Path(__file__).parents[2].parent / "shared" / "data" / "market1501_test_embeddings_intel0288.npz"


@pytest.mark.parametrize(("precision", "least"), [("FP32", 0.99999), ("FP16", 0.9999)])
def test_intel_0288_gives_the_stored_features_on_market1501(market_root, precision, least):
    """Compare person-reidentification-retail-0288 on 200 queries with features computed by other code."""
    need("openvino")
    name = "person-reidentification-retail-0288"
    folder = os.environ.get("REID_INTEL_MODELS", "")
    if not folder:
        pytest.skip(f"set REID_INTEL_MODELS to the folder that contains {name}/FP16/{name}.xml")
    if not STORED.is_file():
        pytest.skip(f"{STORED} does not exist")
    with np.load(STORED) as arrays:
        columns = [arrays[f"query_{key}"].tolist() for key in ("pids", "camids", "sequences", "frames", "boxes")]
        stored = arrays["query_features"].astype(np.float32)
    row_of = {key: row for row, key in enumerate(zip(*columns, strict=True))}
    names = sorted(path.name for path in (market_root / "query").glob("*.jpg"))[::17]
    rows = [row_of[tuple(map(int, re.findall(r"-?\d+", one)[:5]))] for one in names]
    assert len(rows) > 190
    embedder = Embedder(Path(folder) / name / precision / f"{name}.xml", preprocessing=INTEL)
    assert embedder.preprocessing.size == (256, 128)
    own = embedder([decode(market_root / "query" / one) for one in names])
    expected_rows = stored[rows] / np.linalg.norm(stored[rows], axis=1, keepdims=True)
    assert (own * expected_rows).sum(1).min() > least


@pytest.mark.parametrize(
    "place",
    ["../weights.bin", "/ABSOLUTE/weights.bin", "link.bin", "sub/../../weights.bin"],
    ids=["parent", "absolute", "link", "through a subfolder"],
)
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_tensors_outside_the_folder_are_an_error(tmp_path, place, runtime):
    need(runtime)
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "weights.bin").write_bytes(weights().tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    path = with_external_weights(folder / "tiny.onnx", place.replace("/ABSOLUTE", str(tmp_path)))
    with pytest.raises(ReidError, match=r"tiny\.onnx stores tensors in .*, outside its folder"):
        ForeignModel(path, preprocessing=SIDECAR, runtime=runtime)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_tensors_in_another_file_of_the_folder_are_read_and_part_of_the_id(tmp_path, runtime):
    need(runtime)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/weights.bin").write_bytes(weights().tobytes())
    path = with_external_weights(tmp_path / "tiny.onnx", "sub/weights.bin")
    model = ForeignModel(path, preprocessing=SIDECAR, runtime=runtime)
    np.testing.assert_allclose(model.embed(torch.from_numpy(images())), expected(images()), atol=1e-5)
    (tmp_path / "sub/weights.bin").write_bytes(weights(seed=1).tobytes())
    assert ForeignModel(path, preprocessing=SIDECAR, runtime=runtime).name != model.name


def with_external_weights(path, place):
    """Write the network of `make_onnx` with its weights in the file `place`."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(make_onnx(path))
    (tensor,) = model.graph.initializer
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", place), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.slow
def test_every_openvino_network_is_compiled_in_float32_in_one_place(tmp_path, monkeypatch):
    need("openvino")
    import openvino

    compiled = []
    original = openvino.Core.compile_model

    def spy(core, model, device, settings):
        compiled.append(original(core, model, device, settings))
        return compiled[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", spy)
    ForeignModel(make_onnx(tmp_path / "tiny.onnx"), preprocessing=SIDECAR, runtime="openvino")
    ForeignModel(make_openvino(tmp_path / "tiny.xml"), preprocessing=SIDECAR)
    open_network(make_onnx(tmp_path / "u8.onnx", kind="uint8"), "openvino", 2)
    assert [str(one.get_property("INFERENCE_PRECISION_HINT")) for one in compiled] == ["<Type: 'float32'>"] * 3
    sources = {path.name: path.read_text("utf-8") for path in Path("reid").rglob("*.py")}
    for call in ("compile_model(", "InferenceSession(", "jit.load("):
        assert {name: text.count(call) for name, text in sources.items() if call in text} == {"bundle.py": 1}, call
