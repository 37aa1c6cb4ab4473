from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from reid import Embedder, Embeddings
from reid.commands import main
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "best.pt"
    save_checkpoint(path, build_model("light18", height=64, width=32, num_classes=3))
    return str(path)


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (128, 64, 3), dtype=np.uint8))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Images in subfolders, next to other files."""
    found = [draw(tmp_path / "crops" / name, seed) for seed, name in enumerate(["a/2.jpg", "a/10.PNG", "b.jpeg"])]
    (tmp_path / "crops" / "notes.txt").write_text("not an image")
    (tmp_path / "crops" / ".hidden.jpg").touch()
    return tmp_path / "crops", sorted(found)


@pytest.fixture
def market(tmp_path):
    """A small market1501 tree: two images in each split, and a junk image in the gallery."""
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


@pytest.mark.slow
def test_folder_of_images(checkpoint, folder, tmp_path):
    images, found = folder
    out = tmp_path / "new" / "t.parquet"
    ran = run("--model", checkpoint, "--images", images, "--out", out, "--batch-size", 2, "--device", "cpu")
    assert ran.exit_code == 0, ran.output
    table = Embeddings.load(out, root=images)
    assert table.paths.tolist() == found
    assert str(tmp_path).encode() not in out.read_bytes()
    np.testing.assert_allclose(table.features, Embedder(checkpoint)(found), atol=2e-6)
    assert f"3 crops → {table.dimension} dimensions" in ran.output
    assert "crops/s on cpu" in ran.output
    assert "1 of 4 entries were passed over" in ran.output
    assert "notes.txt" in ran.output


@pytest.mark.slow
@pytest.mark.parametrize(("part", "pids"), [("query", [3, 4]), ("gallery", [3, 4]), ("train", [2, 2])])
def test_split_of_a_data_set(checkpoint, market, tmp_path, part, pids):
    out = tmp_path / "t.parquet"
    place = ("--data", f"market1501:{market}", "--split", part)
    ran = run("--model", checkpoint, *place, "--out", out, "--flip")
    assert ran.exit_code == 0, ran.output
    table = Embeddings.load(out)
    assert sorted(table.pids.tolist()) == pids
    assert set(table.camids.tolist()) == {1, 2}
    assert table.meta["flip"] is True


def test_unreadable_images_are_an_error_or_skipped(checkpoint, folder, tmp_path):
    images, found = folder
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    arguments = ("--model", checkpoint, "--images", images, "--out", tmp_path / "t.parquet")
    ran = run(*arguments)
    assert ran.exit_code == 1
    assert "broken.jpg" in ran.output
    assert not (tmp_path / "t.parquet").exists()
    ran = run(*arguments, "--skip-unreadable")
    assert ran.exit_code == 0, ran.output
    assert "Skipped:\n" in ran.output
    assert "broken.jpg" in ran.output
    table = Embeddings.load(tmp_path / "t.parquet", root=images)
    assert table.paths.tolist() == found
    assert table.meta["left_out"][0].startswith("broken.jpg: ")


@pytest.mark.slow
def test_interrupted_command_resumes(checkpoint, folder, tmp_path, monkeypatch):
    images, found = folder
    out, embed, left = tmp_path / "t.parquet", Embedder.embed_batch, [2]

    def stop(self, batch):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return embed(self, batch)

    arguments = ("--model", checkpoint, "--images", images, "--out", out, "--batch-size", 1, "--device", "cpu")
    monkeypatch.setattr(Embedder, "embed_batch", stop)
    assert run(*arguments).exit_code != 0
    assert sorted(os.listdir(tmp_path)) == ["crops", "t.parquet.shards"]
    monkeypatch.undo()
    ran = run(*arguments)
    assert ran.exit_code == 0, ran.output
    assert "3 crops (2 by an earlier run) →" in ran.output
    assert sorted(os.listdir(tmp_path)) == ["crops", "t.parquet"]
    np.testing.assert_allclose(Embeddings.load(out).features, Embedder(checkpoint)(found), atol=2e-6)


def test_backbone_by_name(folder, tmp_path):
    arguments = ("--images", folder[0], "--out", tmp_path / "t.parquet", "--device", "cpu")
    ran = run("--model", "light10", *arguments)
    assert "light10 is a backbone. Pass its weights" in " ".join(ran.output.split())
    ran = run("--model", "light10", "--weights", "none", *arguments)
    assert ran.exit_code == 0, ran.output
    assert Embeddings.load(tmp_path / "t.parquet").meta["model"].startswith("light10-")


@pytest.fixture
def filmed(tmp_path):
    """Two cameras with 10 frames each, and their tracks as MOT text, with boxes after the last frame."""
    for name in ("a", "b"):
        writer = cv2.VideoWriter(str(tmp_path / f"{name}.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (120, 90))
        for number in range(10):
            writer.write(np.random.default_rng(number).integers(0, 256, (90, 120, 3), dtype=np.uint8))
        writer.release()
        lines = [f"{frame},{track},{10 * track},5,20,40,0.9,-1,-1,-1" for frame in range(1, 12) for track in (1, 2)]
        (tmp_path / "tracks").mkdir(exist_ok=True)
        (tmp_path / "tracks" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.slow
def test_boxes_of_tracks_in_videos(checkpoint, filmed):
    out = filmed / "t.parquet"
    ran = run("--model", checkpoint, "--videos", filmed, "--tracks", filmed / "tracks", "--out", out)
    assert ran.exit_code == 0, ran.output
    table = Embeddings.load(out)
    assert (len(table), table.meta["camera_names"]) == (40, ["a", "b"])
    assert table.frames.tolist() == [frame for _ in "ab" for frame in range(1, 11) for _ in (1, 2)]
    assert "a: the video ends after frame 10: 2 boxes without a feature, rows 20, 21" in ran.output
    one = run(
        "--model", checkpoint, "--videos", filmed / "b.avi", "--tracks", filmed / "tracks" / "a.txt", "--out", out
    )  # fmt: skip
    assert one.exit_code == 0, one.output
    np.testing.assert_allclose(Embeddings.load(out).features, table.features[20:], atol=2e-6)
    ran = run("--model", checkpoint, "--videos", filmed / "b.avi", "--tracks", filmed / "tracks", "--out", out)
    assert ran.exit_code == 1
    assert "are of the cameras a, b, but" in " ".join(ran.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--images", "{images}"], "Missing option '--out'", id="no --out"),
        pytest.param(["--out", "{out}"], "Pass one input: --images DIR", id="nothing to embed"),
        pytest.param(["--out", "{out}", "--data", "market1501:x"], "Pass one input: --images DIR", id="no part"),
        pytest.param(
            ["--out", "{out}", "--images", "{images}", "--split", "query"], "Pass one input: --images DIR", id="both"
        ),
        pytest.param(["--out", "{out}", "--images", "{out}"], "t.parquet is not a folder", id="images absent"),
        pytest.param(["--out", "{out}", "--images", "{empty}"], "contains no image", id="no images"),
        pytest.param(["--out", "{empty}", "--images", "{images}"], "Cannot write --out", id="--out is a folder"),
        pytest.param(
            ["--out", "{images}/b.jpeg/t.parquet", "--images", "{images}"], "Cannot write --out", id="--out in a file"
        ),
        pytest.param(
            ["--out", "{out}", "--data", "market:x", "--split", "query"],
            "Did you mean 'market1501'",
            id="unknown layout",
        ),
        pytest.param(["--out", "{out}", "--videos", "{images}"], "--videos with --tracks", id="no boxes"),
        pytest.param(
            ["--out", "{out}", "--videos", "{images}", "--tracks", "{empty}", "--images", "{images}"],
            "--videos with --tracks",
            id="boxes and images",
        ),
        pytest.param(
            ["--out", "{out}", "--videos", "{images}", "--tracks", "{empty}"], "no tracks to read", id="no tracks"
        ),
        pytest.param(["--out", "{out}", "--images", "{images}", "--runtime", "onx"], "'onnx'", id="unknown runtime"),
        pytest.param(["--out", "{out}", "--images", "{images}", "--device", "gpu"], "'gpu'", id="unknown device"),
        pytest.param(["--out", "{out}", "--images", "{images}", "--batch-size", "0"], "batch_size=0", id="batch of 0"),
    ],
)
def test_invalid_options_are_errors(checkpoint, folder, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"images": folder[0], "out": tmp_path / "t.parquet", "empty": tmp_path / "empty"}
    ran = run("--model", checkpoint, *(argument.format(**places) for argument in arguments))
    assert ran.exit_code != 0
    assert message in " ".join(ran.output.split())
    assert "Traceback" not in ran.output
    assert not (tmp_path / "t.parquet").exists()


def test_missing_checkpoint_is_an_error(folder, tmp_path):
    ran = run("--model", tmp_path / "none.pt", "--images", folder[0], "--out", tmp_path / "t.parquet")
    assert ran.exit_code == 1
    assert "none.pt" in ran.output
    assert sorted(os.listdir(tmp_path)) == ["crops"]
