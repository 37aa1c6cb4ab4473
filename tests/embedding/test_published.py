"""Published models through `Embedder` and the commands, from a server on loopback."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from reid import Embedder, Embeddings
from reid.commands import main
from reid.core.errors import ReidError
from reid.models import build_model, zoo
from reid.models.checkpoints import load_model, save_checkpoint
from tests.embedding.test_runtimes import SIZE, D, expected, images, make_openvino
from tests.models.serving import Server, publish, serve
from tests.models.test_external import as_torchreid

BGR = {"size": list(SIZE), "mean": [9, 8, 7], "std": [50, 60, 70], "scale": "0-255", "channel_order": "bgr"}


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def server(patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(patch, tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="module")
def default(patch: pytest.MonkeyPatch, server: Server, tmp_path_factory: pytest.TempPathFactory) -> zoo.PublishedModel:
    """A small OpenVINO network as the default model."""
    path = make_openvino(tmp_path_factory.mktemp("net") / "tiny.xml")
    files = {file.name: file.read_bytes() for file in (path, path.with_suffix(".bin"))}
    return publish(patch, server, files, name=zoo.DEFAULT_MODEL, format="openvino", input={**BGR, "resize": "stretch"})


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


@pytest.mark.slow
def test_openvino_model_by_name_equals_its_file(default: zoo.PublishedModel) -> None:
    embedder = Embedder(default.name)
    assert embedder.dimension == D
    wanted = expected(images(), mean=(9, 8, 7), std=(50, 60, 70), scale=255, order="bgr")
    np.testing.assert_allclose(embedder(images()), wanted, atol=2e-6)
    by_file = Embedder(zoo.fetch_model(default.name))  # with the .reid.json that was written next to it
    assert by_file.describe() == embedder.describe()
    with pytest.raises(ReidError, match="contains its preprocessing"):
        Embedder(default.name, preprocessing=BGR)
    with pytest.raises(ReidError, match="only used with the name of a backbone"):
        Embedder(default.name, weights="imagenet")


def test_missing_openvino_is_reported_before_the_download(
    default: zoo.PublishedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reid.embedding.embedder.installed", lambda runtime: False)
    with pytest.raises(ReidError, match=r"intel-0287 needs OpenVINO. Run: pip install 'reid-toolkit\[openvino\]'"):
        Embedder(default.name)


@pytest.mark.slow
def test_default_model_is_used_and_reported(default: zoo.PublishedModel, tmp_path: Path) -> None:
    (tmp_path / "crops").mkdir()
    cv2.imwrite(str(tmp_path / "crops" / "a.png"), images()[0][..., ::-1])
    output = run("embed", "--images", tmp_path / "crops", "--out", tmp_path / "t.parquet")
    assert "model: intel-0287 (the default; pass --model for another)" in output
    table = Embeddings.load(tmp_path / "t.parquet")
    np.testing.assert_allclose(table.features, Embedder(default.name)(images()[:1]), atol=1e-6)


@pytest.mark.slow
def test_existing_file_or_folder_takes_precedence(
    default: zoo.PublishedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = build_model("light10", height=SIZE[0], width=SIZE[1])
    save_checkpoint(tmp_path / default.name / "best.pt", model)
    assert Embedder(default.name, device="cpu").model.spec == model.spec


@pytest.mark.slow
def test_commands(default: zoo.PublishedModel, server: Server) -> None:
    listed = run("model", "list", "--pretrained")
    for text in ("intel-0287", "embedder", "MIT", "ten people: research use only"):
        assert text in re.sub(r"\s+", " ", listed)
    path = default.folder / "tiny.xml"
    assert f"intel-0287: {path}" in run("model", "fetch", "intel-0287")
    assert run("model", "path", "intel-0287") == str(path)
    assert "2 of 2 files verified" in run("model", "verify")
    assert "1 published models (intel-0287)" in run("cache", "list")
    assert "**Terms of that data**: research use only" in run("model", "card", "--model", "intel-0287")
    content = path.read_bytes()
    path.write_bytes(content[::-1])
    assert "1 of 2 files verified" in run("model", "verify", "intel-0287", code=1)
    path.unlink()
    assert "Run: reid model fetch intel-0287" in run("model", "path", "intel-0287", code=1)
    assert "Unknown published model" in run("model", "fetch", "intel-0287", "intel", code=1)
    assert str(path) in run("model", "fetch", "intel-0287")
    exported = run("model", "export", "--model", "intel-0287", "--to", "openvino", code=1)
    assert 'Pass its file: --model "$(reid model path intel-0287)"' in exported
    assert "Name one as LAYOUT:ROOT" in run("test", "--model", "intel-0287", code=1)


@pytest.mark.slow
def test_torchreid_checkpoint_by_name(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(
        "osnet_x0_25", neck="bn_relu", embedding_dim=512, height=64, width=32, seed=5, channel_order="rgb"
    )
    body = io.BytesIO()
    torch.save({f"module.{name}": tensor for name, tensor in as_torchreid(model).items()}, body)
    publish(monkeypatch, server, {"osnet.pth": body.getvalue()}, input={"size": [64, 32]})
    crops = images(size=(64, 32))
    embedder = Embedder("small", device="cpu")
    assert embedder.preprocessing == model.preprocessing
    np.testing.assert_allclose(embedder(crops), Embedder(model, device="cpu")(crops), atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_folder = tmp_path_factory.mktemp("run")
    model = build_model("light10", height=64, width=32, num_classes=3, seed=2)
    progress = {"epoch": 2, "step": 10, "seconds": 1.5, "history": [], "sampler": {"epoch": 2}}
    save_checkpoint(run_folder / "best.pt", model, optimizer={"state": torch.ones(3)}, progress=progress)
    return run_folder


@pytest.mark.slow
def test_model_folder_loads_like_its_checkpoint(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed (pip install safetensors)")
    folder = tmp_path / "person-model"
    output = run("model", "export", "--model", trained, "--to", "safetensors", "--out", folder)
    assert f"model folder: {folder}" in output
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert set(config) == {"format", "version", "spec", "progress"}
    assert set(config["progress"]) == {"epoch", "step", "seconds", "history"}
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: reid-toolkit\n")
    for ours in (folder, folder / "model.safetensors"):
        first, again = Embedder(trained, device="cpu"), Embedder(ours, device="cpu")
        assert first.describe() == again.describe()
    theirs = load_model(folder / "model.safetensors").state_dict()
    assert all(
        torch.equal(theirs[name], tensor) for name, tensor in load_model(trained / "best.pt").state_dict().items()
    )
    second = tmp_path / "again"
    run("model", "export", "--model", folder, "--to", "safetensors", "--out", second)
    assert (second / "config.json").read_text() == (folder / "config.json").read_text()
    assert "is not an empty folder" in run(
        "model", "export", "--model", trained, "--to", "safetensors", "--out", folder, code=1
    )
    assert "Remove --int8" in run("model", "export", "--model", trained, "--to", "safetensors", "--int8", code=1)
    (folder / "config.json").write_text('{"format": "other"}')
    with pytest.raises(ReidError, match="not a checkpoint of this project"):
        Embedder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ReidError, match="not a checkpoint of this project"):
        Embedder(folder)


@pytest.mark.slow
def test_detections_of_supervision(trained: Path) -> None:
    sv = pytest.importorskip("supervision", reason="supervision is not installed (pip install supervision)")
    embedder = Embedder(trained, device="cpu")
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    boxes = np.array([[10.4, 5, 40, 80], [-20, 50, 30, 200], [200, 5, 300, 80], [50, 5, 50.2, 80]], dtype=np.float32)
    given = sv.Detections(
        xyxy=boxes, confidence=np.full(4, 0.5), tracker_id=np.arange(4), data={"name": np.array(list("abcd"))}
    )
    found = embedder.embed_detections(frame, given)
    assert isinstance(found, sv.Detections)
    assert "embedding" not in given.data
    np.testing.assert_array_equal(found.tracker_id, given.tracker_id)
    np.testing.assert_array_equal(found.data["name"], given.data["name"])
    rgb = frame[..., ::-1]
    wanted = embedder([rgb[5:80, 10:40], rgb[50:90, 0:30]])
    np.testing.assert_allclose(found.data["embedding"][:2], wanted, atol=1e-6)
    assert np.isnan(found.data["embedding"][2:]).all()
    np.testing.assert_array_equal(
        embedder.embed_detections(rgb, given, channel_order="rgb").data["embedding"], found.data["embedding"]
    )
    assert found[[0, 3]].data["embedding"].shape == (2, embedder.dimension)
    none = embedder.embed_detections(frame, sv.Detections.empty())
    assert none.data["embedding"].shape == (0, embedder.dimension)
    merged = sv.Detections.merge([found, found])
    assert merged.data["embedding"].shape == (8, embedder.dimension)
    for wrong, message in ((frame[..., 0], "must be uint8"), (frame / 255, "must be uint8")):
        with pytest.raises(ReidError, match=message):
            embedder.embed_detections(wrong, given)
    given.xyxy[1, 2] = np.nan
    with pytest.raises(ReidError, match="Box 1 of the detections"):
        embedder.embed_detections(frame, given)
    with pytest.raises(ReidError, match="channel_order"):
        embedder.embed_detections(frame, given, channel_order="grb")
