from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.training_step import main
from reid.core.errors import ReidError


@pytest.mark.slow
def test_training_step_times_this_project_and_a_plain_loop() -> None:
    done = CliRunner().invoke(main, ["--backbone", "light10", "--size", "32", "16", "--steps", "1"])
    assert done.exit_code == 0, done.output
    assert "light10 32×16, 16×4, one thread, 1 steps in turn" in done.output
    rows = [line.split() for line in done.output.splitlines()]
    assert [row[0] for row in rows if row and row[-1] != "by"] == ["Processor:", "light10", "reid", "plain"]


def test_a_folder_that_is_not_torchreid_is_refused(tmp_path: Path) -> None:
    arguments = ["--backbone", "light10", "--size", "32", "16", "--steps", "1", "--torchreid", str(tmp_path)]
    error = CliRunner().invoke(main, arguments).exception
    assert isinstance(error, ReidError)
    assert "not a source tree of torchreid" in str(error)
