from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from reid.commands import main
from reid.config import load_config, load_settings, shipped_configs
from reid.core.errors import ReidError
from reid.pipelines.demo import DemoSettings


@pytest.mark.slow
@pytest.mark.usefixtures("few_pictures")
def test_demo_runs_every_step_and_labels_results_as_synthetic(tmp_path: Path) -> None:
    short = ("training.schedule.epochs=1", "training.schedule.warmup_epochs=0", "training.eval.split=none")
    sizes = ("synthetic.ids=24", "synthetic.cameras=3", "videos.ids=8", "videos.track_seconds=16")
    done = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "demo"), *sizes, *short])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "re-ranked" in text
    assert "market1501" not in text
    assert (tmp_path / "demo/test/cmc.png").exists()
    assert (tmp_path / "demo/matched/report.html").exists()
    assert (tmp_path / "demo/videos/report.html").exists()
    assert (tmp_path / "demo/videos/videos/cam01.mp4").exists()
    assert json.loads((tmp_path / "demo/matched/scores.json").read_text())["overall"]["IDF1"] > 0
    assert str(tmp_path / "demo/test/synthetic-worst.png") in done.output.replace("\n", "")
    assert "tracklets searched" in text
    assert "Search again: reid search" in text
    for file in ("test/metrics.json", "test/evaluation.html", "matched/report.html", "matched/match.json"):
        assert str(tmp_path) not in (tmp_path / "demo" / file).read_text("utf-8"), file


def test_demo_trains_the_quick_start_recipe_with_the_given_changes() -> None:
    recipe = load_config(shipped_configs()["quickstart.yaml"])
    assert DemoSettings().videos == load_settings(DemoSettings, shipped_configs()["demo.yaml"]).videos
    assert DemoSettings().training == load_settings(DemoSettings, shipped_configs()["demo.yaml"]).training == recipe
    changed = load_settings(DemoSettings, shipped_configs()["demo.yaml"], ["training.schedule.epochs=4"]).training
    assert changed.schedule == recipe.schedule.model_copy(update={"epochs": 4})
    assert changed.optim == recipe.optim
    with pytest.raises(ReidError, match=r"Unknown setting schedule.epoch.*Did you mean 'epochs'"):
        load_settings(DemoSettings, overrides=["training.schedule.epoch=4"])
