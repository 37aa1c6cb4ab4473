from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from reid import Embedder, Embeddings
from reid.commands import main
from reid.models import build_model
from reid.training.checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "best.pt"
    save_checkpoint(path, build_model("light18", size=(64, 32), num_classes=3))
    return str(path)


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (128, 64, 3), dtype=np.uint8))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Images in subfolders, among files that are none."""
    found = [draw(tmp_path / "crops" / name, seed) for seed, name in enumerate(["a/2.jpg", "a/10.PNG", "b.jpeg"])]
    (tmp_path / "crops" / "notes.txt").write_text("not an image")
    (tmp_path / "crops" / ".hidden.jpg").touch()
    return tmp_path / "crops", sorted(found)


@pytest.fixture
def market(tmp_path):
    """The smallest market1501 tree: every part has two images, the gallery a junk one too."""
    names = {
        "bounding_box_train": ["0002_c1s1_000001_01.jpg", "0002_c2s1_000001_01.jpg"],
        "query": ["0003_c1s1_000001_00.jpg", "0004_c2s1_000001_00.jpg"],
        "bounding_box_test": ["0003_c2s1_000009_01.jpg", "0004_c1s2_000001_01.jpg", "-1_c1s1_000001_01.jpg"],
    }
    for part, files in names.items():
        for seed, name in enumerate(files):
            draw(tmp_path / "market" / part / name, seed)
    return tmp_path / "market"


def run(*arguments):
    return CliRunner().invoke(main, ["embed", *map(str, arguments)])


def test_a_folder_of_images(checkpoint, folder, tmp_path):
    images, found = folder
    out = tmp_path / "new" / "t.parquet"
    ran = run("--checkpoint", checkpoint, "--images", images, "--out", out, "--batch-size", 2, "--device", "cpu")
    assert ran.exit_code == 0, ran.output
    table = Embeddings.load(out)
    assert table.paths.tolist() == found
    np.testing.assert_allclose(table.features, Embedder(checkpoint)(found), atol=2e-6)
    assert f"3 crops → {table.dimension} dimensions" in ran.output
    assert "crops/s on cpu" in ran.output
    assert "1 of 4 files" in ran.output
    assert "notes.txt" in ran.output


@pytest.mark.parametrize(("part", "pids"), [("query", [3, 4]), ("gallery", [3, 4]), ("train", [2, 2])])
def test_a_part_of_a_data_set(checkpoint, market, tmp_path, part, pids):
    out = tmp_path / "t.parquet"
    place = ("--layout", "market1501", "--root", market, "--part", part)
    ran = run("--checkpoint", checkpoint, *place, "--out", out, "--flip")
    assert ran.exit_code == 0, ran.output
    table = Embeddings.load(out)
    assert sorted(table.pids.tolist()) == pids
    assert set(table.camids.tolist()) == {1, 2}
    assert table.meta["flip"] is True


def test_unreadable_images_stop_it_or_are_left_out_aloud(checkpoint, folder, tmp_path):
    images, found = folder
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    arguments = ("--checkpoint", checkpoint, "--images", images, "--out", tmp_path / "t.parquet")
    ran = run(*arguments)
    assert ran.exit_code == 1
    assert "broken.jpg" in ran.output
    assert not (tmp_path / "t.parquet").exists()
    ran = run(*arguments, "--skip-unreadable")
    assert ran.exit_code == 0, ran.output
    assert "Left out:\n" in ran.output
    assert "broken.jpg" in ran.output
    assert Embeddings.load(tmp_path / "t.parquet").paths.tolist() == found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--images", "{images}"], "Missing option '--out'", id="no --out"),
        pytest.param(["--out", "{out}"], "--images FOLDER, or all of", id="nothing to embed"),
        pytest.param(["--out", "{out}", "--layout", "market1501"], "--images FOLDER, or all of", id="no root"),
        pytest.param(
            ["--out", "{out}", "--images", "{images}", "--part", "query"], "--images FOLDER, or all of", id="both"
        ),
        pytest.param(["--out", "{out}", "--images", "{out}"], "t.parquet is not a folder", id="images absent"),
        pytest.param(["--out", "{out}", "--images", "{empty}"], "holds no image", id="no images"),
        pytest.param(["--out", "{empty}", "--images", "{images}"], "Cannot write --out", id="--out is a folder"),
        pytest.param(
            ["--out", "{images}/b.jpeg/t.parquet", "--images", "{images}"], "Cannot write --out", id="--out in a file"
        ),
        pytest.param(
            ["--out", "{out}", "--layout", "market", "--root", "x", "--part", "query"],
            "Did you mean 'market1501'",
            id="unknown layout",
        ),
        pytest.param(["--out", "{out}", "--images", "{images}", "--device", "gpu"], "'gpu'", id="unknown device"),
        pytest.param(["--out", "{out}", "--images", "{images}", "--batch-size", "0"], "--batch-size", id="batch of 0"),
    ],
)
def test_wrong_use_is_named(checkpoint, folder, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    places = {"images": folder[0], "out": tmp_path / "t.parquet", "empty": tmp_path / "empty"}
    ran = run("--checkpoint", checkpoint, *(argument.format(**places) for argument in arguments))
    assert ran.exit_code != 0
    assert words in " ".join(ran.output.split())
    assert "Traceback" not in ran.output
    assert not (tmp_path / "t.parquet").exists()


def test_an_absent_checkpoint_is_named(folder, tmp_path):
    ran = run("--checkpoint", tmp_path / "none.pt", "--images", folder[0], "--out", tmp_path / "t.parquet")
    assert ran.exit_code == 1
    assert "none.pt" in ran.output
    assert sorted(os.listdir(tmp_path)) == ["crops"]
