"""Text of users is printed literally, on consoles of any encoding."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reid.core.console import console, make_table, warn

NAME = "[red]a[/b] :smile:"


def test_brackets_and_emoji_codes_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.print(f"folder {NAME}")
    console.print(make_table((NAME, "boxes"), [(NAME, NAME)], title=NAME, caption=NAME))
    warn(f"skipped {NAME}")
    printed = capsys.readouterr().out
    assert f"folder {NAME}\n" in printed
    assert f"Warning: skipped {NAME}\n" in printed
    assert printed.count(NAME) == 7


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_characters_that_a_console_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    console.print("128×64 → 2 ✓ ≠ 3, Köln, 東京, \udcff")
    sys.stdout.flush()
    kept = {"ascii": r"128x64 -> 2 + != 3, K\xf6ln", "cp1252": "128×64 -> 2 + != 3, Köln"}[encoding]
    assert written.getvalue().decode(encoding) == rf"{kept}, \u6771\u4eac, \udcff" + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_help_and_errors_of_commands_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", "from reid.commands import main; main()"]
    for arguments, expected in ((["data", "check", "--help"], b"Usage"), (["data", "check", "→:ü[/b]"], b"Error")):
        done = subprocess.run([*command, *arguments], env=environment, cwd=tmp_path, capture_output=True, check=False)
        assert expected in done.stdout + done.stderr
        assert b"Traceback" not in done.stderr
