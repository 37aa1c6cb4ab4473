from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from reid import Embedder
from reid.commands import main
from reid.embedding.runtimes import open_bundle
from reid.models.checkpoints import save_checkpoint
from tests.embedding.bundles import bundle, crops, expected_features, small_model
from tests.embedding.test_runtimes import SIDECAR, make_onnx

pytest.importorskip("openvino", reason="OpenVINO is not installed (pip install openvino)")


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["model", "export", "--model", *map(str, arguments)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "run/best.pt", small_model())
    return tmp_path / "run"


@pytest.fixture
def trained(tmp_path: Path, tiny_market: Path) -> Path:
    """A run with its train data recorded, and with scores."""
    config = {
        "data": {"train": [f"market1501:{tiny_market}"]},
        "model": {"weights": "imagenet"},
        "eval": {"split": "validation"},
    }
    save_checkpoint(tmp_path / "run/last.pt", small_model(), config=config)
    scores = {
        "model": Embedder(small_model(), device="cpu").describe(),
        "protocol": "as it was",
        "sets": {"tiny": {"plain": {"mAP": 0.125, "mINP": 0.06, "rank-1": 0.25, "rank-5": 0.5}}},
    }
    (tmp_path / "run/test").mkdir()
    (tmp_path / "run/test/metrics.json").write_text(json.dumps(scores))
    return tmp_path / "run"


@pytest.mark.slow
def test_bundle_is_written_next_to_the_checkpoint(run):
    result = export(run, "--to", "openvino")
    assert result.exit_code == 0, result.output
    out = run / "best-openvino.bundle"
    for expected in ("No real crops (--data or --images)", "openvino: lowest cosine to the model 0.99999", str(out)):
        assert expected in result.output
    images = crops(3)
    opened = open_bundle(out)
    np.testing.assert_allclose(opened.embed(images), expected_features(images), atol=2e-5)
    assert opened.model_id == Embedder(run / "best.pt", device="cpu").describe()["model"]
    again = export(run, "--to", "openvino")
    assert again.exit_code == 1
    assert "already exists" in again.output


@pytest.mark.slow
def test_int8_with_the_train_data_of_the_run(trained):
    pytest.importorskip("nncf", reason="int8 needs NNCF (pip install nncf)")
    result = export(trained, "--to", "openvino", "--int8", "--max-loss", 100, "--calibration-crops", 10)
    assert result.exit_code == 0, result.output
    assert "int8 on synthetic validation: mAP " in result.output
    manifest = json.loads((trained / "last-openvino-int8.bundle/bundle.json").read_text())
    assert manifest["parity"]["int8"]["calibration_crops"] == 10
    assert manifest["parity"]["crops"]["real"] == "32 given crops"
    card = (trained / "last-openvino-int8.bundle/card.md").read_text()
    for expected in (
        "Licence note** (synthetic): rendered pedestrians",
        "| tiny test | plain | 12.50 | 6.00 | 25.00 | 50.00 |",
    ):
        assert expected in card


@pytest.mark.slow
def test_int8_on_the_test_split_of_a_named_data_set(run, tiny_market):
    pytest.importorskip("nncf", reason="int8 needs NNCF (pip install nncf)")
    data = ("--data", f"market1501:{tiny_market}", "--calibration-crops", 5, "--max-loss", 100)
    result = export(run, "--to", "openvino", "--int8", *data, "--split", "test", "--out", run / "a.bundle")
    assert result.exit_code == 0, result.output
    assert "int8 on synthetic test: mAP" in result.output


@pytest.mark.slow
def test_parity_on_a_folder_of_crops(run, tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    for number, image in enumerate(crops(3, size=(50, 20))):
        cv2.imwrite(str(folder / f"{number}.png"), image)
    result = export(run / "best.pt", "--to", "torchscript", "--images", folder)
    assert result.exit_code == 0, result.output
    assert "No real crops" not in result.output
    manifest = json.loads((run / "best-torchscript.bundle/bundle.json").read_text())
    assert manifest["parity"]["crops"]["real"] == "3 given crops"


@pytest.mark.slow
def test_export_of_an_onnx_file(tmp_path):
    other = make_onnx(tmp_path / "other.onnx")
    other.with_suffix(".reid.json").write_text(json.dumps(SIDECAR))
    result = export(other, "--to", "openvino", "--out", tmp_path / "exported.bundle")
    assert result.exit_code == 0, result.output
    images = crops(3, size=(16, 8))
    np.testing.assert_allclose(
        Embedder(tmp_path / "exported.bundle")(images),
        Embedder(other)(images),
        atol=torch.finfo(torch.float32).eps * 100,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["absent.pt", "--to", "onnx"], "There is no checkpoint absent.pt", id="no file"),
        pytest.param(["RUN", "--to", "openvino", "--int8"], "Name a data set: --data LAYOUT:ROOT", id="int8, no data"),
        pytest.param(["BUNDLE", "--to", "onnx"], "is a bundle already", id="a bundle"),
        pytest.param(["RUN", "--to", "onnx", "--images", "nowhere"], "nowhere is not a folder", id="no crops"),
        pytest.param(["RUN", "--to", "onnx", "--data", "x"], "not of the form LAYOUT:ROOT", id="invalid data"),
    ],
)
def test_invalid_arguments_are_errors(run, arguments, expected):
    names = {"RUN": run, "BUNDLE": bundle("onnx")}
    result = export(*(names.get(argument, argument) for argument in arguments))
    assert result.exit_code == 1
    assert expected in result.output.replace("\n", " ")
    assert [path.name for path in run.iterdir()] == ["best.pt"]
