from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reid import Embedder, Embeddings
from reid.core.errors import ReidError
from reid.embedding import bundle as reader
from reid.embedding.runtimes import open_bundle
from tests.embedding.bundles import SIZE, bundle, crops, of_model, small_model

WITHOUT_US = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "reid", "cv2", "PIL", "scipy", "pandas"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Nothing())
sys.path.insert(0, sys.argv[1])
import numpy as np
from run import Bundle
opened = Bundle(runtime=sys.argv[2])
np.save(sys.argv[4], opened.embed(np.load(sys.argv[3])))
try:
    opened.embed(np.zeros((1, 3, 64, 32), np.float32))
except ValueError as error:
    print(error)
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A bundle of an ONNX model that a test may spoil."""
    return Path(shutil.copytree(bundle("onnx"), tmp_path / "copied.bundle"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "bundle.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


def sign(folder: Path) -> None:
    edit(folder, sha256={name: reader.digest(folder / name) for name in ("model.onnx", "check.npz")})


@pytest.mark.parametrize(("form", "runtime"), [("onnx", "onnx"), ("onnx", "openvino"), ("openvino", "openvino")])
def test_it_runs_without_torch_and_without_us(tmp_path, form, runtime):
    pytest.importorskip(reader.PACKAGES[runtime])
    folder = shutil.copytree(bundle(form), tmp_path / "elsewhere.bundle")
    images = crops(5)
    np.save(tmp_path / "crops.npy", images)
    arguments = [folder, runtime, tmp_path / "crops.npy", tmp_path / "features.npy"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), of_model(images), atol=2e-5)
    assert "takes uint8 [N, 64, 32, 3] in RGB, values 0..255; this is float32 [1, 3, 64, 32]" in done.stdout


def test_it_runs_as_a_program(tmp_path):
    images = crops(3)
    np.save(tmp_path / "crops.npy", images)
    program = [sys.executable, str(bundle("onnx") / "run.py")]
    subprocess.run([*program, "crops.npy", "features.npy"], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), of_model(images), atol=2e-5)
    failed = subprocess.run(
        [*program, "absent.npy", "x.npy"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert "absent.npy" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_reader_imports_nothing_but_numpy():
    tree = ast.parse(Path(reader.__file__).read_text())
    names = {
        name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert names - {"numpy"} <= set(sys.stdlib_module_names)


def test_embedder_takes_a_bundle_as_the_model_itself():
    images = crops(4, size=(80, 50))
    exported, own = Embedder(bundle("onnx"), device="cpu"), Embedder(small_model(), device="cpu")
    np.testing.assert_allclose(exported(images), own(images), atol=2e-5)
    assert exported.preprocessing == own.preprocessing
    assert isinstance(exported.table(images), Embeddings)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(runtime, threads, n):
    pytest.importorskip(reader.PACKAGES[runtime])
    images = crops(n)
    got = open_bundle(bundle("onnx"), runtime, threads).embed(images)
    assert got.shape == (n, small_model().embedding_size)
    if n:
        np.testing.assert_allclose(got, of_model(images), atol=2e-5)


def test_slices_and_mirrored_views_are_taken():
    images = crops(8)
    opened = open_bundle(bundle("onnx"))
    for view in (images[::2], images[:, :, ::-1], images[..., ::-1], np.asfortranarray(images)):
        np.testing.assert_allclose(opened.embed(view), of_model(np.ascontiguousarray(view)), atol=2e-5)


def test_auto_takes_the_fastest_at_export(copied):
    for package in ("onnxruntime", "openvino"):
        pytest.importorskip(package)
    for order in (["onnx", "openvino"], ["openvino", "onnx"]):
        edit(copied, runtimes={name: {"crops_per_second": 1.0} for name in order})
        assert open_bundle(copied).runtime == order[0]
        assert open_bundle(copied, order[1]).runtime == order[1]


def test_auto_goes_on_to_the_next_where_the_first_is_not_installed(copied, monkeypatch):
    pytest.importorskip("onnxruntime")
    edit(copied, runtimes={"openvino": {}, "onnx": {}})
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert open_bundle(copied).runtime == "onnx"
    with pytest.raises(ReidError, match="needs a runtime that is not installed here: pip install openvino"):
        open_bundle(copied, "openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ReidError, match="pip install openvino or pip install onnxruntime"):
        open_bundle(copied)


def test_auto_takes_a_runtime_that_was_not_there_at_export(copied):
    pytest.importorskip("openvino")
    edit(copied, runtimes={})
    assert open_bundle(copied).runtime in ("onnx", "openvino")


def test_auto_goes_on_to_the_next_where_the_first_computes_otherwise(copied, monkeypatch):
    for package in ("onnxruntime", "openvino"):
        pytest.importorskip(package)
    edit(copied, runtimes={"openvino": {}, "onnx": {}})
    honest = reader._open_openvino
    monkeypatch.setattr(reader, "_open_openvino", lambda *given: lambda images: -honest(*given)(images))
    assert open_bundle(copied).runtime == "onnx"
    with pytest.raises(ReidError, match=r"does not run as it was exported\. openvino: the check crops give other"):
        open_bundle(copied, "openvino")


def test_a_wrong_order_of_channels_is_caught_by_the_check_crops(copied):
    """The model of a BGR training in the bundle of an RGB one, digests and all."""
    shutil.copy(bundle("onnx", "bgr") / "model.onnx", copied)
    sign(copied)
    with pytest.raises(ReidError, match="order of channels or the range of values is wrong"):
        open_bundle(copied)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda images: images[..., ::-1], id="channels reversed"),
        pytest.param(lambda images: images // 255, id="values 0..1"),
        pytest.param(lambda images: images[:, ::-1], id="upside down"),
    ],
)
def test_check_crops_tell_other_input(copied, spoil):
    with np.load(copied / "check.npz") as check:
        arrays = dict(check)
    np.savez(
        copied / "check.npz", images=np.ascontiguousarray(spoil(arrays["images"])), embeddings=arrays["embeddings"]
    )
    sign(copied)
    with pytest.raises(ReidError, match=r"cosine 0?-?\d.\d+, at least 0.9999 is asked"):
        open_bundle(copied)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(shutil.rmtree, "is not a bundle: it has no bundle.json", id="no folder"),
        pytest.param(lambda b: (b / "bundle.json").unlink(), "it has no bundle.json", id="no manifest"),
        pytest.param(lambda b: (b / "bundle.json").write_text("{"), "cannot be read", id="not JSON"),
        pytest.param(lambda b: (b / "bundle.json").write_bytes(b"\xff"), "cannot be read", id="not text"),
        pytest.param(lambda b: (b / "bundle.json").write_text("[]"), "is not of a bundle", id="a list"),
        pytest.param(lambda b: edit(b, format="other"), "is not of a bundle", id="another format"),
        pytest.param(lambda b: edit(b, version=99), "is of version 99; this reads 1. Update reid", id="newer"),
        pytest.param(lambda b: edit(b, size=None), "is damaged: size cannot be used", id="no size"),
        pytest.param(lambda b: edit(b, form="odd"), "is damaged: form cannot be used", id="odd form"),
        pytest.param(lambda b: (b / "model.onnx").unlink(), "lacks model.onnx", id="no model"),
        pytest.param(lambda b: edit(b, sha256={"../x": "0"}), r"lacks \.\./x", id="a file outside"),
        pytest.param(lambda b: edit(b, sha256={"model.onnx": "0"}), "changed after the export", id="another digest"),
        pytest.param(lambda b: flip_a_byte(b / "model.onnx"), r"model\.onnx was changed after", id="model changed"),
        pytest.param(lambda b: flip_a_byte(b / "check.npz"), r"check\.npz was changed after", id="check changed"),
        pytest.param(lambda b: edit(b, dimension=7), r"the check crops give \[2, 256\]", id="another dimension"),
    ],
)
def test_a_spoiled_bundle_is_named(copied, spoil, words):
    spoil(copied)
    with pytest.raises(ReidError, match=words):
        open_bundle(copied)


def test_a_damaged_model_with_a_right_digest_is_named(copied):
    (copied / "model.onnx").write_bytes(b"not a model")
    sign(copied)
    with pytest.raises(ReidError, match=r"does not run as it was exported\. .*model\.onnx cannot be read"):
        open_bundle(copied)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"runtime": "torch"}, "'torch' does not read copied.bundle, which holds onnx", id="runtime"),
        pytest.param({"threads": 0}, "threads is 0: it must be 1 or more", id="no threads"),
        pytest.param({"device": "mps"}, "does not run on device 'mps'", id="device"),
        pytest.param({"runtime": "openvino", "device": "cuda"}, "does not run on device 'cuda'", id="CUDA in OpenVINO"),
    ],
)
def test_wrong_wishes_are_named(copied, options, words):
    with pytest.raises(ReidError, match=words):
        open_bundle(copied, **options)


@pytest.mark.parametrize(
    ("images", "given"),
    [
        pytest.param(np.zeros((2, 3, *SIZE), np.uint8), r"uint8 \[2, 3, 64, 32\]", id="channels first"),
        pytest.param(np.zeros((*SIZE, 3), np.uint8), r"uint8 \[64, 32, 3\]", id="one image alone"),
        pytest.param(np.zeros((2, *SIZE, 3), np.float32), r"float32 \[2, 64, 32, 3\]", id="floats"),
        pytest.param(np.zeros((2, *SIZE, 4), np.uint8), r"uint8 \[2, 64, 32, 4\]", id="RGBA"),
        pytest.param(np.zeros((2, *SIZE), np.uint8), r"uint8 \[2, 64, 32\]", id="gray"),
        pytest.param(np.zeros((2, 32, 64, 3), np.uint8), r"uint8 \[2, 32, 64, 3\]", id="lying"),
        pytest.param([], r"float64 \[0\]", id="an empty list"),
    ],
)
def test_other_input_is_named(images, given):
    with pytest.raises(ReidError, match=rf"takes uint8 \[N, 64, 32, 3\] in RGB, .* this is {given}.*64×32"):
        open_bundle(bundle("onnx")).embed(images)
