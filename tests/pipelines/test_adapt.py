"""Adaptation to unlabelled tracks: what is learned, what is refused, and resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from reid.commands import main
from reid.core.errors import ConfigError, DataError
from reid.embedding.model_card import model_card
from reid.models import build_model
from reid.models.checkpoints import load_model, save_checkpoint
from reid.pipelines import adapt as pipeline
from reid.pipelines.adapt import adapt
from reid.pipelines.settings import AdaptSettings
from reid.training.run_folder import run_settings
from reid.training.trainer import Progress, Trainer

pytestmark = pytest.mark.slow

TINY = ["sampler.batch_size=8", "sampler.crops_per_id=2", "schedule.epochs=1", "data.store=files"]


def write_table(folder: Path, kind: str = "tracks") -> str:
    """Write crops of 24 people in 2 cameras, 4 crops a track, two people at a time; return the data set.

    `kind`: "tracks"; "shuffled": each crop is given to a random track; "noise": the crops show nothing.
    """
    rng = np.random.default_rng(0)
    rows = []
    for person in range(24):
        shirt, trousers = rng.integers(30, 226, (2, 3))
        for camera in (1, 2):
            light = rng.uniform(0.8, 1.2)
            for shot in range(4):
                image = np.concatenate([np.full((32, 32, 3), shirt), np.full((32, 32, 3), trousers)]) * light
                image = (
                    rng.uniform(0, 255, image.shape)
                    if kind == "noise"
                    else image + rng.normal(0, 40, image.shape) + rng.normal(0, 20, 3)
                )
                name = f"{person}_{camera}_{shot}.png"
                cv2.imwrite(str(folder / name), image.clip(0, 255).astype(np.uint8))
                rows.append([name, camera, person, 100 * (person // 4) + 10 * shot + 1000 * camera])
    if kind == "shuffled":
        order = rng.permutation(len(rows))
        rows = [[rows[other][0], *row[1:]] for row, other in zip(rows, order, strict=True)]
    lines = [f"{name},0,{camera},{track},{frame},train" for name, camera, track, frame in rows]
    (folder / "table.csv").write_text("\n".join(["path,pid,camid,track,frame,split", *lines]))
    return f"table:{folder}"


@pytest.fixture(scope="module")
def tracks(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_table(tmp_path_factory.mktemp("crops"))


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose BatchNorm statistics are those of other data."""
    path = tmp_path_factory.mktemp("poor") / "poor.pt"
    model = build_model("light10", height=32, width=16)
    assert isinstance(model.neck, torch.nn.BatchNorm1d)
    model.neck.running_var.fill_(1e6)[:2] = 0.0  # two of the 256 numbers decide
    save_checkpoint(path, model)
    return path


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, tracks: str, poor: Path) -> Path:
    """The folder of an adaptation of two rounds."""
    out = tmp_path_factory.mktemp("adapted") / "run"
    adapt(poor, out, AdaptSettings(data=tracks, rounds=2, held_out=0.5, device="cpu"), TINY)
    return out


def digest(path: Path) -> dict[str, float]:
    return {name: float(value.double().sum()) for name, value in load_model(path).state_dict().items()}


def test_a_model_that_separates_held_out_tracks_better_is_kept(adapted: Path, poor: Path) -> None:
    content = json.loads((adapted / "rounds.json").read_text())
    verdict = content["verdict"]
    assert verdict["accepted"], verdict
    assert verdict["outcome"] == "better"
    assert verdict["adapted"]["auc"] > verdict["given"]["auc"] + 0.02
    assert content["data"] | {"sources": 0, "certain_negatives": 0} == {
        "sources": 0, "crops": 192, "tracklets": 48, "cameras": 2, "held_out_tracklets": 24, "certain_negatives": 0,
        "left_out": 0, "answers": 0,
    }  # fmt: skip
    assert [entry["violated_certain_negatives"] for entry in content["rounds"]] == [0, 0]
    assert digest(adapted / "best.pt") != digest(poor)
    page = (adapted / "adaptation.html").read_text()
    assert "Identities found" in page
    assert str(adapted) not in page
    card = model_card(adapted)
    assert "Adapted from poor.pt (light10-" in card
    assert "2 × matching and training" in card
    assert verdict["reason"] in card


def test_a_resumed_adaptation_equals_an_uninterrupted_one(
    adapted: Path, tracks: str, poor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    fit = Trainer.fit

    def killed(self: Trainer, *, overwrite: bool = False) -> Progress:
        if self.out.parent.name == "round-2":
            raise Killed
        return fit(self, overwrite=overwrite)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", killed)
        with pytest.raises(Killed):
            adapt(poor, out, AdaptSettings(data=tracks, rounds=2, held_out=0.5, device="cpu"), TINY)
    assert (out / "round-2" / "labels.parquet").is_file()
    assert not (out / "best.pt").exists()
    separated = []
    separate = pipeline.separate_tracks
    monkeypatch.setattr(pipeline, "separate_tracks", lambda *given: separated.append(given) or separate(*given))
    done = CliRunner().invoke(main, ["adapt", "--resume", str(out)])
    assert done.exit_code == 0, done.output
    assert len(separated) == 2  # the given and the final model: the figures of what was done are in rounds.json
    assert "round 1: held-out tracks: d'" in done.output
    assert digest(out / "best.pt") == digest(adapted / "best.pt")


def test_batchnorm_alone(tracks: str, poor: Path, tmp_path: Path) -> None:
    settings = AdaptSettings(data=tracks, bn_only=True, held_out=0.5, device="cpu")
    done = adapt(poor, tmp_path / "run", settings, TINY)
    assert done.accepted
    assert done.rounds["rounds"] == []
    before, after = load_model(poor).state_dict(), load_model(done.model).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for name in changed)


@pytest.mark.parametrize("kind", ["shuffled", "noise"])
def test_wrong_tracks_are_refused(kind: str, tmp_path: Path, adapted: Path) -> None:
    settings = AdaptSettings(data=write_table(tmp_path, kind), rounds=1, held_out=0.5, device="cpu")
    done = adapt(adapted / "best.pt", tmp_path / "run", settings, TINY)
    assert not done.accepted
    assert digest(done.model) == digest(adapted / "best.pt")


def test_batches_have_at_most_the_identities_found(tracks: str, poor: Path, tmp_path: Path) -> None:
    settings = AdaptSettings(data=tracks, rounds=1, held_out=0.5, guard=False, device="cpu")
    done = adapt(poor, tmp_path / "run", settings, [*TINY, "sampler.batch_size=64"])
    (found,) = done.rounds["rounds"]
    assert 2 <= found["identities"] < 32
    assert run_settings(tmp_path / "run/round-1/run").sampler.batch_size == 2 * found["identities"]


def test_few_tracks_are_refused_or_kept_without_a_guard(tracks: str, poor: Path, tmp_path: Path) -> None:
    done = adapt(poor, tmp_path / "a", AdaptSettings(data=tracks, bn_only=True, device="cpu"), TINY)
    assert not done.accepted
    assert done.rounds["verdict"]["outcome"] == "undecided"
    assert "at least 20 are needed" in done.rounds["verdict"]["reason"]
    done = adapt(poor, tmp_path / "b", AdaptSettings(data=tracks, bn_only=True, guard=False, device="cpu"), TINY)
    assert done.accepted


def test_invalid_inputs_are_errors(tracks: str, poor: Path, tmp_path: Path, adapted: Path) -> None:
    with pytest.raises(ConfigError, match="exactly one of"):
        adapt(poor, tmp_path / "a", AdaptSettings(), TINY)
    with pytest.raises(ConfigError, match="would change the network"):
        adapt(poor, tmp_path / "b", AdaptSettings(data=tracks), ["model.height=64"])
    with pytest.raises(ConfigError, match="not empty"):
        adapt(poor, adapted, AdaptSettings(data=tracks), TINY)
    with pytest.raises(ConfigError, match="no adaptation to resume"):
        adapt("", tmp_path / "c", AdaptSettings(), resume=True)
    few = tmp_path / "few"
    few.mkdir()
    source = Path(tracks.removeprefix("table:"))
    (few / "table.csv").write_text("\n".join((source / "table.csv").read_text().split("\n")[:40]))
    for image in source.glob("*.png"):
        shutil.copy(image, few)
    with pytest.raises(DataError, match="at least 20"):
        adapt(poor, tmp_path / "d", AdaptSettings(data=f"table:{few}", device="cpu"), TINY)
    done = CliRunner().invoke(main, ["adapt", "--resume", str(adapted), "--bn-only"])
    assert "Remove all other options" in done.output


def test_a_failed_start_leaves_the_folder_free(tracks: str, poor: Path, tmp_path: Path) -> None:
    for data, overrides in ((f"{tracks}/missing", TINY), (tracks, ["schedule.epoch=1"])):
        with pytest.raises((ConfigError, DataError)):
            adapt(poor, tmp_path / "run", AdaptSettings(data=data), overrides)
    assert adapt(poor, tmp_path / "run", AdaptSettings(data=tracks, bn_only=True, device="cpu"), TINY).model.is_file()
