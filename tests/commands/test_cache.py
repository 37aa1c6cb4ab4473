"""`reid cache` lists packed stores and removes nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from reid.commands import main
from reid.core.locks import exclusive


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["cache", *arguments])
    assert done.exit_code == ("Error" in done.output), done.output
    return done.output


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two stores, and three things that are no store."""
    monkeypatch.setenv("REID_CACHE", str(tmp_path / "cache"))
    for name, size in (("market-8x4-a", 3000), ("duke-8x4-b", 500), ("photos", 7)):
        folder = tmp_path / "cache" / name
        folder.mkdir(parents=True)
        (folder / "crops-1f.u8").write_bytes(bytes(size))
    (tmp_path / "cache" / "photos" / "me.jpg").write_text("of the user")
    (tmp_path / "cache" / "link").symlink_to(tmp_path / "cache" / "duke-8x4-b")
    (tmp_path / "cache" / "file").write_text("x")
    return tmp_path / "cache"


def test_list_and_path_show_names_and_sizes(cache: Path) -> None:
    output = run("list")
    assert [line.split()[:3] for line in output.splitlines() if "-8x4-" in line] == [
        ["duke-8x4-b", "500", "bytes"],
        ["market-8x4-a", "3.0", "kB"],
    ]
    assert f"2 packed stores, 3.5 kB in {cache}" in output
    assert run("path") == f"{cache}\n"


def test_clear_removes_stores_and_nothing_else(cache: Path) -> None:
    assert "Did you mean 'duke-8x4-b'" in run("clear", "duke-8x4-c")
    assert run("clear", "duke-8x4-b") == "1 packed stores removed, 500 bytes\n"
    with exclusive(cache / "market-8x4-a"):
        assert "market-8x4-a is in use by process" in run("clear")
    assert run("clear") == "1 packed stores removed, 3.0 kB\n"
    assert sorted(path.name for path in cache.iterdir()) == ["file", "link", "photos"]
    assert "0 packed stores, 0 bytes" in run("list")


def test_a_missing_cache_and_a_missing_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REID_CACHE", str(tmp_path / "none"))
    assert "0 packed stores" in run("list")
    monkeypatch.delenv("REID_CACHE")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert "Set REID_CACHE" in run("path")
