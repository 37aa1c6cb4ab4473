"""`reid train` and `reid test` as a user calls them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import reid
from reid.commands import COMMANDS, main
from reid.embedding import Embeddings
from reid.embedding.calibration_file import save_calibration
from reid.evaluation import auto_neighbours, evaluate
from reid.evaluation.calibration import calibrate
from reid.models import build_model
from reid.models.checkpoints import load_model, save_checkpoint

pytestmark = pytest.mark.usefixtures("few_pictures")

SMALL = [
    "model.backbone=light10",
    "model.height=64",
    "model.width=32",
    "augment.pad=2",
    "sampler.batch_size=16",
    "schedule.epochs=1",
    "eval.fraction=0.3",
    "device=cpu",
]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_market: Path) -> Path:
    folder = tmp_path_factory.mktemp("train")
    sources = [f"data.train=market1501:{tiny_market}", f"data.store_dir={folder / 'store'}"]
    done = call("train", "--out", folder / "run", *sources, *SMALL)
    assert done.exit_code == 0, done.output
    assert "next: reid test --model" in done.output
    return folder / "run/best.pt"


def test_help_lists_every_command_without_importing_torch() -> None:
    code = "import sys; from reid.commands import main; main(['--help'], standalone_mode=False)"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = call(name, "--help")
    assert done.exit_code == 0
    assert done.output.count("\n") > 5


@pytest.mark.slow
def test_scores_pictures_and_files_of_a_test(checkpoint: Path, tmp_path: Path, tiny_market: Path) -> None:
    arguments = ("--rerank", "--k1", "auto", "--device", "cpu", "--queries", "1,pid:25", "--out", tmp_path / "out")
    done = call("test", "--model", checkpoint, *arguments)
    assert done.exit_code == 0, done.output
    assert "Cross-camera rule" in done.output
    assert "crops per identity, estimated without labels" in done.output
    assert "20 of 20 queries used" in " ".join(done.output.split())
    names = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    kinds = ("worst", "best", "random", "chosen", "distances", "roc", "cameras", "map", "activations")
    assert names == {
        "metrics.json", "evaluation.html", "cmc.png", "synthetic-query.parquet", "synthetic-gallery.parquet",
        *(f"synthetic-{kind}.png" for kind in kinds),
    }  # fmt: skip
    page = (tmp_path / "out/evaluation.html").read_text()
    assert page.count("<figure>") == 1 + len(kinds)
    assert "No calibration.json of this model was found" in page
    assert len(page) < 8e6
    for path in (tmp_path / "out").glob("*.png"):
        assert cv2.imread(str(path)).std() > 10
    scores = json.loads((tmp_path / "out/metrics.json").read_text())["sets"]["synthetic"]
    assert scores["plain"]["queries_used"] == scores["reranked"]["queries_used"] == 20
    k1, k2 = auto_neighbours(scores["estimated_crops_per_identity"])
    assert f"(k1={k1}, k2={k2}, " in scores["reranked"]["protocol"]["metric"]

    benchmark = reid.load_benchmark("market1501", tiny_market)
    embed = reid.Embedder(load_model(checkpoint))
    parts = (benchmark.query, benchmark.gallery)
    columns = [getattr(part, name) for name in ("pids", "camids") for part in parts]
    by_hand = evaluate(*(embed(part) for part in parts), *columns)
    assert scores["plain"]["mAP"] == pytest.approx(by_hand.mAP, abs=1e-9)
    assert scores["plain"]["camera_pairs"]["queries"] == [[0, 10], [10, 0]]
    assert scores["verification"]["genuine_pairs"] == 10 * 4 * 4
    assert "calibration" not in scores
    table = pq.read_table(tmp_path / "out/synthetic-query.parquet")
    assert {"features", "pid", "camid", "path"} <= set(table.column_names)
    assert len(table) == 20


@pytest.mark.slow
def test_several_data_sets_are_in_one_table(checkpoint: Path, tmp_path: Path, tiny_market: Path) -> None:
    source = f"market1501:{tiny_market}"
    done = call(
        "test", "--model", checkpoint, "--data", source, "--data", source, "--no-page", "--out", tmp_path / "out"
    )
    assert done.exit_code == 0, done.output
    assert "synthetic#1" in done.output
    assert "synthetic#2" in done.output
    assert len(json.loads((tmp_path / "out/metrics.json").read_text())["sets"]) == 2
    assert not (tmp_path / "out/evaluation.html").exists()


@pytest.mark.slow
def test_calibration_next_to_the_model_is_used(checkpoint: Path, tmp_path: Path, tiny_market: Path) -> None:
    shutil.copy(checkpoint, tmp_path / "best.pt")
    shutil.copy(checkpoint.with_name("config.yaml"), tmp_path / "config.yaml")
    embeddings = reid.Embedder(load_model(checkpoint)).table(reid.load_benchmark("market1501", tiny_market).train)
    made = calibrate(embeddings.features, embeddings.pids, embeddings.camids, fmr=0.01, model=embeddings.meta["model"])
    save_calibration(made, tmp_path / "calibration.json")
    arguments = ("test", "--model", tmp_path / "best.pt", "--no-page", "--out", tmp_path / "out")
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "out/metrics.json").read_text())["sets"]["synthetic"]
    used = scores["calibration"]
    assert used["file"] == "calibration.json"
    assert used["target_false_match_rate"] == 0.01
    assert used["threshold"] == pytest.approx(made.threshold())
    tables = [Embeddings.load(tmp_path / f"out/synthetic-{part}.parquet") for part in ("query", "gallery")]
    both = Embeddings.concat(tables)
    far = 1 - both.features @ both.features.T
    cross_camera = np.triu(both.camids[:, None] != both.camids[None])
    same = both.pids[:, None] == both.pids[None]
    assert used["accept_rate"] == pytest.approx((far[cross_camera & same] < made.threshold()).mean(), abs=0.02)
    assert used["false_match_rate"] == pytest.approx((far[cross_camera & ~same] < made.threshold()).mean(), abs=0.002)

    save_calibration(replace(made, model="another-0"), tmp_path / "calibration.json")
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    assert "calibration.json is not used" in done.output
    assert "calibration" not in json.loads((tmp_path / "out/metrics.json").read_text())["sets"]["synthetic"]
    done = call(*arguments, "--calibration", tmp_path / "calibration.json")
    assert done.exit_code == 1
    assert "of model 'another-0'" in done.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--queries", "cam:3"], "is not a query"),
        (["--queries", "20"], "has no query 20"),
        (["--queries", "pid:1"], "No query of synthetic has pid 1"),
        (["--calibration", "nowhere.json"], "There is no file nowhere.json"),
    ],
)
def test_invalid_options_are_errors_before_embedding(
    checkpoint: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    done = call("test", "--model", checkpoint, "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 1
    assert expected in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_data_set_without_cameras_is_scored_without_the_cross_camera_rule(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["path,pid,split"]
    for pid in range(4):
        for shot in range(3):
            cv2.imwrite(str(tmp_path / f"{pid}_{shot}.png"), rng.integers(0, 256, (64, 32, 3), dtype=np.uint8))
            lines.append(f"{pid}_{shot}.png,{pid},{'query' if shot == 0 else 'gallery'}")
    (tmp_path / "crops.csv").write_text("\n".join(lines) + "\n")
    save_checkpoint(tmp_path / "m.pt", build_model("light10", height=64, width=32))
    done = call("test", "--model", tmp_path / "m.pt", "--data", f"table:{tmp_path / 'crops.csv'}")
    assert done.exit_code == 0, done.output
    assert "4 of 4 queries used" in " ".join(done.output.split())
    assert "The data set has no camera labels." in (tmp_path / "test/evaluation.html").read_text()
    assert not (tmp_path / "test/table-cameras.png").exists()


@pytest.mark.slow
def test_unreadable_images_are_an_error_or_skipped(checkpoint: Path, tmp_path: Path, tiny_market: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_market, copy)
    broken = sorted((copy / "query").iterdir())[0]
    broken.write_bytes(b"")
    arguments = (
        "test",
        "--model",
        checkpoint,
        "--data",
        f"market1501:{copy}",
        "--no-page",
        "--out",
        tmp_path / "out",
    )
    done = call(*arguments)
    assert done.exit_code == 1
    assert broken.name in done.output
    done = call(*arguments, "--skip-unreadable")
    assert done.exit_code == 0, done.output
    assert broken.name in done.output
    assert "19 of 19 queries used" in " ".join(done.output.split())
    assert len(json.loads((tmp_path / "out/metrics.json").read_text())["sets"]["synthetic"]["left_out"]) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "optim.lrr=1"], "Did you mean 'lr'"),
        (["train"], "data.train is empty"),
        (["train", "--resume", "x", "optim.lr=1"], "uses the settings of the run"),
        (["train", "--resume", "nowhere"], "no run to resume"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "data.train=market1501:/nowhere"], "/nowhere"),
        (["test", "--model", "nowhere.pt"], "nowhere.pt"),
        (["tset"], "No such command"),
    ],
)
def test_user_errors_have_a_message_and_no_traceback(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.exit_code in (1, 2)
    assert expected in done.output
    assert "Traceback" not in done.output
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_k1_that_is_neither_a_number_nor_auto_is_refused(tmp_path: Path) -> None:
    done = call("test", "--model", tmp_path / "gone.pt", "--rerank", "--k1", "many")
    assert done.exit_code == 1
    assert "k1" in done.output
    assert "many" in done.output


@pytest.mark.slow
def test_re_ranking_for_larger_identities_than_the_set_has_is_a_warning(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("test", "--model", checkpoint, "--rerank", "--k1", "60", "--no-page", "--out", tmp_path / "out")
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    expected = "Re-ranking with k1=60 is meant for larger identities and can lower the scores. Use --k1 auto."
    assert expected in " ".join(done.output.split())
    scores = json.loads((tmp_path / "out/metrics.json").read_text())["sets"]["synthetic"]
    assert 1 <= scores["estimated_crops_per_identity"] < 20


@pytest.mark.slow
def test_camera_aware_re_ranking_is_recorded_in_the_protocol(checkpoint: Path, tmp_path: Path) -> None:
    done = call("test", "--model", checkpoint, "--camera-aware", "--no-page", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "out/metrics.json").read_text())["sets"]["synthetic"]
    assert scores["reranked"]["protocol"]["metric"].startswith("camera-aware k-reciprocal")
