"""What a run runs on."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from reid.core import memory

FAULTS = """
import ctypes, os, resource
import torch
from reid.core.memory import keep_memory

PR_SET_THP_DISABLE = 41  # where huge pages are always on, a block is a few faults however it is had
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
parent = os.fork()
if parent:
    os.waitpid(parent, 0)
    keep_memory()

def touch():
    for _ in range(10):
        torch.ones(10_000_000)

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    """Count the pages that the system clears for ten tensors of 9,766 pages each, first without keep_memory."""
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    left, kept = map(int, done.stdout.split())
    assert left > 67_000
    assert kept < 3_300


def test_keep_memory_does_nothing_with_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class Musl:
        def __init__(self, name: object) -> None:
            pass

        def mallopt(self, *_: int) -> int:
            raise AssertionError("not glibc's")

    monkeypatch.setattr(memory.ctypes, "CDLL", Musl)
    memory.keep_memory()

    def none(_: object) -> object:
        raise OSError("no library")

    monkeypatch.setattr(memory.ctypes, "CDLL", none)
    memory.keep_memory()
