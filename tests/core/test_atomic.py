"""Results of a command appear together, by one process at a time."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reid.core.atomic import atomic_file, atomic_folder, result_folder, write_csv, write_json, write_text
from reid.core.errors import DataError
from reid.core.locks import exclusive

HOLD = """
import sys, time
from reid.core.locks import exclusive
with exclusive(sys.argv[1], in_parent=sys.argv[2] == "beside"):
    print("locked", flush=True)
    time.sleep(60)
"""


def write_results(folder: Path, *names: str, content: str = "new") -> None:
    with result_folder(folder, "match", "match.json") as staging:
        for name in (*names, "match.json"):
            write_text(staging / name, content)


def write_partly(staging: Path) -> None:
    write_text(staging / "a.txt", "new")
    raise DataError("Something is wrong with the input.")


def contents(folder: Path) -> dict[str, str]:
    """Return the text of each visible file by its path."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: path.read_text() for name, path in sorted(names.items()) if not name.startswith(".")}


def test_results_replace_those_of_the_last_run_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_results(out, "tracks/a.txt", "tracks/b.txt", "scores.json", content="old")
    (out / "notes.txt").write_text("of the user")
    write_results(out, "tracks/a.txt")
    assert contents(out) == {"match.json": "new", "notes.txt": "of the user", "tracks/a.txt": "new"}
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".match.json"]


def test_a_failed_run_leaves_the_results_of_the_last_run(tmp_path: Path) -> None:
    write_results(tmp_path, "a.txt", content="old")
    with pytest.raises(DataError), result_folder(tmp_path, "match", "match.json") as staging:
        write_partly(staging)
    assert contents(tmp_path) == {"a.txt": "old", "match.json": "old"}


def test_a_failed_first_run_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), result_folder(tmp_path / "out", "match", "match.json"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", range(9))
def test_a_run_that_ends_while_it_publishes_is_incomplete_without_its_summary(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a.txt", "b.txt")
    write_results(tmp_path, *names, "c.txt", content="old")
    replace, calls = os.replace, iter(range(100))

    def replace_or_end(source: Path, target: Path) -> None:
        if next(calls) == 3 + step:  # the first ones write into the hidden folder
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_or_end)
    try:
        write_results(tmp_path, *names)
    except KeyboardInterrupt:
        found = contents(tmp_path)
        assert "match.json" not in found or len(set(found.values())) == 1
    monkeypatch.setattr(os, "replace", replace)
    write_results(tmp_path, *names)
    assert contents(tmp_path) == {"a.txt": "new", "b.txt": "new", "match.json": "new"}


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path, place: str) -> None:
    path = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, path, place], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"locked\n"
        try:
            for _ in range(2):
                message = rf"out is in use by process {first.pid} on .* since 20\d\d-"
                with pytest.raises(DataError, match=message), exclusive(path, in_parent=place == "beside"):
                    pass
        finally:
            first.kill()
    with exclusive(path, in_parent=place == "beside"):  # a dead process does not block
        pass
    assert [name for name in tmp_path.rglob("*") if name.name != "out"] == []


def test_a_waiting_process_continues_when_the_other_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def wait() -> None:
        with exclusive(tmp_path, wait=True):
            order.append("second")

    with exclusive(tmp_path):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert capsys.readouterr().out.count(f"in use by process {os.getpid()}") == 1


def test_many_processes_get_the_lock_one_after_the_other(tmp_path: Path) -> None:
    count, most, at_work = 0, 0, 0

    def work() -> None:
        nonlocal count, most, at_work
        for _ in range(5):
            with exclusive(tmp_path, wait=True):
                at_work += 1
                most = max(most, at_work)
                count += 1
                at_work -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (count, most) == (20, 1)


@pytest.mark.parametrize("write", [atomic_file, atomic_folder, exclusive])
def test_a_file_in_place_of_a_folder_is_an_error(tmp_path: Path, write) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Cannot write"), write(tmp_path / "file" / "out"):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(DataError, match="No space left on device"), atomic_file(tmp_path / "a.json") as temporary:
        Path("/dev/full").write_text("x" * temporary.write_text("new"))
    assert contents(tmp_path) == {"a.json": '{\n  "old": 1\n}\n'}
    assert len(list(tmp_path.iterdir())) == 1


def test_formulas_in_csv_cells_are_neutralised_and_other_values_kept(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "cam 1", "-12.5", "+49", "a=b", "a,b", "\udcff"]
    write_csv(tmp_path / "a.csv", {"camera": names, "n": [-1] * len(names)})
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["camera", "n"]
    assert [row[0] for row in rows] == [*(f"'{name}" for name in names[:5]), *names[5:10], r"\udcff"]
    assert {row[1] for row in rows} == {"-1"}
