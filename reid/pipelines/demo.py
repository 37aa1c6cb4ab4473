"""Every step on synthetic data: generate, train, test, match, search."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from reid.config import Config, MatchSettings, Natural, Settings, load_config, shipped_configs
from reid.core.console import console
from reid.core.distributed import init_distributed
from reid.core.workers import available_cores
from reid.gallery import Answer, Gallery
from reid.pipelines.gallery import add_files, search_files
from reid.pipelines.match import MatchedFiles, match_files
from reid.pipelines.run import run_videos
from reid.pipelines.settings import GalleryAddSettings, MatchFiles, RunSettings, SearchSettings, TestSettings
from reid.pipelines.test import test
from reid.report import SetResults
from reid.synthetic import SyntheticSettings, synthesize
from reid.synthetic.settings import Difficulty
from reid.training.trainer import LAST, train

START = "2026-11-23T08:00Z"
"""Time of second 0 of the synthetic cameras."""


class DemoSettings(Settings):
    """Settings of `demo`; the values of `reid demo` are in configs/demo.yaml."""

    seed: Natural = 0
    """Seed of the data and the training; replaces `synthetic.seed` and `training.seed`."""
    synthetic: SyntheticSettings = SyntheticSettings(stills=4)
    training: Config = Field(default={}, validate_default=True)
    """Changes to configs/quickstart.yaml."""
    matching: MatchSettings = MatchSettings()
    videos: SyntheticSettings = SyntheticSettings(
        ids=20,
        cameras=2,
        site="floor",
        fps=5,
        videos=True,
        track_seconds=30,
        crops_per_pass=(2, 2),
        difficulty=Difficulty(crowd=5),
    )
    """Two short videos for the last step."""

    @field_validator("training", mode="before")
    @classmethod
    def _change_quickstart(cls, value: Any) -> Any:
        changes = [f"{key}={json.dumps(setting)}" for key, setting in value.items()] if isinstance(value, dict) else []
        return value if isinstance(value, Config) else load_config(shipped_configs()["quickstart.yaml"], changes)


def demo(
    out: Path,
    settings: DemoSettings,
    on_test: Callable[[list[SetResults], Path], object],
    on_match: Callable[[MatchedFiles], object],
    on_search: Callable[[Answer, str], object],
) -> Path | None:
    """Generate a data set, train on it, test on unseen people, match all cameras, run on videos, find a person.

    The last two steps need the packages of the extras `video` and `gallery`; without them they are left out, with a
    message.

    Args:
        out: folder for all results.
        settings: of each step.
        on_test, on_match, on_search: functions that show the results of the last three steps.

    Returns:
        The photo that was searched for; None without LanceDB, which the search needs.
    """
    began = time.monotonic()
    console.print("1. Generate synthetic pedestrians", style="bold")
    synthetic = settings.synthetic.model_copy(update={"seed": settings.seed})
    root = synthesize(out / "synthetic", synthetic, workers=available_cores())
    console.print(f"generated {root} in {time.monotonic() - began:.0f} s")
    console.print("2. Train", style="bold")
    config = settings.training.model_copy(deep=True, update={"seed": settings.seed})
    config.data.train, config.data.store_dir = [f"market1501:{root}"], str(out / "store")
    with init_distributed(config.device) as distributed:
        train(config, out / "run", distributed)
    console.print("3. Test on unseen identities", style="bold")
    model = out / "run" / LAST
    on_test(test(model, out=out / "test", settings=TestSettings(rerank=True)), out / "test")
    console.print(f"4. Match the tracks of {synthetic.cameras} cameras", style="bold")
    files = MatchFiles(
        tracks=root / "tracks",
        videos=root / "stills",
        model=model,
        truth=root / "truth",
        per_track=synthetic.stills,
        encounters=False,  # there are stills of these boxes only
    )
    on_match(match_files(files, out / "matched", settings.matching))
    run_on_videos(out, settings, model, on_match)
    return find_person(out, root, model, on_search)


def run_on_videos(out: Path, settings: DemoSettings, model: Path, on_match: Callable[[MatchedFiles], object]) -> None:
    """Identify people in two synthetic videos."""
    console.print("5. Identify people in videos", style="bold")
    missing = [name for name in ("supervision", "trackers") if importlib.util.find_spec(name) is None]
    if missing:
        console.print(f"left out: it needs {' and '.join(missing)}. Run: pip install 'reid-toolkit[video]'")
        return
    root = synthesize(out / "recording", settings.videos.model_copy(update={"seed": settings.seed}), workers=2)
    boxes = RunSettings(detections=root / "truth", model=model, truth=root / "truth", draw=True, workers=1)
    on_match(run_videos(root / "videos", out / "videos", boxes, settings.matching).matched)


def find_person(out: Path, root: Path, model: Path, on_search: Callable[[Answer, str], object]) -> Path | None:
    """Put the matched tracks into a gallery and search for the first query crop; return that photo."""
    console.print("6. Find a person by photo", style="bold")
    if importlib.util.find_spec("lancedb") is None:
        console.print("left out: it needs lancedb. Run: pip install 'reid-toolkit[gallery]'")
        return None
    shutil.rmtree(out / "gallery", ignore_errors=True)
    gallery = Gallery.create(out / "gallery")
    cameras = root / "cameras.yaml"
    add_files(gallery, out / "matched", GalleryAddSettings(cameras=cameras, start=START, source="demo"))
    photo = sorted((root / "query").glob("*.jpg"))[0]
    answer = search_files([out / "gallery"], SearchSettings(photo=(photo,), model=str(model), top=5)).answer
    on_search(answer, gallery.settings.zone)
    return photo
