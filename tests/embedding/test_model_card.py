from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reid.commands import main
from reid.config import load_config
from reid.core.errors import ReidError
from reid.embedding.embedder import Embedder
from reid.embedding.model_card import model_card
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Run folder with the files of training and `reid test`."""
    config = load_config(
        None,
        [
            "data.train=[market1501:/secret/place]",
            "model.backbone=light10",
            "optim.lr=0.01",
            "model.height=64",
            "model.weights=/secret/place/w.pth",
        ],
    )
    model = build_model("light10", height=64, width=32, num_classes=7, pooling="gem")
    scores = {"epoch": 2, "step": 20, "market1501 validation": {"mAP": 0.5, "mINP": 0.25, "rank1": 0.75}}
    save_checkpoint(tmp_path / "best.pt", model, config=config.as_dict(), scores=scores)
    train = {"sources": ["market1501"], "crops": 12936, "identities": 751, "cameras": 6, "sha256": "7b9a" * 16}
    write(tmp_path / "data.json", {"train": train, "left_out": ["a.jpg: truncated"]})
    write(tmp_path / "environment.json", {"torch": "2.14.1", "command": "tools/train.py --out /secret/place"})
    numbers = {"mAP": 0.4378, "mINP": 0.0974, "rank-1": 0.6879, "rank-5": 0.856}
    described = Embedder(tmp_path / "best.pt", device="cpu").describe()
    for folder, model_id in (("test", described["model"]), ("other", "light10-000000000000")):
        (tmp_path / folder).mkdir()
        content = {"model": described | {"model": model_id}, "protocol": f"protocol of {folder}"}
        write(tmp_path / folder / "metrics.json", content | {"sets": {"market1501": {"plain": numbers}}})
    return tmp_path


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def test_card_contains_network_data_settings_and_scores(run: Path) -> None:
    card = model_card(run)
    for text in (
        "light10 at 64×32, generalised-mean pooling, neck: bnneck",
        "256 numbers, L2-normalised",
        "resized to 64×32 pixels (the aspect ratio changes), divided by 255, minus (0.485, 0.456, 0.406)",
        "- train: market1501, 12,936 crops of 751 identities from 6 cameras; fingerprint `7b9a7b9a7b9a7b9a`",
        "because they cannot be read: 1 images",
        "**Licence note** (market1501): research use only",
        "Started from weights of w.pth, whose terms apply too",
        "- optim.lr: 0.01",
        "- model.weights: w.pth",
        "| market1501 test | plain | 43.78 | 9.74 | 68.79 | 85.60 |",
        "| market1501 validation, during training | plain | 50.00 | 25.00 | 75.00 |  |",
        "protocol of test",
        "## Intended use",
        "**Consent.**",
        "## Limits",
        "- torch: 2.14.1",
    ):
        assert text in card, text
    assert "protocol of other" not in card  # of another model
    assert "/secret/place" not in card
    assert "optim.weight_decay" not in card  # a default


def test_synthetic_data_is_not_labelled_as_a_real_data_set(tmp_path: Path) -> None:
    (tmp_path / "made.json").write_text("{}")
    config = {"data": {"train": [f"market1501:{tmp_path}"]}}
    save_checkpoint(tmp_path / "w.pt", build_model("light10", height=64, width=32), config=config)
    card = model_card(tmp_path / "w.pt")
    assert "**Licence note** (synthetic): rendered pedestrians" in card
    assert "market1501" not in card


def test_card_of_a_bare_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pt", build_model("light10", height=64, width=32))
    card = model_card(tmp_path / "w.pt")
    assert "Unknown: the checkpoint does not contain it." in card
    assert "Not measured. Run `reid test" in card
    assert "unknown: there is no environment.json" in card
    assert "## Settings" not in card


def test_card_of_a_converted_checkpoint(tmp_path: Path) -> None:
    source = {"file": "/secret/place/osnet.pth", "family": "torchreid", "assumed": ["size 256×128"]}
    save_checkpoint(tmp_path / "w.pt", build_model("light10", height=64, width=32), source=source)
    card = model_card(tmp_path / "w.pt")
    assert "Converted from osnet.pth, a checkpoint of torchreid." in card
    assert "because the file does not contain it: size 256×128." in card


def test_invalid_runs_are_errors(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReidError, match=r"empty is not a run folder: it contains neither best\.pt nor last\.pt"):
        model_card(tmp_path / "empty")
    (run / "data.json").write_text("{")
    with pytest.raises(ReidError, match=r"data\.json cannot be read as JSON"):
        model_card(run)


@pytest.mark.slow
def test_command_writes_the_card_into_the_run(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["model", "card", "--model", str(run)])
    assert result.exit_code == 0, result.output
    assert (run / "card.md").read_text("utf-8") == model_card(run)
    result = CliRunner().invoke(
        main, ["model", "card", "--model", str(run / "best.pt"), "--out", str(tmp_path / "x/mine.md")]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "x/mine.md").read_text("utf-8") == model_card(run)
