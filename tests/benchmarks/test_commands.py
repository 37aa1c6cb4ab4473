"""Every benchmark has the same command style, and is listed in benchmarks/README.md."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import benchmarks

FOLDER = Path(benchmarks.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "measure"))


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_is_a_click_command_with_help(name: str) -> None:
    command = importlib.import_module(f"benchmarks.{name}").main
    assert isinstance(command, click.Command)
    done = CliRunner().invoke(command, ["--help"])
    assert done.exit_code == 0
    assert command.help


def test_readme_lists_every_benchmark() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    assert [name for name in NAMES if f"`{name}`" not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "printed"),
    [
        ("loader", ["--epochs", "1", "--crops", "256"], "crops a second"),
        ("matching_scale", ["--boxes", "2000", "--cameras", "2"], "IDF1"),
        ("matching_growth", ["100"], "| 100 | agglomerative |"),
        ("neighbour_search", ["--tracklets", "400"], "| made | 400 |"),
        ("matching_grid", ["--people", "4", "--layout", "1 camera"], "| **all** | 8 |"),
    ],
)
def test_benchmark_runs_on_a_small_input(
    name: str, arguments: list[str], printed: str, capfd: pytest.CaptureFixture[str]
) -> None:
    command = importlib.import_module(f"benchmarks.{name}").main
    command.main(arguments, standalone_mode=False)
    assert printed in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_results_of_killed_commands_equal_those_of_uninterrupted_ones() -> None:
    """`synthesize`, which starts processes, is killed in tests/synthetic/test_writer.py."""
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "2", "train", "pack"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, cwd=FOLDER.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("train", "pack"):
        assert f"{name}: 2 kills" in done.stdout or f"{name}: 1 kills, 1 finished" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_killed_additions_and_erasures_of_a_gallery_are_whole() -> None:
    pytest.importorskip("lancedb")
    command = [sys.executable, "-m", "benchmarks.gallery_kills", "--kills", "2", "--tracklets", "50", "add", "erase"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=FOLDER.parent)
    assert done.returncode == 0, done.stdout + done.stderr
