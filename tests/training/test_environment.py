"""What a run runs on."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from reid.training import environment

FAULTS = """
import ctypes, resource, sys
import torch
from reid.training.environment import keep_memory

PR_SET_THP_DISABLE = 41  # where huge pages are always on, a block is a few faults however it is had
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
if sys.argv[1] == "keep":
    keep_memory()

def touch():
    for _ in range(10):
        torch.ones(30_000_000)

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the system cleared for ten tensors of 29,297 pages each, one after the other."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    assert faults("leave") > 200_000
    assert faults("keep") < 10_000


def test_keep_memory_does_nothing_with_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class Musl:
        def __init__(self, name: object) -> None:
            pass

        def mallopt(self, *_: int) -> int:
            raise AssertionError("not glibc's")

    monkeypatch.setattr(environment.ctypes, "CDLL", Musl)
    environment.keep_memory()

    def none(_: object) -> object:
        raise OSError("no library")

    monkeypatch.setattr(environment.ctypes, "CDLL", none)
    environment.keep_memory()
