"""The `reid` commands of README, quick start and guides run, in order, on small files of the same names.

A line that an earlier page has too runs once.
Training uses a small network for two epochs, a small synthetic data set replaces Market-1501, and the false-match rate
is one that so few people can support. Rank lists are short, and videos are tracked with the true boxes as detections.
The loss by int8 is not limited: among so few queries one wrong rank costs points, and training ends by the clock.
Nothing else is changed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reid.models import build_model
from reid.models.zoo import DEFAULT_MODEL
from reid.pipelines.live import LiveResult
from tests.docs.blocks import ROOT, blocks, command_lines
from tests.docs.conftest import SMALL_RUN, reid
from tests.embedding.test_runtimes import SIDECAR, make_onnx, make_openvino
from tests.models.serving import publish, serve
from tests.models.test_external import as_torchreid

GUIDES = [ROOT / "README.md", ROOT / "docs/quickstart.md", *sorted((ROOT / "docs/guides").glob("*.md"))]
SMALL_NETWORK = ["model.backbone=light14", "model.weights=none", "schedule.sizes=[]", "schedule.minutes=0.05"]
SMALLER = {"/data/market1501": "datasets/synthetic", "1e-2": "0.2", "1e-3": "0.2"}
SMALL = re.compile("|".join(SMALLER))


pytestmark = pytest.mark.usefixtures("few_pictures")


@pytest.fixture(scope="module")
def folder(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Copy the workspace, add the models that the pages name, and make it the working folder."""
    work = tmp_path_factory.mktemp("pages") / "work"
    shutil.copytree(workspace, work, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setenv("REID_CACHE", str(work.parent / "cache"))
        shutil.copy("runs/first/best.pt", "best.pt")
        shutil.copytree("runs/first", "runs/other")
        shutil.copy(next(Path("crops").rglob("*.jpg")), "person.jpg")
        osnet = build_model("osnet_x0_25", embedding_dim=512, neck="bn_relu")
        torch.save(as_torchreid(osnet), "osnet_x1_0_market.pth")
        make_onnx(Path("their.onnx"))
        Path("their.reid.json").write_text(json.dumps(SIDECAR))
        with serve(patch, work.parent) as server:
            network = make_openvino(work.parent / "intel.xml")
            files = {file.name: file.read_bytes() for file in (network, network.with_suffix(".bin"))}
            publish(patch, server, files, name=DEFAULT_MODEL, format="openvino", input=SIDECAR)
            yield work


@pytest.fixture(scope="module")
def lines() -> set[tuple[str, ...]]:
    """Command lines that have run."""
    return set()


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=[str(page.relative_to(ROOT)) for page in GUIDES])
def test_commands_of_the_page_run(
    page: Path, folder: Path, lines: set[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)  # `reid serve` would wait for requests
    monkeypatch.setattr("reid.pipelines.live.run_live", lambda *_: LiveResult("", {}, 0, {}))  # it would never end
    for block in blocks(page, "bash", "console", "sh"):
        for program, *arguments in command_lines(block.code):
            if program != "reid":
                assert program in ("pip", "make"), f"{block.place}: {program} is not run"
                continue
            if tuple(arguments) in lines:
                continue
            lines.add(tuple(arguments))
            arguments = [SMALL.sub(lambda match: SMALLER[match[0]], text) for text in arguments]
            if arguments[0] == "train" and "--resume" not in arguments:
                if "--out" in arguments:  # the workspace has a run of that name for the other pages
                    shutil.rmtree(arguments[arguments.index("--out") + 1], ignore_errors=True)
                arguments += [*SMALL_NETWORK, *SMALL_RUN]
            if arguments[:2] == ["data", "synthesize"]:
                assert arguments[3] == "datasets/synthetic"  # as the workspace fixture runs it
                continue
            if arguments[0] == "serve":
                arguments += ["--port", "0"]
            if "--minutes" in arguments:
                arguments[arguments.index("--minutes") + 1] = "0.05"
            if "--int8" in arguments:
                arguments += ["--max-loss", "100"]
            if arguments[0] in ("track", "run"):  # no model is downloaded, and no process started
                chosen = {"--workers": "1", "--detections": "truth", "--model": "best.pt"}
                if arguments[0] == "track":
                    del chosen["--model"]
                arguments += [word for name, value in chosen.items() if name not in arguments for word in (name, value)]
            reid(*arguments)
