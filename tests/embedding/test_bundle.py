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
import torch

from reid import Embedder, Embeddings
from reid.core.errors import ReidError
from reid.embedding import bundle as reader
from reid.embedding.runtimes import open_bundle
from tests.embedding.bundles import SIZE, bundle, crops, expected_features, small_model

WITHOUT_REID = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "reid", "cv2", "PIL", "scipy", "pandas"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
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
    """Bundle of an ONNX model that a test may change."""
    return Path(shutil.copytree(bundle("onnx"), tmp_path / "copied.bundle"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "bundle.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


def digests(folder: Path) -> dict[str, str]:
    names = json.loads((folder / "bundle.json").read_text())["sha256"]
    return {name: reader.digest(folder / name) for name in names}


def sign(folder: Path) -> None:
    edit(folder, sha256=digests(folder))


@pytest.mark.slow
@pytest.mark.parametrize(("form", "runtime"), [("onnx", "onnx"), ("onnx", "openvino"), ("openvino", "openvino")])
def test_bundle_runs_without_torch_and_reid(tmp_path, form, runtime):
    pytest.importorskip(reader.PACKAGES[runtime])
    folder = shutil.copytree(bundle(form), tmp_path / "elsewhere.bundle")
    images = crops(5)
    np.save(tmp_path / "crops.npy", images)
    arguments = [folder, runtime, tmp_path / "crops.npy", tmp_path / "features.npy"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_REID, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), expected_features(images), atol=2e-5)
    assert "takes uint8 [N, 64, 32, 3] in RGB, values 0..255; this is float32 [1, 3, 64, 32]" in done.stdout


@pytest.mark.slow
def test_bundle_runs_as_a_program(tmp_path):
    images = crops(3)
    np.save(tmp_path / "crops.npy", images)
    program = [sys.executable, str(bundle("onnx") / "run.py")]
    subprocess.run([*program, "crops.npy", "features.npy"], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), expected_features(images), atol=2e-5)
    failed = subprocess.run(
        [*program, "absent.npy", "x.npy"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert "absent.npy" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_reader_imports_only_numpy_and_the_standard_library():
    tree = ast.parse(Path(reader.__file__).read_text())
    names = {
        name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert names - {"numpy"} <= set(sys.stdlib_module_names)


def test_embedder_opens_a_bundle():
    images = crops(4, size=(80, 50))
    exported, own = Embedder(bundle("onnx"), device="cpu"), Embedder(small_model(), device="cpu")
    np.testing.assert_allclose(exported(images), own(images), atol=2e-5)
    assert exported.preprocessing == own.preprocessing
    assert isinstance(exported.table(images), Embeddings)


@pytest.mark.slow
def test_torch_keeps_its_threads_when_a_bundle_has_its_own():
    before = torch.get_num_threads()
    opened = open_bundle(bundle("torchscript"), "torch", before + 1, trust=True)
    assert torch.get_num_threads() == before
    opened.embed(crops(2))
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.parametrize("n", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("threads", [1, 3])
def test_result_does_not_depend_on_threads(runtime, threads, n):
    pytest.importorskip(reader.PACKAGES[runtime])
    images = crops(n)
    got = open_bundle(bundle("onnx"), runtime, threads).embed(images)
    assert got.shape == (n, small_model().embedding_size)
    if n:
        np.testing.assert_allclose(got, expected_features(images), atol=2e-5)


def test_bundle_accepts_slices_and_mirrored_views():
    images = crops(8)
    opened = open_bundle(bundle("onnx"))
    for view in (images[::2], images[:, :, ::-1], images[..., ::-1], np.asfortranarray(images)):
        np.testing.assert_allclose(opened.embed(view), expected_features(np.ascontiguousarray(view)), atol=2e-5)


def test_auto_uses_the_fastest_runtime_at_export(copied):
    for package in ("onnxruntime", "openvino"):
        pytest.importorskip(package)
    for order in (["onnx", "openvino"], ["openvino", "onnx"]):
        edit(copied, runtimes={name: {"crops_per_second": 1.0} for name in order})
        assert open_bundle(copied).runtime == order[0]
        assert open_bundle(copied, order[1]).runtime == order[1]


def test_auto_skips_a_runtime_that_is_not_installed(copied, monkeypatch):
    pytest.importorskip("onnxruntime")
    edit(copied, runtimes={"openvino": {}, "onnx": {}})
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert open_bundle(copied).runtime == "onnx"
    with pytest.raises(ReidError, match=r"needs a runtime that is not installed\. Run: pip install openvino"):
        open_bundle(copied, "openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ReidError, match="pip install openvino or pip install onnxruntime"):
        open_bundle(copied)


def test_auto_uses_a_runtime_that_was_missing_at_export(copied):
    pytest.importorskip("openvino")
    edit(copied, runtimes={})
    assert open_bundle(copied).runtime in ("onnx", "openvino")


def test_auto_skips_a_runtime_that_fails_the_check(copied, monkeypatch):
    for package in ("onnxruntime", "openvino"):
        pytest.importorskip(package)
    edit(copied, runtimes={"openvino": {}, "onnx": {}})
    honest = reader._open_openvino
    monkeypatch.setattr(reader, "_open_openvino", lambda *given: lambda images: -honest(*given)(images))
    assert open_bundle(copied).runtime == "onnx"
    with pytest.raises(ReidError, match=r"does not run as it was exported\. openvino: the check crops give other"):
        open_bundle(copied, "openvino")


@pytest.mark.slow
def test_check_crops_detect_a_wrong_channel_order(copied):
    """Put a BGR model into an RGB bundle, with valid digests."""
    shutil.copy(bundle("onnx", "bgr") / "model.onnx", copied)
    sign(copied)
    with pytest.raises(ReidError, match="channel order or the value range is wrong"):
        open_bundle(copied)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda images: images[..., ::-1], id="channels reversed"),
        pytest.param(lambda images: images // 255, id="values 0..1"),
        pytest.param(lambda images: images[:, ::-1], id="upside down"),
    ],
)
def test_check_crops_detect_wrong_input(copied, damage):
    with np.load(copied / "check.npz") as check:
        arrays = dict(check)
    np.savez(
        copied / "check.npz", images=np.ascontiguousarray(damage(arrays["images"])), embeddings=arrays["embeddings"]
    )
    sign(copied)
    with pytest.raises(ReidError, match=r"cosine 0?-?\d.\d+, required 0.9999"):
        open_bundle(copied)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(shutil.rmtree, "is not a bundle: it has no bundle.json", id="no folder"),
        pytest.param(lambda b: (b / "bundle.json").unlink(), "it has no bundle.json", id="no manifest"),
        pytest.param(lambda b: (b / "bundle.json").write_text("{"), "cannot be read", id="not JSON"),
        pytest.param(lambda b: (b / "bundle.json").write_bytes(b"\xff"), "cannot be read", id="not text"),
        pytest.param(lambda b: (b / "bundle.json").write_text("[]"), "does not belong to a bundle", id="a list"),
        pytest.param(lambda b: edit(b, format="other"), "does not belong to a bundle", id="another format"),
        pytest.param(lambda b: edit(b, version=99), "has version 99; this reads 1. Update reid", id="newer"),
        pytest.param(lambda b: edit(b, size=None), "is damaged: size is 'missing'", id="no size"),
        pytest.param(lambda b: edit(b, form="unknown"), "is damaged: form is 'unknown'", id="unknown form"),
        pytest.param(lambda b: edit(b, version="1"), "is damaged: version is '1'", id="version as text"),
        pytest.param(lambda b: edit(b, form=["onnx"]), r"is damaged: form is \['onnx'\]", id="form as a list"),
        pytest.param(lambda b: edit(b, size=["64", 32]), r"is damaged: size is \['64', 32\]", id="size as text"),
        pytest.param(lambda b: edit(b, size=[64]), r"is damaged: size is \[64\]", id="one side"),
        pytest.param(
            lambda b: edit(b, dimension=True), "is damaged: dimension is True", id="dimension of another type"
        ),
        pytest.param(
            lambda b: edit(b, check={"file": "check.npz"}), "is damaged: check is", id="no limit of the check"
        ),
        pytest.param(lambda b: edit(b, sha256={"model.onnx": 0}), "is damaged: sha256 is", id="digest as a number"),
        pytest.param(lambda b: edit(b, runtimes=3), "is damaged: runtimes is 3", id="runtimes as a number"),
        pytest.param(
            lambda b: edit(b, preprocessing=None), "is damaged: preprocessing is 'missing'", id="no preprocessing"
        ),
        pytest.param(lambda b: (b / "bundle.json").write_text("[" * 200_000), "cannot be read", id="deep JSON"),
        pytest.param(lambda b: edit(b, file="../model.onnx"), "refers to .*, which is outside", id="model outside"),
        pytest.param(
            lambda b: edit(b, file="/etc/passwd"), "refers to /etc/passwd, which is outside", id="absolute path"
        ),
        pytest.param(
            lambda b: edit(b, check={"file": "../check.npz", "lowest_cosine": 0.9}),
            "which is outside",
            id="check outside",
        ),
        pytest.param(lambda b: edit(b, sha256={}), "has no SHA-256 of its file model.onnx", id="no digest"),
        pytest.param(
            lambda b: edit(b, sha256={"model.onnx": reader.digest(b / "model.onnx")}),
            "has no SHA-256 of its file check.npz",
            id="no digest of the check",
        ),
        pytest.param(lambda b: (b / "model.onnx").unlink(), "lacks its file model.onnx", id="no model"),
        pytest.param(
            lambda b: edit(b, sha256=digests(b) | {"../x": "0"}),
            r"refers to \.\./x, which is outside",
            id="a file outside",
        ),
        pytest.param(lambda b: edit(b, sha256={"model.onnx": "0"}), "changed after the export", id="another digest"),
        pytest.param(lambda b: flip_a_byte(b / "model.onnx"), r"model\.onnx was changed after", id="model changed"),
        pytest.param(lambda b: flip_a_byte(b / "check.npz"), r"check\.npz was changed after", id="check changed"),
        pytest.param(lambda b: edit(b, dimension=7), r"the check crops give \[2, 256\]", id="another dimension"),
    ],
)
def test_damaged_bundle_is_an_error(copied, damage, message):
    damage(copied)
    with pytest.raises(ReidError, match=message):
        open_bundle(copied)


def test_damaged_model_with_a_valid_digest_is_an_error(copied):
    (copied / "model.onnx").write_bytes(b"not a model")
    sign(copied)
    with pytest.raises(ReidError, match=r"does not run as it was exported\. .*model\.onnx cannot be read"):
        open_bundle(copied)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"runtime": "torch"}, "'torch' does not read copied.bundle. Use onnx or openvino", id="runtime"),
        pytest.param({"threads": 0}, "threads is 0; it must be 1 or more", id="no threads"),
        pytest.param({"device": "mps"}, "does not run on device 'mps'", id="device"),
        pytest.param({"runtime": "openvino", "device": "cuda"}, "does not run on device 'cuda'", id="CUDA in OpenVINO"),
    ],
)
def test_invalid_arguments_are_errors(copied, options, message):
    with pytest.raises(ReidError, match=message):
        open_bundle(copied, **options)


@pytest.mark.parametrize(
    ("images", "given"),
    [
        pytest.param(np.zeros((2, 3, *SIZE), np.uint8), r"uint8 \[2, 3, 64, 32\]", id="channels first"),
        pytest.param(np.zeros((*SIZE, 3), np.uint8), r"uint8 \[64, 32, 3\]", id="one image alone"),
        pytest.param(np.zeros((2, *SIZE, 3), np.float32), r"float32 \[2, 64, 32, 3\]", id="floats"),
        pytest.param(np.zeros((2, *SIZE, 4), np.uint8), r"uint8 \[2, 64, 32, 4\]", id="RGBA"),
        pytest.param(np.zeros((2, *SIZE), np.uint8), r"uint8 \[2, 64, 32\]", id="gray"),
        pytest.param(np.zeros((2, 32, 64, 3), np.uint8), r"uint8 \[2, 32, 64, 3\]", id="width before height"),
        pytest.param([], r"float64 \[0\]", id="an empty list"),
    ],
)
def test_invalid_crops_are_errors(images, given):
    with pytest.raises(ReidError, match=rf"takes uint8 \[N, 64, 32, 3\] in RGB, .* this is {given}"):
        open_bundle(bundle("onnx")).embed(images)


def test_check_crops_that_cannot_be_read_are_an_error(copied):
    (copied / "check.npz").write_bytes(b"not a zip file")
    sign(copied)
    with pytest.raises(ReidError, match=r"check\.npz cannot be read"):
        open_bundle(copied)


def test_preprocessing_of_a_bundle_is_validated(copied):
    preprocessing = json.loads((copied / "bundle.json").read_text())["preprocessing"]
    edit(copied, preprocessing=preprocessing | {"std": [0, 1, 1]})
    with pytest.raises(ReidError, match=r"std.* in .*bundle\.json"):
        Embedder(copied)
    edit(copied, preprocessing=preprocessing | {"size": [8, 8]})
    with pytest.raises(ReidError, match=r"size and preprocessing\.size \[8, 8\] differ"):
        Embedder(copied)


def test_torchscript_needs_consent():
    folder = bundle("torchscript")
    for open_model in (open_bundle, Embedder):
        with pytest.raises(ReidError, match=r"can execute any code when it is loaded\. .*trust=True.*--trust"):
            open_model(folder)
    assert open_bundle(folder, trust=True).embed(crops(2)).shape == (2, 256)
    assert Embedder(folder, runtime="torchscript")(crops(2)).shape == (2, 256)


class Hostile(torch.nn.Module):
    """TorchScript that creates the file `victim` when it is loaded."""

    def __init__(self, victim: str) -> None:
        super().__init__()
        self.victim = victim
        self.written = torch.zeros(1)

    @torch.jit.export
    def __getstate__(self):
        return self.victim, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.victim = state[0]
        self.training = state[1]
        self.written = torch.from_file(state[0], True, 4, dtype=torch.uint8).clone()

    def forward(self, images: torch.Tensor):
        return images.float().mean((1, 2))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_that_writes_a_file_is_not_loaded_without_consent(tmp_path):
    folder = shutil.copytree(bundle("torchscript"), tmp_path / "hostile.bundle")
    victim = tmp_path / "victim"
    torch.jit.script(Hostile(str(victim))).save(str(folder / "model.pt"))
    sign(folder)
    with pytest.raises(ReidError, match="trust=True"):
        open_bundle(folder)
    assert not victim.exists()
    with pytest.raises(ReidError, match="the check crops give"):
        open_bundle(folder, trust=True)
    assert victim.exists()  # the danger is real: consent is needed
