"""A folder with the files that README and docs name: a data set, a trained run, crops, tracks and embeddings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from reid.commands import main
from tests.docs.blocks import ROOT

SMALL_WORLD = ["ids=24", "cameras=3", "stills=2"]
SMALL_RUN = ["model.height=64", "model.width=32", "schedule.epochs=2", "eval.every=2", "sampler.batch_size=16"]


def reid(*arguments: str) -> None:
    """Run a `reid` command in this process; fail with its output."""
    done = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, f"reid {' '.join(arguments)}\n{done.output}"


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("REID_CACHE", str(folder.parent / "docs-cache"))
        shutil.copytree(ROOT / "configs", folder / "configs")
        reid("data", "synthesize", "--out", "datasets/synthetic", *SMALL_WORLD)
        world = Path("datasets/synthetic")
        for crop in (world / "bounding_box_train").glob("*.jpg"):
            person = folder / "crops" / crop.name.split("_")[0]
            person.mkdir(parents=True, exist_ok=True)
            shutil.copy(crop, person)
        for name in ("tracks", "truth", "cameras.yaml"):
            copy = shutil.copytree if (world / name).is_dir() else shutil.copy
            copy(world / name, folder / name)
        shutil.copytree(world / "stills", folder / "videos")
        source = "data.train=market1501:datasets/synthetic"
        reid("train", "--config", "configs/quickstart.yaml", source, *SMALL_RUN, "--out", "runs/first")
        reid("embed", "--model", "runs/first", "--tracks", "tracks", "--videos", "videos", "--out", "features.parquet")
    return folder
