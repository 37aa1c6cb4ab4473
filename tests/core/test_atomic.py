"""Whole files and folders, also after a killed process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reid.core import atomic
from reid.core.atomic import atomic_file, atomic_folder, write_text
from reid.core.errors import DataError

WRITER = """
import os, signal, sys
from reid.core.atomic import atomic_file, atomic_folder
with atomic_folder(sys.argv[1] + "/bundle") as folder, atomic_file(sys.argv[1] + "/table.csv") as file:
    (folder / "model.bin").write_bytes(b"half")
    file.write_text("half")
    print(flush=True)
    os.kill(os.getpid(), signal.SIGKILL if sys.argv[2] == "killed" else signal.SIGSTOP)
"""


def start_writer(folder: Path, state: str) -> subprocess.Popen[str]:
    """Start a process that is killed or stopped between the first byte and the last; return it then."""
    command = [sys.executable, "-c", WRITER, str(folder), state]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_what_killed_processes_left_is_removed_at_the_next_write(tmp_path: Path) -> None:
    (tmp_path / ".notes.part").write_text("of the user")
    running = start_writer(tmp_path, "stopped")
    try:
        of_running = hidden(tmp_path)
        assert len(of_running) == 3, "the user's file, a temporary file and a temporary folder"
        assert start_writer(tmp_path, "killed").wait() == -signal.SIGKILL
        assert len(hidden(tmp_path)) == 5
        write_text(tmp_path / "other.txt", "whole")
        assert hidden(tmp_path) == of_running, "only the files of the killed process are removed"
    finally:
        running.kill()
        running.wait()
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["other.txt"]


def test_left_files_of_an_earlier_process_with_the_same_number_are_removed(tmp_path: Path) -> None:
    left = tmp_path / f".table.{atomic._MACHINE}-{os.getpid()}-01234567-0.part.csv"
    left.write_text("half")
    write_text(tmp_path / "table.csv", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_a_first_write_through_a_link_to_the_folder_keeps_what_the_process_is_writing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with atomic_file(tmp_path / "out" / "a.txt") as first:
        first.write_text("first")
        write_text(tmp_path / "link" / "b.txt", "second")
    assert (tmp_path / "out" / "a.txt").read_text() == "first"


def test_one_process_can_write_a_file_twice_simultaneously(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.txt") as first, atomic_file(tmp_path / "a.txt") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first"


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").touch()
    for path in (tmp_path / "out", tmp_path / "out" / "a.txt"):
        with pytest.raises(DataError, match="not an empty folder"), atomic_folder(path):
            raise AssertionError
