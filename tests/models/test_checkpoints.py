from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from reid import Embedder, Embeddings
from reid.core.errors import ModelError, ReidError
from reid.embedding.calibration_file import load_calibration
from reid.embedding.learned_metric import LearnedMetric
from reid.models import build_model, import_model
from reid.models.checkpoints import load_checkpoint, load_model, restore, save_checkpoint
from reid.models.pretrained import read_weights


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model("resnet18", num_classes=3, height=64, width=32)


@pytest.mark.slow
def test_loaded_model_gives_the_same_embeddings(model, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m.pt", model, note={"lr": [0.1, None, "x"]})
    assert load_checkpoint(tmp_path / "m.pt")["note"] == {"lr": [0.1, None, "x"]}
    again = load_model(tmp_path / "m.pt")
    assert not again.training
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), dtype=np.uint8))
    assert torch.equal(again.embed(images), model.eval().embed(images))
    assert again.preprocessing == model.preprocessing


def test_torch_reads_a_checkpoint_with_weights_only(model, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m.pt", model)
    assert set(torch.load(tmp_path / "m.pt", weights_only=True)) == {"format", "version", "spec", "model"}


@pytest.mark.parametrize(
    "value", [np.float64(0.5), np.zeros(2), Path("x"), {1, 2}, object()], ids=lambda v: type(v).__name__
)
def test_state_that_weights_only_cannot_read_is_an_error(model, tmp_path: Path, value) -> None:
    with pytest.raises(ReidError, match=r"history\[0\]\.mAP"):
        save_checkpoint(tmp_path / "m.pt", model, history=[{"mAP": value}])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_checkpoint_of_another_model_is_an_error_with_the_difference(model, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m.pt", model)
    other = build_model("resnet18", num_classes=4, height=64, width=32)
    with pytest.raises(ReidError, match=r"num_classes: 3 → 4.*1 tensors differ") as caught:
        restore(other, load_checkpoint(tmp_path / "m.pt"), tmp_path / "m.pt")
    assert "[4, 512] expected, [3, 512] in the file" in str(caught.value)


class _Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/reid-was-here",)


def _write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Evil()))


def _write_version(path: Path, version: int) -> None:
    torch.save({"format": "reid-checkpoint", "version": version}, path)


def _write_cut(path: Path) -> None:
    torch.save({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_write_pickle, "never executed"),  # a pickle with code in it
        (_write_cut, "damaged"),  # cut off
        (lambda path: path.write_bytes(b""), "damaged"),  # empty
        (lambda path: path.write_text("hello"), "damaged"),  # text
        (lambda path: torch.save({"conv.weight": torch.zeros(1)}, path), "model.weights="),  # bare weights
        (lambda path: _write_version(path, 99), "version 99.*Update"),  # newer than this code
        (lambda path: _write_version(path, 1), "version 1;.*Train again"),  # older than this code
        (lambda path: path.mkdir(), "is a folder"),  # the run folder instead of a file
        (lambda path: None, "no checkpoint"),  # missing
    ],
)
def test_invalid_checkpoint_is_an_error_and_executes_nothing(tmp_path: Path, write, words: str) -> None:
    path = tmp_path / "bad.pt"
    write(path)
    with pytest.raises(ReidError, match=words) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert not Path("/tmp/reid-was-here").exists()


def test_full_disk_keeps_the_old_file(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pt"
    save_checkpoint(path, model, turn=1)

    def full(content, file) -> None:
        Path(file).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ReidError, match="No space left"):
        save_checkpoint(path, model, turn=2)
    monkeypatch.undo()
    assert load_checkpoint(path)["turn"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": None}, "spec"),
        ({"spec": 3}, "spec"),
        ({"spec": {"backbone": 7.5}}, r"spec\.num_classes|spec\.backbone|num_classes"),
        ({"spec": {"backbone": "light10", "unknown": 1}}, r"spec\.unknown"),
        ({"spec": {"backbone": "light10", "height": "tall"}}, r"spec\.height"),
        ({"spec": {"backbone": "light10", "weights": "/etc/passwd"}}, r"spec\.weights"),
        ({"spec": {"backbone": "light10", "num_classes": 10**9}}, r"spec\.num_classes is 1000000000, but the tensor"),
        (
            {"spec": {"backbone": "light10", "num_classes": 3, "embedding_dim": 90_000}},
            r"spec\.embedding_dim is 90000, but the tensor",
        ),
        ({"model": None}, "model"),
        ({"model": [1]}, "model"),
        ({"model": {"a": 1}}, r"model\.a"),
        ({"version": None}, "version"),
        ({"version": "2"}, "version"),
        ({"config": []}, "config"),
        ({"progress": {"epoch": "x"}}, r"progress\.epoch"),
        ({"source": {"file": "x"}}, r"source\.family"),
    ],
    ids=str,
)
def test_invalid_field_of_a_checkpoint_is_an_error_with_its_name(model, tmp_path: Path, change, words: str) -> None:
    path = tmp_path / "m.pt"
    save_checkpoint(path, model)
    content = torch.load(path, weights_only=True) | change
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    with pytest.raises(ModelError, match=words) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_weights_in_a_spec_open_no_file(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pt"
    save_checkpoint(path, model)
    content = torch.load(path, weights_only=True)
    content["spec"]["weights"] = str(tmp_path / "other.pth")
    torch.save(content, path)
    monkeypatch.setattr("reid.models.pretrained.read_weights", lambda path: pytest.fail("a file was opened"))
    with pytest.raises(ModelError, match=r"spec\.weights=.*other\.pth.* is not a valid choice"):
        load_model(path)


@pytest.mark.slow
def test_nan_in_a_checkpoint_is_an_error(model, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    save_checkpoint(path, model)
    content = torch.load(path, weights_only=True)
    name = next(iter(content["model"]))
    content["model"][name] = torch.full_like(content["model"][name], float("nan"))
    torch.save(content, path)
    with pytest.raises(ModelError, match=f"contain NaN or infinity, the first {name}"):
        load_model(path)


class Exploit:
    """Object that executes a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.npz", "w.npy", "w.safetensors"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "bare pickle"])
def test_pickles_are_never_executed(name: str, zipped: bool, tmp_path: Path) -> None:
    path, marker = tmp_path / name, tmp_path / "executed"
    if name.startswith("w.np"):
        array = np.array([Exploit(marker)], dtype=object)
        np.savez(path, factor=array, about=array) if zipped else path.write_bytes(pickle.dumps(array))
    elif zipped:
        torch.save({"format": "reid-checkpoint", "state_dict": {"w": torch.zeros(1)}, "x": Exploit(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Exploit(marker)))
    readers = [load_checkpoint, read_weights, import_model, Embedder, LearnedMetric.load, load_calibration]
    readers += [Embeddings.load, lambda path: build_model("light10", height=64, width=32, weights=path)]
    for read in readers:
        with pytest.raises(ReidError):
            read(path)
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "bit flipped"])
def test_damaged_checkpoints_are_read_or_are_errors(kind: str, tmp_path: Path) -> None:
    path, model = tmp_path / "m.pt", build_model("light10", height=64, width=32)
    save_checkpoint(path, model, progress={"epoch": 1, "step": 2, "seconds": 3.0, "history": []})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        place = int(rng.integers(0, len(whole)))
        damaged = bytearray(whole[:place] if kind == "truncated" else whole)
        if kind == "bit flipped":
            place = int(rng.integers(0, 4000)) if rng.random() < 0.7 else place  # pickled structure is at the start
            damaged[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        with contextlib.suppress(ReidError):
            load_model(path)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 8 + b"{}",
        (2**40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        None,
    ],
    ids=["largest length", "length beyond the file", "a list", "offsets beyond the file"],
)
def test_lying_safetensors_headers_are_errors(header: bytes | None, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    if header is None:
        text = b'{"w":{"dtype":"F32","shape":[1000000000,1000],"data_offsets":[0,4000000000000]}}'
        header = len(text).to_bytes(8, "little") + text
    (tmp_path / "w.safetensors").write_bytes(header)
    with pytest.raises(ModelError, match=r"w\.safetensors cannot be read as tensors"):
        read_weights(tmp_path / "w.safetensors")
