"""Commands without home, terminal or UTF-8, with `python -OO`, and on disks that cannot be written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import reid
from reid.commands import main
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint

RUN = """
import resource, sys

from reid.commands import main

for line in sys.stdin.buffer.read().decode().splitlines():
    limit, *arguments = line.split("\\t")
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        main(arguments)
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            print(f"exit {end.code or 0}: {arguments[0]}", file=stream, flush=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "best.pt"
    save_checkpoint(path, build_model("light10", height=64, width=32))
    return path


def arguments_of(command: str, out: Path, model: Path, market: Path) -> list[str]:
    """Return a command line that works if `out` can be written."""
    data = f"market1501:{market}"
    small = ["model.backbone=light10", "model.height=64", "model.width=32", "schedule.epochs=1", "device=cpu"]
    lines = {
        "train": ["--out", out, f"data.train={data}", f"data.store_dir={out.parent / 'store'}", *small],
        "test": ["--model", model, "--data", data, "--out", out, "--device", "cpu"],
        "embed": ["--model", model, "--data", data, "--split", "query", "--out", out, "--device", "cpu"],
        "model export": ["--model", model, "--to", "torchscript", "--data", data, "--out", out],
        "model card": ["--model", model, "--out", out],
        "data check": [data, "--json", out],
        "data synthesize": ["--out", out, "ids=4", "cameras=2"],
    }
    return [*command.split(), *map(str, lines[command])]


def run(
    lines: list[list[str]], limit: int = 0, python: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run command lines in one process without a terminal; `limit` is the largest file it can write, 0 for none."""
    package = str(Path(reid.__file__).parents[1])
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": package, "OMP_NUM_THREADS": "1", **environment}
    given["PYTHONDONTWRITEBYTECODE"] = "1"  # a limited process would leave half of a module
    text = "\n".join("\t".join([str(limit), *line]) for line in lines)
    command = [sys.executable, *python, "-c", RUN]
    return subprocess.run(command, input=text, env=given, capture_output=True, encoding="utf-8", check=False)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_commands_work_optimised_without_home_terminal_and_utf8(model: Path, tmp_path: Path, tiny_market: Path) -> None:
    folder = tmp_path / "Köln [b] #1"
    folder.mkdir()
    names = {"train": "run", "test": "test", "embed": "e.parquet", "model card": "card.md", "data check": "check.json"}
    lines = [arguments_of(command, folder / name, model, tiny_market) for command, name in names.items()]
    done = run(lines, python=("-OO",), LC_ALL="C", PYTHONIOENCODING="ascii")
    assert done.stdout.count("exit 0") == len(names), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert all((folder / name).exists() for name in names.values())


@pytest.mark.slow
@pytest.mark.parametrize("place", ["below a file", "in a folder of the system"])
@pytest.mark.parametrize(
    "command", ["train", "test", "embed", "model export", "model card", "data check", "data synthesize"]
)
def test_an_output_that_cannot_be_written_is_an_error(
    command: str, place: str, model: Path, tmp_path: Path, tiny_market: Path
) -> None:
    (tmp_path / "file").write_text("of the user")
    out = (tmp_path / "file" if place == "below a file" else Path("/proc/reid")) / "out"
    done = CliRunner().invoke(main, arguments_of(command, out, model, tiny_market))
    assert isinstance(done.exception, SystemExit), done.output
    assert done.exit_code == 1
    assert "Error: " in done.output
    assert "annot write" in done.output or "is not a folder" in done.output, done.output
    assert (tmp_path / "file").read_text() == "of the user"


FULL_DISK = ["test", "embed", "model export", "data check"]


@pytest.fixture(scope="module")
def on_a_full_disk(
    few_pictures: None, model: Path, tiny_market: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, dict[str, bytes], dict[str, bytes]]]:
    """Repeat commands where no file can have over 1,000 bytes: errors, and the files before and after of each."""
    folders = {command: tmp_path_factory.mktemp("full") for command in FULL_DISK}
    lines = [arguments_of(command, folder / "out", model, tiny_market) for command, folder in folders.items()]
    for command, arguments in zip(FULL_DISK, lines, strict=True):
        if command != "model export":  # it needs a new folder
            assert CliRunner().invoke(main, arguments).exit_code == 0
    before = [snapshot(folder) for folder in folders.values()]
    done = run(lines, limit=1000)
    assert done.stdout.count("exit 1") == len(lines), done.stdout + done.stderr
    errors = re.split(r"^exit 1: \w+$", done.stderr, flags=re.MULTILINE)
    after = [snapshot(folder) for folder in folders.values()]
    return dict(zip(FULL_DISK, zip(errors, before, after, strict=False), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("command", FULL_DISK)
def test_a_full_disk_is_an_error_and_old_results_stay(
    command: str, on_a_full_disk: dict[str, tuple[str, dict[str, bytes], dict[str, bytes]]]
) -> None:
    error, before, after = on_a_full_disk[command]
    assert "Error: Cannot write" in error, error
    assert "Traceback" not in error
    assert after == before
