from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from reid.commands import main


def test_it_times_both_and_names_what_is_not_torchreid(tmp_path: Path) -> None:
    arguments = ["bench", "step", "--backbone", "light10", "--size", "32", "16", "--steps", "1"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "light10 32×16, 16×4, one thread, 1 steps in turn" in done.output
    rows = [line.split() for line in done.output.splitlines()]
    assert [row[0] for row in rows if row and row[-1] != "by"][1:] == ["reid", "plain"]
    done = CliRunner().invoke(main, [*arguments, "--torchreid", str(tmp_path)])
    assert done.exit_code == 1
    assert "not a source tree of torchreid" in done.output
