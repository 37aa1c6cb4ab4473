from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from reid.commands import main
from reid.mtmc import Tracks
from reid.mtmc.track_files import FORMATS
from reid.mtmc.track_writers import write_tracks


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["score", *map(str, arguments)])


def world(in_second: tuple[int, int]) -> Tracks:
    names = np.repeat([1, 2, *in_second], 50)
    columns = [np.repeat([0, 1], 100), names, np.tile(np.arange(1, 51), 4)]
    return Tracks.from_columns(["cam1", "cam2"], *columns, [[400 * i, 0, 30, 60] for i in np.repeat([0, 1, 0, 1], 50)])


@pytest.mark.parametrize("format", list(FORMATS))
def test_swapped_identities_in_every_format(tmp_path: Path, format: str) -> None:
    write_tracks(world((1, 2)), tmp_path / "truth")
    write_tracks(world((2, 1)), tmp_path / "found", format)
    result = run(tmp_path / "truth", tmp_path / "found")
    assert result.exit_code == 0, result.output
    for expected in ("their mean IDF1 is 100.0", "predicted: 200 boxes, 2 cameras, read as", "IDF1 50.0, IDP 50.0"):
        assert expected in result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["all", "200", "2", "50.0", "50.0", "50.0", "57.7", "100.0", "33.3", "100.0"] in lines
    assert any(line[:4] in (["cam1", "100", "2", "100.0"], ["1", "100", "2", "100.0"]) for line in lines)
    numbers = json.loads((tmp_path / "found" / "scores.json").read_text())
    assert numbers["overall"]["IDF1"] == numbers["multi_camera"]["IDF1"] == 0.5
    assert numbers["predicted"]["format"] == format
    assert {row["IDF1"] for row in numbers["per_camera"].values()} == {1.0}


def test_warnings_and_errors(tmp_path: Path) -> None:
    truth, found = tmp_path / "truth.txt", tmp_path / "found.txt"
    truth.write_text("1,1,0,0,10,20,1,1,1\n2,1,0,0,10,20,0,1,1\n")
    found.write_text("1,5,0,0,10,20,1,-1,-1,-1\n1,5,1,0,10,20,1,-1,-1,-1\n")
    result = run(truth, found)
    assert result.exit_code == 1
    assert "both have id 5 in frame 1" in result.output
    result = run(truth, found, "--duplicates", "first", "--iou", "0.9", "--out", tmp_path / "deep" / "s.json")
    assert result.exit_code == 0, result.output
    assert "1 ground-truth rows skipped" in result.output
    assert "Assumed to be one camera" in result.output
    numbers = json.loads((tmp_path / "deep" / "s.json").read_text())
    assert (numbers["iou"], numbers["overall"]["HOTA"]) == (0.9, 1.0)
    assert "CLEAR, IoU ≥ 0.9" in result.output
    assert run(truth, tmp_path / "none").exit_code == 1
    assert run(truth, found, "--iou", "0").exit_code == 1


def test_files_without_tracks(tmp_path: Path) -> None:
    write_tracks(Tracks.from_columns(["a", "b"], [], [], [], []), tmp_path / "none")
    result = run(tmp_path / "none", tmp_path / "none")
    assert result.exit_code == 0, result.output
