from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.models import build_model
from reid.models.checkpoints import load_checkpoint, load_model, restore, save_checkpoint


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model("resnet18", num_classes=3, height=64, width=32)


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
