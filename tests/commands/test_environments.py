"""Every command without home, terminal or UTF-8, with `python -OO`, and where its output cannot be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import reid
from reid.commands import main
from reid.data.tracks import Tracks
from reid.embedding.table import Embeddings
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint
from reid.mtmc.track_writers import write_tracks
from tests.commands.test_score import world
from tests.evaluation.test_calibration import people
from tests.models.test_external import as_torchreid, random_model
from tests.tracking.toys import toy_detector, write_video

pytestmark = pytest.mark.slow

RUN = """
import ctypes, resource, sys, traceback
from importlib.machinery import SourceFileLoader

read_code = SourceFileLoader.get_code


def optimised_code(loader, name):  # as with -OO, but Python would compile all other packages again
    if name.partition(".")[0] != "reid":
        return read_code(loader, name)
    return compile(loader.get_data(loader.path), loader.path, "exec", dont_inherit=True, optimize=2)


if "optimised" in sys.argv:
    SourceFileLoader.get_code = optimised_code
if "unprivileged" in sys.argv:  # root may write anywhere; without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH it may not
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    sets[0] &= ~0b110
    libc.capset(header, sets)

from reid.commands import main

for line in sys.stdin.buffer.read().decode().splitlines():
    limit, *arguments = line.split("\\t")
    most = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit) or most, most))
    code = None
    try:
        main(arguments)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    print(f"exit {code}", end="\\x1e", flush=True)
"""
NEW = (
    "train", "adapt", "demo", "data unpack", "data synthesize", "data from-tracks", "model export", "model convert",
    "gallery create", "gallery copy",
)  # fmt: skip
"""Commands that never replace an output."""
TINY = ["model.backbone=light10", "model.height=32", "model.width=16", "schedule.epochs=1", "schedule.warmup_epochs=0"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_market: Path) -> Path:
    """A data set and its archive, a checkpoint, foreign weights, embeddings, tracks with truth, and two runs."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(tiny_market, folder / "market")
    shutil.make_archive(str(folder / "set"), "zip", tiny_market)
    save_checkpoint(folder / "best.pt", build_model("light10", height=64, width=32))
    torch.save(as_torchreid(random_model("osnet_x0_25", embedding_dim=512, neck="bn_relu")), folder / "osnet.pth")
    features, pids, camids = people()
    meta = {"model": "net-1", "metric": "cosine"}
    Embeddings(features, pids=pids, camids=camids, meta=meta).save(folder / "people.parquet")
    tracks = world((1, 2))
    for name in ("truth", "tracks"):
        write_tracks(tracks, folder / name)
    codes = {"camera_names": list(tracks.camera_names)}
    Embeddings(
        np.random.default_rng(0).normal(size=(len(tracks), 8)).astype(np.float32),
        camids=tracks.camera, tracks=tracks.track, frames=tracks.frame, meta={**meta, **codes},
    ).save(folder / "boxes.parquet")  # fmt: skip
    Embeddings(features[:1], meta=meta).save(folder / "person.parquet")
    toy_detector(folder / "toy.onnx")
    (folder / "videos").mkdir()
    write_video(folder / "videos/door.avi", 12, people=2)
    write_tracks(Tracks.from_columns(["door"], [0, 0], [1, 1], [1, 5], [[2, 2, 10, 20]] * 2), folder / "boxes")
    for command, out in {"train": "one", "gallery create": "shop"}.items():
        done = CliRunner().invoke(main, arguments_of(command, folder / out, folder))
        assert done.exit_code == 0, done.output
    shutil.copytree(folder / "one", folder / "two")
    return folder


def arguments_of(command: str, out: Path, inputs: Path) -> list[str]:
    """Return a command line that works if `out` can be written."""
    data, model = f"market1501:{inputs / 'market'}", inputs / "best.pt"
    train = [f"data.train={data}", f"data.store_dir={inputs / 'store'}", *TINY, "device=cpu"]
    demo = [f"training.{setting}" for setting in (*TINY, "eval.split=none", "sampler.batch_size=16")]
    videos = [inputs / "videos", "--detector", inputs / "toy.onnx", "--workers", 1]
    lines = {
        "train": ["--out", out, *train],
        "adapt": ["--model", model, "--data", data, "--out", out, "--bn-only", "--device", "cpu", "data.store=files"],
        "test": ["--model", model, "--data", data, "--out", out, "--device", "cpu", "--no-page"],
        "track": [*videos, "--out", out],
        "run": [*videos, "--model", model, "--device", "cpu", "--out", out],
        "embed": ["--model", model, "--data", data, "--split", "query", "--out", out, "--device", "cpu"],
        "match": ["--tracks", inputs / "tracks", "--embeddings", inputs / "boxes.parquet", "--out", out],
        "score": [inputs / "truth", inputs / "tracks", "--out", out],
        "calibrate": [inputs / "people.parquet", "--out", out],
        "demo": ["--out", out, "synthetic.ids=8", "synthetic.cameras=2", "synthetic.stills=1", *demo],
        "data check": [data, "--json", out],
        "data unpack": [inputs / "set.zip", "--out", out],
        "data synthesize": ["--out", out, "ids=4", "cameras=2"],
        "data from-tracks": ["--tracks", inputs / "boxes", "--videos", inputs / "videos", "--out", out],
        "model convert": ["--model", inputs / "osnet.pth", "--size", 64, 32, "--out", out],
        "model export": ["--model", model, "--to", "torchscript", "--data", data, "--out", out],
        "model card": ["--model", model, "--out", out],
        "runs compare": [inputs / "one", inputs / "two", "--out", out],
        "metric fit": [inputs / "people.parquet", "--out", out],
        "gallery create": [out],
        "gallery add": [inputs / "shop", inputs / "people.parquet"],
        "gallery copy": [inputs / "shop", out],
        "gallery info": [inputs / "shop"],
        "gallery check": [inputs / "shop"],
        "gallery log": [inputs / "shop"],
        "search": [inputs / "shop", "--photo", inputs / "person.parquet", "--out", out],
        "model list": ["light10", "--size", 64, 32],
        "data verify": [inputs / "set.zip", "market1501"],
        "cache list": [],
        "cache path": [],
    }
    return [*command.split(), *map(str, lines[command])]


READING = (
    "gallery add", "gallery info", "gallery check", "gallery log", "model list", "data verify", "cache list",
    "cache path",
)  # fmt: skip
"""Commands without an output of their own; `gallery add` writes into a gallery."""
WRITING = (
    "train", "test", "embed", "match", "track", "run", "score", "calibrate", "demo", "data check", "data unpack",
    "data synthesize", "model convert", "model export", "model card", "runs compare", "metric fit", "gallery create",
    "gallery copy", "search", "adapt", "data from-tracks",
)  # fmt: skip
ELSEWHERE = (
    "cache clear", "gallery erase", "gallery expire", "live", "model fetch", "model path", "model verify", "serve",
)  # fmt: skip
"""Commands that remove data of the user, use downloaded models or run until stopped; other tests try them."""
PLACES = ("below a file", "in a closed folder", "of the other kind")
TRIES = [
    (command, place)
    for number, command in enumerate(WRITING)
    for place in ("full disk", *PLACES)
    if place in ("full disk", PLACES[number % 3]) or os.environ.get("REID_TEST_ALL")
]
"""Commands and outputs that cannot be written: a full disk and one of the places; with `REID_TEST_ALL=1` all."""
FILES = {
    "embed": "e.parquet", "model card": "card.md", "model convert": "c.pt", "metric fit": "m.npz",
    "search": "a.json", "score": "s.json", "calibrate": "c.json", "data check": "d.json",
}  # fmt: skip


def place_of(command: str, folder: Path, suffix: str = "") -> Path:
    """Return the output of a command in a folder."""
    return folder / (suffix + FILES.get(command, command.replace(" ", "-")))


def run(lines: list[list[str]], option: str, **environment: str) -> list[str]:
    """Run command lines in one process without a terminal, and return what each has printed, with its exit code.

    Each line begins with the size of the largest file that it can write, 0 for any. With `REID_TEST_OO=1`, "optimised"
    is Python's own `-OO`, which takes a minute more.
    """
    package = str(Path(reid.__file__).parents[1])
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": package, "OMP_NUM_THREADS": "1", **environment}
    given["PYTHONDONTWRITEBYTECODE"] = "1"  # a limited process would leave half of a module
    python = [sys.executable, "-OO"] if os.environ.get("REID_TEST_OO") and option == "optimised" else [sys.executable]
    command = [*python, "-c", RUN, option]
    done = subprocess.run(
        command, input="\n".join(map("\t".join, lines)).encode(), env=given, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    *outputs, rest = done.stdout.decode("utf-8", "replace").split("\x1e")
    assert len(outputs) == len(lines), rest
    return outputs


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_command_is_tried_here() -> None:
    def names(group: click.Group, before: str = "") -> list[str]:
        context = click.Context(group)
        found = []
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            found += names(command, f"{before}{name} ") if isinstance(command, click.Group) else [before + name]
        return found

    assert sorted(names(main)) == sorted([*READING, *WRITING, *ELSEWHERE])


Results = tuple[Path, dict[tuple[str, str], str], dict[str, bytes]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Results:
    """Return a folder, what each command has printed by place, and the files after the first of the two processes."""
    folder = tmp_path_factory.mktemp("out") / "Köln [b] #1"
    folder.mkdir()
    commands = (*READING, *WRITING)
    lines = [["0", *arguments_of(command, place_of(command, folder), inputs)] for command in commands]
    outputs = run(lines, "optimised", LC_ALL="C", PYTHONIOENCODING="ascii")
    printed = {(command, "unusual surroundings"): text for command, text in zip(commands, outputs, strict=True)}
    before = snapshot(folder)
    (folder / "file").write_text("of the user")
    (folder / "closed").mkdir(0o555)
    lines = []
    for command, place in TRIES:
        out = place_of(command, folder, "new-" * (command in NEW))
        if place == "of the other kind":
            out = folder / ("train" if command in FILES else "file")
        elif place != "full disk":
            out = folder / ("file" if place == "below a file" else "closed") / out.name
        lines.append(["100" if place == "full disk" else "0", *arguments_of(command, out, inputs)])
    printed.update(zip(TRIES, run(lines, "unprivileged"), strict=True))
    return folder, printed, before


@pytest.mark.parametrize("command", [*WRITING, *READING])
def test_commands_work_optimised_without_home_terminal_and_utf8(results: Results, command: str) -> None:
    folder, printed, _ = results
    text = printed[command, "unusual surroundings"]
    assert text.endswith("exit 0"), text
    assert "Traceback" not in text
    assert command in READING or place_of(command, folder).exists()


@pytest.mark.parametrize(("command", "place"), TRIES)
def test_an_output_that_cannot_be_written_is_an_error(results: Results, command: str, place: str) -> None:
    text = results[1][command, place]
    assert text.endswith(("exit 1", "exit 2")), text
    assert "Error: " in text
    assert "Traceback" not in text
    assert any(words in text for words in ("annot write", "is not a folder", "is a file", "exists", "must end in")), (
        text
    )


def test_outputs_that_cannot_be_written_change_nothing(results: Results) -> None:
    folder, _, before = results
    (folder / "file").read_text()
    assert (folder / "file").read_text() == "of the user"
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == before
    new = {name for name in after if name not in before and name != "file"}
    assert [name for name in new if not name.startswith("new-train/")] == [], "only a training is resumed"
