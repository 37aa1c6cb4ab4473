"""Limits of the C library's heaps: set where it is glibc, harmless elsewhere."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from reid.commands import live as command
from reid.commands import main
from reid.core import memory

NAMES = ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def calls_with(monkeypatch: pytest.MonkeyPatch, **functions: object) -> list[tuple[int, int]]:
    """Return the calls of `mallopt` of a C library that has these functions."""
    calls: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        calls.append((parameter, value))
        return 1

    library = SimpleNamespace(mallopt=mallopt, **functions)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", "linux")
    return calls


def test_both_limits_are_set_with_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_with(monkeypatch, gnu_get_libc_version=str)
    assert memory.limit_heap()
    assert calls == [(-8, 2), (-1, 65_536)]


@pytest.mark.parametrize(("name", "left"), [(NAMES[0], [(-1, 65_536)]), (NAMES[1], [(-8, 2)]), (NAMES[2], [])])
def test_the_environment_takes_precedence(
    monkeypatch: pytest.MonkeyPatch, name: str, left: list[tuple[int, int]]
) -> None:
    calls = calls_with(monkeypatch, gnu_get_libc_version=str)
    monkeypatch.setenv(name, "4")
    assert memory.limit_heap() == bool(left)
    assert calls == left


def test_another_c_library_or_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_with(monkeypatch)  # musl
    assert not memory.limit_heap()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not memory.limit_heap()
    assert calls == []


def test_this_c_library_accepts_the_limits() -> None:
    glibc = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    code = "from reid.core.memory import limit_heap; print(limit_heap())"
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == f"{glibc}\n"


def test_reid_live_sets_them_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(command, "limit_heap", lambda: called.append(True))
    result = CliRunner().invoke(main, ["live"])
    assert "There is no source" in result.output
    assert called
